"""The detection student's backbone learns from the segmentation of the pictures."""

_base_ = 'seg_student.py'
model = dict(
    # the strides of detection, and all levels that its neck uses
    backbone=dict(strides=(1, 2, 2, 2)),
    decode_head=dict(
        in_channels=[16, 32, 64], in_index=[1, 2, 3], input_transform='resize_concat'))

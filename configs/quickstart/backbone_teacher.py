"""The detection teacher's backbone learns from the segmentation of the pictures."""

_base_ = 'backbone_student.py'
model = dict(
    backbone=dict(stem_channels=24, base_channels=24),
    decode_head=dict(in_channels=[48, 96, 192], channels=64))

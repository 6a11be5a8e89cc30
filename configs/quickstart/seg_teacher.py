"""The segmentation teacher: three times as wide as the student."""

_base_ = 'seg_student.py'
model = dict(
    backbone=dict(stem_channels=24, base_channels=24),
    decode_head=dict(in_channels=192, channels=64))

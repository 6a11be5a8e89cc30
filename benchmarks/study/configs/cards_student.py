"""Playing cards: the student."""

_base_ = ['gfl_student.py', 'cards.py']
model = dict(bbox_head=dict(num_classes=6))

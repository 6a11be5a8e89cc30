"""Playing cards: the teacher."""

_base_ = ['gfl_teacher.py', 'cards.py']
model = dict(bbox_head=dict(num_classes=6))

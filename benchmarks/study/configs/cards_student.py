"""Playing cards: the student."""

_base_ = 'gfl_student.py'
classes = ('nine', 'ten', 'jack', 'queen', 'king', 'ace')
own = dict(data_root='{{$REAL_PICTURES:data/real}}/cards/', metainfo=dict(classes=classes))
model = dict(bbox_head=dict(num_classes=6))
train_dataloader = dict(dataset=own)
val_dataloader = dict(dataset=own)
test_dataloader = dict(dataset=own)

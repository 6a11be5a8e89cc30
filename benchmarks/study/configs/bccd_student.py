"""BCCD, blood cells: the student."""

_base_ = 'gfl_student.py'
classes = ('RBC', 'WBC', 'Platelets')
own = dict(data_root='{{$REAL_PICTURES:data/real}}/bccd/', metainfo=dict(classes=classes))
model = dict(bbox_head=dict(num_classes=3))
train_dataloader = dict(dataset=own)
val_dataloader = dict(dataset=own)
test_dataloader = dict(dataset=own)
val_evaluator = dict(ann_file=own['data_root'] + 'annotations/val.json')
test_evaluator = dict(ann_file=own['data_root'] + 'annotations/test.json')

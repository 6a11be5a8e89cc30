"""BCCD, blood cells: the student."""

_base_ = 'gfl_student.py'
classes = ('RBC', 'WBC', 'Platelets')
folder = '{{$REAL_PICTURES:data/real}}/bccd/'
own = dict(data_root=folder, metainfo=dict(classes=classes))
model = dict(bbox_head=dict(num_classes=3))
train_dataloader = dict(dataset=own)
val_dataloader = dict(dataset=own)
test_dataloader = dict(dataset=own)
val_evaluator = dict(ann_file=folder + 'annotations/val.json')
test_evaluator = dict(ann_file=folder + 'annotations/test.json')

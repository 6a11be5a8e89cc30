"""NEU-DET, defects of steel: the student."""

_base_ = 'gfl_student.py'
classes = (
    'crazing', 'inclusion', 'patches', 'pitted_surface', 'rolled-in_scale', 'scratches',
)  # fmt: skip
own = dict(data_root='{{$REAL_PICTURES:data/real}}/neudet/', metainfo=dict(classes=classes))
model = dict(bbox_head=dict(num_classes=6))
train_dataloader = dict(dataset=own)
val_dataloader = dict(dataset=own)
test_dataloader = dict(dataset=own)
val_evaluator = dict(ann_file=own['data_root'] + 'annotations/val.json')
test_evaluator = dict(ann_file=own['data_root'] + 'annotations/test.json')

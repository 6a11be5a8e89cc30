"""NEU-DET, defects of steel: a student with region proposals."""

_base_ = 'faster_student.py'
classes = (
    'crazing', 'inclusion', 'patches', 'pitted_surface', 'rolled-in_scale', 'scratches',
)  # fmt: skip
folder = '{{$REAL_PICTURES:data/real}}/neudet/'
own = dict(data_root=folder, metainfo=dict(classes=classes))
train_dataloader = dict(dataset=own)
val_dataloader = dict(dataset=own)
test_dataloader = dict(dataset=own)
val_evaluator = dict(ann_file=folder + 'annotations/val.json')
test_evaluator = dict(ann_file=folder + 'annotations/test.json')

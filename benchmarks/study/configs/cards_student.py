"""Playing cards: the student. In the size that they come in: ranks cannot be read in smaller ones."""

_base_ = 'gfl_student.py'
classes = ('nine', 'ten', 'jack', 'queen', 'king', 'ace')
folder = '{{$REAL_PICTURES:data/real}}/cards/'
own = dict(data_root=folder, metainfo=dict(classes=classes))
model = dict(bbox_head=dict(num_classes=6))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=(320, 240), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(224, 224)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(320, 240), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(dataset=dict(**own, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**own, pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(**own, pipeline=test_pipeline))
val_evaluator = dict(ann_file=folder + 'annotations/val.json')
test_evaluator = dict(ann_file=folder + 'annotations/test.json')

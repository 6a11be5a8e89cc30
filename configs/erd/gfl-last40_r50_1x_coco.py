"""GFL that learns the last 40 classes of COCO beside the first 40: the student.

Alone it forgets: its baseline without distillation. Trained on the new classes, it is evaluated on
all. Source: Hi-FT/ERD: the zoo's GFL, another head.
"""
_base_ = ['../_base_/kd_dense.py', 'mmdet::gfl/gfl_r50_fpn_1x_coco.py']
model = dict(bbox_head=dict(type='kd_dense.IncrementalGFLHead', old_classes=40))
classes = (
    'wine glass', 'cup', 'fork', 'knife', 'spoon', 'bowl', 'banana', 'apple', 'sandwich',
    'orange', 'broccoli', 'carrot', 'hot dog', 'pizza', 'donut', 'cake', 'chair', 'couch',
    'potted plant', 'bed', 'dining table', 'toilet', 'tv', 'laptop', 'mouse', 'remote',
    'keyboard', 'cell phone', 'microwave', 'oven', 'toaster', 'sink', 'refrigerator', 'book',
    'clock', 'vase', 'scissors', 'teddy bear', 'hair drier', 'toothbrush')
train_dataloader = dict(dataset=dict(metainfo=dict(classes=classes)))

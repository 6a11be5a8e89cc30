"""A small CellNet."""

model = dict(
    type='cellseg.CellNet',
    width=4,
    data_preprocessor=dict(
        type='ImgDataPreprocessor', mean=[128.0, 128.0, 128.0], std=[40.0, 40.0, 40.0]))

train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='cellseg.Cells', count=400))
val_dataloader = dict(
    batch_size=20,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='cellseg.Cells', count=100, first=100_000))
test_dataloader = val_dataloader
val_evaluator = dict(type='cellseg.CellIoU')
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(type='AdamW', lr=4e-3))
param_scheduler = [dict(type='OneCycleLR', eta_max=4e-3, total_steps=300, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=300, val_interval=300)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=300))
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)

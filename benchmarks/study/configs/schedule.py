"""Schedule and run time of all trainings on real pictures; a run says how long it is."""

_base_ = '../../../configs/_base_/kd_dense.py'  # so the frameworks' own tools run them too
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=1e-2),
    clip_grad=dict(max_norm=5),
)
param_scheduler = [dict(type='OneCycleLR', eta_max=2e-3, total_steps=600, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=600, val_interval=600)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

default_hooks = dict(
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=600, save_optimizer=False),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
env_cfg = dict(
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='gloo')
)

"""The custom detector of the documentation: its student, on the schedule of the study.

`python examples/custom_detector/make_parts.py` draws the pictures to train and validate on, and
with `--out data/parts-test --seed 1 --train 0 --val 300` those to test on.
"""

_base_ = '../../../examples/custom_detector/student.py'
default_scope = 'mmdet'

train_dataloader = dict(
    sampler=dict(_delete_=True, type='InfiniteSampler', shuffle=True), batch_sampler=None
)
test_root = 'data/parts-test/'
test_dataloader = dict(dataset=dict(data_root=test_root))
test_evaluator = dict(ann_file=test_root + 'annotations/val.json')

optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=1e-2))
param_scheduler = [dict(type='OneCycleLR', eta_max=2e-3, total_steps=600, by_epoch=False)]
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=600, val_interval=600)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, save_optimizer=False)
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
env_cfg = dict(
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='gloo')
)

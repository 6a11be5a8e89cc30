"""Trainings with FSDP through mmengine's FlexibleRunner, and the same with DDP."""

import os

import pytest
import torch
from mmengine.runner import FlexibleRunner
from torch import distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel

from tests.mm import methods, toy
from tests.mm.distil.test_scale import SGD, Losses

BOTH = ('cwd', 'cwd-detector')
UNITS = {  # names of classes that are sharded as units of their own
    'whole': (),
    'layers': ('ResLayer', 'Adapter'),  # a tap is such a unit
    'blocks': ('BasicBlock', 'ConvModule', 'Conv2d'),
    'parts': ('ResNet', 'ResNetV1c', 'FPN'),  # taps lie inside
    'terms': ('Term',),
}


def policy(names):
    return lambda module, recurse, nonwrapped_numel: recurse or type(module).__name__ in names


def flexible(config, method, work_dir, units=(), strategy=None, max_iters=3, **others):
    wrapper = others.pop('wrapper', {})
    fsdp = dict(
        type='FSDPStrategy',
        model_wrapper=dict(
            type='MMFullyShardedDataParallel',
            device_id=torch.device('cpu'),
            use_orig_params=True,
            auto_wrap_policy=policy(units),
            **wrapper,
        ),
    )
    return FlexibleRunner(
        model=config,
        work_dir=work_dir,
        strategy={**fsdp, **(strategy or {})},
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=methods.scenes(method),
        ),
        train_cfg=dict(by_epoch=False, max_iters=max_iters, val_interval=10**6),
        optim_wrapper=dict(optimizer=SGD),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False),
            logger=dict(type='LoggerHook', interval=1),
        ),
        launcher='none' if strategy else 'pytorch',
        randomness=dict(seed=0),
        log_level='ERROR',
        default_scope='mmengine',
        experiment_name=os.path.basename(work_dir),
        **others,
    )


def train(config, method, work_dir, **others):
    losses = Losses()
    hooks = [losses, *others.pop('custom_hooks', [])]
    runner = flexible(config, method, work_dir, custom_hooks=hooks, **others)
    runner.train()
    units = [n for n, m in runner.model.named_modules() if isinstance(m, FullyShardedDataParallel)]
    with FullyShardedDataParallel.summon_full_params(runner.model):
        model = runner.model.module
        weights = {
            n.replace('_fsdp_wrapped_module.', ''): p.detach().clone()
            for n, p in model.named_parameters()
        }
    return losses.values, weights, units


def with_ddp(config, method, work_dir, **others):
    """The same training with what everybody uses."""
    losses = Losses()
    hooks = [losses, *others.pop('custom_hooks', [])]
    runner = toy.runner(
        config, work_dir, 3, launcher='pytorch', param_scheduler=None,
        optim_wrapper=dict(optimizer=SGD), custom_hooks=hooks,
        train_dataloader=dict(
            batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=methods.scenes(method)),
        cfg=dict(model_wrapper_cfg=dict(
            type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)),
    )  # fmt: skip
    runner.train()
    model = runner.model.module
    return losses.values, {n: p.detach().clone() for n, p in model.named_parameters()}, []


def outcome(call, *args, **kwargs):
    """What a call returns, or says."""
    try:
        found = call(*args, **kwargs)
    except Exception as error:
        found = f'{type(error).__name__}: {error}'
    dist.barrier()
    return found


def ready(config):
    """The model with its weights: runners draw their random numbers in orders of their own."""
    torch.manual_seed(0)
    model = toy.build(config)
    model.init_weights()
    model.init_weights = lambda: None
    return model


def compared(rank, folder, units=('parts',)):
    """A segmenter and a detector, with DDP and with FSDP, by the units that are sharded."""
    found = {}
    for method in BOTH:
        config = methods.distilled(method)
        found[method] = {'ddp': with_ddp(ready(config), method, f'{folder}/{method}-ddp')}
        for name in units:
            work_dir = f'{folder}/{method}-{name}'
            found[method][name] = outcome(
                train, ready(config), method, work_dir, units=UNITS[name]
            )
    return found


def assert_same(found, expected, tolerance=1e-4):
    assert not isinstance(found, str), found
    (values, weights, _), (others, other_weights, _) = found, expected
    assert len(values) == len(others) == 3
    for a, b in zip(values, others, strict=True):
        assert a == pytest.approx(b, rel=tolerance)
    assert weights.keys() == other_weights.keys()
    for name, value in weights.items():
        assert torch.allclose(value, other_weights[name], rtol=tolerance, atol=1e-6), name

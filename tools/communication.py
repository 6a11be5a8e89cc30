"""Count what processes exchange in one training step of recipes, and of their students alone.

    torchrun --nproc_per_node 2 tools/communication.py RECIPE [RECIPE ...]

Models and pictures are random, and the pictures small: the size of neither changes what is
exchanged. Runs in CPU processes; on GPUs as many numbers are exchanged.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_reduce_params
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import distributed
from torch.profiler import ProfilerActivity, profile

from benchmark import make_batch, plain_student, read
from kd_dense.losses import HolisticLoss
from train import leave_group

SIZE = (128, 256)


class Exchange(NamedTuple):
    """Numbers that are trained, bytes of gradients, and the other collectives' count and bytes."""

    trained: int
    gradients: int
    others: int
    other_bytes: int


def counted(step: Callable[[], Any], trained: int) -> Exchange:
    """Count the collectives of a step. All that they carry is float32."""
    for _ in range(2):  # DDP settles its buckets in the second
        step()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        step()
    sizes = [
        4 * torch.Size(event.input_shapes[0]).numel()
        for event in profiler.events()
        if event.name.startswith('gloo:')
    ]
    small = [size for size in sizes if size <= 1024]
    return Exchange(trained, sum(sizes) - sum(small), len(small), sum(small))


def measure(model: Any, config: Any) -> Exchange:
    """Build the step of a model as mmengine's Runner takes it, and count."""
    model = revert_sync_batchnorm(model)  # SyncBN does not run on CPUs
    model.train()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    critics = [m for m in model.modules() if isinstance(m, HolisticLoss)]
    batch = make_batch(config, model, count=2)
    ddp = MMDistributedDataParallel(model, broadcast_buffers=False)

    def step() -> None:
        model.zero_grad()
        loss, _ = model.parse_losses(ddp(*batch, mode='loss'))
        loss.backward()
        for critic in critics:
            critic.critic_backward()
            grads = [p.grad for p in critic.critic.parameters() if p.grad is not None]
            all_reduce_params(grads, op='mean')

    return counted(step, trained)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('recipes', nargs='+', help='paths of recipes')
    recipes = parser.parse_args().recipes
    if 'RANK' not in os.environ:
        parser.error('start it with torchrun --nproc_per_node 2')
    distributed.init_process_group('gloo')
    MMLogger.get_instance('communication', log_level='ERROR')
    MessageHub.get_instance('communication').update_info_dict(dict(iter=0, max_iters=1))
    for recipe in recipes:
        config = read(recipe, [], argparse.Namespace(size=SIZE, pretrained=False))
        with DefaultScope.overwrite_default_scope(config.default_scope):
            torch.manual_seed(0)
            model = MODELS.build(deepcopy(config.model))  # building may change a config
            found = {'alone': measure(plain_student(config, model), config)}
            found['distilled'] = measure(model, config)
        if distributed.get_rank() == 0:
            print(Path(recipe).stem)
            for name, exchange in found.items():
                print(
                    f'  {name:10} {exchange.trained:>12,} numbers trained, '
                    f'{exchange.gradients:>12,} bytes of gradients, '
                    f'{exchange.others} other collectives of {exchange.other_bytes:,} bytes'
                )
    leave_group()


if __name__ == '__main__':
    main()

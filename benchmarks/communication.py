"""Count what processes exchange in one training step of recipes, and of their students alone.

    torchrun --nproc_per_node 2 benchmarks/communication.py RECIPE [RECIPE ...]

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
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import DefaultScope
from torch import distributed
from torch.profiler import ProfilerActivity, profile

# This comes before any config is read.
import kd_dense.mm  # noqa: F401
from kd_dense.losses import HolisticLoss
from kd_dense.mm.configs import read_config
from kd_dense.mm.cost.batch import make_batch
from kd_dense.mm.cost.recipe import Recipe, prepared
from kd_dense.mm.cost.steps import build_to_try
from kd_dense.mm.distil.distilled import bare
from kd_dense.mm.run.processes import leave_group

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


def measure(model: Any, recipe: Recipe) -> Exchange:
    """Build the step of a model as mmengine's Runner takes it, and count."""
    model.train()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    critics = [m for m in model.modules() if isinstance(m, HolisticLoss)]
    batch = make_batch(recipe, model, count=2)
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
    paths = parser.parse_args().recipes
    if 'RANK' not in os.environ:
        parser.error('start it with torchrun --nproc_per_node 2')
    distributed.init_process_group('gloo')
    MMLogger.get_instance('communication', log_level='ERROR')
    MessageHub.get_instance('communication').update_info_dict(dict(iter=0, max_iters=1))
    for path in paths:
        recipe = prepared(read_config(path), SIZE)
        with DefaultScope.overwrite_default_scope(recipe.config.default_scope):
            torch.manual_seed(0)
            model = build_to_try(recipe.config.model)
            found = {'alone': measure(deepcopy(bare(model)), recipe)}
            found['distilled'] = measure(model, recipe)
        if distributed.get_rank() == 0:
            print(Path(path).stem)
            for name, exchange in found.items():
                print(
                    f'  {name:10} {exchange.trained:>12,} numbers trained, '
                    f'{exchange.gradients:>12,} bytes of gradients, '
                    f'{exchange.others} other collectives of {exchange.other_bytes:,} bytes'
                )
    leave_group()


if __name__ == '__main__':
    main()

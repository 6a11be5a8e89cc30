"""Short trainings for tests of what can befall one; their configs import this file."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS, MODELS

from tests.mm import methods, toy

ITERS, INTERVAL = 30, 3
DATASETS.register_module(module=toy.SegScenes)


@DATASETS.register_module()
class NoisyDetScenes(toy.DetScenes):
    """Boxes on pictures to which each look adds noise."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        noise = torch.randint(0, 16, item['inputs'].shape, dtype=torch.uint8)
        return {**item, 'inputs': item['inputs'] ^ noise}


@MODELS.register_module()
class DropoutFPN(MODELS.get('mmdet.FPN')):  # imports mmdet, after kd_dense
    """A neck with dropout, as detectors have none elsewhere."""

    def forward(self, inputs: Any) -> Any:
        return tuple(torch.dropout(x, 0.1, self.training) for x in super().forward(inputs))


@HOOKS.register_module()
class KillHook(Hook):
    """Kill the process with SIGKILL, as it would be killed from outside, at the moment in $KILL.

    A process knows better than its parent where it stands. A moment is ``call N`` (at the N-th
    call of a Python function since the start of the run), ``half N SHARE`` (when the N-th file
    has been written up to this share), ``whole N`` (when it has been written, before it gets its
    name) or ``named N`` (right after). Without $KILL, a run that ends writes the number of its
    calls to ``calls`` in its work directory.
    """

    priority = 'VERY_HIGH'

    def before_run(self, runner: Any) -> None:
        what, number, *share = os.environ.get('KILL', 'call 0').split()
        self.calls = self.files = 0
        fsync, replace = self.intact = os.fsync, os.replace

        def count(frame: Any, event: str, arg: Any) -> None:
            if event == 'call':
                self.calls += 1
                if what == 'call' and self.calls == int(number):
                    os.kill(os.getpid(), signal.SIGKILL)

        def on_fsync(file: int) -> None:
            self.files += 1
            if (what, self.files) == ('half', int(number)):
                os.ftruncate(file, int(float(share[0]) * os.fstat(file).st_size))
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(file)

        def on_replace(source: str, target: str) -> None:
            if (what, self.files) == ('whole', int(number)):
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
            if (what, self.files) == ('named', int(number)):
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync, os.replace = on_fsync, on_replace
        sys.setprofile(count)

    def after_run(self, runner: Any) -> None:
        sys.setprofile(None)
        os.fsync, os.replace = self.intact
        Path(runner.work_dir, 'calls').write_text(json.dumps(self.calls))


@HOOKS.register_module()
class VanishHook(Hook):
    """Remove a file before an iteration."""

    def __init__(self, path: str, iteration: int) -> None:
        self.path, self.iteration = path, iteration

    def before_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        if runner.iter == self.iteration:
            os.unlink(self.path)


def loader(dataset: str, sampler: str, **others: Any) -> dict[str, Any]:
    return dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type=sampler, shuffle=True),
        dataset=dict(type=dataset, **others),
    )


def write_config(method: str, path: Path, iters: int = ITERS, **others: Any) -> Path:
    """Write the config of a short training with dropout and augmentation.

    CWD runs by iterations and validates, SKD by iterations of a sampler with epochs and with
    its critic, FGD by epochs.

    Args:
        method: One of these three.
        path: The file to write.
        iters: Iterations of the training.
        others: Fields of the config to set.

    Returns:
        The file.
    """
    student, teacher = toy.segmenter(), toy.segmenter(16)
    data = loader('SegScenes', 'InfiniteSampler')
    loop = dict(type='IterBasedTrainLoop', max_iters=iters, val_interval=2 * INTERVAL)
    saving = dict(type='CheckpointHook', by_epoch=False, interval=INTERVAL, max_keep_ckpts=2)
    more = {}
    if method == 'cwd':
        saving.update(save_best='mIoU')
        more = dict(
            val_dataloader=loader('SegScenes', 'DefaultSampler', length=4),
            val_evaluator=dict(type='mmseg.IoUMetric', iou_metrics=['mIoU']),
            val_cfg=dict(type='ValLoop'),
        )
    elif method == 'skd':
        data = loader('SegScenes', 'DefaultSampler', length=40)
    elif method == 'fgd':
        student, teacher = toy.detector(), toy.detector(16)
        student.neck.type = 'DropoutFPN'
        data = loader('NoisyDetScenes', 'DefaultSampler', length=2 * INTERVAL)
        loop = dict(type='EpochBasedTrainLoop', max_epochs=iters // INTERVAL)
        saving.update(by_epoch=True, interval=1)
    config = dict(
        custom_imports=dict(imports=['tests.cli.kill']),
        default_scope='mmengine',
        model=toy.distilled(
            student,
            dict(config=teacher, checkpoint=None),
            (methods.SEGMENTERS | methods.DETECTORS)[method],
        ),
        train_dataloader=data,
        train_cfg=loop,
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2), clip_grad=dict(max_norm=1.0)),
        param_scheduler=dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=iters // 2),
        default_hooks=dict(checkpoint=saving, logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='KillHook')],
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        randomness=dict(seed=0),
        **more,
    )
    config.update(others)
    Config(config).dump(path)
    return path

"""Train a model of mmdet or mmseg, distilled or not, from its config.

The options are those of the frameworks' own tools/train.py, which run our recipes as well.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.hooks import CheckpointHook
from mmengine.hub import get_config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

# This comes before any config is read.
from kd_dense.mm.checkpoint_hook import is_complete, newest_checkpoint, what_remains


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help="path of a config, or a name as 'mmdet::FOLDER/FILE.py'")
    parser.add_argument('--work-dir', help='where logs and checkpoints go')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the batch size, as the config says',
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint, or from the newest complete one of the work directory',
    )
    without_recipe = parser.add_argument_group('to distil the model of a config without a recipe')
    without_recipe.add_argument(
        '--teacher', help="config of the teacher: a path, or a name as 'mmdet::FOLDER/FILE.py'"
    )
    without_recipe.add_argument(
        '--teacher-checkpoint', help='its weights (default: those published with the config)'
    )
    without_recipe.add_argument('--distill', metavar='METHOD', help="a preset, as 'cwd'")
    add_common_options(parser)
    args = parser.parse_args()
    if bool(args.teacher) != bool(args.distill) or (args.teacher_checkpoint and not args.teacher):
        parser.error('--teacher and --distill go together, --teacher-checkpoint with them')
    return args


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config, as in train_cfg.max_iters=100',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='who starts the processes',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def read_config(args: argparse.Namespace) -> Config:
    """Read a config and apply the options that training and testing share."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if '::' in args.config:
        config = get_config(args.config)
    elif Path(args.config).is_file():
        config = Config.fromfile(args.config)
    else:
        raise SystemExit(f'the config {args.config} does not exist (looked in {Path.cwd()})')
    config.launcher = args.launcher
    if args.cfg_options:
        config.merge_from_dict(args.cfg_options)
    # The command line goes before the config, and both before the name of the file.
    if args.work_dir:
        config.work_dir = args.work_dir
    elif not config.get('work_dir'):
        config.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    return config


def check_writable(folder: Path) -> None:
    """Stop before anything is built where logs and checkpoints could not be written."""
    existing = next(p for p in (folder, *folder.absolute().parents) if os.path.exists(p))
    try:
        with TemporaryFile(dir=existing) as file:
            file.write(b'0')
            file.flush()
    except OSError as error:
        raise SystemExit(
            f'cannot write to the work directory {folder} ({existing}: {error.strerror}); '
            'choose another with --work-dir'
        ) from error


def find_start(config: Config, resume: str | None) -> None:
    """Settle which checkpoint a training goes on from, if any.

    Args:
        config: The config; its ``resume`` and ``load_from`` are set.
        resume: A checkpoint, 'auto', or None to do what the config says.
    """
    if not resume and config.get('resume'):
        resume = config.get('load_from') or 'auto'
    if not resume:
        return
    if resume == 'auto':
        newest = newest_checkpoint(config.work_dir)
        if newest is None:
            # A first start has nothing to go on from, and keeps what load_from names.
            print_log(f'{config.work_dir} holds no checkpoint: starting from the beginning')
            config.resume = False
            return
        resume = str(newest)
    elif '://' not in resume and not is_complete(Path(resume).expanduser()):
        what = 'is not complete' if os.path.exists(resume) else 'does not exist'
        raise SystemExit(
            f'the checkpoint {resume} {what} (looked in {Path.cwd()}); --resume without a path '
            'takes the newest complete one of the work directory'
        )
    print_log(f'resuming from {resume}')
    config.resume, config.load_from = True, resume


def use_safe_checkpoints(config: Config) -> None:
    """Put our hook where mmengine's is, with the same settings."""
    hooks = {
        'checkpoint': dict(type='CheckpointHook', interval=1),  # mmengine's own default
        **(config.get('default_hooks') or {}),
    }
    checkpoint = hooks['checkpoint']
    if checkpoint and checkpoint['type'] in ('CheckpointHook', CheckpointHook):
        hooks['checkpoint'] = {**checkpoint, 'type': 'kd_dense.SafeCheckpointHook'}
    config.default_hooks = hooks


def build_runner(config: Config) -> Any:
    """Build the Runner that the config asks for, in CPU processes where there is no GPU."""
    if config.launcher == 'pytorch' and not torch.accelerator.is_available():
        _distribute_on_cpu(config)
    return RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)


def _distribute_on_cpu(config: Config) -> None:
    """Do what mmengine leaves out: it selects a GPU before it starts the processes."""
    torch.distributed.init_process_group('gloo')
    wrapper = dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=config.get('find_unused_parameters', False),
    )
    config.model_wrapper_cfg = {**wrapper, **(config.get('model_wrapper_cfg') or {})}
    norms = [part for part in dicts_in(config.model) if part.get('type') == 'SyncBN']
    for norm in norms:
        norm['type'] = 'BN'
    if norms:
        print_log('SyncBN does not run on CPUs: BN takes its place', level=30)


def dicts_in(value: Any) -> Iterator[Any]:
    """All dicts of a nested value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from dicts_in(item)


def main() -> None:
    args = parse_args()
    config = read_config(args)
    check_writable(Path(config.work_dir))

    if args.teacher:
        teacher = dict(config=args.teacher)
        if args.teacher_checkpoint:
            teacher['checkpoint'] = args.teacher_checkpoint
        config.model = dict(
            type='kd_dense.Distilled', student=config.model, teacher=teacher, preset=args.distill
        )
    if args.amp:
        kind = config.optim_wrapper.get('type', 'OptimWrapper')
        if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise SystemExit(f'--amp works with the OptimWrapper, the config has {kind}')
        config.optim_wrapper.type = 'AmpOptimWrapper'
        config.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in (config.get('auto_scale_lr') or {}):
            raise SystemExit('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
        config.auto_scale_lr.enable = True
    find_start(config, args.resume)
    # Without the first, a resumed training with dropout or augmentation is another training;
    # the second trains the critic of an adversarial loss, and does nothing where there is none.
    hooks = config.get('custom_hooks') or []
    for kind in ('kd_dense.RandomStateHook', 'kd_dense.CriticHook'):
        if all(hook.get('type') != kind for hook in hooks):
            hooks = [*hooks, dict(type=kind)]
    config.custom_hooks = hooks
    use_safe_checkpoints(config)

    runner = build_runner(config)
    try:
        runner.train()
    except OSError as error:
        reason = str(error).strip().splitlines()[-1]  # the worker's own, where there is one
        if '[Errno' not in reason:
            raise  # one that says itself what to do
        remedy = 'put the file back' if 'No such file' in reason else 'mend this'
        rest = what_remains(config.work_dir, remedy)
        raise RuntimeError(f'the training stopped: {reason}. {rest}') from error


if __name__ == '__main__':
    main()

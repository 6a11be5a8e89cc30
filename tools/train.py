"""Train a model of mmdet or mmseg, distilled or not, from its config.

The options are those of the frameworks' own tools/train.py, which run our recipes as well.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.hooks import CheckpointHook
from mmengine.hub import get_config
from mmengine.logging import print_log
from mmengine.registry import MODELS, RUNNERS, DefaultScope
from mmengine.runner import Runner

# This comes before any config is read.
from kd_dense.mm import Distilled
from kd_dense.mm.checkpoint_hook import is_complete, newest_checkpoint, what_remains
from kd_dense.mm.presets import PRESETS, choose_preset
from kd_dense.mm.recipe import recipe
from kd_dense.mm.teacher import Teacher, near_configs, read_teacher_config


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
    add_distill_options(parser).add_argument(
        '--dump-config',
        nargs='?',
        const='-',
        metavar='FILE',
        help='write what the presets chose as a recipe, to a file or to the screen, and stop',
    )
    add_common_options(parser)
    args = parser.parse_args()
    check_distill_options(parser, args)
    return args


def add_distill_options(parser: argparse.ArgumentParser) -> Any:
    """Add the options that take the place of a recipe."""
    without_recipe = parser.add_argument_group('to distil the model of a config without a recipe')
    without_recipe.add_argument(
        '--teacher', help="config of the teacher: a path, or a name as 'mmdet::FOLDER/FILE.py'"
    )
    without_recipe.add_argument(
        '--teacher-checkpoint',
        metavar='FILE',
        help='its weights, a path or an address (default: those published with its config); '
        "'none' for an untrained teacher, to try things out",
    )
    without_recipe.add_argument(
        '--distill',
        nargs='+',
        action='extend',
        choices=[*PRESETS],
        metavar='METHOD',
        help=f'one or several of {", ".join(PRESETS)}; docs/presets.md has their settings',
    )
    return without_recipe


def check_distill_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Stop where they do not go together."""
    if bool(args.teacher) != bool(args.distill) or (args.teacher_checkpoint and not args.teacher):
        parser.error('--teacher and --distill go together, --teacher-checkpoint with them')


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
        try:
            config = get_config(args.config)
        except FileNotFoundError as error:
            raise SystemExit(
                f'the config {args.config} does not exist{near_configs(args.config)}'
            ) from error
    elif not Path(args.config).is_file():
        raise SystemExit(f'the config {args.config} does not exist (looked in {Path.cwd()})')
    elif Path(args.config).suffix not in ('.py', '.json', '.yaml', '.yml'):
        raise SystemExit(f'expected a config (.py) as the first argument, got {args.config}')
    else:
        config = Config.fromfile(args.config)
    config.launcher = args.launcher
    if args.cfg_options:
        config.merge_from_dict(args.cfg_options)
    # The command line goes before the config, and both before the name of the file.
    if args.work_dir:
        config.work_dir = args.work_dir
    elif not config.get('work_dir'):
        config.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    return config


def distil(config: Config, args: argparse.Namespace) -> None:
    """Make a recipe of the config of a student, where the options ask for it."""
    if not args.teacher:
        return
    if config.model.get('type') == 'kd_dense.Distilled':
        raise SystemExit(
            f'{args.config} is a recipe and has a teacher already: leave out --teacher and '
            '--distill, or give the config of its student'
        )
    teacher = dict(config=args.teacher)
    checkpoint = args.teacher_checkpoint
    try:
        published = read_teacher_config(args.teacher).get('model_path')
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from error
    if checkpoint is None and published is None:
        raise SystemExit(
            f'the teacher {args.teacher} comes without published weights: give '
            "--teacher-checkpoint FILE, or 'none' for an untrained teacher"
        )
    if checkpoint is not None:
        teacher['checkpoint'] = None if checkpoint == 'none' else checkpoint
        here = checkpoint == 'none' or '://' in checkpoint
        if not (here or Path(checkpoint).expanduser().is_file()):
            raise SystemExit(
                f"the teacher's checkpoint {checkpoint} does not exist (looked in {Path.cwd()})"
            )
    config.model = dict(
        type='kd_dense.Distilled', student=config.model, teacher=teacher, preset=args.distill
    )


def dump_config(config: Config, args: argparse.Namespace) -> None:
    """Write what the presets choose as a recipe, and say how to train it.

    Args:
        config: Of a distilled model that names a preset.
        args: The options; ``dump_config`` is the file, or '-'.
    """
    model = config.model
    if model.get('type') != 'kd_dense.Distilled' or not model.get('preset'):
        raise SystemExit(
            '--dump-config writes what presets choose: say --teacher and --distill, or give a '
            "recipe with preset='METHOD'"
        )
    if args.cfg_options:
        raise SystemExit(
            '--dump-config writes a recipe on top of the config as it is: leave out --cfg-options '
            'now, and give them when you train (model.X of a student is model.student.X there)'
        )
    to_screen = args.dump_config == '-'
    path = Path.cwd() / ('recipe.py' if to_screen else args.dump_config)
    if not to_screen and path.exists():
        raise SystemExit(f'{args.dump_config} exists already: choose another name, or remove it')
    if path.suffix != '.py':
        raise SystemExit(f'expected the name of a recipe to end in .py, got {args.dump_config}')
    names = [model.preset] if isinstance(model.preset, str) else model.preset
    if 'data_preprocessor' in config:
        model.student.setdefault('data_preprocessor', config.data_preprocessor)
    scope = config.get('default_scope')
    with redirect_stdout(sys.stderr), DefaultScope.overwrite_default_scope(scope):
        student, teacher = MODELS.build(model.student), Teacher(model.teacher).model
        chosen = choose_preset(names, student, teacher)
        Distilled(student, teacher, chosen.terms, chosen.inherit)  # all of it fits
    given = None
    if args.teacher:
        given = model.teacher if 'checkpoint' in model.teacher else args.teacher
    text = recipe(args.config, given, names, chosen, path.parent, config.get('custom_hooks') or ())
    if to_screen:
        print(text, end='')
        print(
            'Save this in the current folder, which its paths start from, and train it with\n'
            '  python tools/train.py RECIPE.py',
            file=sys.stderr,
        )
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise SystemExit(f'cannot write {args.dump_config}: {error.strerror}') from error
    print(
        f'Wrote {args.dump_config}. Look at it with\n'
        f'  python tools/check.py {args.dump_config}\n'
        f'and train it with\n  python tools/train.py {args.dump_config}'
    )


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


def leave_group() -> None:
    """End the process group, where there is one, before Python ends.

    Gloo's threads let go of their last tensors when they please. If Python is at its end by then,
    the process aborts ("terminate called without an active exception") after all its work is done.
    The caller must have dropped its Runner, whose model holds the group.
    """
    if torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


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
    distil(config, args)
    if args.dump_config:
        dump_config(config, args)
        return
    check_writable(Path(config.work_dir))

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
        remedy = 'mend this'
        if 'No such file' in reason:
            remedy = f'put the file there (relative paths start in {Path.cwd()})'
        rest = what_remains(config.work_dir, remedy)
        raise RuntimeError(f'the training stopped: {reason}. {rest}') from error
    del runner
    leave_group()


if __name__ == '__main__':
    main()

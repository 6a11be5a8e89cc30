"""The options that several verbs share, and the config that they ask for."""

from __future__ import annotations

import argparse
import os
from typing import Any, get_args

from mmengine.config import Config, DictAction

from kd_dense.mm.presets.choose import Weights, check_methods, listed_methods
from kd_dense.mm.run.recipes import read_recipe, set_work_dir

__all__ = ['add_config', 'add_distill_options', 'add_options', 'chosen_config']


def add_config(parser: argparse.ArgumentParser, what: str = 'of a recipe or a model') -> None:
    """Add the first argument, a config."""
    parser.add_argument(
        'config', help=f"config {what}: a path, or a name as 'mmdet::FOLDER/FILE.py'"
    )


def add_options(parser: argparse.ArgumentParser, launcher: bool = True) -> None:
    """Add the options that change a config."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config, as in train_cfg.max_iters=100',
    )
    if launcher:
        parser.add_argument(
            '--launcher',
            choices=['none', 'pytorch', 'slurm', 'mpi'],
            default='none',
            help='who starts the processes',
        )
        parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def add_distill_options(parser: argparse.ArgumentParser) -> Any:
    """Add the options that take the place of a recipe; returns their group."""
    group = parser.add_argument_group(
        'to distil the model of a config without a recipe',
        'Methods, by what they need (docs/presets.md has their settings):\n' + listed_methods(),
    )
    group.add_argument(
        '--teacher',
        help="config of the teacher: a path, or a name as 'mmdet::FOLDER/FILE.py'; or 'ema', the "
        "student's running average",
    )
    group.add_argument(
        '--teacher-checkpoint',
        metavar='FILE',
        help='its weights, a path or an address (default: those published with its config); '
        "'none' for an untrained teacher, to try things out",
    )
    group.add_argument(
        '--distill',
        nargs='*',
        action=_Methods,
        metavar='METHOD',
        help='one or several of the methods above (default: auto)',
    )
    group.add_argument(
        '--weights',
        choices=get_args(Weights),
        default='auto',
        help='those that were published; or shares: weights that set themselves, so that the '
        'methods pull at the student as strongly as its own losses do; or auto: shares where the '
        'maps are others than those that weights were published for (default: auto)',
    )
    group.add_argument(
        '--unlabelled',
        metavar='FOLDER',
        help='pictures without labels to learn from as well, as many in each batch as with '
        'labels: a folder, or a .txt file with a path on each line (docs/unlabelled.md)',
    )
    group.add_argument(
        '--no-labels',
        action='store_true',
        help='learn from the pictures of --unlabelled and from the teacher alone',
    )
    return group


class _Methods(argparse.Action):
    """Names of methods; an unknown or a missing one is answered with all there are."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        try:
            check_methods(values)
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or ()), *values])


def chosen_config(args: argparse.Namespace) -> Config:
    """Read the config that the options ask for, a recipe if they name a teacher."""
    os.environ.setdefault('LOCAL_RANK', str(getattr(args, 'local_rank', 0)))
    teacher, methods, checkpoint = (
        getattr(args, name, None) for name in ('teacher', 'distill', 'teacher_checkpoint')
    )
    weights: Weights = getattr(args, 'weights', 'auto')
    config = read_recipe(
        args.config,
        teacher,
        methods or (),
        checkpoint,
        args.cfg_options,
        weights,
        getattr(args, 'unlabelled', None),
        not getattr(args, 'no_labels', False),
    )
    config.launcher = getattr(args, 'launcher', 'none')
    set_work_dir(config, getattr(args, 'work_dir', None), args.config)
    return config

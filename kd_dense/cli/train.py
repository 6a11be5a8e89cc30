"""Train a model of mmdet or mmseg, distilled or not, from its config.

    kd_dense train kd_dense::cwd/cwd_retinanet-r50_from_retinanet-r101_1x_coco.py
    kd_dense train mmdet::retinanet/retinanet_r50_fpn_2x_coco.py \\
        --teacher mmdet::retinanet/retinanet_r101_fpn_2x_coco.py --distill fgd

The options are those of the frameworks' own tools/train.py, which run our recipes as well.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import redirect_stdout
from pathlib import Path

# This comes before any config is read.
import kd_dense.mm  # noqa: F401
from kd_dense.cli.config import add_config, add_distill_options, add_options, chosen_config
from kd_dense.mm.configs import RequestError
from kd_dense.mm.run.processes import leave_group
from kd_dense.mm.run.recipes import write_recipe
from kd_dense.mm.run.train import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
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
    add_options(parser)


def run(args: argparse.Namespace) -> None:
    config = chosen_config(args)
    if args.dump_config:
        if args.unlabelled:
            raise RequestError(
                '--dump-config writes what the presets chose: leave out --unlabelled now, and '
                'give it when you train the recipe'
            )
        if args.cfg_options:
            raise RequestError(
                '--dump-config writes a recipe on top of the config as it is: leave out '
                '--cfg-options now, and give them when you train (model.X of a student is '
                'model.student.X there)'
            )
        file = None if args.dump_config == '-' else Path(args.dump_config)
        with redirect_stdout(sys.stderr):
            text = write_recipe(config, args.config, bool(args.teacher), file)
        say_what_was_written(file, text)
        return
    runner = train(config, args.amp, args.auto_scale_lr, args.resume)
    del runner
    leave_group()


def say_what_was_written(file: Path | None, text: str) -> None:
    """Print the recipe or its name, and what to do with it."""
    if file is None:
        print(text, end='')
        print(
            'Save this in the current folder, which its paths start from, and train it with\n'
            '  kd_dense train RECIPE.py',
            file=sys.stderr,
        )
        return
    print(
        f'Wrote {file}. Look at it with\n  kd_dense check {file}\n'
        f'and train it with\n  kd_dense train {file}'
    )

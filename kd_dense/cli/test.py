"""Evaluate a checkpoint of a student; the teacher is not needed and does not run.

    kd_dense test RECIPE work_dirs/RUN/epoch_12.pth

The options are those of the frameworks' own tools/test.py, which run our recipes as well.
"""

from __future__ import annotations

import argparse

# This comes before any config is read.
import kd_dense.mm  # noqa: F401
from kd_dense.cli.config import add_config, add_options, chosen_config
from kd_dense.mm.run.processes import leave_group
from kd_dense.mm.run.test import show, test


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument('checkpoint', help='checkpoint of a run, or an exported student')
    parser.add_argument('--work-dir', help='where logs and results go')
    parser.add_argument('--out', help='write the predictions to this .pkl file')
    parser.add_argument('--show', action='store_true', help='show the predictions')
    parser.add_argument('--show-dir', help='write pictures of the predictions to this folder')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds per picture shown')
    parser.add_argument('--tta', action='store_true', help='use test-time augmentation')
    add_options(parser)


def run(args: argparse.Namespace) -> None:
    config = chosen_config(args)
    if args.show or args.show_dir:
        show(config, args.show, args.wait_time, args.show_dir)
    test(config, args.checkpoint, args.out, args.tta)
    leave_group()

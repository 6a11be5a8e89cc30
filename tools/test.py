"""Evaluate a checkpoint of a student; the teacher is not needed and does not run.

The options are those of the frameworks' own tools/test.py, which run our recipes as well.
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import METRICS

import kd_dense.mm  # noqa: F401  (before any config is read)
from train import add_common_options, build_runner, leave_group, read_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='path of a config')
    parser.add_argument('checkpoint', help='checkpoint of a run, or an exported student')
    parser.add_argument('--work-dir', help='where logs and results go')
    parser.add_argument('--out', help='write the predictions to this .pkl file')
    parser.add_argument('--show', action='store_true', help='show the predictions')
    parser.add_argument('--show-dir', help='write pictures of the predictions to this folder')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds per picture shown')
    parser.add_argument('--tta', action='store_true', help='use test-time augmentation')
    add_common_options(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    config = read_config(args)
    config.load_from = args.checkpoint

    if args.show or args.show_dir:
        show(config, args)
    if args.tta:
        if 'tta_model' not in config or 'tta_pipeline' not in config:
            raise SystemExit('--tta needs tta_model and tta_pipeline in the config')
        dataset = config.test_dataloader.dataset
        while 'dataset' in dataset:
            dataset = dataset.dataset
        dataset.pipeline = deepcopy(config.tta_pipeline)
        config.model = ConfigDict(**config.tta_model, module=config.model)
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        raise SystemExit(f'--out expects a .pkl file, got {args.out}')

    runner = build_runner(config)
    if args.out:
        # mmdet has a class of its own, which packs masks.
        kind = 'DumpDetResults' if config.get('default_scope') == 'mmdet' else 'DumpResults'
        dump = METRICS.build(dict(type=kind, out_file_path=args.out))
        runner.test_evaluator.metrics.append(dump)
    runner.test()
    del runner
    leave_group()


def show(config: Config, args: argparse.Namespace) -> None:
    """Have the predictions shown, or written to exactly the folder that was named."""
    hook = config.default_hooks.get('visualization')
    if hook is None:
        raise SystemExit('--show and --show-dir need default_hooks.visualization in the config')
    hook.draw, hook.interval = True, 1
    hook.show, hook.wait_time = args.show, args.wait_time
    if args.show_dir:
        folder = str(Path(args.show_dir).absolute())
        if config.get('default_scope') == 'mmdet':
            hook.test_out_dir = folder  # absolute, or the hook puts it below the run's folder
        else:
            config.visualizer.save_dir = folder


if __name__ == '__main__':
    main()

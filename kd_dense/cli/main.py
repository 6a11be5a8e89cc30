"""Choose a verb, and run it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from kd_dense import __version__

__all__ = ['main']

VERBS = {
    'train': 'train a model, distilled or not',
    'test': 'evaluate a checkpoint',
    'check': 'say what a training would do, and what is wrong, before it starts',
    'taps': 'list the places of a model that can be distilled',
    'visualize': 'show what teacher and student find, and where they differ',
    'analyze': 'compare trainings by what they logged',
    'export': 'write the bare student of a checkpoint',
    'from-mmrazor': 'translate a config of mmrazor 1.x into a recipe',
    'benchmark': 'time a distilled training step against the least that it can cost',
}
INTRODUCTION = f"""\
kd_dense {__version__}: distil a large detector or segmenter into a small one.

    kd_dense train mmdet::retinanet/retinanet_r50_fpn_2x_coco.py \\
        --teacher mmdet::retinanet/retinanet_r101_fpn_2x_coco.py --distill fgd

"""
OVERVIEW = INTRODUCTION + '\n'.join(
    [*(f'  kd_dense {verb:<12} {text}' for verb, text in VERBS.items()), '',
     'kd_dense VERB --help says more, with an example.']
)  # fmt: skip


def main(verb: str | None = None, arguments: Sequence[str] | None = None) -> None:
    """Run a verb, and end with its exit status.

    Args:
        verb: Its name; by default the first argument.
        arguments: Its arguments; by default those of the process.
    """
    words = [*sys.argv[1:]] if arguments is None else [*arguments]
    if verb is None:
        if not words or words[0] in ('-h', '--help', 'help'):
            print(OVERVIEW)
            return
        if words[0] in ('-V', '--version'):
            print(__version__)
            return
        verb, *words = words
    if verb not in VERBS:
        from kd_dense.taps import near_names  # with torch, which takes seconds

        sys.exit(f'kd_dense has no verb {verb!r}, {near_names(verb, VERBS)}\n\n{OVERVIEW}')
    module = import_module(f'kd_dense.cli.{verb.replace("-", "_")}')
    parser = argparse.ArgumentParser(
        prog=f'kd_dense {verb}',
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    args = parser.parse_args(words)
    from kd_dense.mm.configs import RequestError  # not before help is asked for: it takes seconds

    try:
        status = module.run(args)
    except RequestError as error:
        sys.exit(f'kd_dense {verb}: {error}')
    if status:
        sys.exit(status)

"""Translate a distillation config of mmrazor 1.x into a recipe that computes the same.

    kd_dense from-mmrazor configs/distill/mmdet/pkd/pkd_fpn_retina.py --output my_recipe.py
    kd_dense check my_recipe.py

mmrazor need not be installed. Without --output the recipe is printed. What could not be carried
over, or was not meant so, stands in the recipe as a comment and is printed too; the exit status is
then 1. docs/from-mmrazor.md says what becomes what.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

# This comes before any config is read.
import kd_dense.mm  # noqa: F401
from kd_dense.mm.configs import RequestError
from kd_dense.mm.mmrazor.text import recipe_text
from kd_dense.mm.mmrazor.translate import translate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help='path of a config of mmrazor 1.x')
    parser.add_argument(
        '--output', metavar='FILE', help='where to write the recipe; by default it is printed'
    )


def run(args: argparse.Namespace) -> int:
    file = None if args.output is None else Path(args.output)
    if file is not None and (file.exists() or file.suffix != '.py'):
        why = 'exists already: choose another name' if file.exists() else 'does not end in .py'
        raise RequestError(f'{file} {why}')
    found = translate(args.config)
    text = recipe_text(found, Path.cwd() if file is None else file.absolute().parent)
    if file is None:
        print(text, end='')
    else:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        except OSError as error:
            raise RequestError(f'cannot write {file}: {error.strerror}') from error
        print(f'Wrote {file}. Before you train it: kd_dense check {file}')
    for line in found.notes.lines():
        print(line, file=sys.stderr)
    return 0 if found.same else 1

"""Write the bare student of a distilled checkpoint, for the frameworks' own tools.

    kd_dense export work_dirs/RUN/iter_80000.pth student.pth

The weights are the student's, under the names that its own config gives them: what distillation
added (kd.) and the state of the training are left out.
"""

from __future__ import annotations

import argparse

from kd_dense.mm.files.checkpoint import read_checkpoint
from kd_dense.mm.run.export import export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('checkpoint', help='checkpoint of a distilled training')
    parser.add_argument('out', nargs='?', help='default: student.pth beside the checkpoint')


def run(args: argparse.Namespace) -> None:
    out = export(args.checkpoint, args.out)
    tensors, size = len(read_checkpoint(str(out))), out.stat().st_size / 1e6
    print(
        f'Wrote {out}: {tensors} tensors, {size:.3g} MB. Use it with the config of the student '
        'alone, as load_from or with kd_dense test.'
    )

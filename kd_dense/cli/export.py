"""Write the bare student of a distilled checkpoint, for the frameworks' own tools.

    kd_dense export work_dirs/RUN/iter_80000.pth student.pth
    kd_dense export work_dirs/RUN/iter_80000.pth student.pth --config student.py

The weights are the student's, under the names that its own config gives them: what distillation
added (kd.) and the state of the training are left out. --config writes the config of the run
without its teacher, for what takes no recipe: inference, test.py, get_flops.py, deployment.
"""

from __future__ import annotations

import argparse

from kd_dense.mm.files.checkpoint import read_checkpoint
from kd_dense.mm.run.export import export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('checkpoint', help='checkpoint of a distilled training')
    parser.add_argument('out', nargs='?', help='default: student.pth beside the checkpoint')
    parser.add_argument(
        '--config', metavar='FILE', help='write the config of the student alone, too'
    )


def run(args: argparse.Namespace) -> None:
    out = export(args.checkpoint, args.out, args.config)
    tensors, size = len(read_checkpoint(str(out))), out.stat().st_size / 1e6
    print(
        f'Wrote {out}: {tensors} tensors, {size:.3g} MB. Use it with the config of the student '
        f'alone{f", {args.config}" if args.config else ""}, as load_from or with kd_dense test.'
    )

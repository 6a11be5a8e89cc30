"""Write the bare student of a distilled checkpoint, for the frameworks' own tools.

The weights are the student's, under the names that its own config gives them: what
distillation added (``kd.``) and the state of the training are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from kd_dense.mm.checkpoint import read_file, weights_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', help='checkpoint of a distilled training')
    parser.add_argument('out', nargs='?', help='default: student.pth beside the checkpoint')
    args = parser.parse_args()

    out = Path(args.out or Path(args.checkpoint).with_name('student.pth'))
    try:
        content = read_file(args.checkpoint)
        weights = weights_of(content, args.checkpoint)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open('wb') as file:
            torch.save({'meta': content.get('meta', {}), 'state_dict': weights}, file)
    except OSError as error:
        raise SystemExit(f'cannot write {out}: {error.strerror}') from error
    size = out.stat().st_size / 1e6
    print(f'Wrote {out}: {len(weights)} tensors, {size:.3g} MB. Use it with the config of the '
          'student alone, as load_from or with tools/test.py.')  # fmt: skip


if __name__ == '__main__':
    main()

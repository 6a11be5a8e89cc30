"""Prepare four small sets of real pictures: CamVid, NEU-DET, playing cards, BCCD.

README.md, beside this file, says where the originals come from and on what terms. What is written
needs no further download; pictures that have the layout already are linked, not copied.

::

    OUT/camvid/leftImg8bit/{train,val,test}/<video>/<frame>_leftImg8bit.jpg
    OUT/camvid/gtFine/{train,val,test}/<video>/<frame>_gtFine_labelTrainIds.png
    OUT/{neudet,cards,bccd}/{train2017,val2017}/*.jpg
    OUT/{neudet,cards,bccd}/annotations/instances_{train2017,val2017}.json
    OUT/{neudet,cards,bccd}/annotations/{train,val,test}.json

The last three are the splits of the study: every fifth picture of ``train2017`` validates, so that
settings can be chosen without a look at ``val2017``, which tests.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.real.convert import CONVERT
from examples.real.link import link, write_splits
from examples.real.weights import write_mobilenet_v2


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m examples.real',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'originals', type=Path, help='the folder that the public repositories were cloned into, '
        'or one that has the layout above already'
    )  # fmt: skip
    parser.add_argument('--out', type=Path, default=Path('data/real'), help='(default: data/real)')
    parser.add_argument('--sets', nargs='+', choices=CONVERT, default=list(CONVERT))
    parser.add_argument(
        '--weights', action='store_true', help='write OUT/weights/mobilenet_v2.pth as well'
    )
    args = parser.parse_args()
    for name in args.sets:
        target = args.out / name
        if not link(args.originals / name, target):
            CONVERT[name](args.originals, target)
        print(f'{target}: {write_splits(target)}', flush=True)
    if args.weights:
        write_mobilenet_v2(args.out / 'weights' / 'mobilenet_v2.pth')


if __name__ == '__main__':
    main()

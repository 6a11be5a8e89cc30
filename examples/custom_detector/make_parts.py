"""Write Parts: drawn nuts, washers and screws on a bench, as a small detection data set.

It stands for the data of your own: pictures in two folders, and one annotation file in COCO's
layout for each. Nothing is downloaded, and the same options write the same files. A picture is
drawn from random numbers of its own, so that the count of pictures changes none of them.

::

    OUT/train/0000.png ...
    OUT/val/0000.png ...
    OUT/annotations/{train,val}.json      boxes of 3 classes: nut, washer, screw

What makes it hard: small parts, weak contrast, blurred pictures, parts that lie on each other,
and things that are no parts (discs and bars).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CLASSES = ('nut', 'washer', 'screw')
SIDE = 128  # pixels of a picture
FINE = 2  # drawn at a multiple of that, then reduced


def nut(u: Any, v: Any, rng: Any) -> Any:
    """Where a hexagon with a hole lies, of size 1."""
    angles = np.arange(6) * np.pi / 3
    edges = [u * np.cos(a) + v * np.sin(a) for a in angles]
    return (np.max(edges, 0) < 0.87) & (np.hypot(u, v) > rng.uniform(0.4, 0.55))


def washer(u: Any, v: Any, rng: Any) -> Any:
    """Where a disc with a hole lies."""
    radius = np.hypot(u, v)
    return (radius < 0.93) & (radius > rng.uniform(0.4, 0.55))


def screw(u: Any, v: Any, rng: Any) -> Any:
    """Where a head and a shaft with a thread lie."""
    head = (abs(u + 0.7) < 0.25) & (abs(v) < 0.5)
    thread = 0.22 + 0.06 * np.sign(np.sin(18 * u))
    return head | ((u > -0.5) & (u < rng.uniform(0.6, 1.0)) & (abs(v) < thread))


def disc(u: Any, v: Any, rng: Any) -> Any:
    """Where a disc without a hole lies: no part."""
    return np.hypot(u, v) < 0.9


def bar(u: Any, v: Any, rng: Any) -> Any:
    """Where a bar without a head lies: no part."""
    return (abs(u) < 1.0) & (abs(v) < rng.uniform(0.15, 0.3))


def noise(rng: Any, side: int, cells: int) -> Any:
    """Smooth noise between -1 and 1."""
    coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)


def draw(rng: Any) -> tuple[Any, list[tuple[int, list[int]]]]:
    """Draw one picture.

    Returns:
        The picture, ``(SIDE, SIDE, 3)`` of uint8, and of each part that can be seen its class and
        its box, as x, y, width and height in pixels.
    """
    side = SIDE * FINE
    y, x = np.mgrid[:side, :side].astype(np.float32)
    bench = rng.uniform(60, 190, 3) * rng.uniform(0.7, 1.0)
    grain = sum(noise(rng, side, cells) * rng.uniform(5, 22) for cells in (4, 16, 64))
    picture = bench + np.asarray(grain)[..., None]
    light = 1 + rng.uniform(0, 0.3) * noise(rng, side, 3)

    placed: list[tuple[int, Any]] = []
    kinds = [*rng.integers(0, 3, rng.integers(3, 8)), *rng.integers(3, 5, rng.integers(0, 4))]
    for kind in rng.permutation(kinds):
        size = FINE * np.exp(rng.uniform(np.log(7), np.log(20)))  # half of a part's length
        cx, cy = rng.uniform(0.08 * side, 0.92 * side, 2)
        angle = rng.uniform(0, 2 * np.pi)
        u = ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) / size
        v = ((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)) / size
        mask = (nut, washer, screw, disc, bar)[kind](u, v, rng)
        metal = bench.mean() + rng.choice([-1, 1]) * rng.uniform(22, 70)
        gloss = metal + rng.uniform(0, 25) * np.cos(2 * u + rng.uniform(0, 6)) + 6 * v
        picture = np.where(mask[..., None], gloss[..., None] + rng.uniform(-8, 8, 3), picture)
        placed = [(k, seen & ~mask) for k, seen in placed] + [(int(kind), mask)]

    picture = cv2.resize(picture * light[..., None], (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 1.1))
    picture += rng.normal(0, rng.uniform(2, 9), picture.shape)
    found = []
    for kind, seen in placed:
        if kind < len(CLASSES) and seen.sum() > 30 * FINE**2:  # mostly hidden ones are left out
            rows, columns = (np.flatnonzero(seen.any(axis)) // FINE for axis in (1, 0))
            corner = [int(columns[0]), int(rows[0])]
            span = [int(columns[-1]) + 1 - corner[0], int(rows[-1]) + 1 - corner[1]]
            found.append((kind, corner + span))
    return picture.clip(0, 255).astype(np.uint8), found


def write_split(out: Path, split: str, count: int, seed: int) -> None:
    """Write the pictures of a split and their annotations."""
    (out / split).mkdir(parents=True, exist_ok=True)
    (out / 'annotations').mkdir(exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        rng = np.random.default_rng([seed, ('train', 'val').index(split), number])
        picture, found = draw(rng)
        name = f'{number:04d}.png'
        cv2.imwrite(str(out / split / name), picture)
        images.append(dict(id=number, file_name=name, width=SIDE, height=SIDE))
        for kind, box in found:
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=number,
                    category_id=kind + 1,
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=0,
                )
            )
    categories = [dict(id=kind + 1, name=name) for kind, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (out / 'annotations' / f'{split}.json').write_text(json.dumps(content))
    print(f'{out / split}: {count} pictures, {len(annotations)} parts')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, default=Path('data/parts'), help='folder to write')
    parser.add_argument('--train', type=int, default=400, help='pictures to train on')
    parser.add_argument('--val', type=int, default=150, help='pictures to evaluate on')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    write_split(args.out, 'train', args.train, args.seed)
    write_split(args.out, 'val', args.val, args.seed)


if __name__ == '__main__':
    main()

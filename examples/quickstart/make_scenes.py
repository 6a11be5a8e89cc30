"""Write Scenes, handwritten digits on photographs, in the layouts of COCO and of Cityscapes.

What the pictures show, and what the splits share, is in `examples/quickstart/scenes.py`. From
the root of the repository::

    python -m examples.quickstart.make_scenes OUT

writes::

    OUT/scenes.json                                              the parameters; says when complete
    OUT/coco/{train,val,test}2017/000000000000.png
    OUT/coco/annotations/instances_{train,val,test}2017.json     boxes and masks, 10 categories
    OUT/cityscapes/leftImg8bit/{train,val,test}/scenes/*_leftImg8bit.png   (the same files)
    OUT/cityscapes/gtFine/{train,val,test}/scenes/*_gtFine_labelTrainIds.png

In the label maps 0 to 9 are the digits, 10 is background and 255 is ignored. The COCO layout does
not annotate clutter.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from examples.quickstart.scenes import CLASSES, SPLITS, VERSION, Image, Mask, draw_scene


def make_scenes(
    out: str | Path,
    train: int = 3000,
    val: int = 300,
    test: int = 300,
    size: int = 56,
    seed: int = 0,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    progress: bool = False,
) -> bool:
    """Write the data set, unless it is there.

    Args:
        out: The folder to write to.
        train: The count of training pictures.
        val: The count of validation pictures.
        test: The count of test pictures.
        size: Height and width of the pictures.
        seed: Another seed gives other pictures.
        overwrite: Whether a data set with other parameters may be replaced.
        workers: Processes that draw; by default as many as there are processors, up to 8.
            0 and 1 draw in this process.
        progress: Whether to show a progress bar.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: If a parameter is out of range.
        FileExistsError: If `out` holds something else.
    """
    out = Path(out)
    counts = dict(train=train, val=val, test=test)
    _check(counts, size, seed)
    parameters = dict(version=VERSION, **counts, size=size, seed=seed)
    if _make_room(out, counts, parameters, overwrite):
        return False
    manifest = out / 'scenes.json'
    manifest.write_text(json.dumps(dict(parameters=parameters, complete=False)) + '\n')
    if workers is None:
        workers = min(os.cpu_count() or 1, 8)
    for split, notes in _draw(out, counts, size, seed, workers, progress).items():
        text = json.dumps(_coco(split, counts[split], size, notes))
        _annotations(out, split).write_text(text + '\n')
    manifest.write_text(json.dumps(dict(parameters=parameters, complete=True)) + '\n')
    return True


def _check(counts: Mapping[str, int], size: int, seed: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f'{name} is {count}; every split needs at least one picture')
    if seed < 0:
        raise ValueError(f'seed is {seed}; it must not be negative')
    for split in SPLITS:
        draw_scene(split, 0, size, seed)  # a bad size is an error before anything is written


def _make_room(
    out: Path, counts: Mapping[str, int], parameters: Mapping[str, int], overwrite: bool
) -> bool:
    """Make the folders, empty; say whether instead the data set is there already."""
    manifest = out / 'scenes.json'
    if manifest.is_file():
        known, complete = _read_manifest(manifest)
        if known == parameters:
            if complete and not overwrite and _is_complete(out, counts):
                return True
        elif not overwrite:
            raise FileExistsError(
                f'{out} holds Scenes made with {known}, not {parameters}; '
                'use another folder or --overwrite'
            )
        for layout in ('coco', 'cityscapes'):
            shutil.rmtree(out / layout, ignore_errors=True)
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f'{out} exists and is not a Scenes folder; use another one')
    for split in SPLITS:
        for folder in _pictures(out, split):
            folder.mkdir(parents=True, exist_ok=True)
        _annotations(out, split).parent.mkdir(exist_ok=True)
    return False


def _read_manifest(manifest: Path) -> tuple[Any, bool]:
    """Return the parameters, and whether everything was written."""
    try:
        known = json.loads(manifest.read_text())
        return known['parameters'], known['complete']
    except (ValueError, KeyError, TypeError):
        return 'an unreadable scenes.json', False


def _is_complete(out: Path, counts: Mapping[str, int]) -> bool:
    for split, count in counts.items():
        if not _annotations(out, split).is_file():
            return False
        for folder in _pictures(out, split):
            if not folder.is_dir() or sum(1 for _ in folder.glob('*.png')) != count:
                return False
    return True


def _pictures(out: Path, split: str) -> tuple[Path, Path, Path]:
    """Return the folders of the pictures, COCO's and Cityscapes', and of the label maps."""
    city = out / 'cityscapes'
    return (
        out / 'coco' / f'{split}2017',
        city / 'leftImg8bit' / split / 'scenes',
        city / 'gtFine' / split / 'scenes',
    )


def _annotations(out: Path, split: str) -> Path:
    return out / 'coco' / 'annotations' / f'instances_{split}2017.json'


def _draw(
    out: Path, counts: Mapping[str, int], size: int, seed: int, workers: int, progress: bool
) -> dict[str, list[dict[str, Any]]]:
    """Draw and write all pictures; return their COCO annotations by split, without ids."""
    jobs = [(out, split, i, size, seed) for split in SPLITS for i in range(counts[split])]
    notes: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), disable=not progress) as bar:
        task = bar.add_task('Scenes', total=len(jobs))
        for (_, split, *_rest), found in zip(jobs, _map(jobs, workers), strict=True):
            notes[split] += found
            bar.advance(task)
    return notes


def _map(jobs: list[Any], workers: int) -> Iterator[list[dict[str, Any]]]:
    if workers < 2:
        yield from map(_write_scene, jobs)
        return
    with multiprocessing.Pool(workers) as pool:
        yield from pool.imap(_write_scene, jobs, chunksize=16)


def _write_scene(job: tuple[Path, str, int, int, int]) -> list[dict[str, Any]]:
    """Draw and write one picture; return its COCO annotations without ids."""
    out, split, index, size, seed = job
    scene = draw_scene(split, index, size, seed)
    coco, pictures, labels = _pictures(out, split)
    stem = f'scenes_{index:06d}_000000'
    picture = pictures / f'{stem}_leftImg8bit.png'
    write_png(picture, scene.image)
    write_png(labels / f'{stem}_gtFine_labelTrainIds.png', scene.labels)
    _link(picture, coco / f'{index:012d}.png')
    return [_note(index, *found) for found in zip(scene.digits, scene.masks, strict=True)]


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _note(image: int, digit: int, mask: Mask) -> dict[str, Any]:
    """Annotate one object."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    return dict(
        image_id=image,
        category_id=digit + 1,
        bbox=[left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        area=int(mask.sum()),
        iscrowd=0,
        segmentation=encode_mask(mask),
    )


def _coco(split: str, count: int, size: int, notes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return dict(
        info=dict(description=f'Scenes, {split}', version=str(VERSION)),
        images=[
            dict(id=i, file_name=f'{i:012d}.png', width=size, height=size) for i in range(count)
        ],
        annotations=[dict(id=number, **note) for number, note in enumerate(notes, 1)],
        categories=[
            dict(id=number, name=name, supercategory='digit')
            for number, name in enumerate(CLASSES, 1)
        ],
    )


def write_png(path: Path, image: Image) -> None:
    """Write a grey or RGB picture, not compressed.

    So the bytes do not depend on the version of zlib, and reading is fast.
    """
    height, width = image.shape[:2]
    rows = np.zeros((height, 1 + image[0].size), np.uint8)  # each row starts with "no filter"
    rows[:, 1:] = image.reshape(height, -1)
    raw = rows.tobytes()
    stream = bytearray(b'\x78\x01')
    for start in range(0, len(raw), 65535):
        block = raw[start : start + 65535]
        last = start + 65535 >= len(raw)
        stream += struct.pack('<BHH', last, len(block), len(block) ^ 0xFFFF) + block
    stream += struct.pack('>I', zlib.adler32(raw))
    header = struct.pack('>IIBBBBB', width, height, 8, 2 if image.ndim == 3 else 0, 0, 0, 0)
    png = b'\x89PNG\r\n\x1a\n'
    for name, data in ((b'IHDR', header), (b'IDAT', bytes(stream)), (b'IEND', b'')):
        png += struct.pack('>I', len(data)) + name + data
        png += struct.pack('>I', zlib.crc32(name + data))
    path.write_bytes(png)


def encode_mask(mask: Mask) -> dict[str, list[int]]:
    """Encode a mask as COCO's uncompressed run lengths (columns first, zeros first)."""
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return dict(size=list(mask.shape), counts=[0, *counts] if flat[0] else counts)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description='Write the Scenes data set.')
    parser.add_argument('out', type=Path, metavar='OUT', help='the folder to write to')
    for split, count in (('train', 3000), ('val', 300), ('test', 300)):
        parser.add_argument(
            f'--{split}', type=int, default=count, help=f'pictures to {split} on (default {count})'
        )
    parser.add_argument('--size', type=int, default=56, help='height and width (default 56)')
    parser.add_argument('--seed', type=int, default=0, help='seed of all pictures (default 0)')
    parser.add_argument('--workers', type=int, help='processes (default: one per processor)')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace Scenes made with other parameters'
    )
    options = parser.parse_args(arguments)
    try:
        written = make_scenes(**vars(options), progress=True)
    except (ValueError, FileExistsError) as error:
        print(f'make_scenes: {error}', file=sys.stderr)
        return 1
    print(f'Scenes {"written to" if written else "already in"} {options.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())

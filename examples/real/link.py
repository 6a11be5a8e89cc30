"""Take over sets that have the layout, and split them for the study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ['link', 'write_splits']

FIFTH = 5


def link(source: Path, target: Path) -> bool:
    """Link the folders of a set that has the layout already.

    Args:
        source: The folder of the set.
        target: Where it is to appear.

    Returns:
        Whether ``source`` has the layout; if not, nothing was done.
    """
    folders = [source / n for n in ('leftImg8bit', 'gtFine', 'train2017', 'val2017')]
    folders = [folder for folder in folders if folder.is_dir()]
    annotations = sorted(source.glob('annotations/instances_*.json'))
    if len(folders) != 2 or (folders[0].name == 'train2017' and len(annotations) != 2):
        return False
    target.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        _point(target / folder.name, folder)
    for file in annotations:
        (target / 'annotations').mkdir(exist_ok=True)
        _point(target / 'annotations' / file.name, file)
    return True


def _point(place: Path, to: Path) -> None:
    if place.is_symlink():
        place.unlink()
    place.symlink_to(to.resolve())


def write_splits(folder: Path) -> str:
    """Write the splits of a detection set; a segmentation set has its own.

    Args:
        folder: Of the set, in its layout.

    Returns:
        How many pictures each split has, in words.
    """
    if (folder / 'leftImg8bit').is_dir():
        splits = ('train', 'val', 'test')
        counts = {s: len([*folder.glob(f'leftImg8bit/{s}/*/*.jpg')]) for s in splits}
    else:
        files = {s: folder / 'annotations' / f'instances_{s}2017.json' for s in ('train', 'val')}
        whole, test = (json.loads(file.read_text()) for file in files.values())
        names = sorted(image['file_name'] for image in whole['images'])
        held_out = {*names[::FIFTH]}
        parts = {
            'train': _part(whole, {*names} - held_out),
            'val': _part(whole, held_out),
            'test': test,
        }
        for split, part in parts.items():
            (folder / 'annotations' / f'{split}.json').write_text(json.dumps(part))
        counts = {split: len(part['images']) for split, part in parts.items()}
    return ', '.join(f'{count} {split}' for split, count in counts.items())


def _part(whole: dict[str, Any], names: set[str]) -> dict[str, Any]:
    images = [image for image in whole['images'] if image['file_name'] in names]
    ids = {image['id'] for image in images}
    boxes = [box for box in whole['annotations'] if box['image_id'] in ids]
    return {**whole, 'images': images, 'annotations': boxes}

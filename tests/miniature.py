"""Miniatures of COCO, Cityscapes and others, and recipes cut down to train on them in seconds.

Models stay as wide and as deep as a recipe makes them; images, batches and schedules shrink.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.config import Config

import kd_dense.mm  # noqa: F401  (before any config is read)
from tests.miniature_apolloscape import make_apolloscape
from tests.miniature_dota import DOTA_SHRINK, make_dota

ROOT = Path(__file__).resolve().parents[1]
# 1333x800 and 2048x1024 pixels become
COCO_SIZE, COCO_SHRINK = (133, 80), 10
CITYSCAPES_SIZE, CITYSCAPES_SHRINK = (128, 64), 16
SHRINK = dict(mmdet=COCO_SHRINK, mmseg=CITYSCAPES_SHRINK, mmrotate=DOTA_SHRINK)
# Configs of rotated detectors cannot be read without it.
HAS_MMROTATE = find_spec('mmrotate') is not None
# COCO's categories are numbered up to 90, and some numbers are not used.
COCO_CATEGORIES = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def make_coco(root: Path) -> Path:
    """Write a COCO of four pictures, one more without objects, and two to evaluate on."""
    rng = np.random.default_rng(0)
    names = _coco_names()
    for split, count in (('train', 5), ('val', 2)):
        images, annotations = [], []
        for index in range(1, count + 1):
            width, height = COCO_SIZE if index % 2 else COCO_SIZE[::-1]
            name = f'{index:012d}.jpg'
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            images.append(dict(id=index, file_name=name, width=width, height=height))
            for _ in range(0 if index == 5 else 3):
                x, y = rng.integers(0, width // 2), rng.integers(0, height // 2)
                w, h = rng.integers(16, width // 2), rng.integers(16, height // 2)
                pixels[y : y + h, x : x + w] = rng.integers(0, 256, 3)
                annotations.append(_coco_object(annotations, index, rng, (x, y, w, h)))
            mmcv.imwrite(pixels, str(root / f'{split}2017' / name))
        annotations[0].update(iscrowd=1, segmentation=_coco_crowd(images[0]))
        path = root / 'annotations' / f'instances_{split}2017.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        categories = [dict(id=i, name=n) for i, n in zip(COCO_CATEGORIES, names, strict=True)]
        content = dict(images=images, annotations=annotations, categories=categories)
        path.write_text(json.dumps(content))
    return root


def _coco_names() -> tuple[str, ...]:
    from mmdet.datasets import CocoDataset

    return CocoDataset.METAINFO['classes']


def _coco_object(
    before: list[Any], image: int, rng: np.random.Generator, box: tuple[Any, ...]
) -> dict[str, Any]:
    x, y, w, h = (int(v) for v in box)
    return dict(
        id=len(before) + 1,
        image_id=image,
        category_id=int(rng.choice(COCO_CATEGORIES)),
        bbox=[x, y, w, h],
        area=w * h,
        iscrowd=0,
        segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
    )


def _coco_crowd(image: dict[str, Any]) -> dict[str, Any]:
    pixels = image['width'] * image['height']
    return dict(size=[image['height'], image['width']], counts=[pixels // 2, pixels - pixels // 2])


def make_cityscapes(root: Path) -> Path:
    """Write a Cityscapes of four pictures from two cities, and two to evaluate on."""
    rng = np.random.default_rng(0)
    width, height = CITYSCAPES_SIZE
    for split, city, count in (('train', 'aachen', 2), ('train', 'bochum', 2), ('val', 'ulm', 2)):
        for index in range(count):
            labels = np.repeat(rng.permutation(19), 7)[:width].astype(np.uint8)
            labels = np.tile(labels, (height, 1))
            labels[: height // 2] = labels[: height // 2, ::-1]
            labels[:4] = 255  # not labelled
            noise = rng.integers(0, 60, (height, width, 3))
            pixels = labels[..., None] * 10 + noise
            name = f'{city}_{index:06d}_000019'
            image = root / 'leftImg8bit' / split / city / f'{name}_leftImg8bit.png'
            truth = root / 'gtFine' / split / city / f'{name}_gtFine_labelTrainIds.png'
            mmcv.imwrite(pixels.clip(0, 255).astype(np.uint8), str(image))
            mmcv.imwrite(labels, str(truth))
    return root


def make_data(root: Path) -> Path:
    """Write all, below ``coco``, ``cityscapes``, ``apolloscape`` and ``split_ss_dota``."""
    make_coco(root / 'coco')
    make_cityscapes(root / 'cityscapes')
    make_apolloscape(root / 'apolloscape')
    make_dota(root / 'split_ss_dota')
    return root


def miniature(config: Config, data: Path, work_dir: Path, shrink: int | None = None) -> Config:
    """Cut a recipe, or a stock config, down to two iterations on the miniatures.

    Args:
        config: What ``Config.fromfile`` has read. It is changed.
        data: Where :func:`make_data` has written.
        work_dir: Of the run.
        shrink: What sizes of 300 pixels and more are divided by; by default as the miniature of
            the framework's data is.

    Returns:
        The config: no weights are downloaded, the teacher is untrained, images are small,
        every loss is logged, one evaluation at the end.
    """
    if shrink is None:
        shrink = SHRINK[config.default_scope]
    for key in [*config]:
        config[key] = _shrunk(config[key], data, shrink)
    if config.model.get('teacher') is not None:
        teacher = config.model.teacher
        name = teacher if isinstance(teacher, str) else teacher.config
        config.model.teacher = dict(config=name, checkpoint=None)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    config.train_dataloader.batch_size = 2
    by_epoch = config.train_cfg.type == 'EpochBasedTrainLoop'
    if by_epoch:  # four pictures are two iterations
        config.train_cfg.update(max_epochs=1, val_interval=1)
    else:
        config.train_cfg.update(max_iters=2, val_interval=2)
    config.default_hooks.logger.interval = 1
    config.default_hooks.checkpoint.update(interval=1)
    config.env_cfg.dist_cfg.backend = 'gloo'
    config.randomness = dict(seed=0)
    config.work_dir = str(work_dir)
    # One process runs several of them, and mmengine keeps these by name.
    config.experiment_name = config.visualizer.name = work_dir.name
    return config


SIZES = ('scale', 'scales', 'crop_size', 'size', 'stride')
# Without it the boxes of an untrained RTMDet may all be of negative size.
FEWER = dict(score_thr=0.0, nms_pre=50, max_per_img=50, exp_on_reg=True)


def _shrunk(value: Any, data: Path, shrink: int) -> Any:
    """Rewrite the paths, sizes and weights of a nested value."""
    if isinstance(value, dict):
        for key in [*value]:
            if key in SIZES:
                value[key] = _smaller(value[key], shrink)
            elif key in FEWER:  # an untrained detector finds things only where all count
                value[key] = FEWER[key]
            elif key == 'pretrained' or (key == 'init_cfg' and 'Pretrained' in str(value[key])):
                value[key] = None
            else:
                value[key] = _shrunk(value[key], data, shrink)
    elif isinstance(value, (list, tuple)):
        return type(value)(_shrunk(item, data, shrink) for item in value)
    elif isinstance(value, str) and value.startswith('data/'):
        return value.replace('data', str(data), 1)
    return value


def _smaller(size: Any, shrink: int) -> Any:
    if isinstance(size, (list, tuple)):
        return type(size)(_smaller(s, shrink) for s in size)
    return size // shrink if isinstance(size, int) and size >= 300 else size


def write_miniature(source: str | Path, data: Path, work_dir: Path, **more: Any) -> Path:
    """Write a config file that has a recipe as its base and is its miniature.

    Args:
        source: Path of a recipe or of a stock config.
        data: Where :func:`make_data` has written.
        work_dir: Of the run.
        more: Settings that come on top; keys as on the command line, ``__`` for a dot.

    Returns:
        The file, ``<work_dir>.py``.
    """
    config = miniature(Config.fromfile(source), data, work_dir)
    config.merge_from_dict({key.replace('__', '.'): value for key, value in more.items()})
    lines = [f'_base_ = [{str(source)!r}]']
    before = Config.fromfile(source)
    for key, value in config.to_dict().items():
        if key in before and before.to_dict()[key] == value:
            continue
        if isinstance(value, dict) and isinstance(before.get(key), dict):
            value = {'_delete_': True, **value}
        lines.append(f'{key} = {value!r}')
    path = work_dir.with_suffix('.py')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(lines) + '\n')
    return path


def write_small(recipe: str | Path, data: Path, work_dir: Path, **more: Any) -> Path:
    """Write the miniature of a recipe with a smaller teacher, for what does not depend on it."""
    name = Config.fromfile(recipe).model.teacher.replace('r101', 'r18').replace('_2x_', '_1x_')
    more = {'model__teacher': dict(config=name, checkpoint=None), **more}
    return write_miniature(recipe, data, work_dir, **more)


def recipes() -> Iterator[Path]:
    """All recipes that can be read."""
    return configs('*/*_from_*.py')


def configs(pattern: str) -> Iterator[Path]:
    """The files in configs/ that can be read: some need mmrotate, which is optional."""
    found = sorted((ROOT / 'configs').glob(pattern))
    return (path for path in found if HAS_MMROTATE or 'rotated' not in path.stem)

"""The files of Scenes: both layouts hold the truth, and the frameworks read them."""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from examples.quickstart.make_scenes import encode_mask, main, make_scenes, write_png
from examples.quickstart.scenes import draw_scene

ROOT = Path(__file__).parents[3]
COUNTS = dict(train=12, val=6, test=5)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp('data') / 'scenes'
    assert make_scenes(out, **COUNTS, workers=0)
    return out


def _digests(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob('*'))
        if path.is_file()
    }


def _annotations(out: Path, split: str) -> dict[str, Any]:
    text = (out / 'coco' / 'annotations' / f'instances_{split}2017.json').read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def _labels(out: Path, split: str, index: int) -> np.ndarray:
    name = f'scenes_{index:06d}_000000_gtFine_labelTrainIds.png'
    return np.array(Image.open(out / 'cityscapes' / 'gtFine' / split / 'scenes' / name))


def test_same_bytes_twice(scenes: Path, tmp_path: Path) -> None:
    make_scenes(tmp_path / 'again', **COUNTS, workers=0)
    assert _digests(tmp_path / 'again') == _digests(scenes)


def test_a_picture_does_not_depend_on_the_count(scenes: Path, tmp_path: Path) -> None:
    make_scenes(tmp_path / 'fewer', train=2, val=1, test=1, workers=0)
    known = _digests(scenes)
    fewer = {k: v for k, v in _digests(tmp_path / 'fewer').items() if k.endswith('.png')}
    assert len(fewer) == 3 * 4
    assert {known[name] for name in fewer} == set(fewer.values())


# ---- the files


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_boxes_masks_and_labels_agree(scenes: Path, split: str) -> None:
    from pycocotools import mask as rle

    data = _annotations(scenes, split)
    assert [c['name'] for c in data['categories']] == list('0123456789')
    assert len(data['images']) == COUNTS[split]
    assert len({note['id'] for note in data['annotations']}) == len(data['annotations'])
    for image in data['images']:
        labels = _labels(scenes, split, image['id'])
        drawn = np.full_like(labels, 10)
        for note in data['annotations']:
            if note['image_id'] != image['id']:
                continue
            run_lengths = rle.frPyObjects(note['segmentation'], image['height'], image['width'])
            mask = rle.decode(run_lengths).astype(bool)
            drawn[mask] = note['category_id'] - 1
            assert note['area'] == mask.sum()
            assert note['iscrowd'] == 0
            x, y, width, height = note['bbox']
            assert mask.sum() == mask[y : y + height, x : x + width].sum()
            inside = mask[y : y + height, x : x + width]
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
        void = labels == 255
        assert np.array_equal(labels[~void], drawn[~void])
        assert (drawn[void] == 10).all()


def test_both_layouts_hold_the_same_pictures(scenes: Path) -> None:
    for index in range(COUNTS['train']):
        coco = scenes / 'coco' / 'train2017' / f'{index:012d}.png'
        name = f'scenes_{index:06d}_000000_leftImg8bit.png'
        city = scenes / 'cityscapes' / 'leftImg8bit' / 'train' / 'scenes' / name
        assert coco.read_bytes() == city.read_bytes()
        assert np.array_equal(np.array(Image.open(coco)), draw_scene('train', index).image)


def test_png_of_more_than_one_block(tmp_path: Path) -> None:
    picture = np.random.RandomState(0).randint(0, 256, (200, 230, 3)).astype(np.uint8)
    write_png(tmp_path / 'a.png', picture)
    assert np.array_equal(np.array(Image.open(tmp_path / 'a.png')), picture)


@pytest.mark.parametrize('first', [False, True])
def test_masks_survive_coding(first: bool) -> None:
    from pycocotools import mask as rle

    mask = np.random.RandomState(1).rand(9, 7) < 0.4
    mask[0, 0] = first
    coded = encode_mask(mask)
    assert np.array_equal(rle.decode(rle.frPyObjects(coded, 9, 7)).astype(bool), mask)


# ---- a second run


def test_second_run_writes_nothing(scenes: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in scenes.rglob('*')}
    assert not make_scenes(scenes, **COUNTS, workers=0)
    assert {path: path.stat().st_mtime_ns for path in scenes.rglob('*')} == before


def test_incomplete_set_is_made_again(tmp_path: Path) -> None:
    out = tmp_path / 'scenes'
    counts = dict(train=1, val=1, test=1, workers=0)
    make_scenes(out, **counts)
    whole = _digests(out)
    next((out / 'coco' / 'val2017').iterdir()).unlink()
    assert make_scenes(out, **counts)
    assert _digests(out) == whole
    manifest = json.loads((out / 'scenes.json').read_text())
    (out / 'scenes.json').write_text(json.dumps({**manifest, 'complete': False}))
    assert make_scenes(out, **counts)
    assert _digests(out) == whole


def test_other_parameters_need_overwrite(tmp_path: Path) -> None:
    counts = dict(train=1, val=1, test=1, workers=0)
    make_scenes(tmp_path / 'a', **counts)
    with pytest.raises(FileExistsError, match=r"'seed': 0.*not.*'seed': 1.*--overwrite"):
        make_scenes(tmp_path / 'a', **counts, seed=1)
    assert make_scenes(tmp_path / 'a', **counts, seed=1, overwrite=True)
    make_scenes(tmp_path / 'b', **counts, seed=1)
    assert _digests(tmp_path / 'a') == _digests(tmp_path / 'b')


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / 'thesis.tex').write_text('mine')
    with pytest.raises(FileExistsError, match='is not a Scenes folder'):
        make_scenes(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(train=0), 'train is 0'),
        (dict(size=20), 'size is 20; .* at least 48'),
        (dict(size=300), 'size is 300, but the photographs allow 224 at most'),
        (dict(seed=-1), 'seed is -1'),
    ],
)
def test_bad_parameters(wrong: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_scenes(tmp_path / 'scenes', **wrong)
    assert not (tmp_path / 'scenes').exists()


def test_command_line_with_processes(scenes: Path, tmp_path: Path) -> None:
    counts = [f'--{split}={count}' for split, count in COUNTS.items()]
    options = [str(tmp_path / 'scenes'), *counts, '--workers=2']
    command = [sys.executable, '-m', 'examples.quickstart.make_scenes', *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 'Scenes written to' in done.stdout
    assert _digests(tmp_path / 'scenes') == _digests(scenes)
    assert main([*options, '--seed=1']) == 1


# ---- the stock loaders and metrics


def test_stock_coco_dataset_and_metric(scenes: Path) -> None:
    importlib.import_module('kd_dense.mm')  # makes up for operators that mmcv may lack
    import torch
    from mmdet.datasets import CocoDataset
    from mmdet.evaluation import CocoMetric
    from mmengine.registry import DefaultScope

    root = scenes / 'coco'
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = CocoDataset(
            ann_file='annotations/instances_val2017.json',
            data_root=str(root),
            data_prefix=dict(img='val2017/'),
            metainfo=dict(classes=tuple('0123456789')),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                dict(type='PackDetInputs'),
            ],
        )
    assert len(dataset) == COUNTS['val']
    metric = CocoMetric(
        ann_file=str(root / 'annotations' / 'instances_val2017.json'), metric=['bbox', 'segm']
    )
    metric.dataset_meta = dataset.metainfo
    for item in dataset:
        sample = item['data_samples']
        truth = sample.gt_instances
        assert len(truth) >= 1
        prediction = dict(
            bboxes=truth.bboxes.tensor,
            labels=truth.labels,
            scores=torch.ones(len(truth)),
            masks=torch.from_numpy(truth.masks.masks.astype(bool)),
        )
        metric.process({}, [dict(sample.metainfo, pred_instances=prediction)])
    found = metric.evaluate(len(dataset))
    assert found['coco/bbox_mAP'] == pytest.approx(1)
    assert found['coco/segm_mAP'] == pytest.approx(1)


@pytest.mark.parametrize('name', ['BaseSegDataset', 'CityscapesDataset'])
def test_stock_cityscapes_dataset_and_metric(scenes: Path, name: str) -> None:
    importlib.import_module('kd_dense.mm')
    import mmseg.datasets
    from mmengine.registry import DefaultScope
    from mmseg.evaluation import IoUMetric

    settings: dict[str, Any] = {}
    if name == 'BaseSegDataset':
        settings = dict(
            img_suffix='_leftImg8bit.png',
            seg_map_suffix='_gtFine_labelTrainIds.png',
            metainfo=dict(classes=(*'0123456789', 'background')),
        )
    with DefaultScope.overwrite_default_scope('mmseg'):
        dataset = getattr(mmseg.datasets, name)(
            data_root=str(scenes / 'cityscapes'),
            data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations'),
                dict(type='PackSegInputs'),
            ],
            **settings,
        )
    assert len(dataset) == COUNTS['train']
    metric = IoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = dataset.metainfo
    for item in dataset:
        truth = item['data_samples'].gt_sem_seg.data
        prediction = truth.masked_fill(truth == 255, 0)
        metric.process({}, [dict(gt_sem_seg=dict(data=truth), pred_sem_seg=dict(data=prediction))])
    found = metric.evaluate(len(dataset))
    assert found['mIoU'] == 100
    assert found['aAcc'] == 100

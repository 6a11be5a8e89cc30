"""`kd_dense.Unlabelled`: pictures of a folder, a list or a data set, without labels."""

import pickle

import mmcv
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, DefaultScope

from kd_dense.mm.datasets.unlabelled import (
    Unlabelled,
    hide_labels,
    is_unlabelled,
    labelled_pictures,
    list_pictures,
)
from tests.miniature import make_coco
from tests.mm import toy

SEGMENTATION = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(64, 48), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(24, 24), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
DETECTION = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='RandomChoice',
        transforms=[
            [dict(type='Resize', scale=(96, 64), keep_ratio=True)],
            [dict(type='RandomCrop', crop_size=(40, 40))],  # refuses a crop without a box
        ],
    ),
    dict(type='RandomFlip', prob=0.5),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)),  # refuses a picture without one
    dict(type='PackDetInputs'),
]


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ('b.png', 'a.JPG', 'inner/c.jpg'):
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        mmcv.imwrite(pixels, str(tmp_path / 'more' / name))
    (tmp_path / 'more' / 'notes.txt').write_text('no picture')
    return tmp_path / 'more'


def cityscapes(root):
    rng = np.random.default_rng(1)
    for index in range(2):
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        mmcv.imwrite(pixels, str(root / 'images' / f'{index}.png'))
        mmcv.imwrite(pixels[..., 0] % 5, str(root / 'maps' / f'{index}.png'))
    return dict(
        type='BaseSegDataset',
        data_root=str(root),
        data_prefix=dict(img_path='images', seg_map_path='maps'),
        img_suffix='.png',
        seg_map_suffix='.png',
        metainfo=dict(classes=tuple('abcde')),
        pipeline=SEGMENTATION,
    )


def coco(root):
    make_coco(root)
    return dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=DETECTION,
    )


def build(scope, **fields):
    with DefaultScope.overwrite_default_scope(scope):
        return DATASETS.build(dict(type='kd_dense.Unlabelled', **fields))


def test_beside_a_segmentation_set(folder, tmp_path):
    mixed = build('mmseg', pictures=str(folder), beside=cityscapes(tmp_path / 'set'))
    assert mixed.counts == (2, 3)
    assert len(mixed) == 5
    assert mixed.metainfo['classes'] == tuple('abcde')
    assert [is_unlabelled(mixed[i]['data_samples']) for i in range(5)] == [False] * 2 + [True] * 3
    for index in range(2, 5):
        found = mixed[index]
        labels = found['data_samples'].gt_sem_seg.data
        assert found['inputs'].shape[1:] == labels.shape[1:]
        assert max(labels.shape) <= 24  # the pipeline of those with labels
        assert (labels == 255).all()
    assert (mixed[0]['data_samples'].gt_sem_seg.data < 5).any()
    assert pickle.loads(pickle.dumps(mixed))[4]['inputs'].dtype == torch.uint8  # for workers


def test_beside_a_detection_set(folder, tmp_path):
    mixed = build('mmdet', pictures=str(folder), beside=coco(tmp_path / 'coco'))
    assert mixed.counts == (4, 3)
    for index in range(4, 7):
        for _ in range(3):
            sample = mixed[index]['data_samples']
            assert is_unlabelled(sample)
            assert sample.gt_instances.bboxes.tensor.shape == (0, 4)
            assert len(sample.gt_instances.labels) == len(sample.gt_instances.masks) == 0
    assert len(mixed[0]['data_samples'].gt_instances)


def test_a_set_whose_labels_are_hidden(tmp_path):
    hidden = build('mmdet', pictures=coco(tmp_path / 'coco'))
    assert hidden.counts == (0, 4)
    assert 'person' in hidden.metainfo['classes']
    for index in range(4):
        sample = hidden[index]['data_samples']
        assert is_unlabelled(sample)
        assert len(sample.gt_instances) == len(sample.ignored_instances) == 0
    info = hidden.get_data_info(0)
    assert info['width'] > 0


def test_like_a_set_that_is_not_there(folder):
    """Only its pipeline and its classes are needed."""
    alone = build('mmseg', pictures=str(folder), like=cityscapes_that_is_not_there())
    assert alone.counts == (0, 3)
    assert alone.metainfo['classes'] == tuple('abcde')
    assert alone[0]['inputs'].shape[0] == 3


def cityscapes_that_is_not_there():
    return dict(
        type='RepeatDataset',
        times=2,
        lazy_init=True,
        dataset=dict(
            type='BaseSegDataset',
            data_root='no/such/folder',
            lazy_init=True,
            metainfo=dict(classes=tuple('abcde')),
            pipeline=SEGMENTATION,
        ),
    )


def test_a_pipeline_of_its_own(folder, tmp_path):
    strong = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
              dict(type='Resize', scale=(32, 16)), dict(type='PackSegInputs')]  # fmt: skip
    mixed = build('mmseg', pictures=str(folder), beside=cityscapes(tmp_path / 'set'),
                  pipeline=strong)  # fmt: skip
    assert mixed[2]['inputs'].shape[1:] == (16, 32)
    assert mixed[0]['inputs'].shape[1:] != (16, 32)


def test_views_of_mmdet_are_marked(folder):
    """The weak and the strong view of a MultiBranch."""
    view = [dict(type='Resize', scale=(32, 32)), dict(type='PackDetInputs')]
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadEmptyAnnotations'),
        dict(
            type='MultiBranch',
            branch_field=['sup', 'unsup_teacher', 'unsup_student'],
            unsup_teacher=view,
            unsup_student=[dict(type='Color'), *view],
        ),
    ]
    samples = build('mmdet', pictures=str(folder), pipeline=pipeline)[0]['data_samples']
    assert samples['sup'] is None
    assert is_unlabelled(samples['unsup_teacher'])
    assert is_unlabelled(samples['unsup_student'])


def test_lists_of_pictures(folder, tmp_path):
    found = list_pictures(folder)
    assert [path.rpartition('/')[2] for path in found] == ['a.JPG', 'b.png', 'c.jpg']
    (folder / 'some.txt').write_text('a.JPG\n\ninner/c.jpg\n')
    assert list_pictures(folder / 'some.txt') == [str(folder / 'a.JPG'), found[2]]
    assert list_pictures(found[:1]) == found[:1]


@pytest.mark.parametrize(
    ('source', 'error', 'message'),
    [
        ('no/such/folder', FileNotFoundError, 'there is no folder and no list no/such/folder'),
        ('empty', ValueError, 'has no picture in it: expected files that end in .jpg'),
        ('a.png', ValueError, 'is one file: expected a folder, or a list'),
        ('bad.txt', FileNotFoundError, r'names .*gone.png, which does not exist'),
        ('blank.txt', ValueError, 'names no picture'),
        ([], ValueError, 'the list names no picture'),
    ],
)
def test_no_pictures(source, error, message, tmp_path):
    (tmp_path / 'empty').mkdir()
    for name, text in (('a.png', ''), ('bad.txt', 'gone.png'), ('blank.txt', '\n')):
        (tmp_path / name).write_text(text)
    if isinstance(source, str) and (tmp_path / source).exists():
        source = tmp_path / source
    with pytest.raises(error, match=message):
        list_pictures(source)


def test_nothing_says_how_to_read_them(folder, tmp_path):
    with pytest.raises(ValueError, match=r'nothing says how to read.*say pipeline='):
        Unlabelled(str(folder))
    with pytest.raises(ValueError, match='either beside or like'):
        Unlabelled(str(folder), beside=toy.SegScenes(), like=toy.SegScenes())
    with pytest.raises(ValueError, match='SegScenes mixes pictures with each other or has no'):
        Unlabelled(str(folder), beside=toy.SegScenes())
    with pytest.raises(ValueError, match='has its own pipeline'):
        Unlabelled(toy.SegScenes(), pipeline=SEGMENTATION)


def test_a_pipeline_that_yields_nothing(folder):
    found = Unlabelled(str(folder), pipeline=[nothing])
    with pytest.raises(ValueError, match=r'yields nothing for .*a.JPG'):
        found[0]


def nothing(results):
    return None


def test_which_pictures_have_labels(tmp_path):
    mixed = Unlabelled(toy.SegScenes(2), beside=toy.SegScenes(3))
    first = [True] * 3 + [False] * 2
    assert labelled_pictures(toy.SegScenes(2)) == [True] * 2
    assert labelled_pictures(mixed) == first
    assert labelled_pictures(Unlabelled(toy.SegScenes(1), beside=mixed)) == [*first, False]
    assert labelled_pictures(torch.utils.data.ConcatDataset([mixed, toy.SegScenes(1)])) == [
        *first, True,
    ]  # fmt: skip


def test_hidden_labels_of_a_sample_stay_whole():
    sample = toy.DetScenes()[3]['data_samples']
    assert len(sample.gt_instances)
    hide_labels(sample)
    assert sample.gt_instances.bboxes.shape == (0, 4)
    hide_labels(sample)  # and of none, none
    assert is_unlabelled(sample)

"""`kd_dense.TwoViews`: the student sees one view of a picture, and its teachers the other."""

import copy

import mmcv
import numpy as np
import pytest
import torch
from mmengine.registry import DATASETS, DefaultScope
from torch.utils.data import Dataset

from kd_dense.mm.batches.two_views import OTHER, TwoViews, as_teachers_see
from kd_dense.mm.batches.views import FixedViews
from kd_dense.mm.datasets.unlabelled import Unlabelled, is_unlabelled
from tests.mm import toy

LOGITS = 'decode_head.conv_seg'


class Branches(Dataset):
    """Another data set as `MultiBranch` has it: darker for the student, as it was for teachers."""

    def __init__(self, scenes, **metainfo):
        self.scenes, self.metainfo = scenes, metainfo

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        weak, strong = self.scenes[index], copy.deepcopy(self.scenes[index])
        strong['data_samples'].set_metainfo(self.metainfo)
        return dict(
            inputs=dict(sup=None, unsup_teacher=weak['inputs'], unsup_student=weak['inputs'] // 2),
            data_samples=dict(
                sup=None, unsup_teacher=weak['data_samples'], unsup_student=strong['data_samples']
            ),
        )


def scenes(kind=toy.SegScenes, **metainfo):
    plain = kind(augment=False) if kind is toy.SegScenes else kind()
    return TwoViews(Branches(plain, **metainfo)), plain


@pytest.mark.parametrize('kind', ['segmenter', 'detector'])
def test_teachers_see_the_other_view_as_the_student_would_have(kind):
    """Pictures of unequal sizes too, which are padded."""
    model = toy.build(getattr(toy, kind)())
    both, plain = scenes(toy.SegScenes if kind == 'segmenter' else toy.DetScenes)
    inputs, samples = toy.batch(model, both, 3)
    weak, _ = toy.batch(model, plain, 3)
    assert torch.equal(as_teachers_see(model, inputs, samples), weak)
    assert not torch.equal(inputs, weak)
    assert as_teachers_see(model, weak, toy.batch(model, plain, 3)[1]) is weak


@pytest.mark.parametrize('teacher', ['ema', None])
def test_a_term_compares_the_student_on_its_view_with_teachers_on_theirs(teacher):
    config = toy.distilled(teacher=teacher, student=toy.segmenter(dropout=0.0))
    model = toy.build(config).eval()
    both, plain = scenes()
    inputs, samples = toy.batch(model, both)
    found = model.loss(inputs, samples)['loss_kd_logits']
    guest = model.kd_plan.teacher.model
    with torch.no_grad():
        ours = model(inputs, mode='tensor')
        theirs = guest(toy.batch(model, plain)[0], mode='tensor')
    assert torch.allclose(found, model.kd.logits.loss(ours, theirs), rtol=1e-4)


def test_labels_are_predicted_on_the_view_of_the_teacher():
    config = toy.distilled(
        student=toy.segmenter(dropout=0.0), unlabelled=True, pseudo=dict(score_thr=0.0),
        terms=dict(labels=dict(tap=LOGITS, loss=dict(type='NKDLoss'))),
    )  # fmt: skip
    model = toy.build(config).eval()
    pseudo, seen = model.kd_plan.unlabelled.pseudo, []
    model.kd_plan.unlabelled.pseudo = lambda x, samples: seen.append(x) or pseudo(x, samples)
    plain = toy.SegScenes(2, augment=False)
    both = TwoViews(Unlabelled(Branches(plain), beside=toy.SegScenes(2)))
    mixed = [both[0], both[2], both[3]]
    assert [is_unlabelled(one['data_samples']) for one in mixed] == [False, True, True]
    assert [OTHER in one['data_samples'] for one in mixed] == [False, True, True]
    model.loss(*toy.batch(model, mixed, 3))
    assert torch.equal(seen[0], toy.batch(model, plain, 2)[0])


def test_trains_with_the_average_on_pictures_without_labels(tmp_path):
    mixed = TwoViews(Unlabelled(Branches(toy.SegScenes(4)), beside=toy.SegScenes(4)))
    runner = toy.runner(
        toy.distilled(teacher='ema', unlabelled=True), tmp_path, 2,
        custom_hooks=[dict(type='kd_dense.AverageHook')],
        train_dataloader=dict(
            batch_size=2, num_workers=1, dataset=mixed,
            sampler=dict(type='kd_dense.RatioSampler', batch_size=2, infinite=True)),
    )  # fmt: skip
    runner.train()
    assert runner.model.kd_plan.teacher.average.steps == 3


def test_maps_are_kept_of_both_views():
    class Changed(Branches):
        def __getitem__(self, index):
            found = super().__getitem__(index)
            found['inputs']['unsup_teacher'] = found['inputs']['unsup_teacher'] ^ 1
            return found

    plain = toy.SegScenes(augment=False)
    one, other = (
        FixedViews(TwoViews(kind(plain)), views=1)[0]['data_samples'].metainfo['kd_view'].digest
        for kind in (Branches, Changed)
    )
    assert one != other


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(2):
        pixels = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
        mmcv.imwrite(pixels, str(tmp_path / f'{index}.png'))
    return tmp_path


def of_mmdet(folder, scope, before=(), strong=(), **others):
    pack = dict(type='PackDetInputs' if scope == 'mmdet' else 'PackSegInputs')
    loader = 'LoadEmptyAnnotations' if scope == 'mmdet' else 'LoadAnnotations'
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type=loader),
        *before,
        dict(type='mmdet.MultiBranch', branch_field=['sup', 'unsup_teacher', 'unsup_student'],
             unsup_teacher=[pack], unsup_student=[*strong, pack]),
    ]  # fmt: skip
    pictures = dict(type='kd_dense.Unlabelled', pictures=str(folder), pipeline=pipeline)
    with DefaultScope.overwrite_default_scope(scope):
        return DATASETS.build(dict(type='kd_dense.TwoViews', dataset=pictures, **others))


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_branches_of_mmdet(folder, scope):
    data = of_mmdet(
        folder, scope,
        before=[dict(type='Resize', scale=(32, 24)), dict(type='RandomFlip', prob=0.5)],
        strong=[dict(type='PhotoMetricDistortion')],
    )  # fmt: skip
    found = data[1]
    assert is_unlabelled(found['data_samples'])
    other = found['data_samples'].get(OTHER)
    assert found['inputs'].shape == other.shape == (3, 24, 32)
    assert not torch.equal(found['inputs'], other)
    assert data.counts == (0, 2)  # of the data set within


def test_views_that_show_other_places(folder):
    flip = [dict(type='RandomFlip', prob=1.0)]
    with pytest.raises(ValueError, match=r'flip is True for the student and False for its teach'):
        of_mmdet(folder, 'mmdet', strong=flip, before=[dict(type='RandomFlip', prob=0.0)])[0]
    resize = [dict(type='Resize', scale=(32, 24))]
    with pytest.raises(ValueError, match=r'img_shape is \(24, 32\) for the student and \(48'):
        of_mmdet(folder, 'mmdet', strong=resize)[0]


def test_other_names_of_branches(folder):
    with pytest.raises(ValueError, match=r"no branch 'strong', known are .*: say student='...'"):
        of_mmdet(folder, 'mmdet', student='strong')[0]


def test_batch_augments_are_refused():
    model = toy.build(toy.segmenter())
    both, _ = scenes()
    inputs, samples = toy.batch(model, both)
    model.data_preprocessor.batch_augments = [1]
    with pytest.raises(ValueError, match='cannot follow batch_augments'):
        as_teachers_see(model, inputs, samples)

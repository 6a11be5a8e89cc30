"""What dense heads predict, distilled in tiny detectors of many kinds."""

from __future__ import annotations

import pytest
import torch

from tests.mm import toy, toy_heads

BCKD = dict(type='BCKDLoss')
ADL = dict(type='ADLLoss')
ASSIGNING = ('atss', 'fcos', 'retina')  # whose assignment can be read


def untrained(config):
    return dict(config=config, checkpoint=None)


def distilled(student, teacher, loss, tap='bbox_head', **fields):
    terms = dict(term=dict(tap=tap, loss=loss, **fields))
    return toy.build(toy.distilled(student, untrained(teacher), terms)).train()


def ours(losses):
    return {k: v for k, v in losses.items() if k.startswith('loss_kd_')}


def step(model, count=4):
    """The terms of a step, whose gradients reach the student; pictures of two sizes."""
    found = ours(toy.losses(model, toy.DetScenes(), count))
    assert all(v.isfinite() for v in found.values())
    sum(found.values()).backward()
    grads = [p.grad for p in model.backbone.parameters() if p.grad is not None]
    assert any(g.any() for g in grads)
    assert all(g.isfinite().all() for g in grads)
    assert all(p.grad is None for p in model.kd_plan.teacher.model.parameters())
    return found


@pytest.mark.parametrize('loss', [BCKD, ADL], ids=['bckd', 'adl'])
@pytest.mark.parametrize('kind', ASSIGNING)
def test_heads_of_mmdet(kind, loss):
    model = distilled(toy_heads.plain(kind), toy_heads.plain(kind, 16), loss)
    assert all(v > 0 for v in step(model).values())


@pytest.mark.parametrize('kind', toy_heads.HEADS)
def test_heads_with_distributions(kind):
    model = distilled(toy_heads.detector(kind), toy_heads.detector(kind, 16), BCKD)
    assert all(v > 0 for v in step(model).values())


def test_a_head_with_distributions_learns_from_one_without():
    student = toy_heads.detector('gfl', anchor_generator=dict(toy_heads.ANCHORS))
    teacher = toy_heads.plain('atss', 16, anchor_generator=dict(toy_heads.ANCHORS))
    model = distilled(student, teacher, BCKD, tap='bbox_head[:10]')
    assert all(v > 0 for v in step(model).values())


def test_a_student_that_equals_its_teacher_has_nothing_to_learn():
    """Also where a head yields boxes in another unit while it is trained."""
    for kind in ('fcos', 'gfl'):
        config = toy_heads.plain(kind, norm_on_bbox=True) if kind == 'fcos' else (
            toy_heads.detector(kind)
        )  # fmt: skip
        config.backbone.norm_cfg = dict(type='GN', num_groups=2)
        model = distilled(config, config, dict(BCKD, positive_levels_only=False))
        model.kd_plan.teacher.model.load_state_dict(
            {k: v for k, v in model.state_dict().items() if not k.startswith('kd.')}
        )
        for value in ours(toy.losses(model, toy.DetScenes(), 4)).values():
            assert abs(float(value)) < 1e-4


def test_a_picture_without_objects():
    model = distilled(toy_heads.plain('atss'), toy_heads.plain('atss', 16), BCKD)
    found = ours(toy.losses(model, toy.DetScenes(), 1))
    assert all(v == 0 and v.requires_grad for v in found.values())


@pytest.mark.parametrize('kind', ['autoassign', 'ddod'])
def test_a_head_whose_targets_are_not_known_is_refused(kind):
    with pytest.raises(ValueError, match=r"'term': it is not known what \w+.get_targets"):
        distilled(toy_heads.plain(kind), toy_heads.plain(kind, 16), BCKD)


def test_shares_weigh_the_parts():
    model = distilled(toy_heads.plain('atss'), toy_heads.plain('atss', 16), BCKD,
                      share=dict(classes=0.5, boxes=0.5))  # fmt: skip
    for _ in range(2):
        losses = toy.losses(model, toy.DetScenes(), 4)
        model.parse_losses(losses)[0].backward()
    assert losses['kd_weight_term.boxes'] > 0
    assert losses['loss_kd_term.boxes'] > 0


@pytest.mark.parametrize('precision', ['bf16', 'fp32'])
def test_under_autocast(precision):
    student, teacher = toy_heads.plain('atss'), toy_heads.plain('atss', 16)
    terms = dict(term=dict(tap='bbox_head', loss=BCKD))
    teacher = dict(untrained(teacher), precision=precision)
    model = toy.build(toy.distilled(student, teacher, terms)).train()
    inputs, samples = toy.batch(model, toy.DetScenes(), 4)
    with torch.autocast('cpu', torch.bfloat16):
        found = ours(model(inputs, samples, mode='loss'))
    assert all(v.dtype == torch.float32 and v > 0 for v in found.values())


PGD = ('atss', 'fcos', 'retina', 'ddod', 'autoassign')


def guided(kind, **fields):
    terms = {
        name: dict(tap=f'bbox_head.{name}_convs.1', loss=dict(type=loss), **fields)
        for name, loss in (('cls', 'PGDClassLoss'), ('reg', 'PGDBoxLoss'))
    }
    student, teacher = toy_heads.plain(kind), toy_heads.plain(kind, 16)
    return toy.build(toy.distilled(student, untrained(teacher), terms)).train()


@pytest.mark.parametrize('kind', PGD)
def test_key_regions_of_heads_of_mmdet(kind):
    found = step(guided(kind))
    assert all(v > 0 for v in found.values())
    assert len(found) == 5


def test_key_regions_of_a_picture_without_objects():
    found = ours(toy.losses(guided('atss'), toy.DetScenes(), 1))
    assert found['loss_kd_cls.foreground'] == found['loss_kd_reg.foreground'] == 0
    assert found['loss_kd_cls.background'] > 0


@pytest.mark.parametrize('method', ['bckd', 'adl', 'crosskd', 'pgd'])
@pytest.mark.parametrize('kind', PGD)
def test_presets(kind, method):
    config = toy.distilled(
        toy_heads.plain(kind, norm_cfg=dict(type='GN', num_groups=2)),
        untrained(toy_heads.plain(kind, 16)),
        preset=method,
    )
    config.pop('terms')
    if kind in ('ddod', 'autoassign') and method != 'pgd':
        with pytest.raises(ValueError, match=r'get_targets|has settings for'):
            toy.build(config)
        return
    step(toy.build(config).train())


@pytest.mark.parametrize('method', ['bckd', 'adl', 'crosskd'])
def test_presets_of_a_head_with_norms_for_each_level(method):
    head = dict(type='RetinaSepBNHead', num_ins=len(toy_heads.STRIDES))
    teacher = untrained(toy_heads.plain('retina', 16, **head))
    config = toy.distilled(toy_heads.plain('retina', **head), teacher, preset=method)
    config.pop('terms')
    step(toy.build(config).train())

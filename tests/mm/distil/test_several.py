"""Several teachers, one by name, their mean; and none but the student itself."""

import pytest
import torch

from tests.mm import toy

LOGITS = 'decode_head.conv_seg'


def untrained(width=16, **others):
    return dict(config=toy.segmenter(width, **others), checkpoint=None)


def term(**fields):
    return dict(tap=LOGITS, loss=toy.CWD, **fields)


def several(terms, student=None, **teachers):
    return toy.distilled(
        student=toy.segmenter(dropout=0.0) if student is None else student,
        teacher=teachers or dict(a=untrained(16), b=untrained(24)),
        terms=terms,
    )


def alone(name, teacher):
    """The loss of a term with a single teacher."""
    model = toy.build(
        toy.distilled(student=toy.segmenter(dropout=0.0), teacher=teacher, terms={name: term()})
    )
    return toy.losses(model)[f'loss_kd_{name}']


def test_a_term_learns_from_the_teacher_that_it_names():
    losses = toy.losses(toy.build(several(dict(one=term(teacher='a'), two=term(teacher='b')))))
    assert torch.equal(losses['loss_kd_one'], alone('one', untrained(16)))
    assert torch.equal(losses['loss_kd_two'], alone('two', untrained(24)))
    assert not torch.equal(losses['loss_kd_one'], losses['loss_kd_two'])


def test_a_list_is_the_mean_of_their_maps():
    model = toy.build(several(dict(both=term(teacher=['a', 'b']))))
    model.eval()
    inputs, samples = toy.batch(model)
    with torch.no_grad():
        maps = [
            guest.teacher.model(inputs, samples, mode='tensor')
            for guest in model.kd_plan.guests.values()
        ]
        ours = model(inputs, samples, mode='tensor')
    expected = model.kd.both.loss(ours, (maps[0] + maps[1]) / 2)
    found = model(inputs, samples, mode='loss')['loss_kd_both']
    assert torch.allclose(found, expected)


def test_each_runs_only_where_a_term_needs_it():
    model = toy.build(
        several(
            dict(
                one=term(teacher='a'), two={**term(teacher='b'), 'loss': toy.CWD | {'weight': 0.0}}
            )
        )
    )
    model.kd_plan.guests['b'].teacher.model.forward = pytest.fail
    assert toy.losses(model)['loss_kd_two'] == 0


def test_without_a_teacher_places_of_the_student_are_compared():
    tap = dict(student='backbone.layer3', teacher='backbone.layer4')
    config = toy.distilled(terms=dict(own=dict(tap=tap, loss=toy.CWD)))
    config.teacher = None
    model = toy.build(config)
    assert not model.kd_plan.running
    found = toy.losses(model)['loss_kd_own']
    assert found > 0
    found.backward()
    assert model.backbone.layer3[0].conv1.weight.grad is not None
    assert model.backbone.layer4[0].conv1.weight.grad is None  # nothing flows into the taught side


def test_a_stage_follows_a_later_one_of_another_size():
    tap = dict(student='backbone.layer1', teacher='backbone.layer3')
    config = toy.distilled(terms=dict(sad=dict(tap=tap, loss=dict(type='SADLoss'))))
    config.teacher = None
    model = toy.build(config)
    assert not [*model.kd.parameters()]
    found = toy.losses(model)['loss_kd_sad']
    assert found > 0
    found.backward()
    assert model.backbone.layer1[0].conv1.weight.grad.abs().sum() > 0
    assert model.backbone.layer2[0].conv1.weight.grad is None

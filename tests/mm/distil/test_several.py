"""Several teachers, one by name, their mean; and none but the student itself."""

import pytest
import torch

from kd_dense.losses import camkd_loss, kd_loss
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


def test_teachers_are_weighed_by_what_they_know():
    loss = dict(type='CAMKDLoss', weight=2.0, confidence='image')
    both = dict(tap=LOGITS, teacher=['a', 'b'], loss=loss)
    mean = dict(tap=LOGITS, teacher=['a', 'b'], loss=dict(type='KDLoss', temperature=4.0))
    model = toy.build(several(dict(both=both, mean=mean))).eval()
    inputs, samples = toy.batch(model)
    with torch.no_grad():
        a, b, ours = (
            one(inputs, samples, mode='tensor')
            for one in (*(g.teacher.model for g in model.kd_plan.guests.values()), model)
        )
    labels = torch.stack([sample.gt_sem_seg.data[0] for sample in samples])
    found = model(inputs, samples, mode='loss')
    expected = 2 * camkd_loss(ours, [a, b], labels, confidence='image')
    assert torch.allclose(found['loss_kd_both'], expected)
    expected = kd_loss(ours, (a + b) / 2, labels, temperature=4.0)
    assert torch.allclose(found['loss_kd_mean'], expected)


@pytest.mark.parametrize(
    ('terms', 'teachers', 'message'),
    [
        (dict(one=term()), None, "say which, as teacher='NAME' or a list"),
        (dict(one=term(teacher='c')), None, "no teacher 'c', known are 'a', 'b'"),
        (dict(one=term(teacher='a')), None, "no term learns from the teacher 'b'"),
        (dict(one=term(teacher=['a', 'a'])), None, 'each once'),
        (dict(one=term(teacher=[])), None, 'each once'),
        (
            dict(one=dict(tap='backbone.layer4', loss=toy.CWD, teacher=['a', 'b'])),
            None,
            'which must be of one shape',
        ),
        (
            dict(one=dict(tap=LOGITS, loss=dict(type='CAMKDLoss'), teacher='a')),
            dict(a=untrained()),
            'weighs several teachers: name them, as teacher=',
        ),
        (dict(one=term(teacher=['a', 'own'])), dict(a=untrained(), own=None), 'is not averaged'),
        (dict(one=term()), dict(own=None), 'is compared with itself'),
        (dict(one=term()), {'a-b': untrained()}, 'cannot be the name of a teacher'),
        (dict(one=term()), dict(confg='x.py'), "unknown field 'confg', did you mean 'config'"),
        (dict(one=term()), dict(a=3), 'as the name of one of several teachers'),
    ],
)
def test_bad_input(terms, teachers, message):
    with pytest.raises(ValueError, match=message):
        toy.build(several(terms, **(teachers or {})))


def test_a_preset_for_each_teacher_or_for_all():
    config = several(None, a=untrained(), b=untrained(24))
    del config.terms
    each = toy.build({**config, 'preset': dict(a='kd', b='cwd'), 'weights': 'shares'})
    assert {name: term.teachers for name, term in each.kd.items()} == {
        'kd_a': ('a',),
        'cwd_b': ('b',),
    }
    assert [term.shares['whole'].share for term in each.kd.values()] == [0.5, 0.5]
    both = toy.build({**config, 'preset': 'kd'})
    assert {term.teachers for term in both.kd.values()} == {('a', 'b')}
    with pytest.raises(ValueError, match=r'say what is learnt from each, as preset=dict\(a=...'):
        toy.build({**config, 'preset': 'pkd'})
    with pytest.raises(ValueError, match="no teacher 'c'"):
        toy.build({**config, 'preset': dict(c='kd')})


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

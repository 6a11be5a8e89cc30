"""The promises, for teachers of other kinds: several, the student's average, and none."""

import copy
import pickle

import pytest
import torch
from mmengine.runner.checkpoint import get_state_dict

from kd_dense.mm.hooks.average import KEY
from tests.mm import toy
from tests.mm.distil.test_promises import (
    TestPromise8ResumeEqualsNotHavingStopped as Resume,
)
from tests.mm.distil.test_promises import assert_equal_states, student_state, train

LOGITS = 'decode_head.conv_seg'
WITHIN = dict(student='backbone.layer3', teacher='backbone.layer4')
AVERAGE = dict(type='kd_dense.AverageHook')
KINDS = ('several', 'ema', 'none')
BOTH = ('several', 'mixed')  # the average and the student itself beside a teacher


def untrained(width):
    return dict(config=toy.segmenter(width), checkpoint=None)


def config(kind, weight=3.0, **student):
    def term(tap=LOGITS, **fields):
        return dict(tap=tap, loss={**toy.CWD, 'weight': weight}, **fields)

    teacher, terms = {
        'several': (
            dict(a=untrained(16), b=untrained(24)),
            dict(
                one=term(teacher='a'),
                features=term('backbone.layer4', teacher='b'),
                both=term(teacher=['a', 'b']),
            ),
        ),
        'ema': (dict(type='ema', momentum=0.05), dict(logits=term())),
        'none': (None, dict(own=term(WITHIN))),
        'mixed': (
            dict(a=untrained(16), ema='ema', own=None),
            dict(
                one=term(teacher='a'), two=term(teacher='ema'), three=term(WITHIN, teacher='own')
            ),
        ),
    }[kind]
    found = toy.distilled(student=toy.segmenter(**student), teacher='', terms=terms)
    found.teacher = teacher
    return found


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    return train(toy.segmenter(), tmp_path_factory.mktemp('plain')).model.state_dict()


def guests_of(model):
    return [guest.teacher.model for guest in model.kd_plan.running.values()]


@pytest.mark.parametrize('kind', KINDS)
def test_1_with_all_weights_0_it_is_plain_training(kind, plain, tmp_path):
    model = train(config(kind, 0.0), tmp_path, custom_hooks=[AVERAGE]).model
    assert_equal_states(plain, student_state(model))


@pytest.mark.parametrize('kind', KINDS)
def test_2_3_4_names_checkpoints_and_guests(kind, tmp_path):
    runner = toy.runner(config(kind), tmp_path, custom_hooks=[AVERAGE])
    model = runner.model
    averaged = [t.teacher for t in model.kd_plan.running.values() if hasattr(t.teacher, 'average')]
    frozen = [g for g in guests_of(model) if all(g is not one.model for one in averaged)]
    before = copy.deepcopy([g.state_dict() for g in frozen])
    runner.train()
    for state, guest in zip(before, frozen, strict=True):
        assert_equal_states(state, guest.state_dict())
    for guest in guests_of(model):
        assert not any(m.training for m in guest.modules())
        assert not any(p.requires_grad or p.grad is not None for p in guest.parameters())
        theirs = {id(x) for x in (*guest.parameters(), *guest.buffers(), *guest.modules())}
        assert not theirs & {id(x) for x in (*model.parameters(), *model.buffers())}
        assert not theirs & {id(x) for x in model.modules()}
        groups = runner.optim_wrapper.param_groups
        assert not theirs & {id(p) for group in groups for p in group['params']}
    expected = toy.build(toy.segmenter()).state_dict().keys()
    checkpoint = torch.load(tmp_path / 'iter_4.pth', weights_only=False)
    assert student_state(model).keys() == expected
    assert checkpoint['state_dict'].keys() == get_state_dict(model).keys()
    assert (KEY in checkpoint) == bool(averaged)
    bare = toy.build(toy.segmenter(), seed=1)
    bare.load_state_dict(
        {k: v for k, v in checkpoint['state_dict'].items() if not k.startswith('kd.')}
    )


@pytest.mark.parametrize('kind', BOTH)
def test_4_copies_share_teachers_and_pickles_leave_them_out(kind):
    model = toy.build(config(kind))
    toy.losses(model)
    copied = copy.deepcopy(model)
    assert [*map(id, guests_of(copied))] == [*map(id, guests_of(model))]
    a, b = (m.eval()(*toy.batch(m), mode='loss') for m in (model, copied))
    assert all(torch.equal(a[key], b[key]) for key in a if key.startswith('loss_kd'))
    back = pickle.loads(pickle.dumps(model))
    assert all(guest.teacher.model is None for guest in back.kd_plan.running.values())


@pytest.mark.parametrize('kind', BOTH)
def test_8_a_resumed_training_is_the_same_bit_for_bit(kind, tmp_path):
    promise = Resume()
    with_average = [promise.RANDOM, AVERAGE]
    stopped = [*with_average, dict(type='Interrupt', after=3)]
    with pytest.raises(KeyboardInterrupt, match='power cut'):
        train(config(kind), tmp_path / 'stopped', custom_hooks=stopped)
    resumed = train(
        config(kind), tmp_path / 'stopped', custom_hooks=with_average, resume=True
    ).model
    whole = train(config(kind), tmp_path / 'whole', custom_hooks=with_average).model
    assert_equal_states(whole.state_dict(), resumed.state_dict())
    for a, b in zip(guests_of(whole), guests_of(resumed), strict=True):
        assert_equal_states(a.state_dict(), b.state_dict())


@pytest.mark.parametrize('kind', BOTH)
def test_10_an_ema_hook_beside_changes_nothing_and_shares_them(kind, tmp_path):
    hooks = [AVERAGE]
    without = train(config(kind), tmp_path / 'without', custom_hooks=hooks).model
    runner = train(config(kind), tmp_path / 'with', custom_hooks=[*hooks, dict(type='EMAHook')])
    assert_equal_states(without.state_dict(), runner.model.state_dict())
    ema = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook').ema_model.module
    assert [*map(id, guests_of(ema))] == [*map(id, guests_of(runner.model))]
    assert ema.state_dict().keys() == runner.model.state_dict().keys()

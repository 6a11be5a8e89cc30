"""The promises, for each kind of teacher: from elsewhere, several, the average, none, kept."""

import copy
import pickle
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner.checkpoint import get_state_dict

from kd_dense.mm.hooks.average import KEY
from kd_dense.taps import Taps
from tests.mm import toy
from tests.mm.distil.kinds import DIFFERENT, KINDS, batch, config, loader, untrained
from tests.mm.distil.test_promises import assert_equal_states, student_state, train

HOOKS = [dict(type='kd_dense.RandomStateHook'), dict(type='kd_dense.AverageHook')]


@pytest.fixture(scope='module')
def kept(tmp_path_factory):
    """A folder for maps, which all trainings share."""
    return tmp_path_factory.mktemp('maps')


@pytest.fixture(scope='module', params=KINDS)
def trained(request, kept, tmp_path_factory):
    """A training of each kind, with an average of the weights for validation beside."""
    kind, folder = request.param, tmp_path_factory.mktemp('trained')
    recipe = config(kind, kept)
    hooks = [*HOOKS, dict(type='EMAHook')]
    runner = toy.runner(recipe, folder, custom_hooks=hooks, train_dataloader=loader(kind))
    averaged = {k for k, one in guests(runner.model).items() if hasattr(one, 'average')}
    others = {k: one.model for k, one in guests(runner.model).items() if k not in averaged}
    before = {name: copy.deepcopy(one.state_dict()) for name, one in others.items()}
    runner.train()
    checkpoint = torch.load(folder / 'iter_4.pth', weights_only=False)
    return SimpleNamespace(kind=kind, recipe=recipe, runner=runner, before=before,
                           averaged=averaged, checkpoint=checkpoint)  # fmt: skip


def guests(model):
    return {name: guest.teacher for name, guest in model.kd_plan.running.items()}


def average_of(trained):
    """What EMAHook has made, which a checkpoint has in the student's place."""
    return next(h for h in trained.runner.hooks if type(h).__name__ == 'EMAHook').ema_model.module


def models(model):
    return [one.model for one in guests(model).values()]


@pytest.mark.parametrize('kind', [kind for kind in DIFFERENT if kind != 'all'])
def test_1_with_all_weights_0_it_is_plain_training_and_no_teacher_runs(
    kind, kept, tmp_path, monkeypatch
):
    """With unlabelled pictures it is plain training on the others: see test_unlabelled.py."""
    others = dict(custom_hooks=HOOKS, max_iters=2, train_dataloader=loader(kind))
    plain = train(toy.segmenter(), tmp_path / 'plain', **others).model
    runner = toy.runner(config(kind, kept, weight=0.0), tmp_path / 'kd', **others)
    for guest in runner.model.kd_plan.running.values():
        guest.run = pytest.fail
    runner.train()
    assert_equal_states(plain.state_dict(), student_state(runner.model))


def test_2_the_names_are_the_students(trained):
    plain = toy.build(toy.segmenter())
    for what in ('named_parameters', 'named_buffers', 'named_modules'):
        found = [name for name, _ in getattr(trained.runner.model, what)()]
        expected = [name for name, _ in getattr(plain, what)()]
        assert [name for name in found if not f'{name}.'.startswith('kd.')] == expected


def test_3_a_checkpoint_is_the_students(trained):
    state = trained.checkpoint['state_dict']
    bare = toy.build(toy.segmenter(), seed=1)
    bare.load_state_dict({k: v for k, v in state.items() if not k.startswith('kd.')})
    assert_equal_states(bare.state_dict(), student_state(average_of(trained)))
    assert state.keys() == get_state_dict(trained.runner.model).keys()
    assert (KEY in trained.checkpoint) == bool(trained.averaged)


def test_4_teachers_are_guests(trained):
    model = trained.runner.model
    for name, before in trained.before.items():
        after = guests(model)[name].model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(x.to(after[k].dtype), after[k]) for k, x in before.items())
    groups = trained.runner.optim_wrapper.param_groups
    ours = {id(x) for x in (*model.parameters(), *model.buffers(), *model.modules())}
    ours |= {id(p) for group in groups for p in group['params']}
    for guest in models(model):
        assert not any(m.training for m in guest.modules())
        assert not any(p.requires_grad or p.grad is not None for p in guest.parameters())
        theirs = {id(x) for x in (*guest.parameters(), *guest.buffers(), *guest.modules())}
        assert not theirs & ours


def test_4_copies_share_teachers_and_pickles_leave_them_out(trained):
    model = trained.runner.model
    for copied in (average_of(trained), copy.deepcopy(model)):
        assert [*map(id, models(copied))] == [*map(id, models(model))]
        assert copied.state_dict().keys() == model.state_dict().keys()
    back = pickle.loads(pickle.dumps(model))
    assert all(guest.model is None for guest in guests(back).values())


def test_4_what_they_yield_has_no_gradient_and_comes_of_eval_mode(trained, monkeypatch):
    seen, model = [], copy.deepcopy(trained.runner.model)
    enter = Taps.on

    def on(taps, whose, *args, **kwargs):
        if any(whose is one for one in models(model)):
            seen.append((torch.is_grad_enabled(), whose.training))
        return enter(taps, whose, *args, **kwargs)

    monkeypatch.setattr(Taps, 'on', on)
    data = loader(trained.kind)['dataset']
    for one in guests(model).values():
        if one.cache is not None:
            monkeypatch.setattr(one.cache, '_entries', SimpleNamespace(
                read=lambda *_: 'missing', write=lambda *_: None))  # fmt: skip
    losses = toy.losses(model, data)
    assert {*seen} == ({(False, False)} if models(model) else set())
    assert all(torch.isfinite(v) for k, v in losses.items() if k.startswith('loss_kd'))


def test_5_logs_and_validation_are_the_students(trained, monkeypatch):
    model, plain = copy.deepcopy(trained.runner.model), toy.build(toy.segmenter())
    assert [k for k in toy.losses(model, loader(trained.kind)['dataset']) if 'kd' not in k] == [
        *toy.losses(plain)
    ]
    plain.load_state_dict(student_state(model))
    for guest in guests(model).values():
        monkeypatch.setattr(guest, 'run', pytest.fail)
    a, b = (m.eval()(*toy.batch(m), mode='tensor') for m in (model, plain))
    assert torch.equal(a, b)


def test_8_and_10_resuming_is_not_having_stopped_and_an_average_beside_changes_nothing(
    trained, kept, tmp_path
):
    others = dict(train_dataloader=loader(trained.kind))
    hooks = [*HOOKS, dict(type='Interrupt', after=3)]
    with pytest.raises(KeyboardInterrupt, match='power cut'):
        train(trained.recipe, tmp_path, custom_hooks=hooks, **others)
    resumed = train(trained.recipe, tmp_path, resume=True, custom_hooks=HOOKS, **others).model
    assert_equal_states(trained.runner.model.state_dict(), resumed.state_dict())
    for a, b in zip(models(trained.runner.model), models(resumed), strict=True):
        assert_equal_states(a.state_dict(), b.state_dict())


@pytest.mark.parametrize('kind', ['ema', 'all'])
def test_10_mixed_precision_and_accumulated_gradients_resume_as_well(
    kind, kept, tmp_path, monkeypatch
):
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    scaler = partial(torch.amp.GradScaler, device='cpu')
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', scaler)
    monkeypatch.setattr(
        amp_optimizer_wrapper, 'autocast', partial(torch.autocast, 'cpu'), raising=False
    )
    others = dict(
        train_dataloader=loader(kind),
        optim_wrapper=dict(
            type='AmpOptimWrapper', dtype='bfloat16', accumulative_counts=2,
            optimizer=dict(type='SGD', lr=1e-2)),
    )  # fmt: skip
    recipe = config(kind, kept)
    whole = train(recipe, tmp_path / 'whole', custom_hooks=HOOKS, **others).model
    stopped = [*HOOKS, dict(type='Interrupt', after=3)]
    with pytest.raises(KeyboardInterrupt, match='power cut'):
        train(recipe, tmp_path / 'cut', custom_hooks=stopped, **others)
    rest = train(recipe, tmp_path / 'cut', custom_hooks=HOOKS, resume=True, **others).model
    assert_equal_states(whole.state_dict(), rest.state_dict())
    for a, b in zip(guests(whole).values(), guests(rest).values(), strict=True):
        assert_equal_states(a.model.state_dict(), b.model.state_dict())
    steps = [one.average.steps for one in guests(whole).values() if hasattr(one, 'average')]
    assert [int(one) for one in steps] == [3]  # the start is one


def test_the_maps_of_the_kept_are_those_of_the_running(kept):
    """Of several teachers, on pictures with and without labels."""
    norm = dict(type='GN', num_groups=2)
    running = config('all', kept, norm=norm)
    running.teacher.a = untrained(16)
    found, expected = (
        toy.build(one).train()(*batch(toy.build(one), 'all'), mode='loss')
        for one in (config('all', kept, norm=norm), running)
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(teacher=dict(type='ema', cache=dict(views=2, folder='maps'))),
         'cache is for a teacher that stays as it is'),
        (dict(teacher=dict(type='ema', every=2)), 'every is for a teacher that stays as it is'),
        (dict(teacher=dict(
            a=dict(untrained(16), cache=dict(views=2, folder='maps')),
            b=dict(untrained(16), cache=dict(views=3, folder='maps')))),
         r'have \[2, 3\] views of each picture: give all of them the same number'),
        (dict(teacher=dict(untrained(16), cache=dict(views=2, folder='maps')),
              unlabelled=True, pseudo=dict(score_thr=0.5)),
         r"leave out its cache, or name another one, as pseudo=dict\(teacher='NAME'\)"),
        (dict(unlabelled=True, pseudo=dict(teacher='b')), "there is no teacher 'b'"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(change, message):
    recipe = toy.distilled()
    for name, value in change.items():
        recipe[name] = value
    with pytest.raises(ValueError, match=message):
        toy.build(recipe)


def test_labels_are_predicted_by_the_teacher_that_is_named(kept):
    """The first may be kept, or know no classes."""
    recipe = config('all', kept)
    recipe.terms.labels = dict(tap='decode_head.conv_seg', teacher='b', loss=dict(type='NKDLoss'))
    for name in ('b', 'ema'):
        recipe.pseudo = dict(score_thr=0.0, teacher=name)
        model = toy.build(recipe).train()
        assert model.kd_plan.unlabelled.pseudo.teacher is guests(model)[name]
        assert 'labels' not in model.kd_plan.unlabelled.skipping
        assert toy.losses(model, loader('all')['dataset'])['loss_kd_labels'] > 0

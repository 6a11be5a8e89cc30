"""What is timed for a recipe, and beside what."""

from contextlib import contextmanager

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, OPTIM_WRAPPERS, DefaultScope

from kd_dense.mm.cost.side_by_side import SideBySide
from tests.mm import toy_rois
from tests.mm.cost.recipes import read, side_by_side

OFF = {f'model__terms__{name}__loss__weight': 0 for name in ('logits', 'features')}


def layers_run(model, call):
    """The modules without children that a call runs, in order."""
    names = {module: name for name, module in model.named_modules() if not any(module.children())}
    seen = []  # as each begins: the last is left before it ends
    hooks = [m.register_forward_pre_hook(lambda m, *_: seen.append(names[m])) for m in names]
    call()
    for hook in hooks:
        hook.remove()
    return seen


def test_plain_step_is_that_of_the_student_alone():
    """No distillation in it, the same weights, and gradients that its optimizer has used up."""
    benchmark = side_by_side('seg_skd')
    plain, distilled = benchmark.plain, benchmark.distilled['seg_skd']
    with DefaultScope.overwrite_default_scope('mmseg'):
        alone = MODELS.build(read('seg_skd').model.student)
    assert type(plain.model) is type(alone)
    assert [*plain.model.state_dict()] == [*alone.state_dict()]
    assert not hasattr(plain.model, 'kd')
    ours, theirs = plain.model.state_dict(), distilled.model.state_dict()
    assert ours.keys() == {name for name in theirs if not name.startswith('kd.')}
    weights = dict(plain.model.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in weights.items())
    assert not {id(p) for p in weights.values()} & {id(p) for p in distilled.model.parameters()}
    before = {name: value.clone() for name, value in weights.items()}
    for trained in (plain, distilled):
        trained.step(benchmark.batch)
        assert all(p.grad is None for p in trained.model.parameters())
        assert trained.optimizer.optimizer.state  # it has taken a step, of size 0
    assert all(torch.equal(value, before[name]) for name, value in weights.items())
    assert not distilled.model.kd.holistic.loss.critic_is_due  # the critic has taken its own


@pytest.mark.parametrize(
    ('recipe', 'options', 'last'),
    [
        ('seg_cwd', {}, 'decode_head.conv_seg'),
        ('seg_cwd', {'model__terms__features__tap': 'backbone.layer2',
                     'model__terms__logits__loss__weight': 0}, 'backbone.layer2'),
        ('det_fgd', {}, 'neck.'),
        ('det_ld', {}, 'bbox_head.'),
    ],
    ids=['seg_cwd', 'within', 'det_fgd', 'det_ld'],
)  # fmt: skip
def test_floor_runs_up_to_the_last_tap_and_no_further(recipe, options, last):
    benchmark = side_by_side(recipe, **options)
    [case] = benchmark.cases
    minimal, full = (benchmark.calls[call] for call in (case.guest.minimal, case.guest.full))
    [(_, teacher)] = benchmark.teachers.values()
    run = layers_run(teacher, minimal)
    assert run[-1].startswith(last)
    everything = layers_run(teacher, full)
    assert everything[: len(run)] == run
    if recipe == 'det_fgd':
        assert any(name.startswith('bbox_head') for name in everything[len(run) :])
    # and what the distilled step runs of its own teacher is the same
    guest = benchmark.distilled[recipe].model.kd_plan.teacher.model
    assert guest is not teacher
    assert layers_run(guest, benchmark.calls[case.step]) == run
    weights = teacher.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in guest.state_dict().items())


def test_floor_has_what_crosses_into_the_head_of_the_teacher():
    config = read('det_ld')
    loss = dict(type='CrossKDLoss', boxes='distributions')
    config.model.terms = dict(crosskd=dict(tap='bbox_head', cross_at=-1, loss=loss))
    benchmark = SideBySide({'one': config}, (64, 64))
    [case] = benchmark.cases
    [crossing] = case.crossings
    guest = benchmark.distilled['one'].model.kd_plan.teacher.model
    run = layers_run(guest, benchmark.calls[crossing])
    assert run
    assert all(name.startswith('bbox_head') for name in run)
    assert len(run) < len([n for n in layers_run(guest, benchmark.calls[case.step]) if n in run])
    results = benchmark.measure(1)
    found, calls = results['recipes']['one'], results['calls']
    parts = ('plain step', case.guest.minimal, crossing)
    assert found['floor_seconds'][0] == pytest.approx(sum(calls[c]['seconds'][0] for c in parts))


def test_floor_has_the_box_head_on_the_regions_of_the_student():
    config = read('det_fgd')
    config.model = toy_rois.distilled(student=toy_rois.detector())
    benchmark = SideBySide({'rois': config}, (64, 64))
    [case] = benchmark.cases
    [(_, teacher)] = benchmark.teachers.values()
    run = layers_run(teacher, benchmark.calls[case.guest.minimal])
    assert 'roi_head.bbox_head.fc_cls' in run
    assert not any(name.startswith('rpn_head') for name in run)
    guest = benchmark.distilled['rois'].model.kd_plan.teacher.model
    assert layers_run(guest, benchmark.calls[case.step]) == run


def test_without_weights_there_is_no_teacher():
    benchmark = side_by_side('seg_cwd', **OFF)
    [case] = benchmark.cases
    assert case.guest is None
    assert case.terms == {}
    assert benchmark.calls.keys() == {'plain step', case.step}
    told = []
    results = benchmark.measure(2, lambda *words: told.append(words))
    assert told == [(1, 3, 'rounds'), (2, 3, 'rounds'), (3, 3, 'rounds'),
                    (1, 2, 'memory'), (2, 2, 'memory')]  # fmt: skip
    found, plain = results['recipes']['seg_cwd'], results['calls']['plain step']
    assert found['floor_seconds'] == plain['seconds']
    assert found['floor_bytes'] == plain['peak_bytes']
    assert found['losses_to_step']['median'] == 0
    guest = benchmark.distilled['seg_cwd'].model.kd_plan.teacher.model
    assert layers_run(guest, benchmark.calls[case.step]) == []


def test_a_term_that_is_off_does_not_lengthen_the_floor():
    one = read('seg_cwd', model__terms__logits__loss__weight=0)
    benchmark = SideBySide({'both': read('seg_cwd'), 'one': one}, (64, 64))
    both, one = benchmark.cases
    assert one.terms.keys() == {'features'}
    [(_, teacher)] = benchmark.teachers.values()
    runs = [layers_run(teacher, benchmark.calls[case.guest.minimal]) for case in (both, one)]
    assert runs[1] == [name for name in runs[0] if name.startswith('backbone')]


class Rounding(OptimWrapper):
    """Does on a CPU what AmpOptimWrapper does on a GPU."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def test_floor_is_under_the_autocast_of_the_student(monkeypatch):
    monkeypatch.setitem(OPTIM_WRAPPERS.module_dict, 'Rounding', Rounding)
    maps = []
    for options in ({}, {'optim_wrapper__type': 'Rounding'}):
        benchmark = side_by_side('seg_cwd', **options)
        [case] = benchmark.cases
        maps.append(case.guest.maps)
        for call in (*case.terms.values(), case.guest.minimal, case.guest.full, case.step):
            benchmark.calls[call]()
    assert maps[0] == 2 * maps[1]


def test_all_rounds_compute_the_same():
    benchmark = side_by_side('det_ld')
    trained = benchmark.distilled['det_ld']
    losses = [float(trained.step(benchmark.batch)) for _ in range(3)]
    assert max(losses) - min(losses) < 1e-3 * max(losses)


def test_configs_stay_as_they_are():
    config = read('seg_cwd')
    before = config.to_dict()
    SideBySide({'one': config}, (64, 64))
    assert config.to_dict() == before


def test_a_teacher_whose_maps_are_kept_does_not_run_and_has_no_part_in_the_floor():
    benchmark = side_by_side('seg_cwd', model__teacher__cache=dict(views=8, folder='nowhere'))
    (case,) = benchmark.cases
    assert case.guest is None
    teacher = benchmark.distilled['seg_cwd'].model.kd_plan.teacher
    assert layers_run(teacher.model, benchmark.calls[case.step]) == []
    assert teacher.cache.read == 2  # the first step has computed both pictures

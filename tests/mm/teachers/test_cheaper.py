"""On a GPU a teacher takes what is cheaper, where its maps show that it may; here on a CPU."""

import pytest
import torch

from kd_dense.mm.teachers import cheaper, guest
from tests.mm import toy

LOGITS = 'decode_head.conv_seg'


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """What was captured runs as it is."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda forward: compile_(forward, backend='eager'))
    monkeypatch.setattr(guest, 'can_be_cheaper', lambda images: True)


def build(terms=None, **options):
    config = dict(config=toy.segmenter(16), checkpoint=None, **options)
    return toy.build(toy.distilled(teacher=config, terms=terms)).train()


def run(model):
    plan = model.kd_plan
    batch = toy.batch(model)
    plan.teacher.run(plan.guest.taps, plan.guest.calls, plan.guest.preprocess, *batch)
    plan.guest.wait()
    return plan.guest.taps[LOGITS][0]


def plain():
    return run(build(precision='fp32'))


def guest_of(model):
    return model.kd_plan.teacher


def test_after_two_batches_it_runs_in_bfloat16_and_says_so(log):
    model, expected = build(), plain()
    found = [run(model) for _ in range(3)]
    assert [x.dtype for x in found] == 3 * [torch.bfloat16]
    for x in found:
        assert 0 < float((x.float() - expected).norm() / expected.norm()) < cheaper.TOLERANCE
    teacher = guest_of(model)
    assert teacher.exact is None
    assert (teacher.precision, teacher.channels_last, teacher.compile) == ('bf16', True, True)
    assert not teacher.stream  # no device has one here
    assert 'in bfloat16, channels-last, compiled; on 2 batches' in log()


def test_the_model_as_loaded_is_there_while_it_is_tried_and_no_longer():
    model = build()
    run(model)
    assert next(guest_of(model).exact.parameters()).dtype == torch.float32
    run(model)
    assert guest_of(model).exact is None


@pytest.mark.parametrize('batch', [1, 2])
def test_maps_that_differ_too_much_keep_it_in_float32(log, monkeypatch, batch):
    model, expected = build(), plain()
    for _ in range(batch - 1):
        run(model)
    monkeypatch.setattr(cheaper, 'TOLERANCE', 1e-6)
    for _ in range(2):
        found = run(model)
        assert torch.equal(found, expected)
    teacher = guest_of(model)
    assert teacher.exact is teacher.model
    assert 'stays in float32 (a map differs by' in log()


def test_what_cannot_be_compiled_keeps_it_in_float32(log, monkeypatch):
    def no_compiler(forward):
        raise RuntimeError('no compiler here')

    monkeypatch.setattr(torch, 'compile', no_compiler)
    model = build()
    assert torch.equal(run(model), plain())
    assert 'no compiler here' in log()


def test_it_is_not_compiled_where_sizes_vary_or_a_tap_lies_within():
    inside = build(terms=dict(a=dict(tap='backbone.layer4', loss=toy.CWD), **toy.logits_term()))
    free = build()
    free.kd_plan.teacher.model.data_preprocessor.size = None
    for model in (inside, free):
        run(model)
        assert guest_of(model).precision == 'bf16'
        assert not guest_of(model).compile


@pytest.mark.parametrize(
    'options',
    [dict(precision='fp32'), dict(stream=False), dict(cache=dict(views=1, folder='maps'))],
)
def test_a_switch_leaves_it_as_it_is_told(options):
    model = build(**options)
    assert run(model).dtype == torch.float32
    assert guest_of(model).exact is guest_of(model).model


def test_a_training_goes_on_through_the_trial(tmp_path):
    runner = toy.runner(toy.distilled(), tmp_path)
    runner.train()
    assert guest_of(runner.model).precision == 'bf16'


def test_nothing_changes_on_a_cpu(monkeypatch):
    monkeypatch.setattr(guest, 'can_be_cheaper', cheaper.can_be_cheaper)
    assert run(build()).dtype == torch.float32

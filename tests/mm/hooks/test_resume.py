"""What is said where a training cannot go on from a checkpoint."""

import pytest
import torch

from kd_dense.mm.configs import RequestError
from kd_dense.mm.hooks.resume import ResumeHook
from tests.mm import toy

ADAPTED = dict(tap='backbone[-1]', loss=toy.CWD)


def run(model, work_dir, resume=None):
    others = dict(resume=True, load_from=str(resume)) if resume else {}
    toy.runner(model, work_dir, 4 if resume else 2, custom_hooks=[ResumeHook()], **others).train()
    return work_dir / ('iter_4.pth' if resume else 'iter_2.pth')


def test_a_distillation_that_begins_in_the_middle(tmp_path):
    alone = run(toy.segmenter(), tmp_path / 'alone')
    model = toy.distilled(terms=dict(deep=ADAPTED))
    with pytest.raises(RequestError, match=r'it lacks kd\.deep\.adapters; .* load_from=\S+alone'):
        run(model, tmp_path / 'run', alone)
    assert run(toy.distilled(), tmp_path / 'plain', alone).is_file()  # without new parameters


def test_other_terms(tmp_path):
    first = run(toy.distilled(terms=dict(deep=ADAPTED)), tmp_path / 'first')
    other = toy.distilled(terms=dict(deeper=ADAPTED, **toy.logits_term()))
    message = r'lacks kd\.deeper\.adapters and the model has no kd\.deep\.adapters; start from'
    with pytest.raises(RequestError, match=message):
        run(other, tmp_path / 'other', first)
    with pytest.raises(RequestError, match=r'other terms: the model has no kd\.deep\.adapters;'):
        run(toy.segmenter(), tmp_path / 'alone', first)
    assert run(toy.distilled(terms=dict(deep=ADAPTED)), tmp_path / 'same', first).is_file()


def test_weights_alone(tmp_path):
    state = toy.build(toy.segmenter()).state_dict()
    torch.save({'state_dict': state, 'meta': {}}, tmp_path / 'student.pth')
    with pytest.raises(RequestError, match=r'student\.pth holds no state of a training; start'):
        run(toy.distilled(), tmp_path / 'run', tmp_path / 'student.pth')


def test_as_load_from_it_is_taken_as_it_is(tmp_path):
    alone = run(toy.segmenter(), tmp_path / 'alone')
    model = toy.distilled(terms=dict(deep=ADAPTED))
    toy.runner(
        model, tmp_path / 'run', 2, custom_hooks=[ResumeHook()], load_from=str(alone)
    ).train()
    assert (tmp_path / 'run' / 'iter_2.pth').is_file()

"""Steps of a training that gets nowhere."""

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import AmpOptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from torch import nn

from kd_dense.mm.configs import RequestError
from kd_dense.mm.cost.steps import Batch, Trained, build_to_try, differentiate_critics
from kd_dense.mm.cost.terms import recorded, term_alone
from tests.mm import methods, toy

OPTIMIZER = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=0.1))


def weights_of(model):
    return {name: value.clone() for name, value in model.named_parameters()}


def test_terms_have_their_full_weight_and_nobody_watches():
    config = toy.distilled()
    config.terms.logits.schedule = dict(warmup=100)
    config.student.decode_head.norm_cfg = dict(type='SyncBN')
    before = config.to_dict()
    model = build_to_try(config)
    assert config.to_dict() == before
    assert model.kd.logits.factor() == 1.0
    assert model.kd_plan.first_steps is None
    model.train()(*toy.batch(model), mode='loss')  # in one process, on a CPU


@pytest.mark.parametrize('optimizer', [OPTIMIZER, None])
def test_a_step_changes_no_weight(optimizer):
    trained = Trained(build_to_try(toy.distilled()), optimizer)
    before = weights_of(trained.model)
    total = trained.step(Batch(*toy.batch(trained.model)))
    assert total.isfinite()
    assert all(torch.equal(value, before[n]) for n, value in trained.model.named_parameters())
    assert all(p.grad is None for p in trained.model.parameters())
    assert bool(trained.optimizer.optimizer.state) == (optimizer is not None)


def test_the_config_of_the_optimizer_stays_as_it_is():
    config = ConfigDict(OPTIMIZER)
    Trained(build_to_try(toy.distilled()), config)
    assert config == OPTIMIZER


@pytest.mark.parametrize('kind', ['AmpOptimWrapper', AmpOptimWrapper])
def test_mixed_precision_without_a_gpu(kind, monkeypatch):
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: False)
    with pytest.raises(RequestError, match=r'needs a GPU.*take optim_wrapper\.type='):
        Trained(nn.Linear(1, 1), dict(OPTIMIZER, type=kind))


def test_critics_take_no_step():
    model = build_to_try(methods.distilled('skd')).train()
    loss = model.kd.holistic.loss
    model(*toy.batch(model), mode='loss')
    assert loss.critic_is_due
    before = weights_of(loss.critic)
    differentiate_critics(model.kd.values())
    assert not loss.critic_is_due
    assert all(p.grad is None for p in loss.critic.parameters())
    assert all(torch.equal(value, before[n]) for n, value in loss.critic.named_parameters())
    differentiate_critics(model.kd.values())  # of which none is due


def test_a_term_alone_computes_what_it_does_in_the_step():
    trained = Trained(build_to_try(methods.distilled('cwd')), OPTIMIZER)
    arguments = recorded(trained, Batch(*toy.batch(trained.model)))
    assert arguments.keys() == {'features', 'logits'}
    for name, (student, teacher, factor, needs) in arguments.items():
        assert all(x.is_leaf and x.requires_grad for x in student)
        assert not any(x.requires_grad for x in teacher)
        assert (factor, needs) == (1.0, {})
        seen = []
        hook = trained.model.kd[name].register_forward_hook(lambda *call: seen.append(call[2]))  # noqa: B023
        term_alone(trained, name, arguments[name])()
        hook.remove()
        assert sum(seen[0].values()) > 0
        assert all(x.grad is None for x in student)

"""Promise 9: two processes add the same gradient as one with the same global batch."""

import os
import socket
import traceback

import pytest
import torch
from mmengine.logging import MessageHub
from torch import distributed as dist
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from kd_dense.losses import HolisticLoss
from tests.mm import methods, toy

BATCH = 4
STEPS = 3


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def config(method, schedule=None):
    found = methods.distilled(method)
    for term in found.terms.values():
        term.schedule = schedule or {}
    return found


def added_gradient(model, inner, inputs, samples):
    """Backpropagate the distillation losses alone."""
    model.zero_grad()
    losses = model(inputs, samples, mode='loss')
    own = [v for k, v in losses.items() if 'loss' in k and not k.startswith('loss_kd')]
    own = [x for v in own for x in (v if isinstance(v, list) else [v])]
    total = sum(v for k, v in losses.items() if k.startswith('loss_kd'))
    (total + 0 * sum(x.sum() for x in own)).backward()
    for module in inner.modules():
        if isinstance(module, HolisticLoss) and module.critic_is_due:
            module.critic_backward()
    return {n: p.grad.clone() for n, p in inner.named_parameters() if '.critic.' not in n}


def work(rank, method, schedule, port, results):
    try:
        torch.set_num_threads(1)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
        dist.init_process_group(
            'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
        )
        model = toy.build(config(method, schedule)).train()
        hub = MessageHub.get_current_instance()
        hub.update_info_dict(dict(iter=0, max_iters=10))
        ddp = DistributedDataParallel(model)  # no find_unused_parameters
        inputs, samples = toy.batch(model, methods.scenes(method), BATCH)
        mine = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
        for _ in range(STEPS):
            grads = added_gradient(ddp, model, inputs[mine], samples[mine])
        in_buckets = sum(p.numel() for p in ddp.parameters())
        results.put((rank, {n: g.numpy() for n, g in grads.items()}, in_buckets))
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, traceback.format_exc(), 0))


def in_two_processes(method, schedule=None):
    context = mp.get_context('spawn')
    results, port = context.Queue(), free_port()
    processes = [
        context.Process(target=work, args=(rank, method, schedule, port, results))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=240) for _ in processes)
    for process in processes:
        process.join()
    for _, grads, _ in found:
        assert isinstance(grads, dict), grads
    return found


@pytest.mark.parametrize('method', methods.METHODS)
def test_gradient_of_two_processes_is_that_of_one(method):
    model = toy.build(config(method)).train()
    batch = toy.batch(model, methods.scenes(method), BATCH)
    for _ in range(STEPS):  # a critic's spectral norm moves on with each
        expected = added_gradient(model, model, *batch)
    (_, first, buckets), (_, second, _) = in_two_processes(method)
    assert first.keys() == second.keys() == expected.keys()
    assert any(grad.any() for grad in first.values())
    assert buckets == sum(p.numel() for p in model.parameters())
    for name, grad in expected.items():
        assert (first[name] == second[name]).all()
        difference = (torch.from_numpy(first[name]) - grad).abs().max()
        assert difference <= 1e-4 * grad.abs().max() + 1e-8, name


def test_a_term_that_is_off_does_not_stop_two_processes():
    (_, first, _), _ = in_two_processes('cwd', schedule=dict(stop=0))
    assert all((grad == 0).all() for name, grad in first.items() if name.startswith('kd.'))


def test_the_comparison_can_fail():
    model = toy.build(config('cwd')).train()
    inputs, samples = toy.batch(model, methods.scenes('cwd'), BATCH)
    whole = added_gradient(model, model, inputs, samples)
    half = added_gradient(model, model, inputs[:2], samples[:2])
    name = 'backbone.layer4.0.conv1.weight'
    assert (whole[name] - half[name]).abs().max() > 1e-3 * whole[name].abs().max()

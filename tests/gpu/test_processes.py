"""Two processes on one GPU, which gloo connects: what is distilled is that of one process."""

import pytest
from mmengine.model import MMDistributedDataParallel

from tests.mm import methods, toy
from tests.mm.distil.test_distributed import BATCH, added_gradient, build
from tests.mm.processes import in_two_processes

pytestmark = pytest.mark.gpu


def gradients(rank, world_size, names, device):
    """What distillation adds to the gradient, by method."""
    found = {}
    for method in names:
        model = build(method).to(device)
        outer = MMDistributedDataParallel(model) if world_size > 1 else model
        inputs, samples = toy.batch(model, methods.scenes(method), BATCH)
        mine = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
        grads = added_gradient(outer, model, inputs[mine], samples[mine])
        found[method] = {name: grad.cpu() for name, grad in grads.items()}
    return found


def test_gradients_are_those_of_one_process(device, dry):
    names = ['cwd', 'ld'] if dry else methods.METHODS
    expected = gradients(0, 1, names, device)
    first, second = in_two_processes(gradients, 2, names, device)
    for method in names:
        for name, grad in expected[method].items():
            assert first[method][name].equal(second[method][name]), name
            apart = (first[method][name] - grad).abs().max()
            assert apart <= 1e-3 * grad.abs().max() + 1e-7, f'{method}: {name}'

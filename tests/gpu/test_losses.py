"""Every loss in all its forms: the values of the CPU, and nothing waits for the GPU."""

import pytest
import torch

from kd_dense.taps import tensors_in
from tests.gpu.card import waiting
from tests.losses.test_no_sync import CASES, prepare

pytestmark = pytest.mark.gpu
every_loss = pytest.mark.parametrize(('kind', 'options'), CASES)


def computed(kind, options, device, dtype):
    """Values of a loss and gradients of the student's maps."""
    torch.manual_seed(0)  # some have weights of their own
    result, student = prepare(kind, options, device, dtype)()
    values = list(result.values()) if isinstance(result, dict) else [result]
    grads = [x.grad for x in tensors_in(student) if x.grad is not None]
    assert all(x.device.type == device for x in (*values, *grads))
    return [x.detach().cpu().double() for x in (*values, *grads)]


@pytest.mark.usefixtures('exact')
@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=['f64', 'f32']
)
@every_loss
def test_values_and_gradients_are_those_of_the_cpu(kind, options, dtype, tolerance, device):
    found = computed(kind, options, device, dtype)
    expected = computed(kind, options, 'cpu', torch.float64)
    assert len(found) == len(expected) > 1
    assert any(x.abs().max() > 0 for x in expected)
    for x, y in zip(found, expected, strict=True):
        assert (x - y).abs().max() <= tolerance * y.abs().max() + 1e-12


@every_loss
def test_nothing_waits(kind, options, device):
    call = prepare(kind, options, device)
    call()  # libraries wait when they are loaded
    with waiting('error', device):
        call()


def test_what_waits_is_noticed(device, dry):
    x = torch.ones(3, device=device)
    if not dry:
        with pytest.raises(RuntimeError, match='synchroniz'), waiting('error', device):
            x.sum().item()

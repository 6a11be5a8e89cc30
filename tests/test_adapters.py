import pytest
import torch
from torch import nn

from kd_dense.adapters import Adapter, resize


@pytest.mark.parametrize('size', [(4, 4), (8, 8), (16, 12), (3, 5)])
@pytest.mark.parametrize('channels', [6, 32])
def test_gives_the_shape_of_the_teacher(size, channels):
    maps = torch.randn(2, 6, 8, 8, requires_grad=True)
    adapted = Adapter(6, channels)(maps, size)
    assert adapted.shape == (2, channels, *size)
    adapted.sum().backward()
    assert maps.grad.abs().sum() > 0


def test_equal_shapes_pass_through_untouched():
    adapter = Adapter(6, 6)
    maps = torch.randn(2, 6, 8, 8)
    assert adapter(maps, (8, 8)) is maps
    assert not list(adapter.parameters())


def test_convolution_and_resize_commute():
    adapter = Adapter(6, 3)
    maps = torch.randn(2, 6, 8, 8)
    for size in ((4, 4), (16, 16)):
        after = resize(adapter.conv(maps), size)
        before = adapter.conv(resize(maps, size))
        assert torch.allclose(after, before, atol=1e-6)
        assert torch.allclose(adapter(maps, size), after, atol=1e-6)


def test_the_convolution_runs_at_the_smaller_size():
    adapter, seen = Adapter(6, 3), []
    adapter.conv.register_forward_hook(lambda module, args, out: seen.append(out.shape[-1]))
    maps = torch.randn(1, 6, 8, 8)
    adapter(maps, (16, 16))
    adapter(maps, (4, 4))
    assert seen == [8, 4]


def test_resize_keeps_a_constant_and_the_corners_in_place():
    assert torch.equal(resize(torch.ones(1, 1, 3, 5), (7, 2)), torch.ones(1, 1, 7, 2))
    ramp = torch.arange(8.0).view(1, 1, 1, 8)
    assert torch.allclose(resize(ramp, (1, 4)), torch.tensor([0.5, 2.5, 4.5, 6.5]))


def test_is_a_module_of_its_own_parameters_only():
    names = [name for name, _ in nn.ModuleList([Adapter(2, 3)]).named_parameters()]
    assert names == ['0.conv.weight', '0.conv.bias']

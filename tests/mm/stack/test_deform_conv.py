"""Deformable convolutions, through the modules of mmcv that use the operators."""

import sys
from itertools import product

import pytest
import torch

from kd_dense.mm.stack import install
from tests.mm.stack.operators import needs_compiled

KINDS = ['deform_conv', 'modulated_deform_conv']
GEOMETRIES = {
    'same': dict(kernel_size=3, padding=1),
    'point': dict(kernel_size=1),
    'oblong': dict(kernel_size=(3, 2), padding=(2, 1), stride=(2, 1), dilation=(1, 2)),
    'groups': dict(kernel_size=3, padding=2, stride=2, dilation=2, groups=2, deform_groups=4),
}


def layer(kind, geometry, channels=8, dtype=torch.float64):
    torch.manual_seed(0)
    modulated = kind == 'modulated_deform_conv'
    ops = sys.modules['mmcv.ops']
    cls = ops.ModulatedDeformConv2d if modulated else ops.DeformConv2d
    built = cls(channels, 12, bias=modulated, **geometry).to(dtype)
    if modulated:
        torch.nn.init.normal_(built.bias)
    else:
        built.bias = None
    return built


def inputs(module, spread, size=(7, 9), images=2):
    """Maps, offsets and, where the layer takes them, masks; all want a gradient."""
    maps = torch.randn(images, module.in_channels, *size, dtype=module.weight.dtype)
    rows, columns = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(
            size,
            module.padding,
            module.dilation,
            module.kernel_size,
            module.stride,
            strict=True,
        )
    )
    taps = module.deform_groups * module.kernel_size[0] * module.kernel_size[1]
    offset = spread * torch.randn(images, 2 * taps, rows, columns, dtype=maps.dtype)
    found = [maps, offset]
    if module.bias is not None:
        found.append(torch.rand(images, taps, rows, columns, dtype=maps.dtype))
    return [x.requires_grad_() for x in found]


def by_hand(module, maps, offset, mask=None):
    """One output value after the other, from the definition."""
    per_group = module.in_channels // module.groups
    per_deform = module.in_channels // module.deform_groups
    height, width = maps.shape[-2:]
    (kh, kw), rows, columns = module.kernel_size, *offset.shape[-2:]
    result = torch.zeros(len(maps), module.out_channels, rows, columns, dtype=maps.dtype)

    def pixel(n, c, y, x):
        return maps[n, c, y, x] if 0 <= y < height and 0 <= x < width else 0.0

    def value(n, c, y, x):
        if not (-1 < y < height and -1 < x < width):
            return 0.0
        top, left = int(y // 1), int(x // 1)
        return sum(
            (1 - abs(y - row)) * (1 - abs(x - column)) * pixel(n, c, row, column)
            for row, column in product((top, top + 1), (left, left + 1))
        )

    for n, o, i, j in product(*map(range, result.shape)):
        group = o // (module.out_channels // module.groups)
        for c, a, b in product(range(per_group), range(kh), range(kw)):
            channel = group * per_group + c
            tap = (channel // per_deform) * kh * kw + a * kw + b
            y = i * module.stride[0] - module.padding[0] + a * module.dilation[0]
            x = j * module.stride[1] - module.padding[1] + b * module.dilation[1]
            y, x = y + float(offset[n, 2 * tap, i, j]), x + float(offset[n, 2 * tap + 1, i, j])
            factor = 1.0 if mask is None else mask[n, tap, i, j]
            result[n, o, i, j] += module.weight[o, c, a, b] * value(n, channel, y, x) * factor
        if module.bias is not None:
            result[n, o, i, j] += module.bias[o]
    return result


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('geometry', GEOMETRIES)
@torch.no_grad()
def test_is_the_definition(ops, kind, geometry):
    module = layer(kind, GEOMETRIES[geometry])
    given = inputs(module, spread=1.5, size=(4, 3), images=1)
    torch.testing.assert_close(module(*given), by_hand(module, *given))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('geometry', GEOMETRIES)
def test_without_offsets_is_a_plain_convolution(ops, kind, geometry):
    module = layer(kind, GEOMETRIES[geometry])
    maps, offset, *mask = inputs(module, spread=0.0)
    ones = [torch.ones_like(m) for m in mask]
    plain = torch.nn.functional.conv2d(
        maps,
        module.weight,
        module.bias,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
    )
    result = module(maps, offset, *ones)
    torch.testing.assert_close(result, plain)
    grad = torch.randn_like(plain)
    wanted = [maps, *module.parameters()]
    found, expected = (torch.autograd.grad(x, wanted, grad) for x in (result, plain))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('kind', KINDS)
def test_gradients(ops, kind):
    module = layer(kind, dict(kernel_size=2, groups=2, deform_groups=2), channels=4)
    given = inputs(module, spread=1.0, size=(4, 3))
    parameters = [*module.parameters()]

    def run(*_):  # gradcheck changes all of them in place
        return module(*given)

    assert torch.autograd.gradcheck(run, [*given, *parameters])


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_that_of_the_output_alone(ops, kind, dtype):
    module = layer(kind, GEOMETRIES['groups'], dtype=torch.float32)
    given = [x.detach().to(dtype) for x in inputs(module, spread=1.0)]
    module.to(dtype)
    half = module(*given)
    exact = module.to(torch.float32)(*(x.float() for x in given))
    assert half.dtype == dtype
    torch.testing.assert_close(half, exact.to(dtype), rtol=0.02, atol=0.02)


def test_offsets_that_are_no_numbers_read_nothing(ops):
    module = layer('deform_conv', GEOMETRIES['same'])
    maps, offset = inputs(module, spread=0.0)
    result = module(maps, torch.full_like(offset, float('nan')))
    assert (result == 0).all()


def too_large():
    """Offsets and masks that are larger than the output, as those of DyHead."""
    module = layer('modulated_deform_conv', GEOMETRIES['same'])
    maps, *larger = inputs(module, spread=2.0, size=(6, 8))
    small = maps[:, :, :3, :4].detach().contiguous()  # the compiled ones want it so
    return module, [small.requires_grad_(), *larger]


def test_of_larger_offsets_the_first_part_is_read(ops):
    module, given = too_large()
    maps, *larger = given
    read = [x.flatten(1)[:, : x.shape[1] * 12].view(2, -1, 3, 4) for x in larger]
    result, expected = module(*given), module(maps, *read)
    torch.testing.assert_close(result, expected)
    grad = torch.randn_like(result)
    found, wanted = (torch.autograd.grad(x, given, grad) for x in (result, expected))
    torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match=r'as large as the output, \(3, 4\), got \(2, 2\)'):
        module(maps, *(x[:, :, :2, :2] for x in larger))


@needs_compiled
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('geometry', [*GEOMETRIES, 'larger'])
@pytest.mark.parametrize('spread', [0.0, 3.0])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_matches_compiled(monkeypatch, kind, geometry, spread, dtype):
    if geometry == 'larger':
        if kind == 'deform_conv':
            pytest.skip('refuses them')
        module, given = too_large()
        module, given = module.to(dtype), [x.detach().to(dtype).requires_grad_() for x in given]
    else:
        module = layer(kind, GEOMETRIES[geometry], dtype=dtype)
        given = inputs(module, spread)
    place = sys.modules[f'mmcv.ops.{kind}']
    grad, results = None, []
    for extension in (place.ext_module, install._make_module()):
        monkeypatch.setattr(place, 'ext_module', extension)
        result = module(*given)
        grad = torch.randn_like(result) if grad is None else grad
        wanted = [*given, *module.parameters()]
        results.append([result, *torch.autograd.grad(result, wanted, grad)])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for expected, found in zip(*results, strict=True):
        scale = float(expected.detach().abs().max()) + 1
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)

import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd_dense.losses import AfDCDLoss, MGDLoss, af_dcd_loss, mgd_loss
from kd_dense.losses.features.generation.af_dcd import contrast
from kd_dense.losses.features.generation.mgd import Generator, draw_mask
from tests.losses.contract import LossContract


def seeded_generator(channels=4, deep=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    module = Generator(channels, deep)
    for parameter in module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return module


class Drawn(LossContract):
    """For a loss that draws a mask: each call of a test draws the same one."""

    zero_on_match = False
    test_order_of_images_does_not_matter = None  # the mask has an order
    test_two_half_batches_average_to_the_whole = None  # is tested below, with a given mask

    def example(self, dtype=torch.float64):
        self.loss.to(torch.promote_types(dtype, torch.float32))
        return super().example(dtype)

    def value(self, student, teacher):
        torch.manual_seed(0)
        return super().value(student, teacher)

    def mask(self, student):
        torch.manual_seed(0)
        return draw_mask(
            student, self.loss.mask_ratio, getattr(self.loss, 'mask_over', 'positions')
        )

    @pytest.mark.parametrize('weight', [-1.0, float('nan'), float('inf')])
    def test_rejects_a_weight_that_is_negative_or_not_finite(self, weight):
        with pytest.raises(ValueError, match='finite weight >= 0'):
            type(self.loss)(channels=4, weight=weight)

    def test_each_call_draws_another_mask_from_the_default_generator(self):
        maps = self.example()
        first = self.value(*maps)
        assert not torch.equal(LossContract.value(self, *maps), first)
        assert torch.equal(self.value(*maps), first)


class TestMGD(Drawn):
    loss = MGDLoss(channels=4, weight=3.0)
    loss.generator = seeded_generator()

    def function(self, student, teacher):
        return mgd_loss(student, teacher, self.loss.generator, self.mask(student))


class TestMGDOverChannels(TestMGD):
    loss = MGDLoss(channels=4, weight=3.0, mask_ratio=0.4, mask_over='channels')
    loss.generator = seeded_generator()


class TestAfDCD(Drawn):
    loss = AfDCDLoss(
        4, weight=3.0, features=0.3, contrast=0.7, deep=True, groups=2, pool=2, window=(2, 2)
    )
    loss.generator = seeded_generator(deep=True)

    def function(self, student, teacher):
        parts = af_dcd_loss(student, teacher, self.loss.generator, self.mask(student), 0.07, 2, 2,
                            (2, 2))  # fmt: skip
        return 0.3 * parts['features'] + 0.7 * parts['contrast']


# Masks


@pytest.mark.parametrize('over', ['positions', 'channels'])
@pytest.mark.parametrize('ratio', [0.0, 0.3, 1.0])
def test_a_mask_leaves_out_its_share(over, ratio):
    torch.manual_seed(0)
    mask = draw_mask(torch.zeros(8, 64, 20, 20), ratio, over)
    assert mask.shape == ((8, 64, 1, 1) if over == 'channels' else (8, 1, 20, 20))
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert (mask == 0).double().mean().item() == pytest.approx(ratio, abs=0.05 * (0 < ratio < 1))


@pytest.mark.parametrize('half', [torch.float16, torch.bfloat16])
def test_a_mask_of_half_precision_maps_is_float32(half):
    assert draw_mask(torch.zeros(1, 1, 2, 2, dtype=half), 0.5).dtype == torch.float32


class Counted(torch.overrides.TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.drawn = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func.__name__.startswith('rand'):
            self.drawn.append((func.__name__, tuple(args[0])))
        return func(*args, **(kwargs or {}))


def test_a_call_draws_one_number_for_each_position_and_no_more():
    maps = torch.zeros(2, 2, 4, 6, 8)
    for loss in (MGDLoss(4), AfDCDLoss(4)):
        with Counted() as counted:
            loss(*maps)
        assert counted.drawn == [('rand', (2, 1, 6, 8))]


# MGD


def test_without_a_mask_it_is_the_squared_error_of_the_generated_map():
    student, teacher = LossContract().example()
    generator = seeded_generator()
    loss = MGDLoss(4, weight=1.0, mask_ratio=0.0).double()
    loss.generator = generator
    expected = (generator(student) - teacher).square().sum() / 3
    assert torch.allclose(loss(student, teacher), expected)


def test_what_is_masked_does_not_matter_and_gets_no_gradient():
    student, teacher = LossContract().example()
    mask = torch.ones(3, 1, 5, 6).double()
    mask[:, :, 1:3, 2] = 0
    value = mgd_loss(student, teacher, seeded_generator(), mask)
    value.backward()
    assert not (student.grad * (1 - mask)).any()
    assert (student.grad * mask).abs().amin((0, 1)).flatten().sort().values[2] > 0
    other = torch.where(mask > 0, student, 77.0)
    assert torch.equal(mgd_loss(other, teacher, seeded_generator(), mask), value)


def convolved(x, conv):
    """A 3x3 convolution with zeros around the map, written out."""
    padded = F.pad(x, (1, 1, 1, 1))
    height, width = x.shape[2:]
    taps = [
        torch.einsum('nchw,dc->ndhw', padded[:, :, i : i + height, j : j + width],
                     conv.weight[:, :, i, j])
        for i, j in product(range(3), range(3))
    ]  # fmt: skip
    return sum(taps) + conv.bias[:, None, None]


def test_generators_are_those_of_the_equations():
    x, _ = LossContract().example()
    g = seeded_generator()
    assert torch.allclose(g(x), convolved(convolved(x, g.first).clamp(min=0), g.last))
    g = seeded_generator(deep=True)
    once = convolved(x, g.first).clamp(min=0)
    twice = convolved(once, g.deep_first).clamp(min=0)
    assert torch.allclose(g(x), (convolved(once, g.last) + convolved(twice, g.deep_last)) / 2)


def test_every_parameter_is_trained():
    torch.manual_seed(0)
    for loss in (MGDLoss(4), AfDCDLoss(4, deep=True)):
        value = loss(*torch.randn(2, 2, 4, 8, 8))
        (sum(value.values()) if isinstance(value, dict) else value).backward()
        for name, parameter in loss.named_parameters():
            assert parameter.grad.any(), name


# Af-DCD


def slow_contrast(student, teacher, temperature, groups, window):
    images, channels, height, width = student.shape
    size = channels // groups
    total = 0.0

    def token(x, n, i, j, group):
        return x[n, group * size : (group + 1) * size, i, j].tolist()

    for n, i, j, k in product(range(images), range(height), range(width), range(groups)):
        anchor = token(student, n, i, j, k)
        top, left = i // window[0] * window[0], j // window[1] * window[1]
        others = [
            token(teacher, n, top + a, left + b, m)
            for a, b, m in product(range(window[0]), range(window[1]), range(groups))
            if m != k
        ]
        same, *others = (
            math.exp(-sum(abs(a - b) for a, b in zip(anchor, one, strict=True)) / temperature)
            for one in (token(teacher, n, i, j, k), *others)
        )
        total -= math.log(same / (same + sum(others)))
    return total / (images * height * width)


@pytest.mark.parametrize(('groups', 'window'), [(2, (2, 3)), (4, (4, 2)), (2, (4, 6))])
def test_contrast_matches_the_equation_written_out(groups, window):
    student, teacher = (x.detach()[:2, :, :4] for x in LossContract().example())
    value = contrast(student, teacher, 0.7, groups, 1, window)
    assert value.item() == pytest.approx(slow_contrast(student, teacher, 0.7, groups, window))


def test_contrast_of_many_windows_is_computed_in_blocks_that_add_up(monkeypatch):
    student, teacher = LossContract().example()
    arguments = student, teacher, 0.7, 2, 1, (1, 2)
    whole = contrast(*arguments)
    for block in (1, 100, 1000):
        monkeypatch.setattr('kd_dense.functional.divergence.CPU_BLOCK_BYTES', block)
        assert torch.allclose(contrast(*arguments), whole)


def test_contrast_is_that_of_max_pooled_maps():
    student, teacher = LossContract().example()
    pooled = (F.max_pool2d(x, 2) for x in (student, teacher))
    assert torch.equal(
        contrast(student, teacher, 0.7, 2, 2, (2, 2)), contrast(*pooled, 0.7, 2, 1, (2, 2))
    )


@pytest.mark.parametrize(
    ('size', 'kept'), [((5, 6), (4, 6)), ((4, 7), (4, 6)), ((1, 9), (1, 9)), ((3, 1), (2, 1))]
)
def test_what_fills_no_whole_window_is_left_out(size, kept):
    maps = torch.randn(2, 2, 4, *size, dtype=torch.float64)
    cut = maps[..., : kept[0], : kept[1]]
    assert torch.equal(contrast(*maps, 0.7, 2, 1, (2, 3)), contrast(*cut, 0.7, 2, 1, (2, 3)))


def test_maps_smaller_than_the_pooling_are_pooled_as_a_whole():
    maps = torch.randn(2, 2, 4, 2, 9, dtype=torch.float64)
    pooled = [F.max_pool2d(x, (2, 4)) for x in maps]
    assert torch.equal(contrast(*maps, 0.7, 2, 4, (4, 4)), contrast(*pooled, 0.7, 2, 1, (4, 4)))


def test_the_right_tokens_are_far_cheaper_than_the_wrong_ones():
    torch.manual_seed(0)
    maps = 3 * torch.randn(1, 32, 16, 16)
    near = contrast(maps, maps, 0.07, 2, 4, (4, 4))
    far = contrast(maps, maps.roll(16, dims=1), 0.07, 2, 4, (4, 4))
    assert near < 1e-3 < 1 < far


@pytest.mark.parametrize(('channels', 'groups', 'cut'), [(12, 16, 12), (270, 16, 15), (6, 4, 3)])
def test_groups_divide_the_channels(channels, groups, cut):
    maps = torch.randn(2, 1, channels, 2, 2)
    assert torch.equal(
        contrast(*maps, 1.0, groups, 1, (2, 2)), contrast(*maps, 1.0, cut, 1, (2, 2))
    )


@pytest.mark.parametrize('part', ['features', 'contrast'])
def test_each_part_has_its_own_weight_and_is_a_mean_over_images(part):
    student, teacher = LossContract().example()
    loss = AfDCDLoss(4, 2.0, features=3.0, contrast=5.0, groups=2, pool=1, mask_ratio=0.0).double()
    keep = torch.ones(3, 1, 5, 6)
    settings = dict(groups=2, pool=1)
    whole = af_dcd_loss(student, teacher, loss.generator, keep, **settings)
    factor = dict(features=6.0, contrast=10.0)[part]
    assert torch.allclose(loss(student, teacher)[part], factor * whole[part])
    single = [
        af_dcd_loss(student[i : i + 1], teacher[i : i + 1], loss.generator, keep[:1], **settings)
        for i in range(3)
    ]
    assert torch.allclose(whole[part], sum(one[part] for one in single) / 3)
    mgd = mgd_loss(student, teacher, loss.generator, keep)
    assert part == 'contrast' or torch.equal(whole[part], mgd)


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: MGDLoss(4, mask_ratio=1.5), r'MGDLoss expects 0 <= mask_ratio <= 1, got .*1\.5'),
        (lambda: MGDLoss(4, mask_ratio=math.nan), 'got mask_ratio=nan'),
        (lambda: MGDLoss(4, mask_over='both'), r"mask_over to be one of .*got 'both'"),
        (lambda: AfDCDLoss(4, mask_ratio=-0.1), r'AfDCDLoss expects 0 <= mask_ratio'),
        (lambda: AfDCDLoss(4, contrast=-1.0), 'finite contrast >= 0'),
        (lambda: AfDCDLoss(4, temperature=0), 'temperature > 0'),
        (lambda: AfDCDLoss(4, pool=0), r'all of them >= 1, got groups=16, pool=0'),
        (lambda: AfDCDLoss(4, window=(4,)), r'two sides, .*window=\(4,\)'),
        (lambda: AfDCDLoss(19), 'cannot cut 19 channels into at most 16 groups'),
        (lambda: AfDCDLoss(4, groups=1), 'cannot cut 4 channels into at most 1 groups'),
    ],
)
def test_rejects_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize('shape', [(2, 4, 5, 6), (1, 1, 5, 6), (2, 1, 6, 5), (2, 4, 1, 6)])
def test_names_the_shapes_that_a_mask_may_have(shape):
    maps, mask = torch.zeros(2, 4, 5, 6), torch.zeros(shape)
    for call in (mgd_loss, af_dcd_loss):
        with pytest.raises(
            ValueError, match=r'mask \(2, 1, 5, 6\) over positions or \(2, 4, 1, 1'
        ):
            call(maps, maps, nn.Identity(), mask)

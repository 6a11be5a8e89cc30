"""Blocks, divergences, labels, and sums and statistics over processes."""

import pytest
import torch
from torch import distributed
from torch.autograd import gradcheck

from kd_dense.functional import (
    divergence,
    in_blocks,
    labels_at,
    mean_over_ranks,
    soft_kl,
    squared_norm,
    standardised,
    sum_over_ranks,
    two_class_logits,
    unit,
)
from kd_dense.functional.divergence import CPU_BLOCK_BYTES
from kd_dense.measure import peak_memory
from tests.mm.processes import in_two_processes

BLOCK = CPU_BLOCK_BYTES // 4  # numbers in float32


@pytest.mark.parametrize(
    ('dtype', 'device', 'least', 'sizes'),
    [
        (torch.float64, 'cpu', 1, [5, 5, 3]),
        (torch.float32, 'cpu', 1, [10, 3]),
        (torch.float64, 'cpu', 6, [6, 6, 1]),
        (torch.float64, 'meta', 1, [13]),  # as on a GPU
    ],
)
def test_blocks_are_as_large_as_the_device_likes(dtype, device, least, sizes, monkeypatch):
    monkeypatch.setattr(divergence, 'CPU_BLOCK_BYTES', 80)
    tensors = torch.zeros(2, 13, device=device), torch.ones(4, 13, 1, device=device)
    blocks = list(in_blocks(*tensors, dim=1, width=2, dtype=dtype, least=least))
    assert [(a.shape, b.shape) for a, b in blocks] == [((2, n), (4, n, 1)) for n in sizes]


def written_out(student, teacher, temperature, dim):
    log_student = (student / temperature).log_softmax(dim)
    log_teacher = (teacher / temperature).log_softmax(dim)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(dim)


def logits(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


@pytest.mark.parametrize('temperature', [1.0, 4.0])
@pytest.mark.parametrize(
    ('shape', 'dim'),
    [
        ((7,), 0),
        ((3, 5), -1),
        ((3, 5), 0),
        ((2, 3, 4, 5), 1),
        ((2, 3, 4, 5), 3),
        ((2, 3, 4, 1), 2),
        ((7, 60_000), 1),  # a block holds some distributions
        ((1, 5, 60_000), 1),  # a block holds some columns
        ((3, BLOCK + 1), 1),  # a distribution is larger than a block
    ],
)
def test_value_and_gradient_are_those_of_the_equation(shape, dim, temperature):
    student, teacher = logits(*shape)
    value = soft_kl(student, teacher, temperature, dim)
    expected = written_out(student, teacher, temperature, dim)
    assert torch.allclose(value, expected, rtol=1e-11, atol=1e-13)
    upstream = torch.rand_like(value)
    (grad,) = torch.autograd.grad(value, student, upstream)
    (expected,) = torch.autograd.grad(expected, student, upstream)
    assert torch.allclose(grad, expected, rtol=1e-11, atol=1e-14)


def test_gradient_is_right():
    student, teacher = logits(2, 3, 4)
    for dim in range(3):
        assert gradcheck(lambda x, d=dim: soft_kl(x, teacher, 2.0, d), student)


@pytest.mark.parametrize('offset', [0.0, 7.0, -300.0])
@pytest.mark.parametrize('bins', [17, 40_000])
def test_close_distributions_in_float32(bins, offset):
    """Compared with float64; rounding of the logits themselves is not what is tested."""
    _, teacher = logits(20, bins, dtype=torch.float32)
    for distance in (1e-4, 1e-2, 1.0):
        student = teacher + distance * logits(20, bins, seed=1)[1].float() + offset
        value = soft_kl(student, teacher, 1.0, 1)
        expected = written_out(student.double(), teacher.double(), 1.0, 1)
        assert (value >= 0).all()
        assert ((value - expected).abs() <= 1e-7 + 1e-5 * expected).all()


def test_equal_logits_give_zero_exactly():
    for dtype in (torch.float16, torch.float32, torch.float64):
        student, _ = logits(5, 1000, dtype=dtype)
        value = soft_kl(student, student, 3.0, 1)
        assert not value.any()
        assert not torch.autograd.grad(value.sum(), student)[0].any()


def test_distributions_without_overlap():
    student = torch.tensor([[0.0, 2000.0], [-1e30, 1e30]], requires_grad=True)
    value = soft_kl(student, student.detach().flip(1), 1.0, 1)
    value.sum().backward()
    assert value.tolist() == [2000.0, pytest.approx(2e30)]
    assert student.grad.tolist() == [[-1.0, 1.0]] * 2


@pytest.mark.parametrize('temperature', [1.0, 3.0])
def test_half_precision_is_computed_in_float32(temperature):
    for dtype in (torch.float16, torch.bfloat16):
        student, teacher = logits(4, 9, dtype=dtype)
        value = soft_kl(student, teacher, temperature, 1)
        (grad,) = torch.autograd.grad(value.sum(), student)
        wide = student.detach().float().requires_grad_()
        expected = soft_kl(wide, teacher.float(), temperature, 1)
        (expected_grad,) = torch.autograd.grad(expected.sum(), wide)
        assert torch.equal(value, expected)
        assert torch.equal(grad, expected_grad.to(dtype))
        # A student that is less precise than its teacher.
        assert soft_kl(student, teacher.double(), 2.0, 1).dtype == torch.float64


def test_backward_under_autocast_is_not_rounded():
    student, teacher = logits(4, 9, dtype=torch.float32)
    grads = []
    for enabled in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            value = soft_kl(student, teacher, 2.0, 1)
            grads += torch.autograd.grad(value.sum(), student)
    assert torch.equal(*grads)


def test_layout_of_the_maps_does_not_matter():
    student, teacher = logits(2, 6, 4, 5)
    expected = soft_kl(student, teacher, 2.0, 1)
    student, teacher = (
        x.detach().contiguous(memory_format=torch.channels_last) for x in (student, teacher)
    )
    assert torch.equal(soft_kl(student.requires_grad_(), teacher, 2.0, 1), expected)
    row = torch.randn(3, dtype=torch.float64)
    assert torch.equal(
        soft_kl(row.expand(4, 3), row.flip(0).expand(4, 3), 1.0, 1),
        soft_kl(row, row.flip(0), 1.0, 0).expand(4),
    )


def test_no_gradient_flows_into_the_teacher():
    student, teacher = logits(2, 3)
    teacher.requires_grad_()
    soft_kl(student, teacher, 1.0, 1).sum().backward()
    assert teacher.grad is None


def test_backward_can_be_repeated():
    student, teacher = logits(2, 3)
    value = soft_kl(student, teacher, 2.0, 1).sum()
    first, second = (torch.autograd.grad(value, student, retain_graph=True) for _ in range(2))
    assert torch.equal(first[0], second[0])


@pytest.mark.parametrize(
    ('shape', 'dim'), [((8, 64, 4096), 1), ((8, 64, 4096), 2), ((1, 64, 8 * 4096), 1)]
)
def test_two_maps_and_some_blocks_are_all_that_is_held(shape, dim):
    student, teacher = logits(*shape, dtype=torch.float32)  # 8 blocks

    def call():
        torch.autograd.grad(soft_kl(student, teacher, 2.0, dim).sum(), student)

    call()
    maps = 2 * student.numel()  # the gradient, and what it is made of
    assert peak_memory(call) <= 4 * (maps + 5 * BLOCK)


def test_the_logit_of_one_class_becomes_those_of_two():
    z, _ = logits(3, 1, 4, 5)
    two = two_class_logits(z)
    assert two.shape == (3, 2, 4, 5)
    assert torch.equal(two[:, 1:], z)
    assert not two[:, :1].any()
    torch.testing.assert_close(two.softmax(1)[:, 1:], z.sigmoid())
    several = torch.zeros(2, 3, 4, 5)
    assert two_class_logits(several) is several


class TestLabels:
    @pytest.mark.parametrize('size', [(4, 6), (2, 3), (3, 4), (1, 1), (7, 9)])
    def test_are_those_of_the_floor_rule(self, size):
        segmentation = torch.arange(48).view(2, 4, 6)
        labels, valid = labels_at(segmentation, size, num_classes=48)
        assert labels.shape == valid.shape == (2, *size)
        assert valid.all()
        for row in range(size[0]):
            for column in range(size[1]):
                picked = segmentation[:, row * 4 // size[0], column * 6 // size[1]]
                assert torch.equal(labels[:, row, column], picked)

    @pytest.mark.parametrize('dtype', [torch.uint8, torch.int32, torch.int64])
    def test_what_is_no_class_is_0_and_not_valid(self, dtype):
        segmentation = torch.tensor([[[0, 1, 2, 3, 255, 19]]], dtype=dtype)
        labels, valid = labels_at(segmentation, (1, 6), num_classes=4, ignore_index=2)
        assert labels.tolist() == [[[0, 1, 0, 3, 0, 0]]]
        assert valid.tolist() == [[[True, True, False, True, False, False]]]
        assert labels.dtype == torch.int64

    def test_negative_classes_are_not_valid(self):
        labels, valid = labels_at(torch.full((1, 2, 2), -100), (2, 2), 4, ignore_index=-100)
        assert not labels.any()
        assert not valid.any()

    def test_logits_are_no_segmentation(self):
        with pytest.raises(ValueError, match=r'shape \(N, H, W\).*got shape \(2, 1, 4, 4\)'):
            labels_at(torch.zeros(2, 1, 4, 4, dtype=torch.long), (2, 2), 4)
        with pytest.raises(ValueError, match=r'of integers, got torch\.float32'):
            labels_at(torch.zeros(2, 4, 4), (2, 2), 4)


class TestStandardised:
    @pytest.mark.parametrize('dims', [(0, 2, 3), (1,), (-2, -1), (0,)])
    @pytest.mark.parametrize('unbiased', [True, False])
    def test_is_the_formula(self, dims, unbiased):
        x, _ = logits(3, 4, 5, 2)
        mean, std = x.mean(dims, keepdim=True), x.std(dims, correction=unbiased, keepdim=True)
        given = dict(eps=0.1, unbiased=unbiased)
        on_variance = standardised(x, dims, eps_on='variance', **given)
        torch.testing.assert_close(standardised(x, dims, **given), (x - mean) / (std + 0.1))
        torch.testing.assert_close(on_variance, (x - mean) / (std**2 + 0.1).sqrt())
        assert gradcheck(lambda x: standardised(x, dims, **given), x)
        assert gradcheck(lambda x: standardised(x, dims, eps_on='variance', **given), x)

    @pytest.mark.parametrize('eps', [0.0, 1e-6])
    @pytest.mark.parametrize('eps_on', ['std', 'variance'])
    @pytest.mark.parametrize('shape', [(2, 3), (2, 1)])
    def test_equal_values_are_0_with_finite_gradient(self, shape, eps, eps_on):
        x = torch.zeros(shape, requires_grad=True)
        value = standardised(x, [1], eps, eps_on=eps_on)
        value.sum().backward()
        assert not value.any()
        assert x.grad.isfinite().all()

    def test_large_values_do_not_cancel(self):
        small = torch.randn(2, 1000)
        found = standardised(small.round(decimals=2) + 4096, [1])
        expected = standardised((small.round(decimals=2) + 4096).double(), [1])
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-3)

    def test_half_precision_is_computed_in_float32(self):
        x = 300 * torch.ones(4).half().cumsum(0)  # whose squares overflow
        assert standardised(x, [0]).dtype == torch.float32
        torch.testing.assert_close(standardised(x, [0]), standardised(x.float(), [0]))

    def test_unknown_place_of_eps(self):
        with pytest.raises(ValueError, match=r"eps_on to be one of .*got 'mean'"):
            standardised(torch.zeros(2, 2), [1], eps_on='mean')


# Four images, of which the first process gets one.
SHARES = slice(0, 1), slice(1, 4)


@pytest.mark.parametrize('kept', ['cpu', 'none'])
def test_vectors_of_length_1(kept, monkeypatch):
    monkeypatch.setattr(divergence, 'CACHED', kept)  # else as on a GPU
    x = logits(2, 3, 5)[0]
    for dim, eps in ((-1, 0.0), ((1, 2), 0.0), (1, 0.5)):
        plain = x / (x.square().sum(dim, keepdim=True) + eps).sqrt()
        torch.testing.assert_close(unit(x, dim, eps), plain)
        assert gradcheck(lambda x, dim=dim, eps=eps: unit(x, dim, eps), (x,))
    torch.testing.assert_close(squared_norm(x), x.square().sum(1))
    assert gradcheck(squared_norm, (x,))
    zeros = torch.zeros(2, 3, requires_grad=True)
    unit(zeros).sum().backward()
    assert not unit(zeros).any()
    assert zeros.grad.eq(1).all()


def loss_of_sum(x):
    """A loss of the sum over images, the same in all processes."""
    return sum_over_ranks(x.square().sum(0)).sin().sum()


def share_of_loss(x):
    """A loss of each image and the sum over all, divided by the images of a process."""
    total = sum_over_ranks(x.sum(0))
    images = mean_over_ranks(torch.tensor(float(len(x))))
    return (x * total).exp().sum() / images


def loss_of_standardised(x):
    across = standardised(x, [0, 2], eps=0.01)
    within = standardised(x, [2])
    return (across.sin() + within.cos()).sum() / mean_over_ranks(torch.tensor(float(len(x))))


LOSSES = loss_of_sum, share_of_loss, loss_of_standardised


def images():
    return 1000 + 0.1 * logits(4, 2, 3)[0].detach(), 0.1 * logits(4, 2, 3, seed=1)[0].detach()


def values_and_gradients(rank):
    found = []
    for loss in LOSSES:
        for whole in images():
            x = whole if rank is None else whole[SHARES[rank]]
            if loss is not loss_of_standardised:
                x = x % 1
            x = x.clone().requires_grad_()
            value = loss(x)
            (grad,) = torch.autograd.grad(value, x)
            found.append((value.detach(), grad))
    all_or_none = images()[0][: 4 if rank != 0 else 0]
    return found, standardised(all_or_none, [0, 2])


def test_two_processes_find_what_one_does():
    """After the mean over processes, which DDP takes of the gradients."""
    assert not distributed.is_initialized()
    (first, none), (second, every) = in_two_processes(values_and_gradients)
    alone, expected = values_and_gradients(None)
    assert len(none) == 0
    torch.testing.assert_close(every, expected)
    for (value, grad), (ours, our_grad), (theirs, their_grad) in zip(
        alone, first, second, strict=True
    ):
        torch.testing.assert_close((ours + theirs) / 2, value, rtol=1e-11, atol=1e-11)
        grads = torch.cat([our_grad, their_grad]) / 2
        torch.testing.assert_close(grads, grad, rtol=1e-9, atol=1e-9)

"""Work in blocks, and the divergence of softened distributions with its gradient."""

import pytest
import torch

from kd_dense import functional
from kd_dense.functional import CPU_BLOCK_BYTES, in_blocks, soft_kl, two_class_logits
from kd_dense.measure import peak_memory

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
    monkeypatch.setattr(functional, 'CPU_BLOCK_BYTES', 80)
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
        assert torch.autograd.gradcheck(lambda x, d=dim: soft_kl(x, teacher, 2.0, d), student)


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

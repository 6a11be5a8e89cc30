"""The ways that losses go on a GPU, gone on a CPU, lead to the same."""

import pytest
import torch

from benchmarks import launches
from benchmarks.case import check_same
from kd_dense.functional import divergence, soft_kl, soft_kl_total
from tests.losses.test_no_sync import CASES, prepare


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    return lambda: monkeypatch.setattr(divergence, 'CACHED', 'none')


def run(kind, options):
    torch.manual_seed(0)
    result, student = prepare(kind, options, 'cpu', torch.float64)()
    maps = [student] if isinstance(student, torch.Tensor) else student
    values = result.values() if isinstance(result, dict) else [result]
    return [x.detach() for x in values] + [x.grad for x in maps if x.grad is not None]


@pytest.mark.parametrize(('kind', 'options'), CASES)
def test_each_loss(kind, options, as_on_a_gpu):
    expected = run(kind, options)
    as_on_a_gpu()
    for x, y in zip(run(kind, options), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('case', launches.CASES, ids=lambda case: case.name)
def test_all_maps_together(case, as_on_a_gpu):
    as_on_a_gpu()
    check_same(case.name, case.make('cpu', True))


@pytest.mark.parametrize('temperature', [1.0, 3.0])
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])
def test_divergences(dtype, temperature, as_on_a_gpu):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 5, 7, 40, generator=generator)
    student, teacher = ([3 * x.to(dtype) for x in some] for some in maps)
    student = [x.requires_grad_() for x in student]

    def found():
        rows = [soft_kl(*both, temperature, 1) for both in zip(student, teacher, strict=True)]
        total = soft_kl_total(student, teacher, temperature, 1)
        weighted = sum((row * row.detach()).sum() for row in rows)
        both = (torch.autograd.grad(x, student) for x in (weighted, 2 * total))
        return [total, *rows, *(x for grads in both for x in grads)]

    expected = found()
    as_on_a_gpu()
    for x, y in zip(found(), expected, strict=True):
        assert x.dtype == y.dtype
        rtol, atol = {8: (1e-12, 1e-14), 4: (1e-5, 1e-6), 2: (2e-3, 1e-6)}[x.dtype.itemsize]
        torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


def test_extremes(as_on_a_gpu):
    as_on_a_gpu()
    student = torch.tensor([[0.0, 2000.0], [-1e30, 1e30], [5.0, 6.0]], requires_grad=True)
    teacher = student.detach().flip(1)
    for total in (
        soft_kl(student, teacher, 1.0, 1)[:2].sum(),
        soft_kl_total([student[:2]], [teacher[:2]], 1.0, 1),
    ):
        assert total.isfinite()
        (grad,) = torch.autograd.grad(total, student)
        assert grad.tolist() == [[-1.0, 1.0]] * 2 + [[0.0, 0.0]]
    assert not soft_kl(student, student, 3.0, 1).any()
    assert not soft_kl_total([student], [student], 3.0, 1).any()

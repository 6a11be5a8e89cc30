"""What every distillation loss promises; inherit and fill in the first two attributes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kd_dense.losses import DistillLoss


class LossContract:
    loss: DistillLoss
    function: Any
    zero_on_match = True

    def example(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        maps = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64).to(dtype)
        return maps[0].requires_grad_(), maps[1].requires_grad_()

    def extra(self) -> dict[str, Any]:
        """What the loss needs beside the maps, by keyword."""
        return {}

    def value(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The result of the loss, its parts added up."""
        result = self.loss(student, teacher, **self.extra())
        return sum(result.values()) if isinstance(result, dict) else result

    def test_is_a_finite_scalar_or_its_named_parts(self):
        result = self.loss(*self.example(), **self.extra())
        assert tuple(result if isinstance(result, dict) else ()) == self.loss.parts
        assert set(self.extra()) == set(self.loss.needs)
        for value in result.values() if isinstance(result, dict) else [result]:
            assert value.shape == ()
            assert value.isfinite()

    def test_gradient_reaches_the_student_and_not_the_teacher(self):
        student, teacher = self.example()
        self.value(student, teacher).backward()
        assert student.grad.abs().sum() > 0
        assert teacher.grad is None

    def test_zero_when_student_equals_teacher(self):
        if self.zero_on_match:
            student, _ = self.example()
            assert self.value(student, student).abs() < 1e-12

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_half_precision_maps_give_a_float32_loss(self, dtype):
        student, teacher = self.example(dtype)
        value = self.value(student, teacher)
        assert value.dtype == torch.float32
        assert torch.allclose(value, self.value(student.float(), teacher.float()))

    def test_autocast_changes_nothing(self):
        results = []
        for enabled in (False, True):
            student, teacher = self.example(torch.float32)
            with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
                value = self.value(student, teacher)
            value.backward()
            results.append((value, student.grad))
        (value, grad), (autocast_value, autocast_grad) = results
        assert torch.equal(autocast_value, value)
        assert torch.equal(autocast_grad, grad)

    def test_module_is_weight_times_function(self):
        maps = self.example()
        weight, self.loss.weight = self.loss.weight, 1.0
        once = self.value(*maps)
        self.loss.weight = weight
        assert weight != 1.0
        assert torch.allclose(self.value(*maps), weight * once, rtol=1e-14)
        assert torch.allclose(once, self.function(*maps, **self.extra()), rtol=1e-14)

    def test_order_of_images_does_not_matter(self):
        student, teacher = self.example()
        assert torch.allclose(
            self.value(student, teacher), self.value(student.flip(0), teacher.flip(0))
        )

    def test_two_half_batches_average_to_the_whole(self):
        student, teacher = (x[:2] for x in self.example())
        halves = [self.value(student[i : i + 1], teacher[i : i + 1]) for i in range(2)]
        assert torch.allclose(sum(halves) / 2, self.value(student, teacher))

    def test_gradient_is_right(self):
        student, teacher = self.example()
        teacher = teacher.detach()
        assert torch.autograd.gradcheck(lambda x: self.value(x, teacher), (student,))

    def test_names_both_shapes_when_they_differ(self):
        student, teacher = self.example()
        with pytest.raises(ValueError, match=r'\(3, 4, 5, 6\).*\(3, 4, 5, 5\)'):
            self.value(student, teacher[..., :5])

    @pytest.mark.parametrize('weight', [-1.0, float('nan'), float('inf')])
    def test_rejects_a_weight_that_is_negative_or_not_finite(self, weight):
        with pytest.raises(ValueError, match='finite weight >= 0'):
            type(self.loss)(weight=weight)


class OneChannelContract(LossContract):
    """For a loss of class distributions: one channel is the logit of a class against none.

    It is worth what the logits (0, z) of two classes are, and teaches the same.
    """

    def example(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        student, teacher = (x.detach()[:, :1].clone() for x in super().example(dtype))
        return student.requires_grad_(), teacher.requires_grad_()

    def test_names_both_shapes_when_they_differ(self):
        student, teacher = self.example()
        for other in (teacher[..., :5], torch.cat([teacher, teacher], 1)):
            with pytest.raises(ValueError, match=r'\(3, 1, 5, 6\).*\(3, [12], 5, [56]\)'):
                self.value(student, other)

    @pytest.mark.parametrize('scale', [1e-4, 1.0, 30.0, 6e4])
    @pytest.mark.parametrize(
        'dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    )
    def test_is_that_of_two_classes_of_which_one_has_logit_0(self, dtype, scale):
        pair = [
            (scale * x.detach() / x.detach().abs().max()).to(dtype).requires_grad_()
            for x in self.example()
        ]
        two = [torch.cat([torch.zeros_like(x), x], 1).detach().requires_grad_() for x in pair]
        value, expected = self.value(*pair), self.value(*two)
        assert torch.equal(value, expected)
        assert value > 0
        (grad,) = torch.autograd.grad(value, pair[0])
        (expected_grad,) = torch.autograd.grad(expected, two[0])
        assert torch.equal(grad, expected_grad[:, 1:])
        assert grad.isfinite().all()
        if scale < 100:  # probabilities that are exactly 0 and 1 have a square without gradient
            assert grad.abs().sum() > 0

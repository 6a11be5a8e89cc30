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

    def test_is_a_finite_scalar(self):
        value = self.loss(*self.example())
        assert value.shape == ()
        assert value.isfinite()

    def test_gradient_reaches_the_student_and_not_the_teacher(self):
        student, teacher = self.example()
        self.loss(student, teacher).backward()
        assert student.grad.abs().sum() > 0
        assert teacher.grad is None

    def test_zero_when_student_equals_teacher(self):
        if self.zero_on_match:
            student, _ = self.example()
            assert self.loss(student, student).abs() < 1e-12

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    def test_half_precision_maps_give_a_float32_loss(self, dtype):
        student, teacher = self.example(dtype)
        value = self.loss(student, teacher)
        assert value.dtype == torch.float32
        assert torch.allclose(value, self.loss(student.float(), teacher.float()))

    def test_module_is_weight_times_function(self):
        maps = self.example()
        weight, self.loss.weight = self.loss.weight, 1.0
        once = self.loss(*maps)
        self.loss.weight = weight
        assert weight != 1.0
        assert torch.equal(self.loss(*maps), weight * once)
        assert torch.equal(once, self.function(*maps))

    def test_order_of_images_does_not_matter(self):
        student, teacher = self.example()
        assert torch.allclose(
            self.loss(student, teacher), self.loss(student.flip(0), teacher.flip(0))
        )

    def test_two_half_batches_average_to_the_whole(self):
        student, teacher = (x[:2] for x in self.example())
        halves = [self.loss(student[i : i + 1], teacher[i : i + 1]) for i in range(2)]
        assert torch.allclose(sum(halves) / 2, self.loss(student, teacher))

    def test_gradient_is_right(self):
        student, teacher = self.example()
        teacher = teacher.detach()
        assert torch.autograd.gradcheck(lambda x: self.loss(x, teacher), (student,))

    def test_names_both_shapes_when_they_differ(self):
        student, teacher = self.example()
        with pytest.raises(ValueError, match=r'\(3, 4, 5, 6\).*\(3, 4, 5, 5\)'):
            self.loss(student, teacher[..., :5])

    @pytest.mark.parametrize('weight', [-1.0, float('nan'), float('inf')])
    def test_rejects_a_weight_that_is_negative_or_not_finite(self, weight):
        with pytest.raises(ValueError, match='finite weight >= 0'):
            type(self.loss)(weight=weight)

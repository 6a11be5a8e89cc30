import numpy as np
import pytest
import torch

from kd_dense.losses import AttentionMapLoss, attention_map_loss
from tests.losses.contract import LossContract


class TestAttentionMap(LossContract):
    loss = AttentionMapLoss(weight=3.0)
    function = staticmethod(attention_map_loss)

    def test_is_the_distance_between_unit_vectors(self):
        student, teacher = (x.detach().numpy() for x in self.example())
        total = 0.0
        for s, t in zip(student, teacher, strict=True):
            a, b = ((x * x).sum(0).ravel() for x in (s, t))
            total += 2 - 2 * a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        value = attention_map_loss(torch.from_numpy(student), torch.from_numpy(teacher))
        assert value.item() == pytest.approx(total / 3, rel=1e-10)

    def test_scale_and_channels_do_not_matter(self):
        student, teacher = self.example()
        wide = torch.cat([student, -2 * student], dim=1)
        assert torch.allclose(
            attention_map_loss(wide, teacher), attention_map_loss(student, 7 * teacher)
        )


class TestAttentionMapSoftmax(LossContract):
    loss = AttentionMapLoss(weight=3.0, norm='softmax')
    function = staticmethod(lambda s, t: attention_map_loss(s, t, norm='softmax'))

    def test_is_the_distance_between_distributions(self):
        student, teacher = (x.detach().numpy() for x in self.example())
        total = 0.0
        for s, t in zip(student, teacher, strict=True):
            a, b = (np.exp((x * x).sum(0)) for x in (s, t))
            total += ((a / a.sum() - b / b.sum()) ** 2).sum()
        value = attention_map_loss(
            torch.from_numpy(student), torch.from_numpy(teacher), norm='softmax'
        )
        assert value.item() == pytest.approx(total / 3, rel=1e-10)


@pytest.mark.parametrize('norm', ['l2', 'softmax'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
@pytest.mark.parametrize('value', [0.0, 1.0, 60000.0])
def test_attention_of_constant_maps_is_finite(norm, dtype, value):
    student = torch.full((2, 3, 4, 4), value, dtype=dtype, requires_grad=True)
    teacher = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    loss = attention_map_loss(student, teacher, norm)
    loss.backward()
    assert 0 <= loss <= 2
    assert student.grad.isfinite().all()
    pixel = attention_map_loss(student[..., :1, :1], 1 + teacher[..., :1, :1].abs(), norm)
    assert pixel.item() == pytest.approx(1.0 if norm == 'l2' and value == 0 else 0.0, abs=1e-6)


@pytest.mark.parametrize('make', [AttentionMapLoss, lambda **a: attention_map_loss(*MAPS, **a)])
def test_rejects_attention_that_does_not_exist(make):
    with pytest.raises(ValueError, match=r"norm to be one of .*'softmax'.*got 'l1'"):
        make(norm='l1')
    with pytest.raises(ValueError, match=r'eps > 0, got eps=0'):
        make(eps=0)


MAPS = (torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))

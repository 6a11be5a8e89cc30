import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kd_dense.functional import divergence
from kd_dense.losses import (
    ATLoss,
    AttentionChangeLoss,
    AttentionMapLoss,
    SADLoss,
    attention_change_loss,
    attention_map_loss,
    sad_loss,
)
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
@pytest.mark.parametrize('reduction', ['image', 'position'])
def test_levels_at_once_are_the_sum_of_each(norm, reduction, monkeypatch):
    loss = AttentionMapLoss(weight=2.0, norm=norm, reduction=reduction)
    shapes = [(4, 5), (2, 3), (1, 1)]
    students = [torch.randn(3, 4, *x, dtype=torch.float64, requires_grad=True) for x in shapes]
    teachers = [torch.randn(3, 6, *x, dtype=torch.float64) for x in shapes]
    students[1].data[0] = 0
    expected = sum(loss(*maps) for maps in zip(students, teachers, strict=True))
    monkeypatch.setattr(divergence, 'CACHED', 'none')  # as on a GPU
    found = AttentionMapLoss.over_maps([loss], students, teachers)
    torch.testing.assert_close(found, expected)
    grads = (torch.autograd.grad(value, students) for value in (found, expected))
    for x, y in zip(*grads, strict=True):
        torch.testing.assert_close(x, y)


class TestAT(LossContract):
    loss = ATLoss(weight=3.0)

    @staticmethod
    def function(student, teacher):
        s, t = (F.normalize(x.square().mean(1).flatten(1)) for x in (student, teacher))
        return (s - t).square().mean()

    def test_falls_with_the_number_of_positions(self):
        student, teacher = self.example()
        whole = attention_map_loss(student, teacher)
        assert torch.allclose(ATLoss()(student, teacher), whole / 30)


class TestSAD(LossContract):
    loss = SADLoss(weight=3.0)
    test_names_both_shapes_when_they_differ = None  # sizes may

    @staticmethod
    def function(student, teacher):
        s, t = (x.square().sum(1).flatten(1).softmax(1) for x in (student, teacher))
        return (s - t).square().mean()

    def test_the_later_stage_is_enlarged(self):
        student, later = self.example()
        later = later[..., ::2, ::2]
        grown = F.interpolate(later.square().sum(1, keepdim=True), (5, 6), mode='bilinear')
        value = sad_loss(student, later)
        assert torch.allclose(value, sad_loss(student, grown.sqrt()))

    def test_both_stages_move_where_they_are_to(self):
        student, later = self.example()
        sad_loss(student, later, detach=False).backward()
        assert student.grad.abs().sum() > 0
        assert torch.allclose(later.grad.abs().sum(), sad_grad(later, student))

    def test_other_images_are_refused(self):
        student, later = self.example()
        with pytest.raises(ValueError, match=r'as many images, got \(3, 4, 5, 6\) and \(2, 4'):
            sad_loss(student, later[:2])


def sad_grad(student, later):
    """What the first of two stages is given: the loss does not tell them apart."""
    student = student.detach().requires_grad_()
    sad_loss(student, later).backward()
    return student.grad.abs().sum()


class TestAttentionChange(LossContract):
    """From a map to the same one turned round, and to half of its channels."""

    loss = AttentionChangeLoss(weight=3.0)

    @staticmethod
    def layers(x):
        return [x, 2 * x.flip(3), x[:, :2].flip(2)]

    def value(self, student, teacher):
        return self.loss(self.layers(student), self.layers(teacher))

    def function(self, student, teacher):
        total = 0
        for k, last in ((0, 1), (0, 2), (1, 2)):
            moved = []
            for x in (student, teacher):
                a = [F.normalize(y.square().sum(1).flatten(1)) for y in self.layers(x)]
                moved.append(F.normalize(a[k] - a[last]))
            total += (moved[0] - moved[1]).square().mean() / 3
        return total

    def test_is_a_finite_scalar_or_its_named_parts(self):
        value = self.value(*self.example())
        assert value.shape == ()
        assert value.isfinite()

    def test_one_layer_does_not_move(self):
        student, teacher = self.example()
        with pytest.raises(ValueError, match='two layers or more'):
            attention_change_loss([student], [teacher])
        with pytest.raises(ValueError, match='of one size'):
            attention_change_loss([student, student[..., :2]], [teacher, teacher])


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

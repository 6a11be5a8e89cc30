import math
from itertools import product

import pytest
import torch
from torch import distributed
from torch.nn import functional as F

from kd_dense.functional import gather_over_ranks
from kd_dense.losses import (
    CCKDLoss,
    CrossImageLoss,
    ICKDLoss,
    NSTLoss,
    PKTLoss,
    RelationLoss,
    RKDLoss,
    SPLoss,
    cckd_loss,
    cross_image_loss,
    nst_loss,
    pkt_loss,
    relation_loss,
    rkd_loss,
)
from kd_dense.losses.features.relations import rows
from kd_dense.losses.features.relations.rows import products, sum_over_rows
from tests.losses.contract import LossContract
from tests.mm.processes import in_two_processes

LOSSES = {
    'ickd': ICKDLoss(),
    'windows': ICKDLoss(windows=(2, 3)),
    'positions': RelationLoss(1.0, 'positions', 'none', 'mean', 'unit'),
    'dsd': RelationLoss(1.0, 'channels', 'none', 'mean', 'places', 4.0, pool=2),
    'sp': SPLoss(),
    'sp-l1': SPLoss(rows='l1', pool=2),
    'batch': RelationLoss(1.0, 'images', 'none', 'row', 'classes', 4.0),
    'rkd': RKDLoss(),
    'pkt': PKTLoss(),
    'cckd': CCKDLoss(gamma=0.01),
    'bilinear': CCKDLoss(kernel='bilinear'),
    'cross': CrossImageLoss(temperature=0.5),
    'nst': NSTLoss(),
}
OF_IMAGES = ['sp', 'sp-l1', 'batch', 'rkd', 'pkt', 'cckd', 'bilinear', 'cross']


def total(result):
    return sum(result.values()) if isinstance(result, dict) else result


class TestICKD(LossContract):
    loss = ICKDLoss(weight=3.0)

    @staticmethod
    def function(student, teacher):
        s, t = (F.normalize(x.flatten(2) @ x.flatten(2).mT, dim=2) for x in (student, teacher))
        return (s - t).square().sum() / (3 * 4)

    def test_scale_of_a_map_does_not_matter(self):
        student, teacher = self.example()
        scale = torch.tensor([0.1, 2.0, 30.0], dtype=torch.float64).view(3, 1, 1, 1)
        assert torch.allclose(self.value(scale * student, teacher), self.value(student, teacher))

    def test_order_of_positions_does_not_matter(self):
        student, teacher = self.example()
        assert torch.allclose(
            self.value(student.flip(2), teacher.flip(2)), self.value(student, teacher)
        )

    def test_of_logits_is_that_of_classes(self):
        """AICSD's term: which classes are active together, whatever their order."""
        student, teacher = self.example()
        swapped = [x[:, [2, 0, 3, 1]] for x in (student, teacher)]
        assert torch.allclose(self.value(*swapped), self.value(student, teacher))


class TestWindows(LossContract):
    loss = ICKDLoss(weight=3.0, windows=(2, 4))

    def function(self, student, teacher):
        """Windows of 2x1; a row and two columns are left over."""
        parts = [
            relation_loss(*(x[..., 2 * i : 2 * i + 2, j : j + 1] for x in (student, teacher)))
            for i, j in product(range(2), range(4))
        ]
        return sum(parts) / len(parts)


class TestPositions(LossContract):
    loss = RelationLoss(3.0, 'positions', 'none', 'mean', 'unit')

    @staticmethod
    def function(student, teacher):
        s, t = (F.normalize(x.flatten(2), dim=1) for x in (student, teacher))
        return (s.mT @ s - t.mT @ t).square().mean()


class TestDSDChannels(LossContract):
    loss = RelationLoss(3.0, 'channels', 'none', 'mean', 'places', 4.0, pool=2)

    @staticmethod
    def function(student, teacher):
        s, t = (
            (F.avg_pool2d(x, 2, ceil_mode=True).flatten(2) / 4).softmax(2)
            for x in (student, teacher)
        )
        return F.mse_loss(s @ s.mT, t @ t.mT)


class OfImages(LossContract):
    # What holds in its place is tested below, with two processes.
    test_two_half_batches_average_to_the_whole = None

    def test_too_few_images_have_no_relation(self):
        student, teacher = (x.detach() for x in self.example())
        for count in (self.loss.least_images - 1, self.loss.least_images):
            ours = student[:count].clone().requires_grad_()
            value = self.value(ours, teacher[:count])
            value.backward()
            enough = count == self.loss.least_images
            assert bool(ours.grad.abs().max() > 1e-12) == bool(value > 1e-12) == enough

    def test_images_that_are_equal_have_a_finite_gradient(self):
        student, teacher = (x.detach() for x in self.example())
        student[1] = student[0]
        student.requires_grad_()
        value = self.value(student, teacher)
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()


class TestSP(OfImages):
    loss = SPLoss(weight=3.0)

    @staticmethod
    def function(student, teacher):
        s, t = (F.normalize(x.flatten(1) @ x.flatten(1).T) for x in (student, teacher))
        return (s - t).square().mean()


class TestRKD(OfImages):
    loss = RKDLoss(weight=3.0, pool=2)

    def function(self, student, teacher):
        """Triple by triple."""
        s, t = (
            F.normalize(F.avg_pool2d(x, 2, ceil_mode=True).flatten(1)) for x in (student, teacher)
        )
        distances, angles = [], []
        for x in (s, t):
            d = torch.stack([torch.stack([(a - b).norm() for b in x]) for a in x])
            distances.append(d / d[d > 0].mean())
            cosine = [[[F.cosine_similarity(x[j] - x[i], x[k] - x[i], dim=0) for k in range(3)]
                       for j in range(3)] for i in range(3)]  # fmt: skip
            angles.append(torch.stack([torch.stack([torch.stack(r) for r in m]) for m in cosine]))
        return 25 * F.smooth_l1_loss(*distances) + 50 * F.smooth_l1_loss(*angles)

    def test_distances_do_not_mind_a_scale_or_a_shift_of_all(self):
        student, teacher = self.example()
        value = rkd_loss(student, teacher, over_norm=False)
        moved = rkd_loss(3 * student + 100, teacher, over_norm=False)
        for part in ('distance', 'angle'):
            assert torch.allclose(moved[part], value[part], rtol=1e-6)


class TestPKT(OfImages):
    loss = PKTLoss(weight=3.0)

    @staticmethod
    def function(student, teacher):
        like = []
        for x in (student, teacher):
            unit = x.flatten(1) / (x.flatten(1).norm(dim=1, keepdim=True) + 1e-7)
            like.append((unit @ unit.T + 1) / 2)
        p, q = (x / x.sum(1, keepdim=True) for x in like)
        return (q * ((q + 1e-7) / (p + 1e-7)).log()).mean()


class TestCCKD(OfImages):
    loss = CCKDLoss(weight=3.0, gamma=0.01, order=3)
    test_too_few_images_have_no_relation = None  # its length is compared

    @staticmethod
    def function(student, teacher):
        grams = [x.flatten(1) @ x.flatten(1).T for x in (student, teacher)]
        kernels = [
            math.exp(-0.02) * sum((0.02 * g) ** p / math.factorial(p) for p in range(4))
            for g in grams
        ]
        return (kernels[0] - kernels[1]).norm() / 9

    def test_a_gaussian_of_unit_vectors_is_that_of_their_distance(self):
        x, y = (F.normalize(x.detach().flatten(1))[..., None, None] for x in self.example())
        squares = [torch.cdist(m.flatten(1), m.flatten(1)).square() for m in (x, y)]
        expected = ((-0.4 * squares[0]).exp() - (-0.4 * squares[1]).exp()).norm() / 9
        assert torch.allclose(cckd_loss(x, y, order=20), expected)


class TestCrossImage(OfImages):
    loss = CrossImageLoss(weight=3.0, temperature=0.5)
    test_too_few_images_have_no_relation = None  # its positions have

    @staticmethod
    def function(student, teacher):
        """Image pair by image pair."""
        s, t = (F.normalize(x.flatten(2).mT, dim=2) for x in (student, teacher))
        value = 0
        for i, j in product(range(3), range(3)):
            p, q = ((x[i] @ x[j].T / 0.5).log_softmax(1) for x in (s, t))
            value += F.kl_div(p, q, log_target=True, reduction='batchmean')
        return value / 9


class TestNST(LossContract):
    loss = NSTLoss(weight=3.0)

    @staticmethod
    def function(student, teacher):
        s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))
        own, theirs, both = ((a @ b.mT).square().mean() for a, b in ((s, s), (t, t), (s, t)))
        return own + theirs - 2 * both

    def test_order_of_channels_does_not_matter(self):
        student, teacher = self.example()
        assert torch.allclose(nst_loss(student.flip(1), teacher), nst_loss(student, teacher))

    def test_widths_may_differ(self):
        student, teacher = self.example()
        twice = torch.cat([teacher, teacher], 1)
        assert torch.allclose(nst_loss(student, twice), nst_loss(student, teacher))


@pytest.mark.parametrize('name', [n for n in LOSSES if not isinstance(LOSSES[n], ICKDLoss)])
def test_widths_may_differ_where_channels_are_not_related(name):
    loss = LOSSES[name]
    student, teacher = LossContract().example()
    wide = torch.cat([teacher, teacher], 1)
    if loss.any_channels:
        assert total(loss(student, wide)).isfinite()
    else:
        with pytest.raises(ValueError, match=r'\(3, 4, 5, 6\).*\(3, 8, 5, 6\)'):
            loss(student, wide)


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('size', [1, 7, 100])
def test_blocks_of_any_size_find_the_same(name, size, monkeypatch):
    def values():
        student, teacher = LossContract().example()
        value = total(LOSSES[name](student, teacher))
        return value.detach(), *torch.autograd.grad(value, student)

    whole = values()
    monkeypatch.setattr('kd_dense.functional.divergence.CPU_BLOCK_BYTES', 8 * size)
    monkeypatch.setattr(rows, 'LEAST_ROWS', 1)
    monkeypatch.setattr(rows, 'LEAST_SUM', 1)
    for one, other in zip(values(), whole, strict=True):
        assert torch.allclose(one, other, rtol=1e-12)


def test_products_of_vectors_with_themselves_have_the_gradient_of_both():
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(products(x, x), x @ x.mT)
    assert torch.autograd.gradcheck(lambda x: products(x, x).sin(), (x,))


def test_products_of_long_vectors_are_exact():
    x = torch.randn(2, 2**21, generator=torch.Generator().manual_seed(0)) + 1
    exact = x.double() @ x.double().mT
    assert torch.allclose(products(x, x).double(), exact, rtol=2e-6)


def test_a_sum_over_rows_has_the_gradients_of_rows_and_columns():
    x, y = (torch.randn(2, n, 3, dtype=torch.float64, requires_grad=True) for n in (4, 5))

    def whole(x, y):
        return (x @ y.mT).sin().sum((1, 2))

    def in_blocks(x, y):
        return sum_over_rows(lambda rows, columns: whole(rows[0], columns[0]), [x], [y])

    assert torch.allclose(in_blocks(x, y), whole(x, y))
    assert torch.autograd.gradcheck(in_blocks, (x, y))
    assert torch.autograd.gradcheck(lambda x: in_blocks(x, y.detach()), (x,))
    assert not in_blocks(x.detach(), y.detach()).requires_grad


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(over='pixels'), r"over to be one of .*got 'pixels'"),
        (dict(rows='l3'), r"rows to be one of .*got 'l3'"),
        (dict(reduction='sum'), r"reduction to be one of .*got 'sum'"),
        (dict(values='norm'), r"values to be one of .*got 'norm'"),
        (dict(temperature=0.0), 'temperature'),
        (dict(pool=0), 'pool as an int >= 1, got pool=0'),
        (dict(windows=(2, 0)), r'windows as two numbers >= 1, got \(2, 0\)'),
        (dict(windows=4), 'windows as two numbers >= 1, got 4'),
        (dict(over='images', windows=(2, 2)), r"no windows over='images', got .*\(2, 2\)"),
    ],
)
def test_refuses_what_it_does_not_know(arguments, message):
    maps = LossContract().example()
    with pytest.raises(ValueError, match=f'relation_loss.*{message}|{message}'):
        relation_loss(*maps, **arguments)
    with pytest.raises(ValueError, match=message):
        RelationLoss(**arguments)


def test_there_are_at_most_as_many_windows_as_positions():
    maps = LossContract().example()
    sides = tuple(maps[0].shape[2:])
    both = [relation_loss(*maps, windows=windows) for windows in ((99, 99), sides)]
    assert torch.equal(*both)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(kernel='rbf'), r"kernel to be one of .*got 'rbf'"),
        (dict(gamma=0.0), 'gamma > 0, got gamma=0.0'),
        (dict(order=0), 'order as an int >= 1, got order=0'),
    ],
)
def test_refuses_other_kernels(arguments, message):
    with pytest.raises(ValueError, match=message):
        cckd_loss(*LossContract().example(), **arguments)
    with pytest.raises(ValueError, match=message):
        CCKDLoss(**arguments)


@pytest.mark.parametrize('function', [rkd_loss, pkt_loss, cckd_loss, cross_image_loss, nst_loss])
def test_refuses_squares_of_no_side(function):
    with pytest.raises(ValueError, match=rf'{function.__name__} expects pool as an int >= 1'):
        function(*LossContract().example(), pool=0)


# In two processes


def values_and_gradients(rank):
    """Of a batch of 4 images, or of the half of it that this process has."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 4, 3, 4, 5, generator=generator, dtype=torch.float64)
    mine = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    found = {}
    for name, loss in LOSSES.items():
        student = maps[0, mine].clone().requires_grad_()
        value = total(loss(student, maps[1, mine]))
        found[name] = value.detach(), *torch.autograd.grad(value, student)
    gathered = gather_over_ranks(maps[0, mine])
    assert torch.equal(gathered, maps[0])
    return found


def test_two_processes_find_what_one_does():
    """After the mean over processes, which DDP takes of the gradients."""
    assert not distributed.is_initialized()
    first, second = in_two_processes(values_and_gradients)
    for name, (value, grad) in values_and_gradients(None).items():
        ours, theirs = first[name], second[name]
        torch.testing.assert_close((ours[0] + theirs[0]) / 2, value, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(
            torch.cat([ours[1], theirs[1]]) / 2, grad, rtol=1e-9, atol=1e-12
        )
        if name in OF_IMAGES and name != 'cross':  # the same in all processes
            assert torch.equal(ours[0], theirs[0])

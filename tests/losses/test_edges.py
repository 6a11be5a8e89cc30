"""CWD and KD at the edges of classes, and away from them."""

import pytest
import torch
from torch.nn import functional as F

from kd_dense.functional import share_of_labels
from kd_dense.losses import CWDLoss, KDLoss, cwd_loss, kd_loss
from tests.losses.contract import LossContract

EDGE = 3


def labels(images=3, height=10, width=12):
    """Two classes and pixels without any; the last image has one class alone."""
    found = torch.zeros(images, height, width, dtype=torch.long)
    found[0, :, 5:] = 1
    found[0, 8:] = 255
    found[1, 3:7, 2:9] = 2
    return found


class Labelled(LossContract):
    test_two_half_batches_average_to_the_whole = None  # the images have other labels
    test_order_of_images_does_not_matter = None

    def extra(self):
        return dict(segmentation=labels())

    def share(self, where):
        return share_of_labels(labels(), (5, 6), where, EDGE)


class TestKDAtEdges(Labelled):
    loss = KDLoss(weight=3.0, where='edge', edge=EDGE)

    def function(self, student, teacher, segmentation):
        share = self.share('edge')
        kl = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction='none').sum(1)
        return (kl * share).sum() / share.sum()


class TestCWDInBodies(Labelled):
    loss = CWDLoss(weight=3.0, temperature=2.0, where='body', edge=EDGE)

    def function(self, student, teacher, segmentation):
        share = self.share('body').flatten(1)[:, None]

        def spread(x):
            likely = (x.flatten(2) / 2).exp() * share
            return likely / likely.sum(2, keepdim=True)

        p, q = spread(teacher.detach()), spread(student)
        terms = torch.where(p > 0, p * (p / q.where(q > 0, 1)).log(), 0)
        return 4 * terms.sum() / 12


class TestCWDSpatialAtEdges(Labelled):
    loss = CWDLoss(weight=3.0, norm='spatial', where='edge', edge=EDGE)
    function = staticmethod(lambda s, t, segmentation: kd_loss(
        s, t, segmentation, where='edge', edge=EDGE
    ))  # fmt: skip


# What is an edge


def slow_shares(segmentation, size, edge):
    """Pixel by pixel; the sides of the map divide those of the segmentation."""
    images, height, width = segmentation.shape
    cell = height // size[0], width // size[1]
    shares = torch.zeros(2, images, *size)
    reach = edge // 2
    for n in range(images):
        for i in range(height):
            for j in range(width):
                if segmentation[n, i, j] == 255:
                    continue
                window = segmentation[
                    n, max(i - reach, 0) : i + reach + 1, max(j - reach, 0) : j + reach + 1
                ]
                at_edge = len({*window.flatten().tolist()} - {255}) > 1
                shares[int(not at_edge), n, i // cell[0], j // cell[1]] += 1
    return shares / (cell[0] * cell[1])


@pytest.mark.parametrize('edge', [3, 5])
def test_a_pixel_is_at_an_edge_if_its_window_has_another_class(edge):
    expected = slow_shares(labels(), (5, 6), edge)
    for where, share in zip(('edge', 'body'), expected, strict=True):
        assert torch.allclose(share_of_labels(labels(), (5, 6), where, edge), share)
    whole = share_of_labels(labels(), (5, 6), 'all')
    assert torch.allclose(whole, expected.sum(0))


def test_what_has_no_class_is_no_edge():
    segmentation = torch.full((1, 8, 8), 255)
    segmentation[:, :, 4:] = 1
    assert not share_of_labels(segmentation, (4, 4), 'edge').any()
    assert torch.equal(
        share_of_labels(segmentation, (4, 4), 'body')[0, 0], torch.tensor([0.0, 0, 1, 1])
    )


@pytest.mark.parametrize('size', [(3, 5), (10, 12), (20, 24), (1, 1)])
def test_edges_and_bodies_are_all_pixels_at_any_size(size):
    shares = [share_of_labels(labels(), size, where) for where in ('edge', 'body', 'all')]
    assert torch.allclose(shares[0] + shares[1], shares[2])
    assert shares[2].shape == (3, *size)


# What the losses make of it


@pytest.mark.parametrize('where', ['edge', 'body'])
def test_only_positions_that_count_teach(where):
    student, teacher = LossContract().example()
    for loss in (
        KDLoss(where=where, edge=EDGE),
        CWDLoss(where=where, edge=EDGE),
        CWDLoss(norm='spatial', where=where, edge=EDGE),
    ):
        (grad,) = torch.autograd.grad(loss(student, teacher, labels()), student)
        share = share_of_labels(labels(), (5, 6), where, EDGE)
        taught = grad.abs().amax(1) > 0
        assert torch.equal(taught[:2], share[:2] > 0)


@pytest.mark.parametrize('where', ['edge', 'body'])
def test_without_such_a_pixel_it_is_0(where):
    student, teacher = LossContract().example()
    segmentation = torch.full((3, 10, 12), 255)
    for loss in (KDLoss(where=where), CWDLoss(where=where), CWDLoss(norm='spatial', where=where)):
        value = loss(student, teacher, segmentation)
        assert value == 0
        (grad,) = torch.autograd.grad(value, student)
        assert not grad.any()


def test_of_one_class_all_is_body_and_the_loss_that_of_all():
    student, teacher = LossContract().example()
    one = torch.ones(3, 10, 12, dtype=torch.long)
    for body, everywhere in (
        (KDLoss(where='body'), kd_loss(student, teacher)),
        (CWDLoss(where='body', temperature=3.0), cwd_loss(student, teacher, 3.0)),
    ):
        assert torch.allclose(body(student, teacher, one), everywhere)


def test_edges_and_bodies_of_kd_average_to_all_that_is_known():
    student, teacher = LossContract().example()
    segmentation = labels(3, 20, 24)[:, :, :].clone()
    segmentation[segmentation == 255] = 1
    parts = [kd_loss(student, teacher, segmentation, where=w) for w in ('edge', 'body')]
    shares = [share_of_labels(segmentation, (5, 6), w).sum() for w in ('edge', 'body')]
    mean = sum(p * s for p, s in zip(parts, shares, strict=True)) / sum(shares)
    assert torch.allclose(mean, kd_loss(student, teacher))


def test_several_maps_are_compared_one_by_one():
    student, teacher = LossContract().example()
    loss = CWDLoss(where='body', edge=EDGE)
    both = CWDLoss.over_maps([loss], [student] * 2, [teacher] * 2, segmentation=labels())
    assert torch.allclose(both, 2 * loss(student, teacher, labels()))


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: KDLoss(where='border'), "where to be one of .*got 'border'"),
        (lambda: CWDLoss(where='edge', edge=4), 'edge as an odd number of pixels >= 3, got 4'),
        (lambda: CWDLoss(where='edge', divergence='mse'), "divergence='kl' and norm='channel'"),
        (lambda: KDLoss(where='edge', valid_only=False), 'expected valid_only=True'),
        (
            lambda: kd_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2).long(),
                            where='edge'),
            r"where='edge' expects maps",
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()

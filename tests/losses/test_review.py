import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd_dense.adapters import BatchNorm
from kd_dense.losses import FitNetsLoss, ReviewKDLoss, review_loss
from kd_dense.losses.features.review import Fusion, reviewed
from tests.losses.contract import LossContract


def seeded(*widths, width=6, **options):
    torch.manual_seed(0)
    loss = ReviewKDLoss(*widths, width=width, **options)
    for parameter in loss.parameters():
        nn.init.normal_(parameter, std=0.5)
    return loss.double()


class TestReview(LossContract):
    loss = seeded([4], [4], weight=3.0)
    zero_on_match = False
    test_two_half_batches_average_to_the_whole = None  # its norms are of a batch

    def example(self, dtype=torch.float64):
        self.loss.to(torch.promote_types(dtype, torch.float32))
        return super().example(dtype)

    def value(self, student, teacher):
        return self.loss([student], [teacher])

    def function(self, student, teacher):
        return review_loss([student], [teacher], list(self.loss.fusions))

    def test_is_a_finite_scalar_or_its_named_parts(self):
        assert self.value(*self.example()).shape == ()
        assert self.loss.parts == self.loss.needs == ()

    @pytest.mark.parametrize('weight', [-1.0, float('nan'), float('inf')])
    def test_rejects_a_weight_that_is_negative_or_not_finite(self, weight):
        with pytest.raises(ValueError, match='finite weight >= 0'):
            ReviewKDLoss([4], [4], weight=weight)


def pyramid(*widths, dtype=torch.float64):
    torch.manual_seed(1)
    sizes = ((8, 10), (4, 5), (2, 3))
    return [
        torch.randn(2, c, *size, dtype=dtype, requires_grad=True)
        for c, size in zip(widths, sizes, strict=True)
    ]


def written_out(student, fusions):
    """The equations, with the batch norm of PyTorch."""

    def normed(x, conv, norm):
        return F.batch_norm(conv(x), None, None, norm.weight, norm.bias, training=True)

    found, above = {}, None
    for level in (2, 1, 0):
        one = fusions[level]
        x = normed(student[level], one.narrow, one.narrow_norm)
        if above is not None:
            rows = torch.arange(x.shape[2]) * above.shape[2] // x.shape[2]
            columns = torch.arange(x.shape[3]) * above.shape[3] // x.shape[3]
            y = above[:, :, rows[:, None], columns]
            z = one.attention(torch.cat([x, y], 1)).sigmoid()
            x = x * z[:, 0, None] + y * z[:, 1, None]
        above, found[level] = x, normed(x, one.out, one.out_norm)
    return [found[level] for level in range(3)]


def test_maps_are_fused_from_the_coarsest_to_the_finest():
    student, teacher = pyramid(3, 4, 5), pyramid(5, 6, 7)
    loss = seeded([3, 4, 5], [5, 6, 7])
    expected = written_out(student, loss.fusions)
    for ours, theirs in zip(reviewed(student, list(loss.fusions)), expected, strict=True):
        assert torch.allclose(ours, theirs)
    contexts = [
        FitNetsLoss(pooled=(4, 2, 1))(s, t) for s, t in zip(expected, teacher, strict=True)
    ]
    assert torch.allclose(loss(student, teacher), sum(contexts))


def test_a_fine_map_hears_of_the_coarse_ones_and_not_the_other_way():
    student, loss = pyramid(3, 4, 5), seeded([3, 4, 5], [5, 6, 7])
    for level, out in enumerate(reviewed(student, list(loss.fusions))):
        grads = torch.autograd.grad(
            out.square().sum(), student, retain_graph=True, allow_unused=True
        )
        heard = [grad is not None and bool(grad.abs().sum() > 0) for grad in grads]
        assert heard == [other >= level for other in range(3)]


def test_every_parameter_is_trained():
    loss = seeded([3, 4, 5], [5, 6, 7])
    loss(pyramid(3, 4, 5), pyramid(5, 6, 7)).backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad.any(), name
    assert loss.fusions[2].attention is None


def test_its_batch_norm_is_that_of_training_whatever_the_mode():
    norm, theirs = BatchNorm(4), nn.BatchNorm2d(4)
    for x, y in zip(norm.parameters(), theirs.parameters(), strict=True):
        nn.init.normal_(x)
        y.data = x.data.clone()
    x = torch.randn(3, 4, 5, 6)
    for mode in (True, False):
        assert torch.allclose(norm.train(mode)(x), theirs(x), atol=1e-6)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: ReviewKDLoss([4], [4], width=0), 'width as an int >= 1, got width=0'),
        (
            lambda: ReviewKDLoss([4], [4], width=4)([torch.zeros(1, 4, 2, 2)] * 2, []),
            'got 2 of the student, 0 of the teacher and 1 fusions',
        ),
        (
            lambda: review_loss(
                [torch.zeros(1, 4, 2, 2)], [torch.zeros(1, 4, 2, 3)], [Fusion(4, 4, 4, True)]
            ),
            r'\(1, 4, 2, 2\).*\(1, 4, 2, 3\)',
        ),
    ],
)
def test_bad_arguments_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()

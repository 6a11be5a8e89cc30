"""Intra-class feature variation distillation (IFVD): how near each feature is to its class.

Wang et al., "Intra-class Feature Variation Distillation for Semantic Segmentation", ECCV 2020.
https://www.ecva.net/papers/eccv_2020/papers_ECCV/papers/123520341.pdf

It equals the authors' code (BSD-2-Clause).
"""

from __future__ import annotations

from torch import Tensor

from kd_dense.functional import at_least_float32, without_autocast
from kd_dense.losses.base import DistillLoss
from kd_dense.losses.features.prototypes.centres import at_features, class_sums

__all__ = ['IFVDLoss', 'ifvd_loss', 'variation']

COUNT_EPS = 1e-6
LEAST_NORM = 1e-8


def ifvd_loss(
    student: Tensor,
    teacher: Tensor,
    segmentation: Tensor,
    num_classes: int,
    ignore_index: int = 255,
) -> Tensor:
    r"""Compare how near the feature at each position is to the centre of its class.

    With the feature $f_p$ at position p of an image, its label $y_p$, and the mean $\mu_k$ of
    the features of class k in that image,

    $$
    \frac{1}{N P} \sum_{n, p} \bigl(\cos(f^s_p, \mu^s_{y_p}) - \cos(f^t_p, \mu^t_{y_p})\bigr)^2
    $$

    A position without a label adds 0, and counts. Centres have gradients, too.

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype.
        teacher: Features, ``(N, C', H, W)``. No gradient flows into it.
        segmentation: Class of every pixel, ``(N, H', W')``, integers.
        num_classes: K; labels from K on count as none.
        ignore_index: A label that counts as none either.

    Returns:
        Scalar, at least float32, between 0 and 4.

    Raises:
        ValueError: If the shapes do not fit.

    Examples:
        >>> import torch
        >>> teacher = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).view(1, 2, 1, 2)
        >>> one_class = torch.zeros(1, 1, 2, dtype=torch.long)
        >>> ifvd_loss(torch.ones(1, 2, 1, 2), teacher, one_class, num_classes=1)
        tensor(0.0858)
    """
    labels, valid = at_features(
        'ifvd_loss', student, teacher, segmentation, num_classes, ignore_index
    )
    with without_autocast(student):
        ours, theirs = (
            variation(x, labels, valid, num_classes) for x in (student, teacher.detach())
        )
        return (ours - theirs.to(ours.dtype)).square().mean()


def variation(features: Tensor, labels: Tensor, valid: Tensor, num_classes: int) -> Tensor:
    """Cosine of each feature and the centre of its class, ``(N, H, W)``; 1 without a label."""
    features = at_least_float32(features)
    sums, counts = class_sums(features, labels, valid, num_classes)
    centres = sums / (counts + COUNT_EPS)[..., None]
    # With all centres first, of which there are fewer than channels.
    index = labels.flatten(1)[:, None]
    products = (centres @ features.flatten(2)).gather(1, index)[:, 0]
    sizes = _norm(centres, 2)[:, :, None].expand(-1, -1, products.shape[1])
    sizes = sizes.gather(1, index)[:, 0] * _norm(features.flatten(2), 1)
    return (products / sizes).masked_fill(~valid.flatten(1), 1).view_as(labels)


def _norm(x: Tensor, dim: int) -> Tensor:
    return x.square().sum(dim).clamp(min=LEAST_NORM**2).sqrt()


class IFVDLoss(DistillLoss):
    """Module form of [`ifvd_loss`][], times ``weight``.

    The authors' weight is 200, with class distributions and a critic beside it; CIRKD's is 20.

    Args:
        num_classes: See [`ifvd_loss`][]; in a recipe those of the student's head.
        weight: Factor on the result.
        ignore_index: See [`ifvd_loss`][]; in a recipe that of the student's head.

    Examples:
        >>> import torch
        >>> loss = IFVDLoss(num_classes=19, weight=200.0)
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> labels = torch.randint(19, (2, 64, 64))
        >>> loss(student, torch.randn(2, 64, 8, 8), segmentation=labels).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 8])
    """

    needs = ('segmentation',)
    any_channels = True

    def __init__(self, num_classes: int, weight: float = 1.0, ignore_index: int = 255) -> None:
        super().__init__(weight)
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def forward(self, student: Tensor, teacher: Tensor, segmentation: Tensor) -> Tensor:
        return self.weight * ifvd_loss(
            student, teacher, segmentation, self.num_classes, self.ignore_index
        )

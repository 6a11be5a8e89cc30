"""Box offsets of regions of interest (RoIs), beside the class logits that DKD and DIST compare.

Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS
2017, let a teacher's offsets bound the student's. No code of the authors is public; here the
offsets are drawn to the teacher's, as those of dense heads are by others.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kd_dense.functional import at_least_float32
from kd_dense.losses.base import DistillLoss
from kd_dense.losses.logits.rows import mean_of_valid

__all__ = ['RoIBoxLoss', 'offsets_apart', 'offsets_of_objects', 'roi_box_loss']


def roi_box_loss(
    student: Tensor,
    teacher: Tensor,
    segmentation: Tensor,
    num_classes: int | None = None,
    beta: float = 1.0,
) -> Tensor:
    r"""Match the offsets from a region to its object.

    With the offsets $s_r, t_r \in \mathbb{R}^4$ of the class of region r, the mean over the
    regions of objects of

    $$
    \sum_{i = 1}^{4} h_\beta(s_{r, i} - t_{r, i}), \qquad
    h_\beta(d) = \begin{cases} d^2 / (2 \beta) & |d| < \beta \\ |d| - \beta / 2 & \text{otherwise}
    \end{cases}
    $$

    Offsets of other classes, and those of the background, are nothing that a head is trained for.

    Args:
        student: Offsets, ``(R, 4 K)`` with four for each class, or ``(R, 4)`` for all classes, any
            float dtype.
        teacher: ``(R, 4 K)`` or ``(R, 4)``. No gradient flows into it.
        segmentation: Class of each region, ``(R,)``, integers; K and above are the background.
        num_classes: K; by default it is read off the offsets, which takes four for each class.
        beta: $\beta \ge 0$, where the loss becomes linear.

    Returns:
        Scalar, at least float32; 0 where no region has an object.

    Raises:
        ValueError: If shapes do not fit, or an argument is out of range.

    Examples:
        >>> import torch
        >>> student, teacher = torch.zeros(2, 8), torch.full((2, 8), 3.0)
        >>> roi_box_loss(student, teacher, torch.tensor([1, 2]))
        tensor(10.)
    """
    _check_beta('roi_box_loss', beta)
    apart, of_object = offsets_apart(student, teacher, segmentation, num_classes, beta)
    return mean_of_valid(apart, of_object)


def offsets_apart(
    student: Tensor, teacher: Tensor, segmentation: Tensor, num_classes: int | None, beta: float
) -> tuple[Tensor, Tensor]:
    """What [`roi_box_loss`][] is a mean of, ``(R,)``, and which regions count."""
    ours, theirs, of_object = offsets_of_objects(student, teacher, segmentation, num_classes)
    apart = F.smooth_l1_loss(ours, theirs.to(ours.dtype), reduction='none', beta=beta)
    return apart.sum(1), of_object


def offsets_of_objects(
    student: Tensor, teacher: Tensor, segmentation: Tensor, num_classes: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The offsets of the class of each region, ``(R, 4)`` of both, and which have a class."""
    classes = num_classes or max(student.shape[-1], teacher.shape[-1]) // 4
    widths = {4, 4 * classes}
    if (
        not student.dim() == teacher.dim() == 2
        or len(student) != len(teacher)
        or not {student.shape[1], teacher.shape[1]} <= widths
    ):
        raise ValueError(
            f'roi_box_loss expects offsets (R, 4) or (R, {4 * classes}) of the same regions, for '
            f'{classes} classes, got student {tuple(student.shape)} and teacher '
            f'{tuple(teacher.shape)}'
        )
    if segmentation.shape != student.shape[:1]:
        raise ValueError(
            f'roi_box_loss expects a class for each of {len(student)} regions, got '
            f'{tuple(segmentation.shape)}'
        )
    of_object = (segmentation >= 0) & (segmentation < classes)
    labels = segmentation.where(of_object, 0)
    ours, theirs = (_of_class(at_least_float32(x), labels) for x in (student, teacher.detach()))
    return ours, theirs, of_object


def _of_class(offsets: Tensor, labels: Tensor) -> Tensor:
    """The four offsets of one class for each region, ``(R, 4)``."""
    if offsets.shape[1] == 4:
        return offsets
    chosen: Tensor = offsets.unflatten(1, (-1, 4)).take_along_dim(labels[:, None, None], 1)
    return chosen.squeeze(1)


def _check_beta(owner: str, beta: float) -> None:
    if not beta >= 0:
        raise ValueError(f'{owner} expects beta >= 0, got beta={beta!r}')


class RoIBoxLoss(DistillLoss):
    """Module form of [`roi_box_loss`][], times ``weight``.

    No weight is published.

    Args:
        weight: Factor on the result.
        num_classes: See [`roi_box_loss`][]. A term on shared RoIs knows it.
        beta: See [`roi_box_loss`][].

    Examples:
        >>> import torch
        >>> loss = RoIBoxLoss(num_classes=3)
        >>> student = torch.randn(8, 12, requires_grad=True)
        >>> labels = torch.randint(4, (8,))
        >>> loss(student, torch.randn(8, 4), segmentation=labels).backward()
        >>> student.grad.shape
        torch.Size([8, 12])
    """

    needs = ('segmentation',)
    any_channels = True

    def __init__(
        self, weight: float = 1.0, num_classes: int | None = None, beta: float = 1.0
    ) -> None:
        super().__init__(weight)
        _check_beta('RoIBoxLoss', beta)
        self.num_classes = num_classes
        self.beta = beta

    def forward(self, student: Tensor, teacher: Tensor, segmentation: Tensor) -> Tensor:
        return self.weight * roi_box_loss(
            student, teacher, segmentation, self.num_classes, self.beta
        )

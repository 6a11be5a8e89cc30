"""Adaptive perspective distillation (APD): features seen from the centres of the classes.

Tian et al., "Adaptive Perspective Distillation for Semantic Segmentation", TPAMI 2022.
https://ieeexplore.ieee.org/document/9736597

The authors' code has no licence: the formulas alone were taken.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_dense.functional import (
    NO_LOGIT,
    at_least_float32,
    check_temperature,
    divide_over_ranks,
    soft_kl,
    sum_over_ranks,
    without_autocast,
)
from kd_dense.losses.base import DistillLoss, check_counts, check_weights
from kd_dense.losses.features.prototypes.centres import at_features, class_sums

__all__ = ['APDLoss', 'apd_loss', 'perspectives']


def apd_loss(
    student: Tensor,
    teacher: Tensor,
    segmentation: Tensor,
    num_classes: int,
    temperature: float = 10.0,
    ignore_index: int = 255,
) -> dict[str, Tensor]:
    r"""Compare the likeness of each feature to the centres of all classes, and the centres.

    With features $f$ of length 1, and for each of the K' classes that the batch of all processes
    has the centre $\mu_k$, the mean of its features, of length 1 too:

    | part | |
    |-|-|
    | ``perspective`` | $\frac{1}{N K' P} \sum_{n, p} \mathrm{KL}(\sigma(\tau \mu^t f^t_p) \Vert \sigma(\tau \mu^s f^s_p))$, a softmax over these classes |
    | ``centres`` | $\frac{1}{2 K'} \sum_k (1 - \cos(\mu^s_k, \mu^t_k))$ |
    | ``teacher`` | cross-entropy of the labels and $\tau \mu^t f^t$, enlarged to their size, with a logit of 0 for the classes that are not there; mean over the pixels that have a label |

    The first two teach the student; the third the layers behind which the teacher's features
    come, and nothing else.

    Args:
        student: Features behind a layer, ``(N, C, H, W)``, any float dtype.
        teacher: Same N, H and W and C. The third part alone has a gradient for it.
        segmentation: Class of every pixel, ``(N, H', W')``, integers.
        num_classes: K.
        temperature: $\tau > 0$, here a factor.
        ignore_index: A label that is no class.

    Returns:
        Its parts, scalars, at least float32.

    Raises:
        ValueError: If the shapes do not fit, or ``temperature`` is not positive.

    Examples:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)
        >>> labels = torch.tensor([[[0, 1]]])
        >>> parts = apd_loss(features, features, labels, num_classes=2, temperature=1.0)
        >>> {name: round(float(value), 4) for name, value in parts.items()}
        {'perspective': 0.0, 'centres': 0.0, 'teacher': 0.3133}
    """  # noqa: E501 (a row of a table)
    check_temperature(temperature)
    labels, valid = at_features(
        'apd_loss', student, teacher, segmentation, num_classes, ignore_index
    )
    with without_autocast(student):
        ours, centres, there = perspectives(student, labels, valid, num_classes)
        theirs, wanted, _ = perspectives(teacher, labels, valid, num_classes)
        theirs, wanted = theirs.to(ours.dtype), wanted.to(ours.dtype)
        count = there.sum().clamp(min=1)
        absent = ~there[:, None, None]
        s, t = ((temperature * x).masked_fill(absent, NO_LOGIT) for x in (ours, theirs.detach()))
        apart = soft_kl(s, t, 1.0, dim=1)
        cosine = F.cosine_similarity(centres, wanted.detach())
        logits = (temperature * theirs).masked_fill(absent, 0)
        return {
            'perspective': apart.mean() / count,
            'centres': (1 - cosine).where(there, 0).sum() / (2 * count),
            'teacher': _cross_entropy(logits, segmentation, num_classes, ignore_index),
        }


def perspectives(
    features: Tensor, labels: Tensor, valid: Tensor, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines of features and centres ``(N, K, H, W)``, centres ``(K, C)``, which there are."""
    features = F.normalize(at_least_float32(features), dim=1)
    sums, counts = class_sums(features, labels, valid, num_classes)
    both = sum_over_ranks(torch.cat([sums.sum(0), counts.sum(0)[:, None]], 1))
    sums, total = both[:, :-1], both[:, -1]
    centres = F.normalize(sums / total.clamp(min=1)[:, None], dim=1)
    # bmm, because matmul would copy the map to fold its batch into its positions.
    cosines = torch.bmm(centres.expand(len(features), -1, -1), features.flatten(2))
    cosines = cosines.unflatten(2, features.shape[2:])
    return cosines, centres, total > 0


def _cross_entropy(
    logits: Tensor, segmentation: Tensor, num_classes: int, ignore_index: int
) -> Tensor:
    size = segmentation.shape[1:]
    if logits.shape[2:] != size:
        logits = F.interpolate(logits, size, mode='bilinear', align_corners=True)
    known = (segmentation >= 0) & (segmentation < num_classes) & (segmentation != ignore_index)
    labels = segmentation.long().masked_fill(~known, -1)
    total = F.cross_entropy(logits, labels, ignore_index=-1, reduction='sum')
    return divide_over_ranks(total, known.sum().to(logits.dtype))


class APDLoss(DistillLoss):
    """Module form of [`apd_loss`][], with the layers in front of it, times ``weight``.

    Behind the maps of both lie two 1x1 convolutions with a ReLU between them. Those of the
    teacher learn from the part of that name, with the student's optimizer and learning rate; the
    authors have another one for them, Adam at 1e-5.

    Args:
        num_classes: See [`apd_loss`][]; in a recipe those of the student's head.
        channels: Of the teacher's map, and of the student's behind an adapter.
        weight: Factor on all parts.
        perspective: Factor on the part of this name, as the next two.
        centres: See above.
        teacher: See above. The student does not depend on it.
        temperature: See [`apd_loss`][].
        hidden: Channels between the two convolutions. The default is half of ``channels``; the
            authors have a setting for it.
        ignore_index: See [`apd_loss`][]; in a recipe that of the student's head.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> loss = APDLoss(num_classes=19, channels=64)
        >>> student = torch.randn(2, 64, 8, 8, requires_grad=True)
        >>> labels = torch.randint(19, (2, 64, 64))
        >>> parts = loss(student, torch.randn(2, 64, 8, 8), segmentation=labels)
        >>> sum(parts.values()).backward()
        >>> student.grad.shape
        torch.Size([2, 64, 8, 8])
    """

    needs = ('segmentation',)
    parts = ('perspective', 'centres', 'teacher')

    def __init__(
        self,
        num_classes: int,
        channels: int,
        weight: float = 1.0,
        perspective: float = 10.0,
        centres: float = 10.0,
        teacher: float = 1.0,
        temperature: float = 10.0,
        hidden: int | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(weight)
        self.factors = check_weights(
            'APDLoss', perspective=perspective, centres=centres, teacher=teacher
        )
        check_temperature(temperature)
        width = max(1, channels // 2) if hidden is None else hidden
        check_counts('APDLoss', hidden=width)
        self.student_layers, self.teacher_layers = (
            nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, channels, 1))
            for _ in range(2)
        )
        self.num_classes = num_classes
        self.temperature = temperature
        self.ignore_index = ignore_index

    def forward(self, student: Tensor, teacher: Tensor, segmentation: Tensor) -> dict[str, Tensor]:
        with without_autocast(student):
            dtype = next(self.student_layers.parameters()).dtype
            ours = self.student_layers(student.to(dtype))
            theirs = self.teacher_layers(teacher.detach().to(dtype))
        found = apd_loss(
            ours, theirs, segmentation, self.num_classes, self.temperature, self.ignore_index
        )
        return {name: self.weight * self.factors[name] * found[name] for name in self.parts}

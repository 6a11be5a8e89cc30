"""Knowledge review (ReviewKD): finer maps are compared together with what coarser ones know.

Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021.
https://arxiv.org/abs/2104.09044
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_dense.adapters import BatchNorm
from kd_dense.functional import at_least_float32, without_autocast
from kd_dense.losses.base import DistillLoss, check_counts, check_same_size
from kd_dense.losses.features.mimic.mimic import mimic_loss

__all__ = ['Fusion', 'ReviewKDLoss', 'review_loss', 'reviewed']

GRIDS = (4, 2, 1)


class Fusion(nn.Module):
    """Merges a map with what comes down from the coarser one (attention based fusion, ABF).

    Args:
        in_channels: Width of the student's map.
        out_channels: Width of the teacher's.
        width: Width of what goes down.
        coarsest: Whether nothing comes from above.

    Examples:
        >>> above, maps = torch.zeros(2, 16, 4, 4), torch.zeros(2, 8, 8, 8)
        >>> [tuple(x.shape) for x in Fusion(8, 32, 16)(maps, above)]
        [(2, 32, 8, 8), (2, 16, 8, 8)]
    """

    def __init__(
        self, in_channels: int, out_channels: int, width: int, coarsest: bool = False
    ) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(in_channels, width, 1, bias=False)
        self.narrow_norm = BatchNorm(width)
        self.attention = None if coarsest else nn.Conv2d(2 * width, 2, 1)
        self.out = nn.Conv2d(width, out_channels, 3, padding=1, bias=False)
        self.out_norm = BatchNorm(out_channels)
        for conv in (self.narrow, self.out):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, x: Tensor, above: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Merge two maps.

        Args:
            x: The student's map, ``(N, C, H, W)``.
            above: What the coarser level has passed on, ``(N, width, h, w)``.

        Returns:
            What is compared with the teacher's map, and what is passed on.
        """
        x = self.narrow_norm(self.narrow(x))
        if self.attention is not None and above is not None:
            above = F.interpolate(above, x.shape[2:], mode='nearest')
            shares = self.attention(torch.cat([x, above], 1)).sigmoid()
            x = x * shares[:, :1] + above * shares[:, 1:]
        return self.out_norm(self.out(x)), x


def reviewed(student: Sequence[Tensor], fusions: Sequence[nn.Module]) -> list[Tensor]:
    """The maps that are compared with the teacher's, from the finest to the coarsest.

    Args:
        student: Maps ``(N, C, H, W)``, from the finest to the coarsest.
        fusions: A [`Fusion`][] for each.

    Returns:
        As many maps, as wide as the teacher's, at least float32.
    """
    found: list[Tensor] = []
    above = None
    for x, fusion in zip(reversed(student), reversed(fusions), strict=True):
        out, above = fusion(at_least_float32(x), above)
        found.insert(0, out)
    return found


def review_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], fusions: Sequence[nn.Module]
) -> Tensor:
    r"""Compare what fusions make of the student's maps with the teacher's, grid by grid.

    From the coarsest level to the finest, with convolutions followed by batch norms $f$ and $g$
    and what the level above passes on, $y$, enlarged,

    $$
    (a, b) = \mathrm{sigmoid}\bigl(h(f(s), y)\bigr), \qquad x = a f(s) + b y, \qquad
    \hat s = g(x),
    $$

    x is passed on, and $\hat s$ is compared with the teacher's map: by mean squares of the maps,
    and of their means over grids of 4x4, 2x2 and 1 cells, which weigh 1/2, 1/4 and 1/8
    ([`mimic_loss`][kd_dense.losses.features.mimic.mimic.mimic_loss] with ``pooled=(4, 2, 1)``:
    the hierarchical context loss, HCL). Levels are added up.

    Args:
        student: Maps ``(N, C, H, W)``, from the finest to the coarsest, any float dtype.
        teacher: As many of the same sizes; widths may differ. No gradient flows into them.
        fusions: A [`Fusion`][] for each level, in the dtype of the maps (float32 for maps of half
            precision). They are trained.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: If the numbers or the sizes of the maps differ.

    Examples:
        >>> student = [torch.randn(2, 4, 8, 8), torch.randn(2, 4, 4, 4)]
        >>> teacher = [torch.zeros(2, 6, 8, 8), torch.zeros(2, 6, 4, 4)]
        >>> fusions = [Fusion(4, 6, width=8), Fusion(4, 6, width=8, coarsest=True)]
        >>> review_loss(student, teacher, fusions).shape
        torch.Size([])
    """
    if not len(student) == len(teacher) == len(fusions):
        raise ValueError(
            f'review_loss expects as many maps of both models and fusions, got {len(student)} of '
            f'the student, {len(teacher)} of the teacher and {len(fusions)} fusions'
        )
    for s, t in zip(student, teacher, strict=True):
        check_same_size('review_loss', s, t)
    with without_autocast(student[0]):
        pairs = zip(reviewed(student, fusions), teacher, strict=True)
        return torch.stack([mimic_loss(s, t, pooled=GRIDS) for s, t in pairs]).sum()


class ReviewKDLoss(DistillLoss):
    """Module form of [`review_loss`][], times ``weight``: all maps of a tap, with their fusions.

    The authors' repository has no licence: this is written from the formulas, which equal its
    code. Their weights for detectors are 1 (Faster R-CNN and RetinaNet, R50 from R101), 1.2 and 2
    for smaller students, and 0.8 for Mask R-CNN; all with a width of 256. The batch norms take
    the statistics of the batches of all processes.

    Args:
        student_channels: Width of each map of the student, from the finest to the coarsest.
        teacher_channels: Likewise of the teacher.
        weight: Factor on the result.
        width: Of what goes from level to level.

    Raises:
        ValueError: If ``width`` is not a number of channels.

    Examples:
        >>> loss = ReviewKDLoss(student_channels=[8, 16], teacher_channels=[16, 32], width=8)
        >>> student = [torch.randn(2, 8, 8, 8, requires_grad=True), torch.randn(2, 16, 4, 4)]
        >>> loss(student, [torch.randn(2, 16, 8, 8), torch.randn(2, 32, 4, 4)]).backward()
        >>> student[0].grad.shape
        torch.Size([2, 8, 8, 8])
    """

    all_maps = True
    any_channels = True

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        weight: float = 1.0,
        width: int = 256,
    ) -> None:
        super().__init__(weight)
        check_counts('ReviewKDLoss', width=width)
        last = len(student_channels) - 1
        self.fusions = nn.ModuleList(
            Fusion(ours, theirs, width, coarsest=level == last)
            for level, (ours, theirs) in enumerate(
                zip(student_channels, teacher_channels, strict=True)
            )
        )

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        return self.weight * review_loss(student, teacher, list(self.fusions))

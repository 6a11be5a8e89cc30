"""The comparisons of maps that were published as methods."""

from __future__ import annotations

from collections.abc import Sequence

from kd_dense.losses.features.mimic.mimic import Distance, MimicLoss, Reduction

__all__ = ['CosineLoss', 'FTLoss', 'FitNetsLoss', 'NFDLoss', 'PKDLoss', 'VkDLoss']


class FitNetsLoss(MimicLoss):
    r"""Features as they are (FitNets), and as means over coarse grids (HCL).

    $$
    \frac{1}{N C H W} \sum_{n, c, p} (s_{n, c, p} - t_{n, c, p})^2
    $$

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015; the authors' 1/2 is left out, as
    by all who followed. ``pooled=(4, 2, 1)`` is the hierarchical context loss of Chen et al.,
    "Distilling Knowledge via Knowledge Review", CVPR 2021, whose repository has no licence.

    Args:
        weight: Factor on the result.
        distance: See [`mimic_loss`][kd_dense.losses.features.mimic.mimic.mimic_loss], as the
            others.
        reduction: ``'image'`` is the sum over the map, as some divide by N alone.
        pooled: Sides of the grids.

    Examples:
        >>> import torch
        >>> FitNetsLoss()(torch.zeros(1, 2, 3, 3), torch.full((1, 2, 3, 3), 2.0))
        tensor(4.)
    """

    def __init__(
        self,
        weight: float = 1.0,
        distance: Distance = 'squared',
        reduction: Reduction = 'mean',
        pooled: Sequence[int] = (),
    ) -> None:
        super().__init__(weight, distance=distance, reduction=reduction, pooled=pooled)


class PKDLoss(MimicLoss):
    r"""Channels, each less its mean and over its standard deviation in the batch.

    $$
    \frac{1}{2 N C H W} \sum_{n, c, p} (\hat s_{n, c, p} - \hat t_{n, c, p})^2, \qquad
    \hat x_c = \frac{x_c - \mu_c}{\sigma_c + \epsilon}
    $$

    That is 1 less the mean correlation of the channels, as good as. Cao et al., "PKD: General
    Distillation Framework for Object Detectors via Pearson Correlation Coefficient", NeurIPS
    2022; the authors' code is in mmrazor (Apache-2.0). Their weight is 6 on a pyramid of region
    proposals, 10 on others.

    Args:
        weight: Factor on the result.
        eps: $\epsilon$, the authors'.

    Examples:
        >>> import torch
        >>> student = torch.randn(2, 4, 5, 6)
        >>> round(PKDLoss()(student, 3 * student + 7).item(), 4)
        0.0
    """

    def __init__(self, weight: float = 1.0, eps: float = 1e-6) -> None:
        super().__init__(weight, 'batch', 'half_squared', eps=eps)


class VkDLoss(MimicLoss):
    r"""As PKD, but differences above 1 count by their size and not their square.

    Miles et al., "VkD: Improving Knowledge Distillation using Orthogonal Projections", CVPR 2024
    (the detection part of their repository is Apache-2.0, the rest has no licence). Their adapter
    is a linear map with orthonormal rows or columns:
    ``adapter=dict(type='Adapter', orthogonal=True)``. They add no epsilon: a constant channel
    was NaN, and is 0 here.

    Args:
        weight: Factor on the result.

    Examples:
        >>> import torch
        >>> student = torch.randn(2, 4, 5, 6)
        >>> VkDLoss()(student, student)
        tensor(0.)
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight, 'batch', 'smooth_l1')


class NFDLoss(MimicLoss):
    """Channels, each less its mean and over its standard deviation in its own image.

    Liu et al., "Normalized Feature Distillation for Semantic Segmentation", 2022,
    https://arxiv.org/abs/2207.05256. There is no code of the authors: the reduction to a mean is
    a choice of ours.

    Args:
        weight: Factor on the result.

    Examples:
        >>> import torch
        >>> student = torch.randn(2, 4, 5, 6)
        >>> round(NFDLoss()(student, 3 * student + 7).item(), 4)
        0.0
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight, 'image', 'squared')


class FTLoss(MimicLoss):
    r"""Whole maps, each over its 2-norm, by the mean absolute difference.

    $$
    \frac{1}{N C H W} \sum_{n, c, p} \Bigl|\frac{s_{n, c, p}}{\|s_n\|_2} -
        \frac{t_{n, c, p}}{\|t_n\|_2}\Bigr|
    $$

    The comparison of factor transfer: Kim et al., "Paraphrasing Complex Network", NeurIPS 2018;
    after mmrazor (Apache-2.0). The autoencoder that they train in front of the teacher is not
    part of it.

    Args:
        weight: Factor on the result.

    Examples:
        >>> import torch
        >>> student = torch.randn(2, 4, 5, 6)
        >>> round(FTLoss()(student, 3 * student).item(), 4)
        0.0
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight, 'map', 'l1')


class CosineLoss(MimicLoss):
    r"""The direction of the features at each position, whatever their size.

    $$
    \frac{1}{N H W} \sum_{n, p} \Bigl(1 - \frac{s_{n, p}^\top t_{n, p}}
        {\|s_{n, p}\|_2\, \|t_{n, p}\|_2}\Bigr)
    $$

    As RT-DETRv4 learns from a vision foundation model (Apache-2.0), with a weight of 5 to 20. A
    position where one of the two is 0 everywhere adds 1/2.

    Args:
        weight: Factor on the result.

    Examples:
        >>> import torch
        >>> student = torch.tensor([1.0, 0.0, 0.0, 2.0]).view(1, 2, 1, 2)
        >>> CosineLoss()(student, torch.tensor([3.0, 5.0, 0.0, 0.0]).view(1, 2, 1, 2))
        tensor(0.5000)
    """

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight, 'position', 'half_squared', 'position')

"""Attention maps: where the activation of all channels together lies.

Zagoruyko and Komodakis, "Paying More Attention to Attention: Improving the Performance of
Convolutional Neural Networks via Attention Transfer", ICLR 2017.
https://arxiv.org/abs/1612.03928

Hou et al., "Learning Lightweight Lane Detection CNNs by Self Attention Distillation", ICCV 2019.
https://arxiv.org/abs/1908.00821
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kd_dense.functional import at_least_float32, check_choice
from kd_dense.losses.base import DistillLoss, check_same_size

__all__ = ['AttentionMapLoss', 'attention_map_loss']

MapNorm = Literal['l2', 'softmax']


def attention_map_loss(
    student: Tensor, teacher: Tensor, norm: MapNorm = 'l2', eps: float = 1e-12
) -> Tensor:
    r"""Match where the activation of all channels together lies.

    The squares of a map are summed over its channels, $a_p = \sum_c f_{c, p}^2$, the
    result is normalised over the positions, and compared:

    $$
    \frac{1}{N} \sum_{\text{images}} \sum_p (\hat a^S_p - \hat a^T_p)^2
    $$

    | ``norm`` | $\hat a$ | from |
    |-|-|-|
    | ``l2`` | $a / \sqrt{\lVert a \rVert^2 + \epsilon}$ | attention transfer |
    | ``softmax`` | softmax over the positions | self attention distillation |

    Either way it lies between 0 and 2. (The code of attention transfer divides by the number
    of positions.)

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype.
        teacher: Features, ``(N, C', H, W)``; the channels may differ. No gradient flows
            into it.
        norm: See the table.
        eps: $\epsilon$, ``> 0``; a map that is 0 everywhere stays 0.

    Returns:
        Scalar, at least float32.

    Raises:
        ValueError: If the shapes do not fit, or ``norm`` or ``eps`` is none of the above.

    Examples:
        >>> import torch
        >>> teacher = torch.tensor([[[[1.0, 0.0]]]])
        >>> attention_map_loss(torch.cat([teacher, 3 * teacher], dim=1), teacher)
        tensor(0.)
        >>> attention_map_loss(teacher.flip(-1), teacher)
        tensor(2.)
    """
    check_same_size('attention_map_loss', student, teacher)
    _check_map_norm('attention_map_loss', norm, eps)
    student = attention_maps(at_least_float32(student), norm, eps)
    teacher = attention_maps(at_least_float32(teacher.detach()), norm, eps)
    return (student - teacher).square().sum(1).mean()


def attention_maps(maps: Tensor, norm: MapNorm, eps: float) -> Tensor:
    attention = maps.square().sum(1).flatten(1)
    if norm == 'softmax':
        return attention.softmax(1)
    return attention / (attention.square().sum(1, keepdim=True) + eps).sqrt()


def _check_map_norm(owner: str, norm: str, eps: float) -> None:
    check_choice(owner, 'norm', norm, MapNorm)
    if not eps > 0:
        raise ValueError(f'{owner} expects eps > 0, got eps={eps}')


class AttentionMapLoss(DistillLoss):
    """Module form of [`attention_map_loss`][], times ``weight``.

    Args:
        weight: Factor on the result.
        norm: See [`attention_map_loss`][], as ``eps``.

    Examples:
        >>> import torch
        >>> loss = AttentionMapLoss(weight=10.0)
        >>> student = torch.randn(2, 16, 8, 8, requires_grad=True)
        >>> loss(student, torch.randn(2, 64, 8, 8)).backward()
        >>> student.grad.shape
        torch.Size([2, 16, 8, 8])
    """

    any_channels = True

    def __init__(self, weight: float = 1.0, norm: MapNorm = 'l2', eps: float = 1e-12) -> None:
        super().__init__(weight)
        _check_map_norm('AttentionMapLoss', norm, eps)
        self.norm: MapNorm = norm
        self.eps = eps

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.weight * attention_map_loss(student, teacher, self.norm, self.eps)

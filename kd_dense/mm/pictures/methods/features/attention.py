"""Attention maps: where all channels together are active."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kd_dense.adapters import resize
from kd_dense.losses import ATLoss, AttentionChangeLoss, AttentionMapLoss, SADLoss
from kd_dense.losses.features.attention import attention_maps
from kd_dense.mm.pictures.general import ANY, Known, LossPictures, draw_maps
from kd_dense.mm.pictures.observe import Compared
from kd_dense.mm.pictures.views import View

__all__ = ['PICTURES', 'draw_attention']


def draw_attention(view: View, compared: Compared) -> Any:
    """Draw where the activation of all channels together lies.

    Args:
        view: The picture.
        compared: What the term compares there.
    """
    rows = [_attention(compared, level) for level in range(len(compared.student))]
    how = 'L2 norm 1' if _norm(compared, 0) == 'l2' else 'a softmax over the positions'
    return draw_maps(
        view,
        compared.teacher,
        rows,
        'Attention maps: where is the activation?',
        f'The squares of all channels, summed at each position, with {how} over the picture.',
        'attention',
    )


def _norm(compared: Compared, level: int) -> Any:
    return getattr(compared.loss(level), 'norm', 'softmax')


def _attention(compared: Compared, level: int) -> tuple[Tensor, Tensor]:
    """Normalised attention of student and teacher, ``(H, W)``."""
    eps = getattr(compared.loss(level), 'eps', 0.0)
    student, teacher = compared.student[level], compared.teacher[level]
    if isinstance(compared.loss(level), SADLoss):
        teacher = resize(teacher.square().sum(1, keepdim=True), student.shape[2:]).sqrt()
    ours, theirs = (
        attention_maps(x, _norm(compared, level), eps)[0].view(x.shape[2:])
        for x in (student, teacher)
    )
    return ours, theirs


def _shares(compared: Compared) -> list[Tensor]:
    maps = []
    for level in range(len(compared.student)):
        loss = compared.loss(level)
        ours, theirs = _attention(compared, level)
        mean = isinstance(loss, SADLoss) or loss.reduction == 'position'
        scale = loss.weight / (ours.numel() if mean else 1)
        maps.append(scale * (ours - theirs).square())
    return maps


OF_ATTENTION = LossPictures(draw_attention, _shares, 'the loss')
PICTURES: dict[type, Known] = {
    **dict.fromkeys((AttentionMapLoss, ATLoss, SADLoss), OF_ATTENTION),
    AttentionChangeLoss: ANY,
}

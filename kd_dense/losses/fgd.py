"""Focal and global knowledge distillation (FGD).

Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR 2022.
https://arxiv.org/abs/2111.11837
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pad_sequence

from kd_dense.functional import (
    at_least_float32,
    check_choice,
    check_temperature,
    without_autocast,
)
from kd_dense.losses.base import DistillLoss, check_same_shape, check_weight

__all__ = ['FGDLoss', 'GlobalContext', 'box_masks', 'fgd_loss']

BoxScale = Literal['batch', 'image']


class GlobalContext(nn.Module):
    r"""What a global context block (Cao et al., GCNet) adds to every position of a map.

    $$
    g(x) = W_2\, \mathrm{ReLU}(\mathrm{LN}(W_1 \sum_p \sigma(w^\top x)_p\, x_p + b_1)) + b_2
    $$

    with $W_1$ from C to C // 2 channels. As in the authors' code $W_2$ and
    $b_2$ start at zero, so that the block begins by adding nothing. Their attention
    logits have a bias; a softmax does not see it, so there is none here.

    Args:
        channels: C, at least 2.

    Raises:
        ValueError: If there are fewer than two channels.

    Examples:
        >>> GlobalContext(4)(torch.ones(2, 4, 9))
        tensor([[0., 0., 0., 0.],
                [0., 0., 0., 0.]], grad_fn=<AddmmBackward0>)
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 2:
            raise ValueError(f'GlobalContext expects at least 2 channels, got {channels}')
        self.channels = channels
        self.attention = nn.Linear(channels, 1, bias=False)
        self.transform = nn.Sequential(
            nn.Linear(channels, channels // 2),
            nn.LayerNorm(channels // 2),
            nn.ReLU(inplace=True),
            nn.Linear(channels // 2, channels),
        )
        nn.init.kaiming_normal_(self.attention.weight)
        for parameter in self.transform[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Summarise maps.

        Args:
            x: Maps, ``(N, C, P)``, one column per position.

        Returns:
            ``(N, C)``.
        """
        _, context = _attend(x, self.attention.weight)
        added: Tensor = self.transform(context)
        return added


@torch.no_grad()
def box_masks(
    boxes: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    size: tuple[int, int],
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Weigh the cells of a map by the objects that lie on them.

    A box covers the cells from the floor of its left and upper edge to the ceiling of its
    right and lower edge, both included (that is one cell more than it touches, as in the
    authors' code). A covered cell weighs 1 over the number of cells of the smallest box on it;
    cells of the box beyond the map are counted. The other cells of an image share a weight of 1.

    A box marks nothing if it has no area, ends left of or above the image, begins beyond the
    map, or is not finite.

    Args:
        boxes: For each image ``(n, 4)``: x1, y1, x2, y2 in pixels, ``n >= 0``.
        shapes: Height and width in pixels of what the map shows: one for all images, or one
            for each.
        size: Height and width of the map in cells.
        dtype: Of the masks.

    Returns:
        Foreground and background, both ``(N, H, W)``. Where one is positive, the other is 0.

    Raises:
        ValueError: If boxes are not ``(n, 4)``, or there is neither one shape nor one for
            each image.

    Examples:
        >>> boxes = [torch.tensor([[8.0, 0.0, 15.0, 8.0]])]
        >>> foreground, background = box_masks(boxes, shapes=[(16, 24)], size=(2, 3))
        >>> foreground
        tensor([[[0.0000, 0.2500, 0.2500],
                 [0.0000, 0.2500, 0.2500]]])
        >>> background
        tensor([[[0.5000, 0.0000, 0.0000],
                 [0.5000, 0.0000, 0.0000]]])
    """
    wrong = [tuple(b.shape) for b in boxes if b.dim() != 2 or b.shape[1] != 4]
    if wrong:
        raise ValueError(f'box_masks expects boxes of shape (n, 4) for each image, got {wrong[0]}')
    if len(shapes) not in (1, len(boxes)):
        raise ValueError(
            f'box_masks expects one shape, or one for each of {len(boxes)} images, '
            f'got {len(shapes)}'
        )
    height, width = size
    # Images with fewer boxes are filled up with boxes that have no area.
    padded = pad_sequence([b.to(dtype) for b in boxes], batch_first=True)
    # A copy that does not make the host wait for the device.
    pixels = torch.tensor(shapes, dtype=dtype).to(padded.device, non_blocking=True)[:, :, None]
    left, top, right, bottom = padded.unbind(2)
    rows, tall = _covered(top, bottom, pixels[:, 0], height)
    columns, wide = _covered(left, right, pixels[:, 1], width)
    foreground = _largest_weight(1 / (tall * wide), rows, columns)
    background = (foreground == 0).to(dtype)
    background /= background.sum((1, 2), keepdim=True).clamp(min=1)
    return foreground, background


def _covered(low: Tensor, high: Tensor, pixels: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Which cells along one axis the boxes cover, ``(N, B, cells)``, and how many, ``(N, B)``."""
    first, last = (low * cells / pixels).floor(), (high * cells / pixels).ceil()
    cell = torch.arange(cells, dtype=low.dtype, device=low.device)
    covered = (cell >= first[..., None]) & (cell <= last[..., None])
    real = (high > low) & (high > 0)
    return covered & real[..., None], last + 1 - first


def _largest_weight(weight: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The largest weight among the boxes on each cell, 0 where there is none.

    A tensor (N, boxes, H, W) would hold gigabytes for many boxes. Let a box of rank k, by
    weight, have the coordinate b + k in each row that it covers, b - k in the others, and
    -(b + k), -(b - k) in the columns. Row and column are then 2b + 2k apart where it covers
    both and at most 2b elsewhere, so the Chebyshev distance finds the highest rank. These are
    small whole numbers, hence exact.

    Args:
        weight: ``(N, B)``, not negative.
        rows: Which rows a box covers, ``(N, B, H)``.
        columns: Which columns it covers, ``(N, B, W)``.

    Returns:
        ``(N, H, W)``.
    """
    images, count = weight.shape
    ordered, order = weight.sort(1)
    rank = (order.argsort(1) + 1).float()[:, :, None]
    row = count + torch.where(rows, rank, -rank).mT
    column = count + torch.where(columns, rank, -rank).mT
    highest = torch.cdist(row, -column, p=float('inf')) / 2 - count
    by_rank = torch.cat([weight.new_zeros(images, 1), ordered], 1)
    return by_rank.gather(1, highest.clamp(min=0).long().flatten(1)).view_as(highest)


class _Reductions(torch.autograd.Function):
    """Everything that is read off the two maps and depends on the student.

    Written out because autograd would keep the difference of the maps for the backward pass
    and build a map for each way that leads back to the student. Here nothing is kept but the
    maps themselves, and two maps are the work space.

    Args:
        student: ``(N, C, P)``.
        teacher: ``(N, C, P)``; no gradient.
        weights: One per channel, ``(N, C)``; no gradient.
        query: What turns a position of the student into its logit, ``(1, C)``.

    Returns:
        Of the absolute student map, the means over channels ``(N, P)`` and positions ``(N, C)``;
        of the difference, its sum over positions ``(N, C)``; of the squared difference, the
        weighted sum over channels ``(N, P)`` and the sum of everything, a scalar; the mean of
        the student over positions by the softmax of their logits ``(N, C)``.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, weights: Tensor, query: Tensor
    ) -> tuple[Tensor, ...]:
        attention, context = _attend(student, query)
        ctx.save_for_backward(student, teacher, weights, query, attention)
        work = student.abs()
        means = mean_activations(work)
        torch.sub(student, teacher, out=work)
        difference = work.sum(2)
        work.square_()
        weighted = torch.bmm(weights[:, None], work).squeeze(1)
        return *means, difference, weighted, work.sum(), context

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, weights, query, attention = ctx.saved_tensors
        over_channels, over_positions, difference, weighted, squares, context = grads
        _, channels, positions = student.shape

        with without_autocast(student):  # backward may be called under it, too
            into_attention = torch.bmm(context[:, None], student)
            centred = into_attention - (attention * into_attention).sum(2, keepdim=True)
            into_logits = attention * centred
            into_query = torch.bmm(into_logits, student.mT).sum(0)

            grad = student - teacher
            work = torch.addcmul(2 * squares, 2 * weights[:, :, None], weighted[:, None])
            grad.mul_(work).add_(difference[:, :, None])
            grad.addcmul_(context[:, :, None], attention)
            grad.addcmul_(query[:, :, None], into_logits)
            torch.sign(student, out=work)
            grad.addcmul_(work, over_channels[:, None] / channels)
            grad.addcmul_(work, over_positions[:, :, None] / positions)
        return grad, None, None, into_query


def attentions(
    over_channels: Tensor, over_positions: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Where a map is strong ``(N, P)``, and in which channels ``(N, C)``; both have mean 1."""
    positions, channels = over_channels.shape[1], over_positions.shape[1]
    return (
        positions * (over_channels / temperature).softmax(1),
        channels * (over_positions / temperature).softmax(1),
    )


def mean_activations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means over channels ``(N, P)`` and over positions ``(N, C)`` of ``(N, C, P)``."""
    images, channels, _ = x.shape
    row = x.new_full((images, 1, channels), 1 / channels)
    return torch.bmm(row, x).squeeze(1), x.mean(2)


def _attend(x: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Attention of a query ``(1, C)`` over positions, ``(N, 1, P)``, and the mean it weighs."""
    # bmm, because matmul would copy the map to fold its batch into its positions.
    attention = torch.bmm(query.expand(len(x), 1, -1), x).softmax(2)
    return attention, torch.bmm(attention, x.mT).squeeze(1)


def fgd_loss(
    student: Tensor,
    teacher: Tensor,
    boxes: Sequence[Tensor],
    batch_shape: tuple[int, int],
    image_shapes: Sequence[tuple[int, int]],
    student_context: GlobalContext,
    teacher_context: GlobalContext,
    temperature: float = 0.5,
    box_scale: BoxScale = 'batch',
) -> dict[str, Tensor]:
    r"""Compare feature maps on objects, off objects, in their attention and as a whole.

    With the spatial and channel attention of a map over its $P = H W$ positions,

    $$
    A^S(x) = P\, \sigma\Bigl(\tfrac{1}{T C} \sum_c \left|x_c\right|\Bigr), \qquad
    A^C(x) = C\, \sigma\Bigl(\tfrac{1}{T P} \sum_p \left|x_p\right|\Bigr),
    $$

    the masks $F$ and $B$ of [`box_masks`][], and the context $g$ of
    [`GlobalContext`][], the parts are, in the mean over images,

    $$
    \text{foreground} = \sum_{c, p} F_p A^S_p(t) A^C_c(t) (s_{c, p} - t_{c, p})^2
    $$

    $$
    \text{background} = \sum_{c, p} B_p A^S_p(t) A^C_c(t) (s_{c, p} - t_{c, p})^2
    $$

    $$
    \text{attention} = \lVert A^S(s) - A^S(t) \rVert_1 + \lVert A^C(s) - A^C(t) \rVert_1
    $$

    $$
    \text{relation} = \sum_{c, p} (s_{c, p} + g_s(s)_c - t_{c, p} - g_t(t)_c)^2
    $$

    Args:
        student: Features, ``(N, C, H, W)``, any float dtype.
        teacher: Same shape. No gradient flows into it.
        boxes: Of the objects in each image, ``(n, 4)``: x1, y1, x2, y2 in pixels of the batch.
        batch_shape: Height and width of the batch in pixels, with padding: what the maps show.
        image_shapes: Height and width of each image in pixels, without padding.
        student_context: $g_s$, with parameters in the dtype of the maps (float32 for
            maps of half precision).
        teacher_context: $g_t$. Both are trained.
        temperature: $T > 0$; higher spreads the attention.
        box_scale: What boxes are scaled to the map by: ``'batch'`` puts them where they lie.
            ``'image'`` reproduces the authors' code, which divides by the size of the image
            without its padding, so that boxes grow and move wherever an image is padded.

    Returns:
        The four parts by name, without weights; scalars, at least float32.

    Raises:
        ValueError: If the shapes differ, the contexts are for other channels, boxes are not
            ``(n, 4)`` for each image, or an argument has no such value.

    Examples:
        >>> student, teacher = torch.zeros(1, 2, 2, 3), torch.ones(1, 2, 2, 3)
        >>> boxes = [torch.tensor([[8.0, 0.0, 15.0, 8.0]])]
        >>> contexts = GlobalContext(2), GlobalContext(2)
        >>> parts = fgd_loss(student, teacher, boxes, (16, 24), [(16, 20)], *contexts)
        >>> {name: part.item() for name, part in parts.items()}
        {'foreground': 2.0, 'background': 2.0, 'attention': 0.0, 'relation': 12.0}
    """
    check_same_shape('fgd_loss', student, teacher)
    check_temperature(temperature)
    check_choice('fgd_loss', 'box_scale', box_scale, BoxScale)
    if len(boxes) != len(student):
        raise ValueError(f'fgd_loss expects boxes for {len(student)} images, got {len(boxes)}')
    images, channels, height, width = student.shape
    for block in (student_context, teacher_context):
        if block.channels != channels:
            raise ValueError(
                f'fgd_loss got maps of {channels} channels and a context of {block.channels}: '
                f'expected FGDLoss(channels={channels}), or GlobalContext({channels}) for both'
            )
    student = at_least_float32(student).flatten(2)
    teacher = at_least_float32(teacher.detach()).flatten(2)
    shapes = [batch_shape] if box_scale == 'batch' else image_shapes
    foreground, background = box_masks(boxes, shapes, (height, width), student.dtype)

    with without_autocast(student):
        where, which = attentions(*mean_activations(teacher.abs()), temperature)
        over_channels, over_positions, difference, weighted, squares, context = _Reductions.apply(
            student, teacher, which, student_context.attention.weight
        )
        where_student, which_student = attentions(over_channels, over_positions, temperature)
        weighted = weighted * where
        # The sum of (d + a)^2 over positions, where a is the same at each, needs no other map.
        added = student_context.transform(context) - teacher_context(teacher)
        crossed = (added * (2 * difference + height * width * added)).sum()
        parts = {
            'foreground': (weighted * foreground.flatten(1)).sum(),
            'background': (weighted * background.flatten(1)).sum(),
            'attention': (where_student - where).abs().sum() + (which_student - which).abs().sum(),
            'relation': squares + crossed,
        }
        return {name: part / images for name, part in parts.items()}


class FGDLoss(DistillLoss):
    """Module form of [`fgd_loss`][]: its parts times their weights and ``weight``.

    The defaults are the authors' for RetinaNet and GFL. ``docs/methods/fgd.md`` says how to
    carry them over to inputs of another size.

    Args:
        channels: Channels of the maps, at least 2.
        weight: Factor on all parts.
        temperature: See [`fgd_loss`][], as ``box_scale``.
        foreground: Factor on the part of that name (alpha in the paper).
        background: Likewise (beta).
        attention: Likewise (gamma).
        relation: Likewise (lambda).
        box_scale: ``'batch'`` or, as published, ``'image'``.

    Raises:
        ValueError: If a weight is negative or not finite, the temperature is not positive, or
            there are fewer than two channels.

    Examples:
        >>> loss = FGDLoss(channels=8)
        >>> student, teacher = torch.zeros(2, 8, 4, 6, requires_grad=True), torch.ones(2, 8, 4, 6)
        >>> boxes = [torch.tensor([[3.0, 5.0, 20.0, 30.0]]), torch.zeros(0, 4)]
        >>> shapes = dict(batch_shape=(32, 48), image_shapes=[(32, 40), (30, 48)])
        >>> parts = loss(student, teacher, boxes=boxes, **shapes)
        >>> sorted(parts)
        ['attention', 'background', 'foreground', 'relation']
        >>> sum(parts.values()).backward()
    """

    needs = ('boxes', 'batch_shape', 'image_shapes')
    divides_by_images = True
    parts = ('foreground', 'background', 'attention', 'relation')

    def __init__(
        self,
        channels: int,
        weight: float = 1.0,
        temperature: float = 0.5,
        foreground: float = 1e-3,
        background: float = 5e-4,
        attention: float = 5e-4,
        relation: float = 5e-6,
        box_scale: BoxScale = 'batch',
    ) -> None:
        super().__init__(weight)
        check_temperature(temperature)
        check_choice('FGDLoss', 'box_scale', box_scale, BoxScale)
        self.weights = dict(
            foreground=foreground, background=background, attention=attention, relation=relation
        )
        for name, value in self.weights.items():
            check_weight(type(self).__name__, name, value)
        self.temperature = temperature
        self.box_scale: BoxScale = box_scale
        self.student_context = GlobalContext(channels)
        self.teacher_context = GlobalContext(channels)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        boxes: Sequence[Tensor],
        batch_shape: tuple[int, int],
        image_shapes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        parts = fgd_loss(
            student,
            teacher,
            boxes,
            batch_shape,
            image_shapes,
            self.student_context,
            self.teacher_context,
            self.temperature,
            self.box_scale,
        )
        return {name: self.weight * self.weights[name] * parts[name] for name in self.parts}

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

from kd_dense.functional import (
    at_least_float32,
    better_together,
    check_choice,
    check_temperature,
    without_autocast,
)
from kd_dense.losses.base import DistillLoss, check_same_shape, check_weights
from kd_dense.losses.fgd.masks import box_masks
from kd_dense.losses.fgd.together import fgd_together, mean_strength

__all__ = [
    'FGDLoss',
    'GlobalContext',
    'attentions',
    'fgd_loss',
    'mean_activations',
    'spatial_attention',
]

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
    over_channels: Tensor, over_positions: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Where a map is strong ``(N, P)``, and in which channels ``(N, C)``; both have mean 1.

    The temperature is one for all images, or one for each, ``(N, 1)``.
    """
    positions, channels = over_channels.shape[1], over_positions.shape[1]
    return (
        positions * (over_channels / temperature).softmax(1),
        channels * (over_positions / temperature).softmax(1),
    )


def spatial_attention(x: Tensor, temperature: float) -> Tensor:
    """Where a map ``(N, C, H, W)`` is strong, ``(N, H, W)``, with mean 1."""
    means = x.abs().mean(1).flatten(1)
    return ((means / temperature).softmax(1) * means.shape[1]).view(len(x), *x.shape[2:])


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
    relative_temperature: bool = False,
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
        relative_temperature: Whether $T$ counts in the teacher's mean absolute activation, map by
            map and image by image, so that features of any size are attended to alike.

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
    _check_boxes(boxes, len(student))
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
        strong = mean_activations(teacher.abs())
        unit = mean_strength(strong[1]) if relative_temperature else 1.0
        temperatures = temperature * unit
        where, which = attentions(*strong, temperatures)
        over_channels, over_positions, difference, weighted, squares, context = _Reductions.apply(
            student, teacher, which, student_context.attention.weight
        )
        where_student, which_student = attentions(over_channels, over_positions, temperatures)
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


def _check_boxes(boxes: Sequence[Tensor], images: int) -> None:
    if len(boxes) != images:
        raise ValueError(f'fgd_loss expects boxes for {images} images, got {len(boxes)}')


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
        relative_temperature: See [`fgd_loss`][].

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
        relative_temperature: bool = False,
    ) -> None:
        super().__init__(weight)
        check_temperature(temperature)
        check_choice('FGDLoss', 'box_scale', box_scale, BoxScale)
        self.weights = check_weights(
            type(self).__name__,
            foreground=foreground,
            background=background,
            attention=attention,
            relation=relation,
        )
        self.temperature = temperature
        self.box_scale: BoxScale = box_scale
        self.relative_temperature = relative_temperature
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
            self.relative_temperature,
        )
        return {name: self.weight * self.weights[name] * parts[name] for name in self.parts}

    @classmethod
    def over_maps(
        cls,
        losses: Sequence[Any],
        students: Sequence[Tensor],
        teachers: Sequence[Tensor],
        **needs: Any,
    ) -> dict[str, Tensor]:
        if not _fit_together(losses, students, teachers):
            found: dict[str, Tensor] = super().over_maps(losses, students, teachers, **needs)
            return found
        loss: FGDLoss = losses[0]
        boxes, batch_shape, image_shapes = (needs[need] for need in cls.needs)
        _check_boxes(boxes, len(students[0]))
        parts = fgd_together(
            students,
            teachers,
            boxes,
            [batch_shape] if loss.box_scale == 'batch' else image_shapes,
            [[x.student_context for x in losses], [x.teacher_context for x in losses]],
            loss.temperature,
            loss.relative_temperature,
        )
        factors = [loss.weight * loss.weights[name] / len(students[0]) for name in cls.parts]
        weighed = torch._foreach_mul([parts[name] for name in cls.parts], factors)
        return dict(zip(cls.parts, weighed, strict=True))


def _fit_together(
    losses: Sequence[Any], students: Sequence[Tensor], teachers: Sequence[Tensor]
) -> bool:
    """Whether maps are best compared at once, and nothing but their levels differs."""
    sides = 'student_context', 'teacher_context'
    blocks: list[Any] = [getattr(loss, side, None) for loss in losses for side in sides]
    return (
        better_together(students)
        and len(losses) == len(students) > 1
        and all(
            s.shape == t.shape and s.dim() == 4 for s, t in zip(students, teachers, strict=True)
        )
        and len({x.shape[:2] for x in students}) == 1
        # Not wrapped, as by FSDP.
        and all(isinstance(block, GlobalContext) for block in blocks)
        and all(block.channels == students[0].shape[1] for block in blocks)
    )

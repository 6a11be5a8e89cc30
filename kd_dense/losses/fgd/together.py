"""FGD on all levels of a pyramid at once, for devices on which the number of steps counts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kd_dense.functional import at_least_float32, without_autocast
from kd_dense.losses.fgd.masks import foregrounds

__all__ = ['fgd_together', 'mean_strength']


def mean_strength(means: Tensor) -> Tensor:
    """The mean of absolute values ``(..., 1)`` of their means by channel; no division by it fails.

    A map of zeros has a small one instead.
    """
    return means.mean(-1, keepdim=True).clamp_min(1e-6)


class Levels(NamedTuple):
    """Where the maps lie, one after the other, among all positions P.

    Args:
        positions: Of each map.
        of: The map of each position, ``(P,)``.
        inside: 1 where a position belongs to a map, else 0, ``(L, P)``.
        outside: Where it does not, ``(L, P)``.
        counts: ``positions`` on the device, ``(L,)``.
    """

    positions: list[int]
    of: Tensor
    inside: Tensor
    outside: Tensor
    counts: Tensor

    @classmethod
    def like(cls, maps: Sequence[Tensor]) -> Levels:
        """Of maps ``(N, C, positions)``."""
        positions = [x.shape[2] for x in maps]
        like: Any = dict(dtype=maps[0].dtype, device=maps[0].device)
        numbers = torch.tensor([positions, [*accumulate(positions)]], dtype=maps[0].dtype)
        # A copy that does not make the host wait for the device.
        counts, ends = numbers.to(maps[0].device, non_blocking=True)
        of = torch.bucketize(torch.arange(sum(positions), **like), ends, right=True)
        which = torch.arange(len(positions), device=of.device)[:, None]
        inside = torch.eq(of, which, out=counts.new_empty(len(positions), len(of)))
        return cls(positions, of, inside, of != which, counts)

    def over_counts(self, x: Tensor) -> Tensor:
        """Numbers of positions ``(N, P)``, each divided by the sum over its map, or by 1."""
        return x / torch.mm(x, self.inside.T).clamp_(min=1)[:, self.of]


class Reduced(NamedTuple):
    """What is read off the maps of student and teacher, the N images of the student first."""

    over_channels: Tensor  # sums of absolute values, (2N, P)
    which: Tensor  # attention of channels, (L, 2N, C)
    difference: Tensor  # sums over positions of student less teacher, (N, L, C)
    weighted: Tensor  # sums over channels of which * (student - teacher)^2, (N, P)
    squares: Tensor  # the sum of (student - teacher)^2
    context: Tensor  # means over positions by the softmax of their logits, (2N, L, C)


class _Reductions(torch.autograd.Function):
    """Everything that is read off all maps, in few steps, and its gradient.

    The maps are laid one after the other first. What belongs to a map alone is told by a product
    with a matrix that is zero outside.
    """

    @staticmethod
    def forward(
        ctx: Any,
        temperature: float,
        relative: bool,
        levels: Levels,
        queries: Tensor,
        teachers: Sequence[Tensor],
        *students: Tensor,
    ) -> tuple[Tensor, ...]:
        images, channels, _ = students[0].shape
        count = len(students)
        x = queries.new_empty(2, images, channels, sum(levels.positions))
        torch.cat([*students], 2, out=x[0])
        torch.cat([*teachers], 2, out=x[1])
        both = x.flatten(0, 1)
        over_channels = torch.linalg.vector_norm(both, 1, dim=1)
        over_positions = x.new_empty(count, 2 * images, channels)
        for part, out in zip(both.split(levels.positions, 2), over_positions, strict=True):
            torch.linalg.vector_norm(part, 1, dim=2, out=out)
        steepness = (levels.counts[:, None, None] * temperature).reciprocal()
        if relative:
            means = over_positions[:, images:] / levels.counts[:, None, None]
            steepness = (steepness / mean_strength(means)).repeat(1, 2, 1)
        share = (over_positions * steepness).softmax(2)
        which = share * channels

        inside = levels.inside
        logits = torch.bmm(_for_each_image(queries, images), both)
        attention = logits.masked_fill_(levels.outside, float('-inf')).softmax(2)
        means, sums = torch.bmm(
            torch.cat([attention, inside.expand_as(attention)], 1), both.mT
        ).split(count, 1)
        squared = F.mse_loss(x[0], x[1], reduction='none')
        weights = squared.new_ones(images, count + 1, channels)
        weights[:, :count] = which[:, images:].transpose(0, 1)
        weighted = torch.bmm(weights, squared)
        squares = weighted[:, count].sum()
        weighted = weighted.gather(1, levels.of.expand(images, 1, -1)).squeeze(1)

        ctx.save_for_backward(x, queries, share, steepness, inside, attention)
        ctx.positions = levels.positions
        difference = sums[:images] - sums[images:]
        return over_channels, which, difference, weighted, squares, means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, queries, share, steepness, inside, attention = ctx.saved_tensors
        g = Reduced(*grads)
        images, channels = x.shape[1:3]
        ours, theirs = share.split(images, 1)
        both = x.flatten(0, 1)
        with without_autocast(x):  # backward may be called under it, too
            into = torch.bmm(g.context, both)
            into = torch._softmax_backward_data(into, attention, 2, into.dtype)
            into_query = torch.bmm(into, both.mT).unflatten(0, (2, images)).sum(1)

            # The squared difference.
            weights = channels * g.weighted[:, None] * inside
            work = torch.baddbmm(g.squares, theirs.permute(1, 2, 0), weights)
            grad = torch.ops.aten.mse_loss_backward(work, *x, 0)
            # What is a product of a number for each channel and one for each position.
            bars = inside.expand(images, -1, -1)
            by_channel = [g.difference, g.context[:images], queries[0].expand(images, -1, -1)]
            by_position = [bars, attention[:images], into[:images]]
            grad.baddbmm_(torch.cat(by_channel, 1).mT, torch.cat(by_position, 1))
            # The absolute values.
            slope = torch._softmax_backward_data(g.which[:, :images], ours, 2, ours.dtype)
            slope = (slope * (channels * steepness[:, :images])).permute(1, 2, 0)
            work = torch.baddbmm(g.over_channels[:images, None], slope, bars, out=work)
            grad.addcmul_(x[0].sign(), work)
        return None, None, None, into_query, None, *grad.split(ctx.positions, 2)


def _for_each_image(x: Tensor, images: int) -> Tensor:
    """``(2, L, C)`` of student and teacher for each image of both, ``(2N, L, C)``."""
    return x[:, None].expand(-1, images, -1, -1).flatten(0, 1)


def fgd_together(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    boxes: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    contexts: Sequence[Sequence[nn.Module]],
    temperature: float,
    relative_temperature: bool = False,
) -> dict[str, Tensor]:
    """The parts of [`kd_dense.losses.fgd_loss`][], summed over images, and maps of one width.

    Args:
        students: Maps ``(N, C, H, W)``.
        teachers: As many, of the same shapes.
        boxes: In each image.
        shapes: What boxes are scaled by: of all images, or of each.
        contexts: Of the student for each map, and of the teacher for each.
        temperature: Of the attention.
        relative_temperature: As there.
    """
    images, channels = students[0].shape[:2]
    sizes = [(x.shape[2], x.shape[3]) for x in students]
    students = [at_least_float32(x).flatten(2) for x in students]
    teachers = [at_least_float32(x.detach()).flatten(2) for x in teachers]
    blocks: Any = [block for side in contexts for block in side]
    foreground = foregrounds(boxes, shapes, sizes, students[0].dtype)
    with without_autocast(students[0]):
        levels = Levels.like(students)
        queries = torch.cat([block.attention.weight for block in blocks])
        found = Reduced(
            *_Reductions.apply(
                temperature,
                relative_temperature,
                levels,
                queries.unflatten(0, (2, -1)),
                teachers,
                *students,
            )
        )
        strength = found.over_channels / (channels * temperature)
        if relative_temperature:
            sums = torch.mm(found.over_channels[images:].detach(), levels.inside.T)
            means = mean_strength((sums / (channels * levels.counts))[:, :, None])[..., 0]
            strength = strength / means[:, levels.of].repeat(2, 1)
        strength = strength[:, None]
        where = strength.masked_fill(levels.outside, float('-inf')).softmax(2)
        where = (where * levels.counts[:, None]).sum(1)
        where_ours, where_theirs = where.split(images)
        which_ours, which_theirs = found.which.split(images, 1)
        weighted = found.weighted * where_theirs.detach()
        context = found.context.unflatten(0, (2, images)).transpose(1, 2)  # (2, L, N, C)
        ours, theirs = _transformed(blocks, context.flatten(0, 1)).split(len(sizes))
        added = (ours - theirs).transpose(0, 1)
        counts = levels.counts[:, None]
        crossed = (added * torch.addcmul(found.difference, counts, added, value=0.5)).sum()
        background = torch.eq(foreground, 0, out=torch.empty_like(foreground))
        background = levels.over_counts(background)
        masks = torch.stack([foreground, background])
        on_objects, off_objects = torch.mv(masks.flatten(1), weighted.flatten()).unbind()
        apart = where_ours - where_theirs.detach(), which_ours - which_theirs.detach()
        return {
            'foreground': on_objects,
            'background': off_objects,
            'attention': torch.linalg.vector_norm(torch.cat([x.flatten() for x in apart]), 1),
            'relation': torch.add(found.squares, crossed, alpha=2),
        }


def _transformed(blocks: Sequence[Any], x: Tensor) -> Tensor:
    """What each block makes of its own contexts ``(blocks, N, C)``."""
    into, norm, _, out = zip(*(block.transform for block in blocks), strict=True)
    weights = ([x.weight for x in into], [x.weight for x in norm], [x.weight for x in out])
    biases = ([x.bias for x in into], [x.bias for x in norm], [x.bias for x in out])
    w_in, w_norm, w_out = (torch.stack(some) for some in weights)
    b_in, b_norm, b_out = (torch.stack(some)[:, None] for some in biases)
    x = torch.baddbmm(b_in, x, w_in.mT)
    x = F.layer_norm(x, x.shape[-1:], eps=norm[0].eps)
    x = torch.addcmul(b_norm, x, w_norm[:, None]).relu()
    return torch.baddbmm(b_out, x, w_out.mT)

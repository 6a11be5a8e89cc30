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
        barrier: Its logarithm: no softmax of a map sees what lies outside of it, ``(L, P)``.
        counts: ``positions`` on the device, ``(L,)``.
        shares: One over these.
    """

    positions: list[int]
    of: Tensor
    inside: Tensor
    barrier: Tensor
    counts: Tensor
    shares: Tensor

    @classmethod
    def like(cls, maps: Sequence[Tensor]) -> Levels:
        """Of maps ``(N, C, positions)``."""
        positions = [x.shape[2] for x in maps]
        like: Any = dict(dtype=maps[0].dtype, device=maps[0].device)
        numbers = [positions, [1 / n for n in positions], [*accumulate(positions)]]
        # A copy that does not make the host wait for the device.
        counts, shares, ends = torch.tensor(numbers, dtype=maps[0].dtype).to(
            maps[0].device, non_blocking=True
        )
        of = torch.bucketize(torch.arange(sum(positions), **like), ends, right=True)
        which = torch.arange(len(positions), device=of.device)[:, None]
        inside = torch.eq(of, which, out=counts.new_empty(len(positions), len(of)))
        return cls(positions, of, inside, inside.log(), counts, shares)

    def over_counts(self, x: Tensor) -> Tensor:
        """Numbers of positions ``(N, P)``, each divided by the sum over its map, or by 1."""
        return x / torch.mm(x, self.inside.T).clamp_(min=1)[:, self.of]


class Compared(NamedTuple):
    """What is read off the maps of student and teacher, the N images of the student first."""

    objects: Tensor  # the parts on and off objects, (2,)
    attention: Tensor  # the part of that name
    squares: Tensor  # the sum of (student - teacher)^2
    difference: Tensor  # sums over positions of student less teacher, (N, L, C)
    context: Tensor  # means over positions by the softmax of their logits, (2N, L, C)


class _Compared(torch.autograd.Function):
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
        masks: Tensor,
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

        strength = torch.linalg.vector_norm(both, 1, dim=1)  # (2N, P)
        over_positions = x.new_empty(count, 2 * images, channels)
        for part, out in zip(both.split(levels.positions, 2), over_positions, strict=True):
            torch.linalg.vector_norm(part, 1, dim=2, out=out)
        steepness, units = levels.shares[:, None, None] / temperature, None
        if relative:
            means = over_positions[:, images:] * levels.shares[:, None, None]
            unit = mean_strength(means)  # (L, N, 1)
            steepness = (steepness / unit).repeat(1, 2, 1)
            units = unit[levels.of, :, 0].T  # (N, P)
            strength = strength / units.repeat(2, 1)
        share = (over_positions * steepness).softmax(2)
        which = share * channels
        softness = 1 / (channels * temperature)
        spread = torch.add(levels.barrier, strength[:, None], alpha=softness).softmax(2)
        where = (spread * levels.counts[:, None]).sum(1)
        by_position, by_channel = where.split(images), which.split(images, 1)
        apart = torch.cat([(a - b).flatten() for a, b in (by_position, by_channel)])

        inside = levels.inside
        logits = torch.baddbmm(levels.barrier, _for_each_image(queries, images), both)
        attention = logits.softmax(2)
        context, sums = torch.bmm(
            torch.cat([attention, inside.expand_as(attention)], 1), both.mT
        ).split(count, 1)
        squared = F.mse_loss(x[0], x[1], reduction='none')
        # A row of ones adds up all channels.
        weights = F.pad(by_channel[1].transpose(0, 1), (0, 0, 0, 1), value=1.0)
        weighted = torch.bmm(weights, squared)
        squares = weighted[:, count].sum()
        weighted = weighted.gather(1, levels.of.expand(images, 1, -1))
        focus = (masks * by_position[1]).flatten(1)

        ctx.save_for_backward(x, queries, share, steepness, units, spread, apart, focus, attention)
        ctx.levels, ctx.softness = levels, softness
        return (
            torch.mv(focus, weighted.flatten()),
            torch.linalg.vector_norm(apart, 1),
            squares,
            sums[:images] - sums[images:],
            context,
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, queries, share, steepness, units, spread, apart, focus, attention = ctx.saved_tensors
        g = Compared(*grads)
        levels: Levels = ctx.levels
        inside = levels.inside
        images, channels, count = x.shape[1:]
        ours, theirs = share.split(images, 1)
        both = x.flatten(0, 1)
        with without_autocast(x):  # backward may be called under it, too
            into = torch.bmm(g.context, both)
            into = torch._softmax_backward_data(into, attention, 2, into.dtype)
            into_query = torch.bmm(into, both.mT).unflatten(0, (2, images)).sum(1)

            # The squared difference.
            weights = torch.mv(focus.T, g.objects).view(images, 1, count) * inside
            work = torch.baddbmm(g.squares, theirs.permute(1, 2, 0), weights, alpha=channels)
            grad = torch.ops.aten.mse_loss_backward(work, *x, 0)
            # What is a product of a number for each channel and one for each position.
            bars = inside.expand(images, -1, -1)
            by_channel = [g.difference, g.context[:images], queries[0].expand(images, -1, -1)]
            by_position = [bars, attention[:images], into[:images]]
            grad.baddbmm_(torch.cat(by_channel, 1).mT, torch.cat(by_position, 1))
            # The absolute values.
            positions, maps = (apart.sign() * g.attention).split([images * count, ours.numel()])
            strength = positions.view(images, 1, count) * levels.counts[:, None]
            strength = torch._softmax_backward_data(strength, spread[:images], 2, x.dtype).sum(1)
            if units is not None:
                strength = strength / units
            slope = torch._softmax_backward_data(maps.view_as(ours), ours, 2, x.dtype)
            slope = (slope * steepness[:, :images]).permute(1, 2, 0)
            work = torch.baddbmm(
                strength[:, None], slope, bars, beta=ctx.softness, alpha=channels, out=work
            )
            grad.addcmul_(x[0].sign(), work)
        return None, None, None, None, into_query, None, *grad.split(levels.positions, 2)


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
    images = len(students[0])
    sizes = [(x.shape[2], x.shape[3]) for x in students]
    students = [at_least_float32(x).flatten(2) for x in students]
    teachers = [at_least_float32(x.detach()).flatten(2) for x in teachers]
    blocks: Any = [block for side in contexts for block in side]
    foreground = foregrounds(boxes, shapes, sizes, students[0].dtype)
    with without_autocast(students[0]):
        levels = Levels.like(students)
        background = torch.eq(foreground, 0, out=torch.empty_like(foreground))
        masks = torch.stack([foreground, levels.over_counts(background)])
        queries = torch.cat([block.attention.weight for block in blocks]).unflatten(0, (2, -1))
        found = Compared(
            *_Compared.apply(
                temperature, relative_temperature, levels, masks, queries, teachers, *students
            )
        )
        context = found.context.unflatten(0, (2, images)).transpose(1, 2)  # (2, L, N, C)
        ours, theirs = _transformed(blocks, context.flatten(0, 1)).split(len(sizes))
        added = (ours - theirs).transpose(0, 1)
        counts = levels.counts[:, None]
        crossed = (added * torch.addcmul(found.difference, counts, added, value=0.5)).sum()
        on_objects, off_objects = found.objects.unbind()
        return {
            'foreground': on_objects,
            'background': off_objects,
            'attention': found.attention,
            'relation': torch.add(found.squares, crossed, alpha=2),
        }


def _transformed(blocks: Sequence[Any], x: Tensor) -> Tensor:
    """What each block makes of its own contexts ``(blocks, N, C)``."""
    into, norm, _, out = zip(*(block.transform for block in blocks), strict=True)
    w_in, w_out = (torch.stack([x.weight for x in some]) for some in (into, out))
    b_out = torch.stack([x.bias for x in out])[:, None]
    # Those of one length in one step.
    b_in, w_norm, b_norm = (
        torch.stack([x.bias for x in into] + [x.weight for x in norm] + [x.bias for x in norm])
        .unflatten(0, (3, -1))[:, :, None]
        .unbind()
    )
    x = torch.baddbmm(b_in, x, w_in.mT)
    x = F.layer_norm(x, x.shape[-1:], eps=norm[0].eps)
    x = (x * w_norm + b_norm).relu()
    return torch.baddbmm(b_out, x, w_out.mT)

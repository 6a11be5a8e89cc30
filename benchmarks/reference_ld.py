"""LD as its equations and the authors' code read, to be measured against.

It imitates their assigner and head: for each image IoU, DIoU and distances are computed for the
candidates and again for the region, whose anchors come from a full sort of each level for each
box; the fine-grained region is found box by box, general instances image by image and level by
level, and the losses level by level on the rows that boolean masks select. Their DIoU is
replaced by the paper's, which ours computes by default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Pair
from kd_dense.losses import HeadTargets, ld_loss, rotated_ld_loss
from kd_dense.losses.ld.imitation import general_instances
from kd_dense.losses.ld.regions import fine_grained_region, inside_region, vlr_region

__all__ = [
    'cases',
    'plain_fine_grained',
    'plain_general_instances',
    'plain_inside',
    'plain_ld',
    'plain_rotated_ld',
    'plain_vlr',
]

BINS = 17
Outputs = tuple[list[Tensor], list[Tensor]]


def plain_overlaps(anchors: Tensor, boxes: Tensor, distance_part: bool) -> Tensor:
    """IoU, or DIoU, of ``(A, 4)`` with ``(G, 4)``: ``(A, G)``."""
    top_left = torch.max(anchors[:, None, :2], boxes[None, :, :2])
    bottom_right = torch.min(anchors[:, None, 2:], boxes[None, :, 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(2)
    anchor_area = (anchors[:, 2:] - anchors[:, :2]).prod(1)
    box_area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    iou = overlap / (anchor_area[:, None] + box_area[None] - overlap)
    if not distance_part:
        return iou
    outer_top_left = torch.min(anchors[:, None, :2], boxes[None, :, :2])
    outer_bottom_right = torch.max(anchors[:, None, 2:], boxes[None, :, 2:])
    diagonal = (outer_bottom_right - outer_top_left).pow(2).sum(2)
    return iou - plain_distances(anchors, boxes).pow(2) / diagonal


def plain_distances(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Distances of the centres, ``(A, G)``."""
    anchor_centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    box_centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return (anchor_centers[:, None] - box_centers[None]).pow(2).sum(2).sqrt()


def nearest(anchors: Tensor, boxes: Tensor, sizes: Sequence[int], count: int | None) -> Tensor:
    """Indices of the ``count`` anchors of each level that are nearest to a box, or of all."""
    distances = plain_distances(anchors, boxes)
    found, start = [], 0
    for size in sizes:
        level = distances[start : start + size]
        selected = size if count is None else min(count, size)
        found.append(level.topk(selected, dim=0, largest=False)[1] + start)
        start += size
    return torch.cat(found)


def plain_vlr(targets: HeadTargets, topk: int = 9, nearby: bool = False) -> Tensor:
    """What ``vlr_region``, or ``nearby_region``, of ``kd_dense.losses.ld.regions`` gives."""
    everything = torch.cat(targets.priors)
    regions = []
    for image, boxes in enumerate(targets.boxes):
        region = everything.new_zeros(len(everything))
        regions.append(region)
        if len(boxes) == 0:
            continue
        inside = [valid[image] for valid in targets.valid]
        kept = torch.cat(inside)
        anchors, sizes = everything[kept], [int(level.sum()) for level in inside]

        # The threshold, as the assigner computes it for its positives
        iou = plain_overlaps(anchors, boxes, distance_part=False)
        candidates = iou.gather(0, nearest(anchors, boxes, sizes, topk))
        threshold = candidates.mean(0) + candidates.std(0)

        # The region
        iou = plain_overlaps(anchors, boxes, distance_part=False)
        diou = plain_overlaps(anchors, boxes, distance_part=True)
        every = nearest(anchors, boxes, sizes, None)
        closeness = diou.gather(0, every)
        selected = (closeness < threshold) & (closeness >= 0.25 * threshold)
        if nearby:
            selected = iou.gather(0, every) >= 0.25 * threshold
        best = torch.full_like(iou, float('-inf')).t().contiguous().view(-1)
        flat = every + torch.arange(len(boxes), device=every.device) * len(anchors)
        flat = flat[selected]
        best[flat] = iou.t().contiguous().view(-1)[flat]
        largest = best.view(len(boxes), -1).max(0)[0]
        region[kept] = torch.where(largest == float('-inf'), 0, largest)
    return torch.stack(regions)


def plain_fine_grained(targets: HeadTargets) -> Tensor:
    """What ``kd_dense.losses.ld.regions.fine_grained_region`` gives."""
    anchors = torch.cat(targets.priors)
    valid = torch.cat(targets.valid, 1)
    region = torch.zeros_like(valid)
    for image, boxes in enumerate(targets.boxes):
        for box in boxes:
            iou = plain_overlaps(anchors, box[None], distance_part=False)[:, 0] * valid[image]
            region[image] |= iou > 0.5 * iou.max()
    return region


def plain_inside(targets: HeadTargets) -> Tensor:
    """What ``kd_dense.losses.ld.regions.inside_region`` gives."""
    anchors = torch.cat(targets.priors)
    points = (anchors[:, :2] + anchors[:, 2:]) / 2
    found = []
    for boxes in targets.boxes:
        expanded = boxes[None].expand(len(points), -1, -1)
        x, y = points[:, None, 0], points[:, None, 1]
        sides = torch.stack(
            [
                x - expanded[..., 0],
                y - expanded[..., 1],
                expanded[..., 2] - x,
                expanded[..., 3] - y,
            ],
            -1,
        )
        found.append((sides.min(-1)[0] > 0).any(1))
    return torch.stack(found) & torch.cat(targets.valid, 1)


def rows(maps: Tensor, channels: int) -> Tensor:
    """From ``(N, C, H, W)`` to ``(N, A, channels)``."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, channels)


def plain_nms(boxes: Tensor, scores: Tensor, max_iou: float, count: int) -> Tensor:
    """Indices of the boxes that are kept, the best first, at most ``count``."""
    order = scores.argsort(descending=True)
    kept: list[Tensor] = []
    while len(order) and len(kept) < count:
        best, order = order[0], order[1:]
        kept.append(best)
        iou = plain_overlaps(boxes[order], boxes[best][None], distance_part=False)[:, 0]
        order = order[iou <= max_iou]
    return torch.stack(kept)


def plain_general_instances(
    student: Sequence[Tensor], teacher: Sequence[Tensor], targets: HeadTargets
) -> Tensor:
    """What ``kd_dense.losses.ld.imitation.general_instances`` gives, all levels together."""
    levels = len(targets.priors)
    found = []
    for level, (priors, stride) in enumerate(zip(targets.priors, targets.strides, strict=True)):
        points = (priors[:, :2] + priors[:, 2:]) / 2
        members = torch.zeros_like(targets.valid[level])
        for image, valid in enumerate(targets.valid[level]):
            scores, boxes = [], []
            for maps in (student, teacher):
                logits, bins = maps[level][image][None], maps[levels + level][image][None]
                scores.append(rows(logits, targets.num_classes)[0].sigmoid())
                softened = F.softmax(rows(bins, 4 * BINS).reshape(-1, BINS), dim=1)
                steps = torch.linspace(0, BINS - 1, BINS, device=bins.device, dtype=bins.dtype)
                sides = F.linear(softened, steps[None]).view(-1, 4) * stride
                boxes.append(torch.cat([points - sides[:, :2], points + sides[:, 2:]], 1))
            difference, best_class = (scores[1] - scores[0]).abs().max(1)
            surer = torch.gather(scores[1] - scores[0], 1, best_class[:, None])[:, 0] >= 0
            chosen = torch.where(surer[:, None], boxes[1], boxes[0])
            inside = valid.nonzero()[:, 0]
            members[image, inside[plain_nms(chosen[inside], difference[inside], 0.3, 10)]] = True
        found.append(members)
    return torch.cat(found, 1)


def plain_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over the bins for each row."""
    target = F.softmax(teacher / temperature, dim=1).detach()
    log_student = F.log_softmax(student / temperature, dim=1)
    return F.kl_div(log_student, target, reduction='none').mean(1) * temperature**2


def plain_ld(student: Sequence[Tensor], teacher: Sequence[Tensor], targets: HeadTargets) -> Tensor:
    """The sum of the parts of ``kd_dense.losses.ld_loss`` with its default weights.

    Sums are over the batch (``published_batch=None``).
    """
    levels = len(targets.priors)
    region = plain_vlr(targets).split(targets.sizes, 1)
    total = student[0].sum() * 0
    for level in range(levels):
        classes, taught_classes = (
            rows(x[level], targets.num_classes).flatten(0, 1) for x in (student, teacher)
        )
        boxes, taught_boxes = (
            rows(x[levels + level], 4 * BINS).flatten(0, 1) for x in (student, teacher)
        )
        labels = targets.labels[level].flatten()
        positive = ((labels >= 0) & (labels < targets.num_classes)).nonzero()[:, 0]
        if len(positive) > 0:
            score = classes.detach().sigmoid().max(1)[0][positive]
            divergence = plain_kl(
                boxes[positive].reshape(-1, BINS), taught_boxes[positive].reshape(-1, BINS), 10
            )
            weight = score[:, None].expand(-1, 4).reshape(-1)
            total = total + 0.25 * (divergence * weight).sum() / 4
            divergence = plain_kl(classes[positive], taught_classes[positive], 2)
            weight = targets.label_weights[level].flatten()[positive]
            total = total + 10 * (divergence * weight).sum() / len(positive)
        value = region[level].flatten()
        remaining = (value > 0).nonzero()[:, 0]
        if len(remaining) > 0:
            divergence = plain_kl(
                boxes[remaining].reshape(-1, BINS), taught_boxes[remaining].reshape(-1, BINS), 10
            )
            weight = value[remaining][:, None].expand(-1, 4).reshape(-1)
            total = total + 0.25 * (divergence * weight).sum() / 16
    return total


def plain_rotated_ld(
    student: Sequence[Tensor], teacher: Sequence[Tensor], targets: HeadTargets
) -> Tensor:
    """Both parts of ``kd_dense.losses.rotated_ld_loss``, as the authors' code computes them."""
    region = plain_vlr(targets, nearby=True).split(targets.sizes, 1)
    levels, total = len(targets.priors), student[0].new_zeros(())
    for level, weight in enumerate(region):
        weight = weight.reshape(-1)
        count = (weight > 0).sum().clamp(min=1)
        for place, weights, bins, factor in (
            (levels + level, weight[:, None].expand(-1, 5).reshape(-1), BINS, 10.0),
            (level, weight, targets.num_classes, 20.0),
        ):
            ours, theirs = (
                x[place].permute(0, 2, 3, 1).reshape(-1, bins) for x in (student, teacher)
            )
            soft = F.softmax(theirs / 5.0, 1)
            apart = F.kl_div(F.log_softmax(ours / 5.0, 1), soft, reduction='none').mean(1) * 25.0
            total = total + factor * (apart * weights).sum() / count
    return total


def make_head(
    device: str, small: bool, sides: int = 4, boxes_each: int = 20
) -> tuple[Outputs, HeadTargets]:
    """What a GFL head yields for two images of 800x1344 pixels, or something less."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float64 if small else torch.float32
    height, width, count, classes = (96, 160, 4, 5) if small else (800, 1344, boxes_each, 80)
    strides = [8, 16, 32] if small else [8, 16, 32, 64, 128]
    shapes = [(-(-height // s), -(-width // s)) for s in strides]
    priors = []
    for stride, (rows_, columns) in zip(strides, shapes, strict=True):
        y, x = torch.meshgrid(
            torch.arange(rows_) * stride, torch.arange(columns) * stride, indexing='ij'
        )
        corner = torch.stack([x, y, x, y], -1).view(-1, 4).to(device, dtype)
        priors.append(corner + corner.new_tensor([-4, -4, 4, 4]) * stride)
    boxes = []
    for _ in range(2):
        size = torch.rand(count, 2, generator=generator).mul(3).add(2.5).exp()
        size = size.clamp(max=min(height, width) - 1)
        corner = torch.rand(count, 2, generator=generator) * (torch.tensor([width, height]) - size)
        boxes.append(torch.cat([corner, corner + size], 1).to(device, dtype))
    labels, weights, valid = [], [], []
    for stride, (rows_, columns) in zip(strides, shapes, strict=True):
        inside = torch.ones(2, rows_, columns, dtype=torch.bool)
        inside[1, :, columns - 64 // stride :] = False  # padding of the narrower image
        valid.append(inside.flatten(1).to(device))
        positive = torch.rand(valid[-1].shape, generator=generator) < 0.01
        drawn = torch.randint(classes, positive.shape, generator=generator)
        positive = positive.to(device) & valid[-1]
        labels.append(torch.where(positive, drawn.to(device), classes))
        weights.append(valid[-1].to(dtype))
    targets = HeadTargets(priors, labels, weights, valid, boxes, classes, strides)
    if sides == 5:  # at an angle of 0, where the boxes around them are themselves
        turned = [torch.cat([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2], 0 * b[:, :1]], 1)
                  for b in boxes]  # fmt: skip
        targets = targets._replace(rotated=turned)
    student, teacher = (
        [
            torch.randn(2, channels, *shape, generator=generator, dtype=dtype).to(device)
            for channels in (classes, sides * BINS)
            for shape in shapes
        ]
        for _ in range(2)
    )
    return (student, teacher), targets


def make_loss(device: str, small: bool, rotated: bool = False) -> Pair:
    (student, teacher), targets = make_head(device, small, sides=5 if rotated else 4)
    for maps in student:
        maps.requires_grad_()

    def call(function: Callable[[], Tensor]) -> list[Tensor]:
        value = function()
        return [value.detach(), *torch.autograd.grad(value, student)]

    def ours() -> Tensor:
        if rotated:
            parts = rotated_ld_loss(student, teacher, targets)
        else:
            parts = ld_loss(student, teacher, targets, published_batch=None)
        return torch.stack(list(parts.values())).sum()

    plain = plain_rotated_ld if rotated else plain_ld
    return Pair(partial(call, ours), partial(call, lambda: plain(student, teacher, targets)))


def make_regions(names: Sequence[str], device: str, small: bool) -> Pair:
    outputs, targets = make_head(device, small)
    valid = torch.cat(targets.valid, 1)
    arguments = targets.priors, valid, targets.boxes
    calls: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        'vlr': (lambda: vlr_region(*arguments), lambda: plain_vlr(targets)),
        'fine': (lambda: fine_grained_region(*arguments), lambda: plain_fine_grained(targets)),
        'inside': (lambda: inside_region(*arguments), lambda: plain_inside(targets)),
        'gibox': (
            lambda: torch.cat(general_instances(*outputs, targets), 1),
            lambda: plain_general_instances(*outputs, targets),
        ),
    }
    ours, reference = zip(*(calls[name] for name in names), strict=True)
    return Pair(lambda: [1.0 * f() for f in ours], lambda: [1.0 * f() for f in reference])


REGIONS = {
    'vlr': 'LD, valuable localization region',
    'fine': 'LD, fine-grained region',
    'inside': 'LD, priors inside boxes',
    'gibox': 'LD, general instances',
}


def cases() -> list[Case]:
    """Rows of the benchmark."""
    sizes = '2 images of 800x1344, 5 levels, 20 boxes each'
    return [
        Case('ld', f'LD, GFL head of 80 classes, {sizes}', make_loss),
        Case(
            'ld-rotated',
            f'LD of rotated boxes, head of 80 classes, {sizes}',
            partial(make_loss, rotated=True),
        ),
        Case(
            'ld-regions',
            f'LD, the four regions together, {sizes}',
            partial(make_regions, list(REGIONS)),
            goal_speed=5,
        ),
        *(
            Case(f'ld-{name}', f'{what}, {sizes}', partial(make_regions, [name]))
            for name, what in REGIONS.items()
        ),
    ]

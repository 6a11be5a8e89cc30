"""Relations as their equations read, to be measured against.

It imitates how published code goes about it: the matrices of student and teacher are made whole,
normalised, and subtracted, and all of them are kept by autograd; CIRKD's pairs of images are
taken one by one, each with a matrix of all pairs of positions; and NST multiplies the channels
out before it sums over the positions, an image at a time here, where the published code needs
the memory of all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.case import Case, Pair, forward_backward, make_maps
from kd_dense.losses import (
    CCKDLoss,
    CrossImageLoss,
    ICKDLoss,
    NSTLoss,
    PKTLoss,
    RelationLoss,
    RKDLoss,
    SPLoss,
)

__all__ = [
    'cases',
    'plain_cckd',
    'plain_cross_image',
    'plain_dsd',
    'plain_ickd',
    'plain_nst',
    'plain_pkt',
    'plain_positions',
    'plain_rkd',
    'plain_sp',
]


def plain_ickd(student: Tensor, teacher: Tensor) -> Tensor:
    """What ``kd_dense.losses.ICKDLoss`` gives."""

    def matrix(x: Tensor) -> Tensor:
        rows = x.view(x.shape[0], x.shape[1], -1)
        return F.normalize(torch.bmm(rows, rows.permute(0, 2, 1)), dim=2)

    return (matrix(student) - matrix(teacher)).pow(2).sum() / (len(student) * student.shape[1])


def plain_dsd(student: Tensor, teacher: Tensor) -> Tensor:
    """What ``kd_dense.losses.RelationLoss`` gives with the settings of DSD."""

    def matrix(x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, 2, stride=2, ceil_mode=True)
        rows = F.softmax(pooled.view(*x.shape[:2], -1) / 4, dim=2)
        return torch.bmm(rows, rows.permute(0, 2, 1))

    return F.mse_loss(matrix(student), matrix(teacher))


def plain_positions(student: Tensor, teacher: Tensor) -> Tensor:
    """What ``kd_dense.losses.RelationLoss`` gives over positions, as cosines."""

    def matrix(x: Tensor) -> Tensor:
        rows = F.normalize(x, dim=1).view(*x.shape[:2], -1)
        return torch.einsum('icm,icn->imn', rows, rows)

    return F.mse_loss(matrix(student), matrix(teacher))


def plain_sp(student: Tensor, teacher: Tensor) -> Tensor:
    """What ``kd_dense.losses.SPLoss`` gives."""

    def matrix(x: Tensor) -> Tensor:
        rows = x.view(x.shape[0], -1)
        return F.normalize(torch.mm(rows, rows.t()))

    return (matrix(teacher) - matrix(student)).pow(2).sum() / len(student) ** 2


def plain_rkd(student: Tensor, teacher: Tensor) -> Tensor:
    """What ``kd_dense.losses.RKDLoss`` gives, its parts added up."""

    def relations(x: Tensor) -> tuple[Tensor, Tensor]:
        rows = F.normalize(x.view(x.shape[0], -1), dim=1)
        squares, products = rows.pow(2).sum(1), rows @ rows.t()
        distances = squares[:, None] + squares[None] - 2 * products
        distances = distances.clamp(min=1e-12).sqrt().clone()
        distances[range(len(x)), range(len(x))] = 0
        apart = F.normalize(rows[None] - rows[:, None], dim=2)
        angles: Tensor = apart @ apart.mT
        return distances / distances[distances > 0].mean(), angles

    (d, a), (td, ta) = relations(student), relations(teacher)
    return 25 * F.smooth_l1_loss(d, td) + 50 * F.smooth_l1_loss(a, ta)


def plain_pkt(student: Tensor, teacher: Tensor) -> Tensor:
    """What ``kd_dense.losses.PKTLoss`` gives."""

    def likeness(x: Tensor) -> Tensor:
        rows = x.view(x.shape[0], -1)
        rows = rows / (rows.norm(dim=1, keepdim=True) + 1e-7)
        like = (rows @ rows.t() + 1) / 2
        share: Tensor = like / like.sum(1, keepdim=True)
        return share

    p, q = likeness(student), likeness(teacher)
    return (q * ((q + 1e-7) / (p + 1e-7)).log()).mean()


def plain_cckd(student: Tensor, teacher: Tensor) -> Tensor:
    """What ``kd_dense.losses.CCKDLoss`` gives with the bilinear kernel."""
    s, t = (x.view(x.shape[0], -1) for x in (student, teacher))
    norm: Tensor = torch.linalg.norm(torch.mm(s, s.t()) - torch.mm(t, t.t()))
    return norm / len(s) ** 2


def plain_cross_image(student: Tensor, teacher: Tensor, pool: int) -> Tensor:
    """What ``kd_dense.losses.CrossImageLoss`` gives."""
    student, teacher = (F.avg_pool2d(x, pool, ceil_mode=True) for x in (student, teacher))
    s, t = (F.normalize(x, dim=1).flatten(2).permute(0, 2, 1) for x in (student, teacher))
    total = student.new_zeros(())
    for i in range(len(s)):
        for j in range(len(s)):
            ours, theirs = (torch.mm(x[i], x[j].t()) / 0.1 for x in (s, t))
            total = total + F.kl_div(
                F.log_softmax(ours, 1), F.softmax(theirs, 1), reduction='batchmean'
            )
    return total / len(s) ** 2


def plain_nst(student: Tensor, teacher: Tensor) -> Tensor:
    """What ``kd_dense.losses.NSTLoss`` gives."""
    s, t = (F.normalize(x.view(*x.shape[:2], -1), dim=2) for x in (student, teacher))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        mean: Tensor = (a[:, None] * b[None]).sum(2).pow(2).mean()
        return mean

    values = [kernel(b, b) + kernel(a, a) - 2 * kernel(a, b) for a, b in zip(s, t, strict=True)]
    return torch.stack(values).mean()


def total_rkd(student: Tensor, teacher: Tensor) -> Tensor:
    parts: dict[str, Tensor] = RKDLoss()(student, teacher)
    return parts['distance'] + parts['angle']


Loss = Callable[[Tensor, Tensor], Tensor]
# Ours, and the reference.
PAIRS: dict[str, tuple[Loss, Loss]] = {
    'ickd': (ICKDLoss(), plain_ickd),
    'dsd': (RelationLoss(1.0, 'channels', 'none', 'mean', 'places', 4.0, 2), plain_dsd),
    'positions': (RelationLoss(1.0, 'positions', 'none', 'mean', 'unit'), plain_positions),
    'sp': (SPLoss(), plain_sp),
    'rkd': (total_rkd, plain_rkd),
    'pkt': (PKTLoss(), plain_pkt),
    'cckd': (CCKDLoss(kernel='bilinear'), plain_cckd),
    'cross': (CrossImageLoss(pool=4), partial(plain_cross_image, pool=4)),
    'nst': (NSTLoss(), plain_nst),
}


def make_pair(name: str, shape: tuple[int, ...], alone: bool, device: str, small: bool) -> Pair:
    student, teacher = make_maps(shape, device, small, (4, 3, 4, 6))
    # Images that are alike, some more than others: of independent noise all relations are 0.
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(2, len(teacher), len(teacher), generator=generator).to(teacher)
    student, teacher = (
        torch.einsum('ij,jchw->ichw', m, x.detach())
        for m, x in zip(mixed, (student, teacher), strict=True)
    )
    maps = student.requires_grad_(), teacher
    ours, reference = (forward_backward(partial(loss, *maps), maps[:1]) for loss in PAIRS[name])
    return Pair(ours, None if alone else reference)


def case(name: str, what: str, *shape: int, alone: bool = False) -> Case:
    size = 'x'.join(map(str, shape))
    loss = name.split('-')[0]
    return Case(f'relations-{name}', f'{what} {size}', partial(make_pair, loss, shape, alone))


def cases() -> list[Case]:
    """Rows of the benchmark."""
    small, large = (8, 19, 64, 128), (8, 19, 128, 256)
    rows = [
        case('ickd', 'ICKD, features', 2, 512, 64, 128),
        case('rkd', 'RKD, features', 8, 64, 16, 32),
        case('nst', 'NST, features', 1, 64, 64, 128),
        case('positions', 'relations of all positions, logits', 1, 19, 64, 128),
        # Of eight images the matrices of a plain one would be 17 GB.
        case('positions-batch', 'relations of all positions, logits', *small, alone=True),
    ]
    for name, what in (
        ('ickd-classes', 'ICKD and AICSD'),
        ('dsd', 'DSD'),
        ('sp', 'SP'),
        ('rkd-classes', 'RKD'),
        ('pkt', 'PKT'),
        ('cckd', 'CCKD'),
        ('nst-classes', 'NST'),
        ('cross', "CIRKD's pairs of images, pooled by 4"),
    ):
        rows += [case(name, f'{what}, logits', *small)]
        rows += [case(f'{name}-large', f'{what}, logits', *large)]
    return rows

"""IFVD, APD and attention as their equations read, to be measured against.

It imitates published code: a loop over the classes, in which masks of the size of the features
select and put back the members of each, all kept by autograd; and centres that are made class by
class of what was selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.case import Case, Pair, forward_backward, make_maps
from kd_dense.losses import ATLoss, AttentionChangeLoss, IFVDLoss, SADLoss, apd_loss

__all__ = ['cases', 'plain_apd', 'plain_at', 'plain_change', 'plain_ifvd', 'plain_sad']


def plain_ifvd(student: Tensor, teacher: Tensor, labels: Tensor, classes: int) -> Tensor:
    """What ``kd_dense.losses.IFVDLoss`` gives."""
    size = student.shape[2:]
    target = F.interpolate(labels[:, None].float(), size, mode='nearest')

    def similarity(x: Tensor) -> Tensor:
        spread = target.expand(-1, x.shape[1], -1, -1)
        centres = x.clone()
        for k in range(classes):
            mask = (spread == k).to(x.dtype)
            total = (mask * x).sum((2, 3)) / (mask.sum((2, 3)) + 1e-6)
            centres = (1 - mask) * centres + mask * total[:, :, None, None]
        similar: Tensor = nn.CosineSimilarity(dim=1)(x, centres)
        return similar

    return F.mse_loss(similarity(student), similarity(teacher))


def plain_apd(student: Tensor, teacher: Tensor, labels: Tensor, classes: int) -> Tensor:
    """What ``kd_dense.losses.apd_loss`` gives, its parts added up."""
    target = F.interpolate(labels[:, None].float(), student.shape[2:], mode='nearest')[:, 0]
    s, t = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    there = [k for k in target.unique().long() if k < classes]
    members = [(target == k).nonzero(as_tuple=True) for k in there]

    def centres(x: Tensor) -> Tensor:
        means = [x[image, :, row, column].mean(0) for image, row, column in members]
        return F.normalize(torch.stack(means), dim=1)

    ours, theirs = centres(s), centres(t)
    p, q = (10 * F.conv2d(x, c[..., None, None]) for x, c in ((s, ours), (t, theirs)))
    pred = F.kl_div(p.log_softmax(1), q.softmax(1), reduction='mean')
    logits = q.new_zeros(len(q), classes, *q.shape[2:])
    logits[:, torch.stack(there)] = q
    logits = F.interpolate(logits, labels.shape[1:], mode='bilinear', align_corners=True)
    learned = F.cross_entropy(logits, labels, ignore_index=255)
    return pred + (1 - F.cosine_similarity(ours, theirs, dim=1)).mean() / 2 + learned


def plain_at(student: Tensor, teacher: Tensor) -> Tensor:
    """What ``kd_dense.losses.ATLoss`` gives."""
    s, t = (F.normalize(x.pow(2).mean(1).view(x.size(0), -1)) for x in (student, teacher))
    return (s - t).pow(2).mean()


def plain_sad(student: Tensor, later: Tensor) -> Tensor:
    """What ``kd_dense.losses.SADLoss`` gives."""
    s, t = (x.abs().pow(2).sum(1).view(x.size(0), -1).softmax(1) for x in (student, later))
    return F.mse_loss(s, t)


def plain_change(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """What ``kd_dense.losses.AttentionChangeLoss`` gives of two layers."""

    def change(maps: Sequence[Tensor]) -> Tensor:
        first, last = (F.normalize(x.pow(2).mean(1).view(x.size(0), -1)) for x in maps)
        return F.normalize(first - last)

    return (change(student) - change(teacher)).pow(2).mean()


def make_labels(student: Tensor, classes: int, device: str) -> Tensor:
    """Blocks of one class, at four times the size of the maps; some without."""
    generator = torch.Generator().manual_seed(1)
    images, _, height, width = student.shape
    blocks = torch.randint(classes + 1, (images, height // 2, width // 2), generator=generator)
    blocks = blocks.where(blocks < classes, 255).to(device)
    return blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)


def make_prototypes(name: str, shape: tuple[int, ...], device: str, small: bool) -> Pair:
    student, teacher = make_maps(shape, device, small)
    classes = 3 if small else 19
    labels = make_labels(student, classes, device)

    def apd() -> Tensor:
        parts = apd_loss(student, teacher, labels, classes)
        return torch.stack([*parts.values()]).sum()

    loss = IFVDLoss(classes)
    ours = apd if name == 'apd' else partial(loss, student, teacher, segmentation=labels)
    plain = plain_apd if name == 'apd' else plain_ifvd
    return Pair(
        forward_backward(ours, [student]),
        forward_backward(partial(plain, student, teacher, labels, classes), [student]),
    )


def make_attention(name: str, shape: tuple[int, ...], device: str, small: bool) -> Pair:
    maps = make_maps(shape, device, small)
    loss, plain = {'at': (ATLoss(), plain_at), 'sad': (SADLoss(), plain_sad)}[name]
    return Pair(
        forward_backward(partial(loss, *maps), maps[:1]),
        forward_backward(partial(plain, *maps), maps[:1]),
    )


def make_change(shape: tuple[int, ...], device: str, small: bool) -> Pair:
    layers = [make_maps(shape, device, small), make_maps(shape, device, small)]
    (first, other), (last, another) = layers
    students = [first, last.detach().flip(0).requires_grad_()]
    teachers = [other, another.flip(0)]
    return Pair(
        forward_backward(partial(AttentionChangeLoss(), students, teachers), students),
        forward_backward(partial(plain_change, students, teachers), students),
    )


def cases() -> list[Case]:
    """Rows of the benchmark."""
    small, large = (8, 128, 64, 128), (8, 32, 128, 256)
    rows = []
    for name, title, make in (
        ('prototypes-ifvd', 'IFVD', make_prototypes),
        ('prototypes-apd', 'APD', make_prototypes),
        ('attention-at', 'AT', make_attention),
        ('attention-sad', 'SAD', make_attention),
    ):
        for tail, shape in (('', small), ('-large', large)):
            what = f'{title}, features {"x".join(map(str, shape))}'
            what += ', 19 classes' * (make is make_prototypes)
            call = partial(make, name.split('-')[1], shape)
            rows.append(Case(f'{name}{tail}', what, call))
    for tail, shape in (('', small), ('-large', large)):
        what = f"DSD's attention, features of two layers {'x'.join(map(str, shape))}"
        rows.append(Case(f'attention-change{tail}', what, partial(make_change, shape)))
    return rows

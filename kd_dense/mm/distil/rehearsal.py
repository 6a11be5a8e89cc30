"""One training step of a copy of the student, so that what does not fit is found beforehand."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, distributed, nn

from kd_dense.mm.batches.made_up import add_labels, blank_batch
from kd_dense.mm.batches.targets import Step, gather
from kd_dense.mm.distil.guests import Detached, together
from kd_dense.mm.distil.term import Term
from kd_dense.mm.models.probe import LARGEST, Probe, probe, replicate
from kd_dense.mm.wording import spelt
from kd_dense.taps import TapError, Taps

__all__ = ['alone', 'rehearse']


def rehearse(student: nn.Module, teacher: nn.Module, terms: Sequence[Term], found: Probe) -> Probe:
    """Compute every term once, on random images with made-up boxes and label maps.

    A copy of the student in training mode computes its loss; random maps of the shapes that the
    probe has found stand for the teacher's. Where the student's loss cannot be computed from
    such data, that is logged, and the first iteration of training takes the place of this.

    Some kernels reach further than the maps of a small image: what a term cannot take there, it
    is given once more on images of the largest size that is probed, and if that does, it is fine.

    Args:
        student: The student; weights and mode stay as they are.
        teacher: The teacher; so do its own.
        terms: What to compute; those of weight 0 are left out.
        found: What the taps of the terms yield in both models.

    Returns:
        What the taps yield on images of the size that did.

    Raises:
        TapError: If a tap of the student does not run while it computes its loss, yields maps
            other than in its forward pass, without gradient, or overwritten by a later layer.
        ValueError: If a loss or an adapter cannot take the maps.
    """
    try:
        _rehearse(student, teacher, terms, found)
    except TapError:
        raise
    except ValueError:
        larger = _on_large_images(student, teacher, terms, found)
        if larger is None:
            raise
        return larger
    return found


def _on_large_images(
    student: nn.Module, teacher: nn.Module, terms: Sequence[Term], found: Probe
) -> Probe | None:
    """What the taps yield on large images, if they were small and the terms can take that."""
    if min(found.size) >= LARGEST:
        return None
    try:
        larger = probe(student, [*found.student], teacher, [*found.teacher], smallest=LARGEST)
        return larger if _rehearse(student, teacher, terms, larger) else None
    except (ValueError, RuntimeError):  # the first error tells more
        return None


@torch.enable_grad()
def _rehearse(student: nn.Module, teacher: nn.Module, terms: Sequence[Term], found: Probe) -> bool:
    """Compute the terms at the size of a probe; returns whether that was possible."""
    terms = [term for term in terms if term.loss.weight > 0]
    if not terms or any(parameter.is_meta for parameter in student.parameters()):
        return False
    replica: Any = replicate(student, 'cpu')
    replica.train()
    for module in replica.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()  # SyncBN does not train on a CPU, nor any on a single value
    inputs, samples = blank_batch(student, found.size, 'cpu')
    for images in inputs.values() if isinstance(inputs, Mapping) else [inputs]:
        images.normal_()
    add_labels(student, samples, found.size)
    taps = Taps(chain(*(term.student_taps for term in terms)))
    with alone(), torch.device('cpu'):
        try:
            with taps.on(replica):
                replica.loss(inputs, samples)
        except TapError:
            raise
        except Exception as error:  # the student's own, on data that it is not made for
            print_log(
                f'the loss of the student {type(student).__name__} cannot be computed from '
                f'made-up data ({type(error).__name__}: {error}): terms that do not fit it are '
                'found in the first iteration',
                logger='current',
            )
            return False
        maps = {tap: [torch.randn(x) for x in one.shapes] for tap, one in found.teacher.items()}
        step = Step(replica, inputs, samples, taps, maps, teacher, _on_rois(terms, taps))
        for term in terms:
            theirs: Any = Detached(taps) if term.within else maps
            if len(term.teachers) > 1:
                theirs = together([maps] * len(term.teachers), term)
            _compute(term, step._replace(teacher_taps=theirs))
    return True


def _on_rois(terms: Sequence[Term], taps: Taps) -> dict[str, Tensor]:
    """Random rows in the place of those that the teacher yields on the student's RoIs."""
    shared = [term for term in terms if term.rois and taps.calls(term.student_tap)]
    rows = {term.name: len(taps[term.student_tap][-1]) for term in shared}
    return {term.name: torch.randn(rows[term.name], *term.row) for term in shared}


def _compute(term: Term, step: Step) -> None:
    if not step.student_taps.calls(term.student_tap):
        raise TapError(
            f'term {term.name!r}: tap {term.student_tap!r} runs in the forward pass of the '
            'student, but not while it computes its loss: tap a module that both need'
        )
    try:
        student, teacher = term.maps(step)
    except TapError as error:
        raise TapError(f'term {term.name!r}: {error}') from None
    try:
        needs = term.needed(step, gather(term.needs, step))
        losses = copy.deepcopy(term).cpu()(student, teacher, 1.0, needs)
        if not any(loss.requires_grad for loss in losses.values()):
            raise ValueError('no gradient flows back from the loss to the student')
    except TapError:
        raise
    except Exception as error:  # of a loss or an adapter that may be a user's
        kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
        adapters = dict.fromkeys(type(x).__name__ for x in term.adapters)
        adapters.pop('Identity', None)
        ours, theirs = (spelt([x.shape for x in maps]) for maps in (student, teacher))
        raise ValueError(
            f'term {term.name!r}: {kind}{error} (tap {term.student_tap!r} of the student '
            f'yields {ours}{", then through " * bool(adapters)}{", ".join(adapters)}; '
            f'tap {term.teacher_tap!r} of the teacher yields {theirs})'
        ) from error


@contextmanager
def alone() -> Iterator[None]:
    """Let losses that average over the processes see this one alone.

    Otherwise they would send tensors of the CPU through a backend that may know GPUs only.
    """
    if not distributed.is_available():
        yield
        return
    initialized = distributed.is_initialized
    distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        distributed.is_initialized = initialized

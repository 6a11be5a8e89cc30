"""The check of a cache: what it would save at most, and how much room it needs."""

from __future__ import annotations

import torch

from kd_dense.mm.check.finding import ERROR, OK, WARNING, Subject
from kd_dense.mm.cost.steps import preprocessed
from kd_dense.mm.distil.cacheable import check_cache
from kd_dense.mm.teachers.cached import GIGABYTES, gigabytes_of, map_bytes
from kd_dense.taps import tensors_in

__all__ = ['check_kept_maps']

VIEWS = 8  # where a recipe keeps none yet
WORTH = 1.2  # times


def check_kept_maps(subject: Subject) -> None:
    """Say how much faster steps could be without the teacher, and what its maps need on the disk.

    Of a recipe without a cache it says so where one would be allowed, and worth it.
    """
    cache = subject.cache
    cost = next((f.figures for f in subject.findings if f.check == 'cost'), {})
    if not cost.get('seconds_alone') or (cache is None and not _can(subject)):
        return
    ceiling = cost['seconds'] / cost['seconds_alone']
    size = map_bytes(_maps(subject)) // len(subject.batches[0]['data_samples'])
    pictures = next(f for f in subject.findings if f.check == 'data').figures['pictures']
    views, most = (VIEWS, GIGABYTES) if cache is None else (cache.views, cache.gigabytes)
    need = gigabytes_of(size, pictures, views)
    room = (
        f'{size / 1e6:.3g} MB a picture and view, {need:.3g} GB for {pictures} pictures in '
        f'{views} views'
    )
    figures = dict(ceiling=ceiling, map_bytes=size, gigabytes=need, views=views)
    if cache is None:
        if ceiling >= WORTH and need <= most:
            subject.say(
                OK,
                f"steps would be at most {ceiling:.2f} times as fast with the teacher's maps kept "
                f'(docs/cache.md): {room}',
                **figures,
            )
        return
    text = f'in {cache.folder}: {room}'
    if need > most:
        remedy = 'take fewer views, tap what is small, or raise cache.gigabytes'
        subject.say(ERROR, f'{text}, more than gigabytes={most:g}', remedy, **figures)
        return
    text += f'; once they are there, steps are at most {ceiling:.2f} times as fast'
    if ceiling < WORTH:
        subject.say(WARNING, text, 'leave cache out: the teacher costs little here', **figures)
        return
    subject.say(OK, text, **figures)


def _can(subject: Subject) -> bool:
    try:
        check_cache(subject.model, subject.model.kd, subject.teacher.by_loss)
    except ValueError:
        return False
    return True


def _maps(subject: Subject) -> list[torch.Tensor]:
    """The teacher's maps of a batch, as they would be kept."""
    plan = subject.on_device().kd_plan
    batch = preprocessed(subject.model, subject.batches[0])
    try:
        plan.teacher.run(plan.teacher_taps, plan.teacher_calls, plan.preprocess, *batch)
        plan.teacher.wait(plan.teacher_taps)
        found = [*tensors_in([plan.teacher_taps[name] for name in plan.teacher_calls])]
    finally:
        plan.teacher_taps.clear()
    return [x.half() if x.is_floating_point() else x for x in found]

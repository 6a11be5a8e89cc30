"""The check of a cache: what it would save at most, and how much room it needs."""

from __future__ import annotations

from typing import Any

import torch

from kd_dense.mm.check.finding import ERROR, OK, WARNING, Subject
from kd_dense.mm.cost.steps import preprocessed
from kd_dense.mm.distil.cacheable import check_cache
from kd_dense.mm.distil.guests import Guest
from kd_dense.mm.teachers.cached import GIGABYTES, MapCache, gigabytes_of, map_bytes
from kd_dense.mm.teachers.several import has_own_weights
from kd_dense.taps import tensors_in

__all__ = ['check_kept_maps']

VIEWS = 8  # where a recipe keeps none yet
WORTH = 1.2  # times


def check_kept_maps(subject: Subject) -> None:
    """Say how much faster steps could be without the teacher, and what its maps need on the disk.

    Of a recipe without a cache it says so where one would be allowed, and worth it.
    """
    cost = next((f.figures for f in subject.findings if f.check == 'cost'), {})
    if not cost.get('seconds_alone'):
        return
    for name, guest in subject.model.kd_plan.running.items():
        cache = subject.caches.get(name)
        if cache is not None or _can(subject, name, guest):
            _look(subject, guest, cache, cost['seconds'] / cost['seconds_alone'])


def _look(subject: Subject, guest: Guest, cache: MapCache | None, ceiling: float) -> None:
    size = map_bytes(_maps(subject, guest)) // len(subject.batches[0]['data_samples'])
    pictures = next(f for f in subject.findings if f.check == 'data').figures['pictures']
    views, most = (VIEWS, GIGABYTES) if cache is None else (cache.views, cache.gigabytes)
    need = gigabytes_of(size, pictures, views)
    room = (
        f'{size / 1e6:.3g} MB a picture and view, {need:.3g} GB for {pictures} pictures in '
        f'{views} views'
    )
    figures: dict[str, Any] = dict(ceiling=ceiling, map_bytes=size, gigabytes=need, views=views)
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


def _can(subject: Subject, name: str, guest: Guest) -> bool:
    """Whether the maps of a teacher could be kept, and spare it to run."""
    terms = {k: term for k, term in subject.model.kd.items() if name in term.teachers}
    try:
        check_cache(subject.model, terms, guest.teacher.by_loss)
    except ValueError:
        return False
    return has_own_weights(guest.teacher) and len(subject.model.kd_plan.running) == 1


def _maps(subject: Subject, guest: Guest) -> list[torch.Tensor]:
    """A teacher's maps of a batch, as they would be kept."""
    batch = preprocessed(subject.on_device(), subject.batches[0])
    try:
        guest.run(guest.calls, *batch)
        guest.wait()
        found = [*tensors_in([guest.taps[name] for name in guest.calls])]
    finally:
        guest.taps.clear()
    return [x.half() if x.is_floating_point() else x for x in found]

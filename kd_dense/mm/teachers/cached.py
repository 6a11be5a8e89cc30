"""A teacher that need not run: its maps, kept for every view of every picture."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from torch import Tensor, nn

from kd_dense.functional import without_autocast
from kd_dense.mm.batches.preprocessing import Repreprocess
from kd_dense.mm.batches.views import View, view_of
from kd_dense.mm.configs import RequestError
from kd_dense.mm.files.entries import CHANGED, Entries
from kd_dense.taps import Taps, near_names

__all__ = ['MapCache', 'gigabytes_of', 'map_bytes', 'views_of']

FORMAT = 1
FIELDS = ('views', 'folder', 'gigabytes')
GIGABYTES = 100.0
READERS = 4  # threads; reading, sums and copies leave Python's lock
SIMPLE = (bool, int, float, str, type(None))


class MapCache:
    """The maps of a teacher, computed once for each view of each picture and then read.

    The training set must have a fixed number of views of each picture
    ([`kd_dense.mm.batches.views.FixedViews`][]; ``kd_dense train`` sees to that). Maps are kept in
    float16. What is computed is used as it is kept, so that a training does not depend on which
    maps were there before.

    An entry is used where all of this is as it was: the teacher's weights, its layers and their
    settings, its preprocessing, the taps, the size of the batch, and every pixel that the pipeline
    has made. Any other is computed anew. The folder holds a folder for each teacher with its taps,
    and several trainings and processes may share it.

    Args:
        views: How many views each picture has.
        folder: Where the maps lie.
        gigabytes: What all maps together may need on the disk.

    Raises:
        ValueError: If a field is missing, unknown or of the wrong kind.
    """

    def __init__(
        self,
        views: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        gigabytes: float = GIGABYTES,
        **unknown: Any,
    ) -> None:
        for name in unknown.keys() - {'_scope_'}:
            raise ValueError(f'teacher: cache: unknown field {name!r}, {near_names(name, FIELDS)}')
        if not isinstance(views, int) or isinstance(views, bool) or views < 1:
            raise ValueError(f'teacher: cache: views expects a number >= 1, got {views!r}')
        if not isinstance(folder, (str, os.PathLike)) or not str(folder):
            raise ValueError(f'teacher: cache: folder expects a path, got {folder!r}')
        if not isinstance(gigabytes, (int, float)) or not gigabytes > 0:
            raise ValueError(f'teacher: cache: gigabytes expects a number > 0, got {gigabytes!r}')
        self.views = views
        self.folder = Path(folder)
        self.gigabytes = float(gigabytes)
        self.computed = self.read = 0  # pictures
        self._entries: Entries | None = None
        self._limited = False
        self._pool: ThreadPoolExecutor | None = None
        self._written: set[str] = set()
        self._warned = False

    @classmethod
    def of(cls, fields: Any) -> MapCache:
        """Build it from the field of a teacher."""
        if not isinstance(fields, Mapping):
            raise ValueError(
                f"teacher: cache expects dict(views=8, folder='work_dirs/maps'), got {fields!r}"
            )
        return cls(**fields)

    def run(
        self,
        teacher: Any,
        taps: Taps,
        calls: Mapping[str, int],
        preprocess: Repreprocess,
        inputs: Any,
        data_samples: Any,
    ) -> None:
        """Put the teacher's maps of a batch into taps; run the teacher for those that lack.

        Args:
            teacher: The teacher.
            taps: All its taps.
            calls: All of them, and how often each runs.
            preprocess: From the student's preprocessing to the teacher's.
            inputs: The student's batch, ``(N, C, H, W)``.
            data_samples: Its samples.

        Raises:
            ValueError: If the samples are not those of fixed views, or the maps of all views
                would need too much room.
        """
        views = self._views(inputs, data_samples)
        entries = self._opened(teacher, taps, preprocess)
        names = [f'{one.number}/{one.picture}' for one in views]
        made_of = [f'{one.digest} {tuple(inputs.shape[1:])}' for one in views]
        found: list[Any] = [*self._map(entries.read, names, made_of)]
        missing = [index for index, one in enumerate(found) if isinstance(one, str)]
        self._look_for_changes([names[i] for i in missing if found[i] == CHANGED])
        # On a CPU one by one: what a picture yields must not depend on those beside it.
        together = [missing] if inputs.is_cuda and missing else [[index] for index in missing]
        for chosen in together:
            whole = len(chosen) == len(views)
            teacher.run(
                taps,
                calls,
                preprocess,
                inputs if whole else inputs[chosen],
                [data_samples[index] for index in chosen],
            )
            teacher.wait(taps)
            for index, maps in zip(chosen, _split(taps, len(chosen)), strict=True):
                found[index] = maps
            taps.clear()
            if not self._limited:
                self._check_room(map_bytes(found[chosen[0]].values()), views[0], taps.names)
                self._limited = True
        self._written.update(names[i] for i in missing)
        self._map(lambda i: entries.write(names[i], made_of[i], found[i]), missing)
        self.computed += len(missing)
        self.read += len(views) - len(missing)
        with without_autocast(inputs):  # which does not stack float16 on a CPU
            taps.hold({name: _joined(found, name, inputs.device) for name in taps.names})

    def _map(self, function: Any, *arguments: Any) -> list[Any]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(READERS, 'teacher maps')
        return [*self._pool.map(function, *arguments)]

    def _views(self, inputs: Any, data_samples: Any) -> list[View]:
        found = [view_of(one) for one in data_samples or ()]
        if not isinstance(inputs, Tensor) or inputs.dim() != 4 or len(found) != len(inputs):
            raise ValueError(
                'teacher: cache keeps maps of batches (N, C, H, W) with a data sample for each '
                'picture, and this training has others: leave cache out'
            )
        views = [one for one in found if one is not None]
        if len(views) < len(found) or views[0].views != self.views:
            what = f'{views[0].views} views' if views else 'any number of views'
            raise ValueError(
                f'teacher: cache expects a training set with {self.views} fixed views of each '
                f'picture, got one with {what}: kd_dense train sees to that, with other tools say '
                "train_dataloader.dataset = dict(type='kd_dense.FixedViews', "
                f'views={self.views}, dataset=...)'
            )
        return views

    def _opened(self, teacher: Any, taps: Taps, preprocess: Repreprocess) -> Entries:
        if self._entries is None:
            teacher.load()
            mark = fingerprint(teacher.model, [teacher.precision, *taps.names, vars(preprocess)])
            self._entries = Entries(self.folder / mark)
            if is_main_process():
                count = self._entries.sweep()
                print_log(
                    f'teacher: maps are kept in {self._entries.folder}, which has {count}',
                    logger='current',
                )
        return self._entries

    def _check_room(self, size: int, view: View, names: Sequence[str]) -> None:
        """Refuse what would fill the disk, before anything is written."""
        need = gigabytes_of(size, view.pictures, view.views)
        sum_ = (
            f'the maps of {" and ".join(names)} take {size / 1e6:.3g} MB in float16 a picture '
            f'and view: {view.pictures} pictures x {view.views} views are {need:.3g} GB'
        )
        remedy = 'cache what is small, as the logits of a segmenter, or take fewer views'
        if need > self.gigabytes:
            raise ValueError(
                f'teacher: cache: {sum_}, more than gigabytes={self.gigabytes:g}: {remedy}, or '
                'allow more'
            )
        existing = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(existing).free / 1e9
        there = 0 if self._entries is None else self._entries.sweep() * size / 1e9
        if need - there > free:
            raise ValueError(
                f'teacher: cache: {sum_}, and {self.folder} has {free:.3g} GB left: {remedy}, or '
                'name another folder'
            )
        if is_main_process():
            print_log(f'teacher: {sum_}', logger='current')

    def _look_for_changes(self, changed: Sequence[str]) -> None:
        """Say so where this training itself has made a view twice, and got two."""
        if self._warned or not self._written.intersection(changed):
            return
        self._warned = True
        print_log(
            'the same view of a picture has come out differently twice in this training: its '
            'pipeline has a memory or a source of chance of its own (as CachedMosaic has), or was '
            'changed on the way; the teacher runs wherever that happens, and the cache saves '
            'nothing there',
            logger='current',
            level=30,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> MapCache:
        return self


def views_of(caches: Iterable[Any]) -> int | None:
    """How many views of each picture some teachers keep maps of; None where no maps are kept.

    Args:
        caches: The number of each cache.

    Raises:
        RequestError: If they have different ones.
    """
    found = {*caches}
    if len(found) > 1:
        raise RequestError(
            f'the caches of the teachers have {sorted(found)} views of each picture: give all of '
            'them the same number, because the student sees the same views'
        )
    return found.pop() if found else None


def fingerprint(model: nn.Module, others: Sequence[Any]) -> str:
    """Sum up all that a model's maps depend on beside its batch.

    Args:
        model: Its weights, its layers, and their settings count.
        others: What else counts: numbers, texts, tensors, and lists and dicts of those.
    """
    found = blake2b(str(FORMAT).encode(), digest_size=10)
    for name, module in model.named_modules():
        kind = type(module)
        found.update(f'{name} {kind.__module__}.{kind.__qualname__}'.encode())
        _add(found, {k: v for k, v in vars(module).items() if k[0] != '_' and k != 'training'})
    for name, value in sorted(model.state_dict().items()):
        found.update(name.encode())
        _add(found, value)
    _add(found, others)
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        found.update(f'{value.dtype}{tuple(value.shape)}'.encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, SIMPLE):
        found.update(repr(value).encode())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            if isinstance(value[key], (*SIMPLE, Tensor, Mapping, list, tuple)):
                found.update(f'{key}:'.encode())
                _add(found, value[key])
    elif isinstance(value, (list, tuple)):
        found.update(str(len(value)).encode())
        for one in value:
            _add(found, one)


def map_bytes(maps: Any) -> int:
    """Bytes of maps."""
    return sum(x.numel() * x.element_size() for x in maps)


def gigabytes_of(size: int, pictures: int, views: int) -> float:
    """What maps need for all views of all pictures.

    Examples:
        >>> round(gigabytes_of(19 * 64 * 128 * 2, 2975, 8), 1)
        7.4
    """
    return size * pictures * views / 1e9


def _split(taps: Taps, count: int) -> list[dict[str, Tensor]]:
    """The maps of each picture as they are kept."""
    found: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name in taps.names:
        for number, x in enumerate(taps[name]):
            if x.dim() < 2 or len(x) != count:
                raise ValueError(
                    f'teacher: cache: tap {name!r} yields {tuple(x.shape)} for {count} pictures, '
                    'which cannot be told apart: leave cache out'
                )
            kept = x.half() if x.is_floating_point() else x
            if kept is not x and not kept.isfinite().all():
                raise ValueError(
                    f'teacher: cache: the largest value that tap {name!r} yields is '
                    f'{float(x.abs().max()):.3g}, and float16 ends at 65504: leave cache out'
                )
            for one, row in zip(found, kept.cpu(), strict=True):
                one[f'{name} {number}'] = row.contiguous()
    return found


def _joined(found: Sequence[Mapping[str, Tensor]], name: str, device: torch.device) -> Any:
    """The maps of a tap for the whole batch."""
    keys = [key for key in found[0] if key.rpartition(' ')[0] == name]
    keys.sort(key=lambda key: int(key.rpartition(' ')[2]))
    maps = [torch.stack([one[key] for one in found]).to(device) for key in keys]
    return [x.float() if x.is_floating_point() else x for x in maps]

"""Pictures without labels: a data set of them, alone or beside one with labels."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.structures import InstanceData, PixelData
from torch.utils.data import Dataset

from kd_dense.registry import DATASETS

__all__ = ['Unlabelled', 'hide_labels', 'is_unlabelled', 'labelled_pictures', 'list_pictures']

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
LISTS = ('.txt', '.lst')
IGNORED = 255  # the label of a pixel that has none
MARK = 'kd_unlabelled'  # in the metainfo of a sample
ATTEMPTS = 100


@DATASETS.register_module()
class Unlabelled(Dataset[dict[str, Any]]):
    """Pictures whose labels, if they have any, are not used; alone, or beside a labelled set.

    They go through the pipeline of the labelled set, as it is, or one of their own. Their samples
    are whole, with no box and with label maps of ignored pixels alone, so that all that follows
    can take them; and they are marked: a ``kd_dense.Distilled`` with ``unlabelled=True``
    computes no loss of the student's own on them.

    Args:
        pictures: A folder, whose subfolders are looked through as well; a text file with a path on
            each line, from its own folder on; a list of paths; or the config of a data set, or
            one that is built, whose labels are hidden.
        beside: The labelled data set that they are mixed with, a config or built: its pictures
            come first.
        like: A data set whose pipeline and classes these pictures get, and nothing else: it is
            not read where it is a config.
        pipeline: Transforms of their own, in place of those of ``beside`` or ``like``: strong
            ones, for example.

    Raises:
        FileNotFoundError: If there is no such folder, file or picture.
        ValueError: If there is not one picture, or nothing says by which pipeline to read them.

    Examples:
        >>> train_dataloader = dict(
        ...     batch_size=4,
        ...     sampler=dict(type='kd_dense.RatioSampler', batch_size=4, ratio=(1, 1)),
        ...     dataset=dict(
        ...         type='kd_dense.Unlabelled',
        ...         pictures='data/more',
        ...         beside=dict(type='mmseg.CityscapesDataset', data_root='data/cityscapes')))
    """

    def __init__(
        self,
        pictures: str | os.PathLike[str] | Sequence[str] | Mapping[str, Any] | Dataset[Any],
        beside: Mapping[str, Any] | Dataset[Any] | None = None,
        like: Mapping[str, Any] | Dataset[Any] | None = None,
        pipeline: Sequence[Any] | None = None,
    ) -> None:
        if beside is not None and like is not None:
            raise ValueError('Unlabelled expects either beside or like, got both')
        self.labelled: Any = None if beside is None else _built(beside)
        # lazy_init: neither annotations nor pictures are looked for.
        lazily = {'lazy_init': True} if isinstance(like, Mapping) else {}
        model: Any = _built(like, **lazily) if like is not None else self.labelled
        self.pictures: Any = None
        self.files: list[str] = []
        if isinstance(pictures, (Mapping, Dataset)):
            if pipeline is not None:
                raise ValueError(
                    'Unlabelled: a data set that is wrapped has its own pipeline: leave out '
                    'pipeline, or change that of the data set'
                )
            self.pictures = _built(pictures)
            model = model or self.pictures
        else:
            self.files = list_pictures(pictures)
            self.pipeline = _without_labels(
                _pipeline_of(model) if pipeline is None else Compose([*pipeline])
            )
        self.ignored = int(getattr(model, 'ignore_index', IGNORED))
        # What an mmseg data set says of each picture, for its loaders.
        self._facts = {'reduce_zero_label': getattr(model, 'reduce_zero_label', False)}
        self.metainfo: dict[str, Any] = dict(getattr(model, 'metainfo', None) or {})

    @property
    def counts(self) -> tuple[int, int]:
        """How many pictures have labels, and how many have none."""
        ours = len(self.files) if self.pictures is None else len(self.pictures)
        return (0 if self.labelled is None else len(self.labelled)), ours

    def __len__(self) -> int:
        return sum(self.counts)

    def full_init(self) -> None:
        """Read what the data sets in it have not read yet."""
        for one in (self.labelled, self.pictures):
            if hasattr(one, 'full_init'):
                one.full_init()

    def get_data_info(self, index: int) -> dict[str, Any]:
        """What is known of a picture before it is read."""
        first = self.counts[0]
        if index < first:
            return dict(self.labelled.get_data_info(index))
        if self.pictures is not None:
            return dict(self.pictures.get_data_info(index - first))
        path = self.files[index - first]
        return dict(img_path=path, img_id=index, instances=[], seg_map_path='', label_map=None,
                    seg_fields=[], sample_idx=index, **self._facts)  # fmt: skip

    def __getitem__(self, index: int) -> dict[str, Any]:
        first = self.counts[0]
        if index < first:
            return dict(self.labelled[index])
        whole = self.pictures is None
        found = self._read(index) if whole else self.pictures[index - first]
        samples = found.get('data_samples') if isinstance(found, Mapping) else None
        for sample in _every(samples):
            hide_labels(sample, self.ignored)
        return dict(found)

    def _read(self, index: int) -> dict[str, Any]:
        for _ in range(ATTEMPTS):  # a crop may ask for another one, as in the labelled set
            found = self.pipeline(self.get_data_info(index))
            if found is not None:
                return dict(found)
        raise ValueError(
            f'Unlabelled: the pipeline yields nothing for {self.files[index - self.counts[0]]}, '
            f'in {ATTEMPTS} attempts: a transform of it refuses pictures without boxes; give a '
            'pipeline without that one'
        )


def list_pictures(source: str | os.PathLike[str] | Iterable[str]) -> list[str]:
    """The paths of pictures, in the order of their names or of the list.

    Args:
        source: As ``pictures`` of [`Unlabelled`][]; no data set.

    Raises:
        FileNotFoundError: If there is no such folder or file, or a listed picture is missing.
        ValueError: If there is not one picture.
    """
    if not isinstance(source, (str, os.PathLike)):
        found, shown = [os.fspath(one) for one in source], 'the list'
    else:
        path, shown = Path(source).expanduser(), os.fspath(source)
        if path.is_dir():
            found = [str(p) for p in sorted(path.rglob('*')) if p.suffix.lower() in SUFFIXES]
            if not found:
                raise ValueError(
                    f'unlabelled: the folder {shown} has no picture in it: expected files that '
                    f'end in {", ".join(SUFFIXES)}'
                )
        elif path.is_file() and path.suffix.lower() in LISTS:
            lines = (line.strip() for line in path.read_text().splitlines())
            found = [str(path.parent / line) for line in lines if line]
        elif path.is_file():
            raise ValueError(
                f'unlabelled: {shown} is one file: expected a folder, or a list of paths that '
                f'ends in {" or ".join(LISTS)}'
            )
        else:
            raise FileNotFoundError(
                f'unlabelled: there is no folder and no list {shown} (looked in {Path.cwd()})'
            )
    if not found:
        raise ValueError(f'unlabelled: {shown} names no picture')
    for one in found:
        if not os.path.exists(one):
            raise FileNotFoundError(f'unlabelled: {shown} names {one}, which does not exist')
    return found


def is_unlabelled(sample: Any) -> bool:
    """Whether a sample is marked as one of a picture without labels."""
    return MARK in getattr(sample, '_metainfo_fields', ())


def labelled_pictures(dataset: Any) -> list[bool]:
    """Whether each picture of a data set has labels, as far as [`Unlabelled`][] says.

    Args:
        dataset: One, perhaps repeated or put together of several.
    """
    if isinstance(dataset, Unlabelled):
        first = [] if dataset.labelled is None else labelled_pictures(dataset.labelled)
        return [*first, *[False] * dataset.counts[1]]
    parts = getattr(dataset, 'datasets', None)
    if parts is not None:
        return [one for part in parts for one in labelled_pictures(part)]
    inner = getattr(dataset, 'dataset', None)
    if inner is None:
        return [True] * len(dataset)
    found = labelled_pictures(inner)
    if len(set(found)) < 2:
        return found[:1] * len(dataset)
    if len(dataset) % len(found):
        raise ValueError(
            f'a {type(dataset).__name__} around a kd_dense.Unlabelled hides which pictures have '
            'labels: put Unlabelled around it'
        )
    return found * (len(dataset) // len(found))


def hide_labels(sample: Any, ignored: int = IGNORED) -> None:
    """Take the labels off a sample, and mark it.

    Args:
        sample: Boxes become none, and the pixels of label maps are ignored.
        ignored: What says so of a pixel.
    """
    for name, value in sample.items():
        if name.startswith('gt_') or name == 'ignored_instances':
            if isinstance(value, InstanceData):
                if len(value):
                    setattr(sample, name, value[:0])
            elif isinstance(value, PixelData):
                empty = {k: torch.full_like(v, ignored) for k, v in value.items()}
                setattr(sample, name, PixelData(**empty))
    sample.set_metainfo({MARK: True})


def _every(samples: Any) -> Iterator[Any]:
    """The sample of a picture, or those of its views."""
    if isinstance(samples, Mapping):
        samples = [*samples.values()]
    for one in samples if isinstance(samples, (list, tuple)) else [samples]:
        if one is not None:  # of a branch that a picture is not for
            yield one


def _built(dataset: Any, **options: Any) -> Any:
    """The data set of a config; one that is built as it is."""
    if not isinstance(dataset, Mapping):
        return dataset
    return ROOT_DATASETS.build({**dataset, **options})


def _pipeline_of(dataset: Any) -> Any:
    """A copy of the transforms that a data set reads its pictures with."""
    inner = dataset
    while not isinstance(getattr(inner, 'pipeline', None), Compose):
        parts = getattr(inner, 'datasets', None) or [getattr(inner, 'dataset', None)]
        if parts[0] is None or hasattr(inner, 'pipeline'):
            raise ValueError(
                'Unlabelled: nothing says how to read the pictures: '
                + (
                    f'{type(dataset).__name__} mixes pictures with each other or has no pipeline; '
                    if dataset is not None
                    else ''
                )
                + 'say pipeline=[...]'
            )
        inner = parts[0]
    return copy.deepcopy(inner.pipeline)


def _without_labels(pipeline: Any) -> Any:
    """Let a pipeline take pictures that have no labels; it is changed."""
    for one in _transforms(pipeline):
        if hasattr(one, '_load_seg_map'):  # there is no file to load
            one._load_seg_map = partial(_no_label_map, one)
        if hasattr(one, 'allow_negative_crop'):  # mmdet's RandomCrop
            one.allow_negative_crop = True
        if hasattr(one, 'keep_empty'):  # mmdet's FilterAnnotations: True refuses the empty
            one.keep_empty = False
    return pipeline


def _transforms(transform: Any) -> Iterator[Any]:
    """A transform and those in it."""
    yield transform
    inner = [
        getattr(transform, name, ()) for name in ('transforms', 'branch_pipelines', 'pipeline')
    ]
    for one in inner:
        parts: Any = one.values() if isinstance(one, Mapping) else one
        for part in parts if isinstance(parts, Iterable) else [parts]:
            yield from _transforms(part)


def _no_label_map(loader: Any, results: dict[str, Any]) -> None:
    """In place of loading one: a label map of ignored pixels alone."""
    ignored = getattr(loader, 'ignore_index', IGNORED)
    results['gt_seg_map'] = np.full(results['img_shape'][:2], ignored, np.uint8)
    results['ignore_index'] = ignored
    results.setdefault('seg_fields', []).append('gt_seg_map')

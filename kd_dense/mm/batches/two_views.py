"""A picture in two views: a strong one for the student, and a weak one for its teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.registry import DATASETS as ROOT_DATASETS
from torch import Tensor

from kd_dense.registry import DATASETS
from kd_dense.taps import near_names

__all__ = ['OTHER', 'TwoViews', 'as_teachers_see']

OTHER = 'kd_other_view'  # in a data sample: the pixels that teachers are given
# What a pipeline may say of where the pixels of a picture have come to lie.
GEOMETRY = ('img_shape', 'scale_factor', 'flip', 'flip_direction', 'homography_matrix')


@DATASETS.register_module()
class TwoViews:
    """Another data set, whose pipeline ends in two views of each picture: mmdet's ``MultiBranch``.

    The student is given one of them and its teachers the other, of the same pixels in other
    colours: what moves pixels (resizing, cropping, flipping) stands in front of ``MultiBranch``,
    and what changes them within a branch. A picture that has one view alone, as one with labels
    in semi-supervised configs, comes as it is.

    All else that is asked of the data set it answers itself.

    Args:
        dataset: The data set, or its config.
        student: The branch that the student sees.
        teacher: The branch that teachers see.

    Raises:
        ValueError: If a picture has no branch of these, or its views show other places.

    Examples:
        >>> train_dataloader = dict(
        ...     dataset=dict(
        ...         type='kd_dense.TwoViews',
        ...         dataset=dict(
        ...             type='kd_dense.Unlabelled',
        ...             pictures='data/more',
        ...             pipeline=[
        ...                 dict(type='LoadImageFromFile'),
        ...                 dict(type='LoadEmptyAnnotations'),
        ...                 dict(type='RandomFlip', prob=0.5),
        ...                 dict(
        ...                     type='MultiBranch',
        ...                     branch_field=['unsup_teacher', 'unsup_student'],
        ...                     unsup_teacher=[dict(type='PackDetInputs')],
        ...                     unsup_student=[dict(type='Color'), dict(type='PackDetInputs')])])))
    """

    def __init__(
        self, dataset: Any, student: str = 'unsup_student', teacher: str = 'unsup_teacher'
    ) -> None:
        self.dataset = ROOT_DATASETS.build(dataset) if isinstance(dataset, Mapping) else dataset
        self.student, self.teacher = student, teacher

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        data = self.dataset[index]
        if not isinstance(data.get('inputs'), Mapping):
            return data
        branches = {name: x for name, x in data['inputs'].items() if x is not None}
        if len(branches) == 1:
            (only,) = branches
            return dict(inputs=branches[only], data_samples=data['data_samples'][only])
        for name in (self.student, self.teacher):
            if name not in branches:
                raise ValueError(
                    f'TwoViews: picture {index} has no branch {name!r}, '
                    f"{near_names(name, branches)}: say student='...' and teacher='...'"
                )
        sample, other = (data['data_samples'][name] for name in (self.student, self.teacher))
        inputs, seen = branches[self.student], branches[self.teacher]
        _check_places(inputs, seen, sample, other)
        sample.set_field(seen, OTHER)
        return dict(inputs=inputs, data_samples=sample)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):  # of one that is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


def _check_places(inputs: Tensor, seen: Tensor, sample: Any, other: Any) -> None:
    """Make sure that a pixel of one view is the same place in the other."""
    for name in GEOMETRY:
        ours, theirs = (one.metainfo.get(name) for one in (sample, other))
        if _differ(ours, theirs):
            raise ValueError(
                f'TwoViews: the views of a picture show other places: {name} is {ours} for the '
                f'student and {theirs} for its teachers; put what moves pixels (Resize, '
                'RandomCrop, RandomFlip) in front of MultiBranch, and into its branches what '
                'changes their colours alone'
            )
    if inputs.shape != seen.shape:
        raise ValueError(
            f'TwoViews: the views of a picture have shapes {tuple(inputs.shape)} and '
            f'{tuple(seen.shape)}: put what moves pixels in front of MultiBranch'
        )


def _differ(ours: Any, theirs: Any) -> bool:
    if ours is None or theirs is None:
        return False
    return bool(np.any(np.asarray(ours) != np.asarray(theirs)))


def as_teachers_see(student: Any, inputs: Any, samples: Any) -> Any:
    """A batch with the views in it that teachers are given, where pictures have two.

    Args:
        student: The student, by whose preprocessing the batch was made.
        inputs: The batch as the student has it, ``(N, C, H, W)``.
        samples: Its samples.

    Returns:
        The same where no picture has a second view.

    Raises:
        ValueError: If the student's preprocessing changes pictures by chance, as a batch.
    """
    if not isinstance(samples, Sequence) or not any(OTHER in one for one in samples):
        return inputs
    preprocessor = student.data_preprocessor
    if getattr(preprocessor, 'batch_augments', None):
        raise ValueError(
            'a second view of a picture (kd_dense.TwoViews) cannot follow batch_augments of the '
            'data_preprocessor, which change pictures behind the pipeline: take them out'
        )
    found = inputs.clone()  # what is padding, and pictures with one view, stay
    for index, sample in enumerate(samples):
        if OTHER not in sample:
            continue
        view = sample.get(OTHER)
        height, width = view.shape[-2:]
        one = preprocessor(dict(inputs=[view], data_samples=[type(sample)()]), False)['inputs']
        found[index, :, :height, :width] = one[0, :, :height, :width].to(found.dtype)
    return found

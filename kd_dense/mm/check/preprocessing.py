"""The check of the preprocessing: whether both sides see pixels as they were trained to."""

from __future__ import annotations

from typing import Any

import torch

from kd_dense.mm.batches.channels import input_channels
from kd_dense.mm.check.finding import OK, WARNING, Subject

__all__ = ['check_preprocessing']

IMAGENET = torch.tensor([123.675, 116.28, 103.53])  # red, green, blue


def check_preprocessing(subject: Subject) -> None:
    """Say what happens to the pixels on both sides, and what of it looks like a mistake."""
    teachers = subject.teachers
    models = {'student': subject.model, **{who: one.model for who, one in teachers.items()}}
    sides = {whose: model.data_preprocessor for whose, model in models.items()}
    told = {
        whose: f'{_normalisation(sides[whose])}, {_channels(sides[whose], input_channels(model))}'
        for whose, model in models.items()
    }
    for whose, guest in zip(teachers, subject.model.kd_plan.running.values(), strict=True):
        if guest.preprocess.identical:
            sides_ = 'on both sides' if len(teachers) == 1 else f'for the {whose}'
            subject.say(OK, f'the same {sides_}: {told["student"]}')
        else:
            subject.say(
                OK,
                f'student: {told["student"]}; {whose}: {told[whose]}: each batch is converted '
                'for the teacher',
            )
    for whose, side in sides.items():
        problem = _suspicious(side)
        if problem:
            subject.say(
                WARNING,
                f'{whose}: {problem}',
                f'compare data_preprocessor with the config that the {whose} was trained with',
            )


def _normalises(preprocessor: Any) -> bool:
    return bool(getattr(preprocessor, '_enable_normalize', False))


def _swaps(preprocessor: Any) -> bool:
    """Whether it swaps the channels, which come as blue, green, red."""
    own = getattr(preprocessor, 'channel_conversion', False)  # mmseg's name; mmdet's has a _
    return bool(getattr(preprocessor, '_channel_conversion', own))


def _normalisation(preprocessor: Any) -> str:
    """In words what a data preprocessor does to the pixels."""
    text = 'pixels as they are'
    if _normalises(preprocessor):
        mean, std = (
            ' '.join(f'{x:g}' for x in getattr(preprocessor, name).flatten().tolist())
            for name in ('mean', 'std')
        )
        text = f'mean {mean}, std {std}'
    return text


def _channels(preprocessor: Any, count: int) -> str:
    """In words which channels come out of it."""
    if count != len(IMAGENET):
        return 'grey' if count == 1 else f'{count} channels'
    order = 'swapped' if _swaps(preprocessor) else 'in the order of the files (BGR)'
    return f'channels {order}'


def _suspicious(preprocessor: Any) -> str:
    """What looks like a mistake in a normalisation, if anything."""
    if not _normalises(preprocessor):
        return ''
    mean, std = (getattr(preprocessor, name).flatten().cpu() for name in ('mean', 'std'))
    if (mean > 1).all() and (mean < 0.75 * std).all():
        return 'mean and std look exchanged'
    swaps = _swaps(preprocessor)
    expected = IMAGENET if swaps else IMAGENET.flip(0)
    if mean.shape == IMAGENET.shape and (mean - expected.flip(0)).abs().max() < 1:
        order = ('red, green, blue', 'blue, green, red')[:: 1 if swaps else -1]
        return f'the pixels come as {order[0]}, and the mean looks like that of {order[1]}'
    return ''

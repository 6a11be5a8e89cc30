"""A recipe made ready to be measured: without data, without downloads, at one size."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

from mmengine.config import Config

from kd_dense.mm.configs import RequestError, distils, type_name
from kd_dense.mm.teachers.several import each_teacher, untrained

__all__ = ['DETECTION_SIZE', 'Recipe', 'prepared']

DETECTION_SIZE = (800, 1216)


class Recipe(NamedTuple):
    """A config that distils, and height and width of the pictures to measure it on."""

    config: Config
    size: tuple[int, int]


def prepared(
    config: Config, size: tuple[int, int] | None = None, pretrained: bool = False
) -> Recipe:
    """Make a recipe ready to be built without data, and without downloads.

    Args:
        config: A recipe. It is not changed.
        size: Height and width of the pictures; by default the crops of the config, or, of a
            detector, ``DETECTION_SIZE``.
        pretrained: Whether the teacher keeps its checkpoint.

    Raises:
        RequestError: If the config distils nothing, or pads pictures to another size.
    """
    if not distils(config):
        raise RequestError(
            f'{config.filename} distils nothing: expected a model of type kd_dense.Distilled, as '
            f'the recipes in configs/ have, got {type_name(config.get("model")) or None}'
        )
    config = deepcopy(config)
    config.model.teacher = each_teacher(
        config.model.teacher, lambda spec: spec if pretrained else untrained(spec)
    )
    student = config.model.student
    student.setdefault('data_preprocessor', config.get('data_preprocessor'))
    preprocessor = student.data_preprocessor
    height, width = size or preprocessor.get('size') or DETECTION_SIZE
    if preprocessor.get('size'):
        preprocessor.size = (height, width)
    preprocessor.pop('batch_augments', None)  # they would change the size
    divisor = preprocessor.get('pad_size_divisor') or preprocessor.get('size_divisor') or 1
    if height % divisor or width % divisor:
        raise RequestError(
            f'{config.filename} pads pictures to multiples of {divisor}: expected such a size, '
            f'got {height} {width}'
        )
    return Recipe(config, (height, width))

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest

from kd_dense.mm.arguments import check_arguments

if TYPE_CHECKING:
    from nowhere import Unknown


class Thing:
    def __init__(
        self,
        size: int,
        weight: float = 1.0,
        kind: Literal['a', 'b'] | None = 'a',
        on: bool = True,
        name: str = '',
        parts: list[int] | None = None,
        anything=None,
    ) -> None:
        pass


@pytest.mark.parametrize(
    'given',
    [
        dict(size=1),
        dict(size=np.int64(1), weight=2),
        dict(size=1, weight=np.float32(2), kind=None, on=False, name='x'),
        dict(size=1, parts=[1], anything=object()),
    ],
)
def test_accepts(given):
    check_arguments('Thing', Thing, given)


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (dict(), "Thing lacks the argument 'size'"),
        (dict(size=1.5), r'expects size as int, got 1\.5'),
        (dict(size=True), 'expects size as int, got True'),
        (dict(size=1, weight='3'), "expects weight as float, got '3'"),
        (dict(size=1, weight=None), 'expects weight as float, got None'),
        (dict(size=1, kind='c'), "expects kind as 'a' or 'b' or None, got 'c'"),
        (dict(size=1, kind=[]), r"expects kind as 'a' or 'b' or None, got \[\]"),
        (dict(size=1, on=1), 'expects on as bool, got 1'),
        (dict(size=1, name=3), 'expects name as str, got 3'),
        (dict(size=1, wieght=3), "no argument 'wieght', did you mean 'weight'"),
    ],
)
def test_refuses(given, message):
    with pytest.raises(ValueError, match=message):
        check_arguments('Thing', Thing, given)


def test_what_cannot_be_known_is_left_to_the_class():
    def untold(x: Unknown, **others): ...

    check_arguments('untold', untold, dict(x=1, y=2))

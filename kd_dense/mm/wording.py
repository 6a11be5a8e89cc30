"""How messages say what is long or large."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ['duration', 'listed', 'spelt']

SHOWN = 5


def spelt(shapes: Sequence[Sequence[int]]) -> str:
    """Shapes for a message: all, or the first five and their number.

    Examples:
        >>> spelt([(2, 64, 8, 8), (2, 64, 4, 4)])
        '(2, 64, 8, 8), (2, 64, 4, 4)'
        >>> spelt([(1, 2)] * 6)
        '(1, 2), (1, 2), (1, 2), (1, 2), (1, 2), ... (6 maps)'
    """
    shown = ', '.join(str(tuple(shape)) for shape in shapes[:SHOWN])
    return f'{shown}, ... ({len(shapes)} maps)' if len(shapes) > SHOWN else shown


def listed(names: Sequence[str]) -> str:
    """Names for a message: all, or the first five and how many more there are.

    Examples:
        >>> listed(['neck', 'head'])
        'neck, head'
        >>> listed('abcdefgh')
        'a, b, c, d, e, and 3 more'
    """
    shown = ', '.join(names[:SHOWN])
    return f'{shown}, and {len(names) - SHOWN} more' if len(names) > SHOWN else shown


def duration(seconds: float) -> str:
    """A time in hours, or in minutes if it is shorter than one.

    Examples:
        >>> duration(5400)
        '1.5 hours'
        >>> duration(90)
        '1.5 minutes'
    """
    hours = seconds / 3600
    return f'{hours:.1f} hours' if hours >= 1 else f'{max(seconds / 60, 0.1):.1f} minutes'

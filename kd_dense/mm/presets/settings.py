"""What the settings of a method are made of, and the rule that scales their weights.

``docs/presets.md`` explains the roles and the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kd_dense.mm.presets.roles import IMAGE, Map

__all__ = ['Layout', 'Method', 'Preset', 'Sums', 'for_segmenters', 'scaled']

# For each weight of a loss, what the loss sums over a map: the weight is divided by it.
Sums = Mapping[str, Callable[[Map], float]]


# What lies in front of the class logits of PSPNet, DeepLabV3 and others.
BOTTLENECK = 'decode_head.bottleneck'


class Layout(NamedTuple):
    """The maps that published weights belong to: their width and their strides in pixels.

    Of a head, these are its class logits, which are as wide as there are classes.
    """

    channels: int
    strides: tuple[int, ...]


P3_TO_P7 = Layout(256, (8, 16, 32, 64, 128))
P3_TO_P5 = Layout(256, (8, 16, 32))
P2_TO_P5 = Layout(256, (4, 8, 16, 32))
COCO = Layout(80, (8, 16, 32, 64, 128))
DOTA = Layout(15, (8, 16, 32, 64, 128))


class Preset(NamedTuple):
    """Settings of a method for a family of models; or what was chosen for two models.

    A tap in backbone or neck stands for those of its maps that both models have at the same
    strides. The tap ``'logits'`` stands for the class logits of a segmenter, wherever its head
    has them, and ``'aux_logits'`` for those of its auxiliary head.

    Attributes:
        terms: What to distil, as in a config. A term with ``optional=True`` is left out where one
            of the models lacks its tap, or their classes or heads do not go together.
        inherit: Parts to inherit, where both models are of one class and something fits.
        source: Where the settings come from.
        models: Which students they are for, in words.
        part: A part that the student must have, as in ``named_modules()``; none, if empty.
        kinds: Classes that this part is one of; any, if empty.
        alone: Whether the student is its own teacher, ``teacher=None``.
        layout: Of the maps that the weights belong to; they are scaled to other layouts.
        elsewhere: Whether they have been, or were published for something else than maps.
    """

    terms: dict[str, Any]
    inherit: tuple[str, ...]
    source: str
    models: str = ''
    part: str = ''
    kinds: tuple[str, ...] = ()
    alone: bool = False
    layout: Layout | None = None
    elsewhere: bool = False

    def __str__(self) -> str:
        lines = []
        for name, fields in self.terms.items():
            loss = dict(fields['loss'])
            arguments = ', '.join(f'{k}={v!r}' for k, v in loss.items() if k != 'type')
            tap = fields['tap']
            if not isinstance(tap, str):
                tap = f'{tap["student"]} (teacher: {tap["teacher"]})'
            rest = ''.join(
                f', {k}={v!r}' for k, v in fields.items() if k not in ('tap', 'loss', 'optional')
            )
            lines.append(f'  {name}: {loss["type"]}({arguments}) on {tap}{rest}')
        parts = ', '.join(self.inherit) or 'nothing'
        return '\n'.join([f'{self.models}:', *lines, f'  inherits {parts}', f'  {self.source}'])


def for_segmenters(make: Callable[[str], dict[str, Any]], source: str) -> tuple[Preset, Preset]:
    """Settings on the features in front of the class logits, or on the backbone's last map.

    Args:
        make: The terms on a tap.
        source: Where the first settings come from.
    """
    return (
        Preset(
            models='segmenters with a bottleneck',
            part=BOTTLENECK,
            terms=make(BOTTLENECK),
            inherit=(),
            source=source,
        ),
        Preset(
            models='other segmenters',
            part='decode_head',
            terms=make('backbone[-1]'),
            inherit=(),
            source=f"{source}; on the backbone's last map",
        ),
    )


class Method(NamedTuple):
    """A method: what it is, in a few words, and its settings; the first that fit are taken."""

    summary: str
    presets: tuple[Preset, ...]


def scaled(
    loss: Mapping[str, Any], maps: Sequence[Map], layout: Layout, sums: Sums
) -> dict[str, Any]:
    """The config of a loss, with its weights carried over from one layout to another.

    What a loss sums over is counted in both, so that a term of maps like those of the published
    model keeps its size. A weight that would change by less than 5 % stays as it is.

    Args:
        loss: With the weights that belong to ``layout``.
        maps: What is compared.
        layout: What the weights belong to.
        sums: Of each weight to scale, what the loss sums over a map.

    Examples:
        >>> three_levels = [Map(256, IMAGE / stride**2) for stride in (8, 16, 32)]
        >>> cwd = dict(type='CWDLoss', weight=10.0)
        >>> scaled(cwd, three_levels, P3_TO_P7, dict(weight=lambda m: 1))
        {'type': 'CWDLoss', 'weight': 16.7}
    """
    published = [Map(layout.channels, IMAGE / stride**2) for stride in layout.strides]
    config = dict(loss)
    for weight, count in sums.items():
        factor = sum(map(count, published)) / sum(map(count, maps))
        if abs(factor - 1) > 0.05:
            config[weight] = float(f'{loss[weight] * factor:.3g}')
    return config

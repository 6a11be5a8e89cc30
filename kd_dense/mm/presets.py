"""Published settings by method and family of models."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from kd_dense.taps import near_names

__all__ = ['PRESETS', 'Preset', 'choose_preset']


class Preset(NamedTuple):
    """The settings of a method for the models that have a certain part."""

    part: str
    terms: dict[str, Any]
    inherit: tuple[str, ...]
    source: str


def _cwd(tap: str, **loss: float) -> dict[str, Any]:
    return {'cwd': {'tap': tap, 'loss': {'type': 'CWDLoss', **loss}}}


# The first that fits both models is taken.
PRESETS = {
    'cwd': (
        Preset(
            part='decode_head.conv_seg',
            terms=_cwd('decode_head.conv_seg', weight=3.0, temperature=4.0),
            inherit=(),
            source='authors, exp_cwd.sh: PSPNet on Cityscapes, class logits',
        ),
        Preset(
            part='bbox_head.gfl_cls',
            terms=_cwd('bbox_head.gfl_cls', weight=5.0, temperature=1.0),
            inherit=(),
            source='MMRazor 0.x: GFL on COCO, class logits',
        ),
        Preset(
            part='neck',
            terms=_cwd('neck', weight=10.0, temperature=1.0),
            inherit=(),
            source='MMRazor 1.x: Faster R-CNN and RetinaNet on COCO, pyramid features',
        ),
    ),
}


def choose_preset(name: str, student: nn.Module, teacher: nn.Module) -> Preset:
    """Find the settings of a method that fit a student and its teacher.

    Args:
        name: Name of the method, as ``'cwd'``.
        student: The student.
        teacher: The teacher.

    Returns:
        The first of ``PRESETS[name]`` whose part both models have.

    Raises:
        ValueError: If there is no such method, or none of its settings fits.
    """
    if name not in PRESETS:
        raise ValueError(f'there is no preset {name!r}, {near_names(name, PRESETS)}')
    ours, theirs = (dict(model.named_modules()) for model in (student, teacher))
    for preset in PRESETS[name]:
        if preset.part in ours and preset.part in theirs:
            return preset
    parts = ', '.join(preset.part for preset in PRESETS[name])
    raise ValueError(
        f'preset {name!r} has settings for models with {parts}; {type(student).__name__} and '
        f'{type(teacher).__name__} do not share one of these: say `terms` instead'
    )

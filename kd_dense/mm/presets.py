"""Published settings by method and family of models."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from kd_dense.mm.inherit import fits
from kd_dense.taps import near_names

__all__ = ['PRESETS', 'Preset', 'choose_preset']


class Preset(NamedTuple):
    """The settings of a method for the models that have a certain part.

    Attributes:
        part: The part, as in ``named_modules()``.
        terms: What to distil.
        inherit: Parts to inherit, as far as both models have them and something of them fits.
        source: Where the settings come from.
        kinds: Classes that the student's part is one of; any, if empty.
        same_class: Whether student and teacher must be models of one class.
    """

    part: str
    terms: dict[str, Any]
    inherit: tuple[str, ...]
    source: str
    kinds: tuple[str, ...] = ()
    same_class: bool = False


def _cwd(tap: str, **loss: float) -> dict[str, Any]:
    return {'cwd': {'tap': tap, 'loss': {'type': 'CWDLoss', **loss}}}


def _fgd(tap: str, *weights: float, temperature: float = 0.5) -> dict[str, Any]:
    names = ('foreground', 'background', 'attention', 'relation')
    loss = dict(type='FGDLoss', temperature=temperature, **dict(zip(names, weights, strict=True)))
    return {'fgd': {'tap': tap, 'loss': loss}}


def _skd(feature: str) -> dict[str, Any]:
    logits = 'decode_head.conv_seg'
    return {
        'pixel': {'tap': logits, 'loss': {'type': 'PixelWiseLoss', 'weight': 10.0}},
        'pair': {'tap': feature, 'loss': {'type': 'PairWiseLoss', 'weight': 0.5}},
        'holistic': {'tap': logits, 'loss': {'type': 'HolisticLoss', 'weight': 0.1}},
    }


def _ld(**loss: Any) -> dict[str, Any]:
    return {'ld': {'tap': 'bbox_head', 'loss': {'type': 'LDLoss', **loss}}}


def _intrakd(feature: str) -> dict[str, Any]:
    pixels = {'type': 'CWDLoss', 'norm': 'spatial'}
    return {
        'affinity': {'tap': feature, 'loss': {'type': 'IntRALoss'}},
        'attention': {'tap': feature, 'loss': {'type': 'AttentionMapLoss'}},
        'pixels': {'tap': 'decode_head.conv_seg', 'loss': pixels},
    }


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
    'skd': (
        Preset(
            part='decode_head.bottleneck',
            terms=_skd('decode_head.bottleneck'),
            inherit=(),
            source='authors, run_train_val.sh: PSPNet on Cityscapes',
        ),
        Preset(
            part='decode_head.conv_seg',
            terms=_skd('backbone[-1]'),
            inherit=(),
            source="authors, run_train_val.sh; the pair-wise part on the backbone's last map",
        ),
        Preset(
            part='neck',
            terms={'pair': {'tap': 'neck', 'loss': {'type': 'PairWiseLoss', 'weight': 0.5}}},
            inherit=(),
            source='the pair-wise part alone, with the weight for segmentation',
        ),
    ),
    'fgd': (
        Preset(
            part='neck.out_convs',
            terms=_fgd('neck', 2e-3, 1e-3, 1e-3, 1e-5),
            inherit=(),
            source='authors: YOLOX-m from YOLOX-l',
        ),
        Preset(
            part='bbox_head',
            kinds=('RepPointsHead',),
            terms=_fgd('neck.fpn_convs.*.conv', 1.6e-3, 8e-4, 8e-4, 8e-6),
            inherit=('neck', 'bbox_head'),
            source='authors: RepPoints',
        ),
        Preset(
            part='bbox_head',
            kinds=('FCOSHead',),
            terms=_fgd('neck', 1.6e-3, 8e-4, 8e-4, 8e-6, temperature=0.8),
            inherit=('neck', 'bbox_head'),
            source='authors: FCOS',
        ),
        Preset(
            part='mask_head',
            kinds=('SOLOHead',),
            terms=_fgd('neck[:4]', 1e-3, 5e-4, 5e-4, 5e-6),
            inherit=('neck', 'mask_head'),
            source='authors: SOLO',
        ),
        Preset(
            part='roi_head',
            same_class=True,
            terms=_fgd('neck[:4]', 5e-5, 2.5e-5, 5e-5, 5e-7),
            inherit=('neck', 'rpn_head', 'roi_head'),
            source='authors: Faster R-CNN from Faster R-CNN',
        ),
        Preset(
            part='roi_head',
            terms=_fgd('neck[:4]', 5e-5, 2.5e-5, 5e-5, 5e-7),
            inherit=(),
            source='authors: Faster R-CNN and Mask R-CNN from Cascade Mask R-CNN',
        ),
        Preset(
            part='neck',
            terms=_fgd('neck', 1e-3, 5e-4, 5e-4, 5e-6),
            inherit=('neck', 'bbox_head'),
            source='authors: RetinaNet and GFL',
        ),
    ),
    'ld': (
        Preset(
            part='bbox_head',
            kinds=('GFLHead',),
            terms=_ld(),
            inherit=(),
            source='authors: GFL, classes, main region and valuable localization region',
        ),
        Preset(
            part='bbox_head',
            kinds=('DistributionATSSHead',),
            terms=_ld(vlr_weight=0.0375, vlr_factor=4.0),
            inherit=(),
            source='authors: ATSS',
        ),
        Preset(
            part='bbox_head',
            kinds=('DistributionFCOSHead',),
            terms=_ld(region='inside', vlr_weight=0.0625, vlr_factor=4.0),
            inherit=(),
            source='authors: FCOS',
        ),
        Preset(
            part='bbox_head',
            kinds=('DistributionRetinaHead',),
            terms=_ld(
                main_weight=5.0,
                joint_sides=True,
                vlr_weight=0.15,
                vlr_factor=4.0,
                vlr_on_positives=False,
                kd_temperature=8.0,
            ),
            inherit=(),
            source='authors: RetinaNet',
        ),
    ),
    'intrakd': (
        Preset(
            part='decode_head.bottleneck',
            terms=_intrakd('decode_head.bottleneck'),
            inherit=(),
            source="ours: the authors' settings are not public",
        ),
        Preset(
            part='decode_head.conv_seg',
            terms=_intrakd('backbone[-1]'),
            inherit=(),
            source="ours: the authors' settings are not public",
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
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f'there is no preset {name!r}, {near_names(str(name), PRESETS)}')
    ours, theirs = (dict(model.named_modules()) for model in (student, teacher))
    for preset in PRESETS[name]:
        if preset.same_class and type(student) is not type(teacher):
            continue
        if preset.part in ours and preset.part in theirs and _is_one_of(ours, preset):
            fitting = (p for p in preset.inherit if p in ours and fits(student, teacher, p))
            return preset._replace(inherit=tuple(fitting))
    parts = ', '.join(
        dict.fromkeys(
            preset.part + (f' ({" or ".join(preset.kinds)})' if preset.kinds else '')
            for preset in PRESETS[name]
        )
    )
    raise ValueError(
        f'preset {name!r} has settings for models with {parts}; {type(student).__name__} and '
        f'{type(teacher).__name__} do not share one of these: say `terms` instead'
    )


def _is_one_of(modules: dict[str, nn.Module], preset: Preset) -> bool:
    bases = {cls.__name__ for cls in type(modules[preset.part]).__mro__}
    return not preset.kinds or not bases.isdisjoint(preset.kinds)

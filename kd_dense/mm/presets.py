"""Which settings a method gets for a family of models: published ones, or chosen by role.

``docs/presets.md`` explains the table, the roles and the rule that scales weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from kd_dense.mm.roles import IMAGE, Map, Pair
from kd_dense.taps import near_names

__all__ = ['PRESETS', 'Layout', 'Preset', 'choose_preset', 'scaled']


class Layout(NamedTuple):
    """The maps that published weights belong to: their width and their strides in pixels.

    Of a head, these are its class logits, which are as wide as there are classes.
    """

    channels: int
    strides: tuple[int, ...]


class Preset(NamedTuple):
    """Settings of a method for a family of models; or what was chosen for two models.

    A tap in backbone or neck stands for those of its maps that both models have at the same
    strides. The tap ``'logits'`` stands for the class logits of a segmenter, wherever its head
    has them.

    Attributes:
        terms: What to distil.
        inherit: Parts to inherit, where both models are of one class and something fits.
        source: Where the settings come from.
        models: Which students they are for, in words.
        part: A part that the student must have, as in ``named_modules()``; none, if empty.
        kinds: Classes that this part is one of; any, if empty.
        layout: Of the maps that the weights belong to; they are scaled to other layouts.
    """

    terms: dict[str, Any]
    inherit: tuple[str, ...]
    source: str
    models: str = ''
    part: str = ''
    kinds: tuple[str, ...] = ()
    layout: Layout | None = None

    def __str__(self) -> str:
        lines = []
        for name, fields in self.terms.items():
            loss = dict(fields['loss'])
            arguments = ', '.join(f'{k}={v!r}' for k, v in loss.items() if k != 'type')
            tap = fields['tap']
            if not isinstance(tap, str):
                tap = f'{tap["student"]} (teacher: {tap["teacher"]})'
            lines.append(f'  {name}: {loss["type"]}({arguments}) on {tap}')
        parts = ', '.join(self.inherit) or 'nothing'
        return '\n'.join([f'{self.models}:', *lines, f'  inherits {parts}', f'  {self.source}'])


P3_TO_P7 = Layout(256, (8, 16, 32, 64, 128))
P3_TO_P5 = Layout(256, (8, 16, 32))
P2_TO_P5 = Layout(256, (4, 8, 16, 32))
COCO = Layout(80, (8, 16, 32, 64, 128))

# What masks are made of in SAN, whose image encoder is frozen.
SAN_PIXELS = 'decode_head.side_adapter_network.mask_decoder.pix_mlp'


def _cwd(tap: str, **loss: float) -> dict[str, Any]:
    return {'cwd': {'tap': tap, 'loss': {'type': 'CWDLoss', **loss}}}


def _fgd(tap: str, *weights: float, temperature: float = 0.5) -> dict[str, Any]:
    names = ('foreground', 'background', 'attention', 'relation')
    loss = dict(type='FGDLoss', temperature=temperature, **dict(zip(names, weights, strict=True)))
    return {'fgd': {'tap': tap, 'loss': loss}}


def _pair(tap: str) -> dict[str, Any]:
    return {'pair': {'tap': tap, 'loss': {'type': 'PairWiseLoss', 'weight': 0.5}}}


def _skd(feature: str) -> dict[str, Any]:
    return {
        'pixel': {'tap': 'logits', 'loss': {'type': 'PixelWiseLoss', 'weight': 10.0}},
        **_pair(feature),
        'holistic': {'tap': 'logits', 'loss': {'type': 'HolisticLoss', 'weight': 0.1}},
    }


def _ld(**loss: Any) -> dict[str, Any]:
    return {'ld': {'tap': 'bbox_head', 'loss': {'type': 'LDLoss', **loss, 'kd_weight': 10.0}}}


def _intrakd(feature: str) -> dict[str, Any]:
    pixels = {'type': 'CWDLoss', 'norm': 'spatial'}
    return {
        'affinity': {'tap': feature, 'loss': {'type': 'IntRALoss'}},
        'attention': {'tap': feature, 'loss': {'type': 'AttentionMapLoss'}},
        'pixels': {'tap': 'logits', 'loss': pixels},
    }


# The first that fits both models is taken.
PRESETS = {
    'cwd': (
        Preset(
            models='segmenters with class logits',
            terms=_cwd('logits', weight=3.0, temperature=4.0),
            inherit=(),
            source='authors, exp_cwd.sh: PSPNet on Cityscapes, class logits',
        ),
        Preset(
            models='SAN',
            part=SAN_PIXELS,
            terms=_cwd(f'{SAN_PIXELS}[-1]', weight=35.0, temperature=4.0),
            inherit=(),
            source='weights of the authors for features of PSPNet; tap by role',
        ),
        Preset(
            models='other segmenters',
            part='decode_head',
            terms=_cwd('backbone[-1]', weight=35.0, temperature=4.0),
            inherit=(),
            source='weights of the authors for features of PSPNet; tap by role',
        ),
        Preset(
            models='GFL',
            part='bbox_head.gfl_cls',
            terms=_cwd('bbox_head.gfl_cls', weight=5.0, temperature=1.0),
            inherit=(),
            source='MMRazor 0.x: GFL on COCO, class logits',
        ),
        Preset(
            models='detectors with a neck',
            terms=_cwd('neck', weight=10.0, temperature=1.0),
            inherit=(),
            source='MMRazor 1.x: Faster R-CNN and RetinaNet on COCO, pyramid features',
            layout=P3_TO_P7,
        ),
        Preset(
            models='detectors without a neck',
            terms=_cwd('backbone', weight=10.0, temperature=1.0),
            inherit=(),
            source='weights of MMRazor 1.x for pyramid features; tap by role',
            layout=P3_TO_P7,
        ),
    ),
    'skd': (
        Preset(
            models='segmenters with class logits and a bottleneck',
            part='decode_head.bottleneck',
            terms=_skd('decode_head.bottleneck'),
            inherit=(),
            source='authors, run_train_val.sh: PSPNet on Cityscapes',
        ),
        Preset(
            models='other segmenters with class logits',
            terms=_skd('backbone[-1]'),
            inherit=(),
            source="authors, run_train_val.sh; the pair-wise part on the backbone's last map",
        ),
        Preset(
            models='detectors with a neck',
            terms=_pair('neck'),
            inherit=(),
            source='the pair-wise part alone, with the weight for segmentation',
            layout=P3_TO_P7,
        ),
    ),
    'fgd': (
        Preset(
            models='YOLOX, RTMDet',
            part='neck.out_convs',
            terms=_fgd('neck', 2e-3, 1e-3, 1e-3, 1e-5),
            inherit=(),
            source='authors: YOLOX-m from YOLOX-l',
            layout=P3_TO_P5,
        ),
        Preset(
            models='RepPoints',
            part='bbox_head',
            kinds=('RepPointsHead',),
            terms=_fgd('neck.fpn_convs.*.conv', 1.6e-3, 8e-4, 8e-4, 8e-6),
            inherit=('neck', 'bbox_head'),
            source='authors: RepPoints',
            layout=P3_TO_P7,
        ),
        Preset(
            models='FCOS and detectors derived from it',
            part='bbox_head',
            kinds=('FCOSHead',),
            terms=_fgd('neck', 1.6e-3, 8e-4, 8e-4, 8e-6, temperature=0.8),
            inherit=('neck', 'bbox_head'),
            source='authors: FCOS',
            layout=P3_TO_P7,
        ),
        Preset(
            models='SOLO, SOLOv2',
            part='mask_head',
            kinds=('SOLOHead',),
            terms=_fgd('neck[:4]', 1e-3, 5e-4, 5e-4, 5e-6),
            inherit=('neck', 'mask_head'),
            source='authors: SOLO',
            layout=P2_TO_P5,
        ),
        Preset(
            models='detectors with region proposals',
            part='roi_head',
            terms=_fgd('neck[:4]', 5e-5, 2.5e-5, 5e-5, 5e-7),
            inherit=('neck', 'rpn_head', 'roi_head'),
            source='authors: Faster R-CNN and Mask R-CNN',
            layout=P2_TO_P5,
        ),
        Preset(
            models='other detectors with a neck',
            terms=_fgd('neck', 1e-3, 5e-4, 5e-4, 5e-6),
            inherit=('neck', 'bbox_head'),
            source='authors: RetinaNet and GFL',
            layout=P3_TO_P7,
        ),
    ),
    'ld': (
        Preset(
            models='GFL',
            part='bbox_head',
            kinds=('GFLHead',),
            terms=_ld(),
            inherit=(),
            source='authors: GFL, classes, main region and valuable localization region',
            layout=COCO,
        ),
        Preset(
            models='ATSS with DistributionATSSHead',
            part='bbox_head',
            kinds=('DistributionATSSHead',),
            terms=_ld(vlr_weight=0.0375, vlr_factor=4.0),
            inherit=(),
            source='authors: ATSS',
            layout=COCO,
        ),
        Preset(
            models='FCOS with DistributionFCOSHead',
            part='bbox_head',
            kinds=('DistributionFCOSHead',),
            terms=_ld(region='inside', vlr_weight=0.0625, vlr_factor=4.0),
            inherit=(),
            source='authors: FCOS',
            layout=COCO,
        ),
        Preset(
            models='RetinaNet with DistributionRetinaHead',
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
            layout=COCO,
        ),
    ),
    'intrakd': (
        Preset(
            models='segmenters with class logits and a bottleneck',
            part='decode_head.bottleneck',
            terms=_intrakd('decode_head.bottleneck'),
            inherit=(),
            source="ours: the authors' settings are not public",
        ),
        Preset(
            models='other segmenters with class logits',
            terms=_intrakd('backbone[-1]'),
            inherit=(),
            source="ours: the authors' settings are not public",
        ),
    ),
}


def choose_preset(names: str | Sequence[str], student: nn.Module, teacher: nn.Module) -> Preset:
    """Find settings of one or several methods that fit a student and its teacher.

    Args:
        names: Name of a method, as ``'cwd'``, or names, as ``['fgd', 'cwd']``.
        student: The student.
        teacher: The teacher.

    Returns:
        For each method the first of ``PRESETS[name]`` that fits both models, with the taps of
        these models and with weights for their maps. Of several methods, all terms, and all
        parts that any of them inherits; a term whose name is taken gets that of its method in
        front.

    Raises:
        ValueError: If there is no such method, a name comes twice, or none of the settings of a
            method fits.
        RuntimeError: If the models run at no size that could be tried.
    """
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, Sequence) or not names:
        raise ValueError(f"expected preset as a name or a list of names, as 'cwd', got {names!r}")
    for name in names:
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f'there is no preset {name!r}, {near_names(str(name), PRESETS)}')
    if len(set(names)) < len(names):
        raise ValueError(f'preset: a name comes twice in {list(names)}')
    pair = Pair(student, teacher)
    chosen = {name: _choose(name, pair) for name in names}
    terms: dict[str, Any] = {}
    for name, preset in chosen.items():
        for term, fields in preset.terms.items():
            terms[f'{name}_{term}' if term in terms else term] = fields
    return Preset(
        terms=terms,
        inherit=tuple(dict.fromkeys(part for p in chosen.values() for part in p.inherit)),
        source='; '.join(f'{name}: {preset.source}' for name, preset in chosen.items()),
        models=f'{type(student).__name__} from {type(teacher).__name__}',
    )


def _choose(name: str, pair: Pair) -> Preset:
    for preset in PRESETS[name]:
        terms = _fitted(preset, pair) if pair.student.has(preset.part, preset.kinds) else None
        if terms is not None:
            same = all(fields['loss'] == preset.terms[t]['loss'] for t, fields in terms.items())
            return preset._replace(
                terms=terms,
                inherit=pair.inherited(preset.inherit),
                source=preset.source + ('' if same else ' (weights scaled to these maps)'),
            )
    known = ', '.join(dict.fromkeys(preset.models for preset in PRESETS[name]))
    student, teacher = (type(side.whole).__name__ for side in (pair.student, pair.teacher))
    raise ValueError(
        f'preset {name!r} has settings for {known}, and none of these fits a student {student} '
        f'with a teacher {teacher}: say `terms` instead (tools/list_taps.py lists what both have)'
    )


def _fitted(preset: Preset, pair: Pair) -> dict[str, Any] | None:
    """The terms of a preset for two models; None, if one of them lacks a place."""
    terms = {}
    for name, fields in preset.terms.items():
        found = pair.places(fields['tap'])
        if found is None:
            return None
        ours, theirs, maps = found
        tap = ours if ours == theirs else dict(student=ours, teacher=theirs)
        loss = dict(fields['loss'])
        if preset.layout is not None:
            loss = scaled(loss, maps, preset.layout)
        terms[name] = dict(tap=tap, loss=loss)
    return terms


# What the weights of a loss are divided by: the number that it sums over all maps.
SUMS: dict[str, dict[str, Callable[[Map], float]]] = {
    'CWDLoss': dict(weight=lambda m: 1),
    'PairWiseLoss': dict(weight=lambda m: 1),
    'FGDLoss': dict(
        foreground=lambda m: m.channels,
        background=lambda m: m.channels,
        attention=lambda m: m.positions + m.channels,
        relation=lambda m: m.positions * m.channels,
    ),
    # a sum over levels of divergences that are divided by the number of classes
    'LDLoss': dict(kd_weight=lambda m: 1 / m.channels),
}


def scaled(loss: Mapping[str, Any], maps: Sequence[Map], layout: Layout) -> dict[str, Any]:
    """The config of a loss, with its weights carried over from one layout to another.

    What a loss sums over is counted in both, so that a term of maps like those of the published
    model keeps its size. A weight that would change by less than 5 % stays as it is.

    Args:
        loss: With the weights that belong to ``layout``.
        maps: What is compared.
        layout: What the weights belong to.

    Examples:
        >>> three_levels = [Map(256, IMAGE / stride**2) for stride in (8, 16, 32)]
        >>> scaled(dict(type='CWDLoss', weight=10.0), three_levels, P3_TO_P7)
        {'type': 'CWDLoss', 'weight': 16.7}
    """
    published = [Map(layout.channels, IMAGE / stride**2) for stride in layout.strides]
    config = dict(loss)
    for weight, count in SUMS[loss['type']].items():
        factor = sum(map(count, published)) / sum(map(count, maps))
        if abs(factor - 1) > 0.05:
            config[weight] = float(f'{loss[weight] * factor:.3g}')
    return config

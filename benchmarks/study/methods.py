"""What the study compares: presets by their names, and what else was tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.study.cells import Data
from kd_dense.mm.presets.choose import METHODS as PRESETS

__all__ = ['METHODS', 'TRIED', 'distillation']

HEADS = ('neck', 'bbox_head')
FIELDS = ('share', 'schedule', 'adapter', 'cross_at')


def _term(tap: str, loss: str, weight: float = 1.0, **fields: Any) -> dict[str, Any]:
    """A term; what is no field of terms belongs to its loss."""
    own: dict[str, Any] = {k: fields.pop(k) for k in FIELDS if k in fields}
    return dict(tap=tap, loss=dict(type=loss, weight=weight, **fields), **own)


def _segmentation(**terms: Any) -> dict[str, Mapping[str, Any]]:
    return dict(segmentation=dict(terms=terms))


def _detection(**terms: Any) -> dict[str, Mapping[str, Any]]:
    return dict(detection=dict(terms=terms, inherit=HEADS))


def _on_head(loss: str, share: float = 1.0, **fields: Any) -> dict[str, Any]:
    return _term('bbox_head', loss, share=share, **fields)


def _last(tower: str) -> dict[str, str]:
    """Its last convolution, of the student and of the teacher, which has one more."""
    ours, theirs = (f'bbox_head.{tower}.{depth}' for depth in (0, 1))
    return dict(student=ours, teacher=theirs)


def _towers(loss: str, share: float) -> dict[str, Any]:
    term = _term('', loss, share=share)
    return dict(
        classes=dict(term, tap=_last('cls_convs')), boxes=dict(term, tap=_last('reg_convs'))
    )


def _within(share: float) -> dict[str, Any]:
    """The stages of a student, compared with each other from the start."""
    pairs = [(f'backbone[{at}]', f'backbone[{at + 1}]') for at in (-4, -3, -2)]
    term = _term('', 'SADLoss', share=share)
    return {
        f'sad{n}': dict(term, tap=dict(student=a, teacher=b)) for n, (a, b) in enumerate(pairs, 1)
    }


def _crosskd(share: float) -> dict[str, Any]:
    weights = dict(class_weight=1.0, box_weight=4.0)
    return _on_head('CrossKDLoss', share, cross_at=-1, boxes='distributions', **weights)


def _pgd(share: float) -> dict[str, Any]:
    common: dict[str, Any] = dict(attention=0.0008, temperature=0.8, topk=30, share=share)
    classes = _term('', 'PGDClassLoss', foreground=0.04, background=0.02, **common)
    boxes = _term('', 'PGDBoxLoss', foreground=0.064, **common)
    return dict(
        pgd_classes=dict(classes, tap=_last('cls_convs')),
        pgd_boxes=dict(boxes, tap=_last('reg_convs')),
    )


LAST = ('bbox_head.gfl_cls', 'bbox_head.gfl_reg')
FGD_TUNED = dict(temperature=4.0, foreground=3e-3, background=5e-3, attention=1e-2, relation=5e-6)
# as the preset has it there, but for its temperature
FGD_SCALED = dict(
    temperature=4.0, foreground=6.67e-3, background=3.33e-3, attention=5.34e-4, relation=2.03e-5
)
FGD_BY_SHARE = {**FGD_SCALED, 'temperature': 2.0, 'relative_temperature': True}
STAGES = _term('backbone', 'PKDLoss', 3.0)
CLASSES_TOGETHER: dict[str, Any] = dict(
    over='channels', rows='none', reduction='mean', values='places', temperature=4.0, pool=2
)
LAST_STAGE = 'backbone[-1]'
RKD = dict(distance_weight=25.0, angle_weight=50.0)
LOGITS = 'decode_head.conv_seg'
# Terms that are no preset, by a name of their own and the task that they are for.
TRIED: dict[str, dict[str, Mapping[str, Any]]] = {
    'pkd-stages': _segmentation(pkd=STAGES),
    'pkd-stages+dist': _segmentation(pkd=STAGES, dist=_term(LOGITS, 'DISTLoss')),
    'pkd-stages+cwd': _segmentation(
        pkd=STAGES, cwd=_term(LOGITS, 'CWDLoss', 3.0, temperature=2.0)
    ),
    'pkd-stages shared': _segmentation(pkd=_term('backbone', 'PKDLoss', share=1.0)),
    'pkd-stages+dist shared': _segmentation(
        pkd=_term('backbone', 'PKDLoss', share=1.0), dist=_term(LOGITS, 'DISTLoss', share=1.0)
    ),
    'pkd-stages+cwd shared': _segmentation(
        pkd=_term('backbone', 'PKDLoss', share=1.0),
        cwd=_term(LOGITS, 'CWDLoss', temperature=2.0, share=1.0),
    ),
    'reviewkd+cwd shared': _segmentation(
        review=_term('backbone', 'ReviewKDLoss', share=1.0),
        cwd=_term(LOGITS, 'CWDLoss', temperature=2.0, share=1.0),
    ),
    'reviewkd+pkd-stages+cwd shared': _segmentation(
        review=_term('backbone', 'ReviewKDLoss', share=0.5),
        pkd=_term('backbone', 'PKDLoss', share=0.5),
        cwd=_term(LOGITS, 'CWDLoss', temperature=2.0, share=1.0),
    ),
    'sad from the start shared': _segmentation(**_within(1.0 / 3)),
    # what the presets by share were before
    'sp at share 1': _segmentation(sp=_term(LAST_STAGE, 'SPLoss', share=1.0)),
    'rkd at share 1': _segmentation(rkd=_term(LAST_STAGE, 'RKDLoss', share=1.0, **RKD)),
    'pkt at share 1': _segmentation(pkt=_term(LAST_STAGE, 'PKTLoss', share=1.0)),
    'cckd at share 1': _segmentation(
        cckd=_term(LAST_STAGE, 'CCKDLoss', kernel='bilinear', share=1.0)
    ),
    'ickd at share 1': _segmentation(
        ickd=_term(
            LAST_STAGE,
            'ICKDLoss',
            windows=(4, 4),
            adapter=dict(type='Adapter', norm=True),
            share=1.0,
        )
    ),
    'aicsd at share 1': _segmentation(aicsd=_term(LOGITS, 'ICKDLoss', share=1.0)),
    'dsd at share 1': _segmentation(
        dsd=_term(LOGITS, 'RelationLoss', share=1.0, **CLASSES_TOGETHER)
    ),
    'fgfi at share 1': dict(detection=dict(terms=dict(fgfi=_term('neck', 'FGFILoss', share=1.0)))),
    'inherit+cwd+crosskd shared': _detection(
        cwd=_term('neck', 'CWDLoss', share=0.5), crosskd=_crosskd(0.5)
    ),
    'fgd+crosskd shared': dict(
        detection=dict(
            terms=dict(
                fgd=_term('neck', 'FGDLoss', share=0.5, **FGD_BY_SHARE), crosskd=_crosskd(0.5)
            )
        )
    ),
    'inherit+fgd at its own temperature shared': _detection(
        fgd=_term('neck', 'FGDLoss', share=1.0, **FGD_BY_SHARE)
    ),
    'inherit head+cwd shared': dict(
        detection=dict(terms=dict(cwd=_term('neck', 'CWDLoss', share=1.0)), inherit=('bbox_head',))
    ),
    'inherit+pgd shared': dict(detection=dict(terms=_pgd(0.5), inherit=HEADS)),
    'inherit+fgd shared': _detection(fgd=_term('neck', 'FGDLoss', share=1.0, **FGD_SCALED)),
    'cwd-neck shared': dict(detection=dict(terms=dict(cwd=_term('neck', 'CWDLoss', share=1.0)))),
    'cwd-neck share 3': dict(detection=dict(terms=dict(cwd=_term('neck', 'CWDLoss', share=3.0)))),
    'cwd-neck share 6': dict(detection=dict(terms=dict(cwd=_term('neck', 'CWDLoss', share=6.0)))),
    'cwd-neck share 3 to 0': dict(
        detection=dict(
            terms=dict(
                cwd=_term('neck', 'CWDLoss', share=3.0, schedule=dict(decay='linear')),
            )
        )
    ),
    'cwd-neck+bckd shared': dict(
        detection=dict(
            terms=dict(
                cwd=_term('neck', 'CWDLoss', share=1.0),
                bckd=_on_head('BCKDLoss', class_weight=1.0, box_weight=4.0),
            )
        )
    ),
    'cwd-neck+crosskd shared': dict(
        detection=dict(
            terms=dict(
                cwd=_term('neck', 'CWDLoss', share=1.0),
                crosskd=_on_head(
                    'CrossKDLoss',
                    cross_at=-1,
                    class_weight=1.0,
                    box_weight=4.0,
                    boxes='distributions',
                ),
            )
        )
    ),
    'pkd-stages+cwd-neck shared': dict(
        detection=dict(
            terms=dict(
                pkd=_term('backbone', 'PKDLoss', share=1.0),
                cwd=_term('neck', 'CWDLoss', share=1.0),
            )
        )
    ),
    # the published parts, in the ratios and at the temperature that were tuned on Scenes
    'fgd-tuned shared': dict(
        detection=dict(terms=dict(fgd=_term('neck', 'FGDLoss', share=1.0, **FGD_TUNED)))
    ),
    'inherit+fgd-tuned shared': _detection(fgd=_term('neck', 'FGDLoss', share=1.0, **FGD_TUNED)),
    # without their warm-ups, which are longer than such trainings
    'defeat at once shared': dict(
        detection=dict(
            terms=dict(defeat=_term('neck', 'DeFeatLoss', objects=4.0, background=16.0, share=1.0))
        )
    ),
    # what the presets by share were before
    'fgd at temperature 0.5 shared': _detection(
        fgd=_term('neck', 'FGDLoss', share=1.0, **{**FGD_SCALED, 'temperature': 0.5})
    ),
    'ld with classes shared': dict(
        detection=dict(terms=dict(ld=_on_head('LDLoss', kd_weight=1.25)))
    ),
    'fgd at temperature 4 shared': dict(
        detection=dict(terms=dict(fgd=_term('neck', 'FGDLoss', share=1.0, **FGD_SCALED)))
    ),
    'fgd-tuned share 3': dict(
        detection=dict(terms=dict(fgd=_term('neck', 'FGDLoss', share=3.0, **FGD_TUNED)))
    ),
    'fgd-tuned+cwd-neck shared': dict(
        detection=dict(
            terms=dict(
                fgd=_term('neck', 'FGDLoss', share=1.0, **FGD_TUNED),
                cwd=_term('neck', 'CWDLoss', share=1.0),
            )
        )
    ),
    # the teacher's last layers, on towers that are drawn to its own
    'towers shared': dict(detection=dict(terms=_towers('FitNetsLoss', 0.5), inherit=LAST)),
    'towers+cwd-neck shared': dict(
        detection=dict(
            terms=dict(**_towers('CWDLoss', 0.5), cwd=_term('neck', 'CWDLoss', share=1.0)),
            inherit=LAST,
        )
    ),
    'pkd-neck shared': dict(detection=dict(terms=dict(pkd=_term('neck', 'PKDLoss', share=1.0)))),
    'inherit neck+cwd shared': dict(
        detection=dict(terms=dict(cwd=_term('neck', 'CWDLoss', share=1.0)), inherit=('neck',))
    ),
    'inherit+pkd': _detection(pkd=_term('neck', 'PKDLoss', 10.0)),
    'inherit+pkd shared': _detection(pkd=_term('neck', 'PKDLoss', share=1.0)),
    'inherit+fitnets shared': _detection(fitnets=_term('neck', 'FitNetsLoss', share=1.0)),
    'inherit+cwd shared': _detection(cwd=_term('neck', 'CWDLoss', share=1.0)),
    'inherit+pkd+cwd shared': _detection(
        pkd=_term('neck', 'PKDLoss', share=0.5), cwd=_term('neck', 'CWDLoss', share=0.5)
    ),
    'inherit+fitnets+pkd-stages shared': _detection(
        fitnets=_term('neck', 'FitNetsLoss', share=1.0),
        pkd=_term('backbone', 'PKDLoss', share=1.0),
    ),
}

# Of sets of which few pictures have labels: what else is learnt from, and from which teacher.
PICTURES = ('+pictures', '+pseudo', '+full', '+pictures+full', '+pseudo+full')
METHODS = (
    *('alone', 'inherit', *PRESETS, *TRIED),
    *(method + more for method in PRESETS for more in PICTURES),
)


def distillation(method: str, data: Data, weights: str) -> dict[str, Any]:
    """What a recipe says beside student and teacher.

    Args:
        method: Its name.
        data: The pair.
        weights: Of a preset, ``'published'`` or ``'shares'``; ``'-'`` of what has its own.

    Raises:
        ValueError: If the method is not made for the task.
    """
    if method not in TRIED:
        method = method.partition('+')[0]
    if method == 'inherit':
        off = dict(type='CWDLoss', weight=0.0)
        tap = 'neck' if data.task == 'detection' else 'backbone[-1]'
        return dict(inherit=data.inherit, terms=dict(nothing=dict(tap=tap, loss=off)))
    if method in TRIED:
        if data.task not in TRIED[method]:
            raise ValueError(f'{method} is not for {data.task}')
        return dict(TRIED[method][data.task])
    return dict(preset=method) if weights == '-' else dict(preset=method, weights=weights)

"""Which of several scores is compared, and whether more or less of it is better."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kd_dense.mm.configs import dicts_in

__all__ = ['SCORES', 'lower_is_better', 'main_score', 'watched']

# What tells most about a model, if there are several scores.
SCORES = (
    'coco/bbox_mAP',
    'mIoU',
    'coco/segm_mAP',
    'coco_panoptic/PQ',
    'pascal_voc/mAP',
    'lvis/bbox_AP',
)
# Words that name an error, among them those of mmseg's DepthMetric and mmdet's CrowdHumanMetric.
ERRORS = re.compile(
    r'(?<![a-z])(loss|losses|err|error|errors|mae|mse|rmse|abs_?rel|sq_?rel|log10|silog|mmr)'
    r'(?![a-z])',
    re.IGNORECASE,
)


def watched(said: Any, known: Sequence[str]) -> dict[str, str | None]:
    """Find the scores by which a config chooses the best checkpoint, or when to stop.

    Args:
        said: The config as nested dicts, or some of its dicts.
        known: The scores that there are, in the order in which they are computed.

    Returns:
        By name ``'greater'`` or ``'less'``, or None where it does not say which.

    Examples:
        >>> watched([dict(save_best='rmse', rule='less')], ['d1', 'rmse'])
        {'rmse': 'less'}
    """
    found: dict[str, str | None] = {}
    for one in dicts_in(said):
        names = _listed(one.get('save_best', one.get('monitor')))
        rules = _listed(one.get('rule')) or [None]
        rules = rules * len(names) if len(rules) == 1 else rules
        for name, rule in zip(names, rules, strict=False):
            if name == 'auto':  # stands for the first one
                name = known[0] if known and rule else ''
            if name not in known:
                continue
            if rule is None and any(key in name for key in _listed(one.get('less_keys'))):
                rule = 'less'
            found.setdefault(name, rule)
    return found


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value] if value else []


def main_score(known: Sequence[str], found: Mapping[str, str | None] = {}) -> str | None:
    """Choose the score that tells most.

    Args:
        known: The scores that there are.
        found: Those that the config watches, as of [`watched`][].

    Returns:
        Its name; None if there is none, or several and none of them is known to tell more.

    Examples:
        >>> main_score(['aAcc', 'mIoU', 'mAcc'])
        'mIoU'
    """
    chosen = [name for name in found if name in known]
    chosen += [name for one in SCORES for name in known if f'/{name}'.endswith(f'/{one}')]
    return next(iter(chosen or (known if len(known) == 1 else [])), None)


def lower_is_better(name: str, found: Mapping[str, str | None] = {}) -> bool:
    """Tell whether less of a score is better: by the config, or else by its name.

    Args:
        name: The score.
        found: Those that the config watches, as of [`watched`][].

    Examples:
        >>> lower_is_better('rmse'), lower_is_better('mIoU')
        (True, False)
    """
    rule = found.get(name)
    return rule == 'less' if rule else ERRORS.search(name) is not None

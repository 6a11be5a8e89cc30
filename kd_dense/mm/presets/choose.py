"""Which settings a method gets for two models: the first of its own that fit them.

``docs/presets.md`` shows the table, the roles and the rule that scales weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pkgutil import walk_packages
from types import ModuleType
from typing import Any, Literal

from torch import nn

from kd_dense.functional import check_choice
from kd_dense.mm.presets import methods
from kd_dense.mm.presets.auto import AUTO
from kd_dense.mm.presets.roles import LOGITS, Pair
from kd_dense.mm.presets.settings import Method, Preset, Sums, scaled
from kd_dense.registry import MODELS

__all__ = [
    'BY_SHARE',
    'METHODS',
    'SHARES',
    'SUMS',
    'Weights',
    'check_methods',
    'choose_preset',
    'listed_methods',
]

Weights = Literal['auto', 'published', 'shares']
# The order in help and messages; other files come behind, by name.
FIRST = ('cwd', 'skd', 'fgd', 'ld', 'intrakd')


def _files() -> dict[str, ModuleType]:
    """The files in methods/ and its folders, by name."""
    found = walk_packages(methods.__path__, f'{methods.__name__}.')
    paths = {path.rpartition('.')[2]: path for _, path, folder in found if not folder}
    ordered = (*FIRST, *sorted(paths.keys() - {*FIRST}))
    return {name: import_module(paths[name]) for name in ordered}


_FILES = _files()
METHODS: dict[str, Method] = {
    'auto': AUTO,
    **{name: method for file in _FILES.values() for name, method in file.METHODS.items()},
}
SUMS: dict[str, Sums] = {loss: s for file in _FILES.values() for loss, s in file.SUMS.items()}
# What differs in a loss whose weight is a share.
BY_SHARE: dict[str, dict[str, Any]] = {
    loss: settings
    for file in _FILES.values()
    for loss, settings in getattr(file, 'BY_SHARE', {}).items()
}
# How strongly a loss pulls where that is not as strongly as the task.
SHARES: dict[str, float] = {
    loss: share for file in _FILES.values() for loss, share in getattr(file, 'SHARES', {}).items()
}

# What a method asks of models and data: the most that any of its settings asks.
GROUPS = {
    'nothing': 'nothing but a backbone',
    'logits': 'class logits of a segmenter',
    'features': 'features',
    'segmentation': 'label maps of a segmenter, beside logits or features',
    'objects': 'boxes of a detector, beside its features or what its head predicts',
    'queries': 'a decoder with queries, as that of DETR',
}


def listed_methods() -> str:
    """The methods, a line each, grouped by what they need."""
    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    width = max(map(len, METHODS))
    for name, method in METHODS.items():
        groups[_group(method)].append(f'    {name:<{width}}  {method.summary}')
    return '\n'.join(
        '\n'.join([f'  {GROUPS[group]}:', *lines]) for group, lines in groups.items() if lines
    )


def _group(method: Method) -> str:
    if method is AUTO:  # its terms are left out where a model lacks what they need
        return 'nothing'
    terms = [term for preset in method.presets for term in preset.terms.values()]
    if any(term.get('shared_rois') for term in terms):
        return 'objects'
    losses = [MODELS.get(term['loss']['type']) for term in terms]
    if any(loss.of_queries for loss in losses):
        return 'queries'
    needs = {need for loss in losses for need in loss.needs}
    if needs - {'segmentation'}:
        return 'objects'
    if needs:
        return 'segmentation'
    return 'logits' if all(term['tap'] in LOGITS for term in terms) else 'features'


def check_methods(names: Sequence[str]) -> None:
    """Raise ``ValueError`` unless there are methods of these names, at least one."""
    unknown = next((n for n in names if not isinstance(n, str) or n not in METHODS), None)
    if names and unknown is None:
        return
    wrong = 'no method was named'
    if names:
        near = get_close_matches(str(unknown), METHODS)
        wrong = f'there is no method {unknown!r}'
        wrong += f', did you mean {", ".join(map(repr, near))}?' if near else ''
    raise ValueError(f'{wrong}; by what they need, there are\n{listed_methods()}')


def choose_preset(
    names: str | Sequence[str],
    student: nn.Module,
    teacher: nn.Module,
    weights: Weights = 'auto',
) -> Preset:
    """Find settings of one or several methods that fit a student and its teacher.

    Args:
        names: Name of a method, as ``'cwd'``, or names, as ``['fgd', 'cwd']``.
        student: The student.
        teacher: The teacher.
        weights: ``'published'``; or ``'shares'``: the terms pull at the student together as
            strongly as its own losses do, each as much as the others, whatever weights were
            published, see [`kd_dense.shares.Share`][]; FGD and LD get other settings, too, and
            most relations and FGFI a tenth of it. ``'auto'`` is the first where the maps are those
            that the weights were published for, and the second where they are not.

    Returns:
        For each method the first of its presets that fits both models, with the taps of
        these models and with weights for their maps. Of several methods, all terms, and all
        parts that any of them inherits; a term whose name is taken gets that of its method in
        front.

    Raises:
        ValueError: If there is no such method, a name comes twice, or none of the settings of a
            method fits.
        RuntimeError: If the models run at no size that could be tried.
    """
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, Sequence):
        raise ValueError(f"expected preset as a name or a list of names, as 'cwd', got {names!r}")
    check_methods(names)
    check_choice('preset', 'weights', weights, Weights)
    if len(set(names)) < len(names):
        raise ValueError(f'preset: a name comes twice in {list(names)}')
    pair = Pair(student, teacher)
    chosen = {name: _choose(name, pair) for name in names}
    count = sum(len(preset.terms) for preset in chosen.values())
    terms: dict[str, Any] = {}
    for name, preset in chosen.items():
        for term, fields in preset.terms.items():
            by_share = weights == 'shares' or (weights == 'auto' and preset.elsewhere)
            shared: dict[str, Any] = {}
            if by_share:
                loss = {**fields['loss'], **BY_SHARE.get(fields['loss']['type'], {})}
                share = SHARES.get(loss['type'], 1.0)
                shared, fields = {'share': round(share / count, 3)}, {**fields, 'loss': loss}
            terms[f'{name}_{term}' if term in terms else term] = {**shared, **fields}
    return Preset(
        terms=terms,
        inherit=tuple(dict.fromkeys(part for p in chosen.values() for part in p.inherit)),
        source='; '.join(f'{name}: {preset.source}' for name, preset in chosen.items()),
        models=f'{type(student).__name__} from {type(teacher).__name__}',
    )


def _choose(name: str, pair: Pair) -> Preset:
    for preset in METHODS[name].presets:
        meant = pair.student.has(preset.part, preset.kinds)
        if preset.alone:
            meant = meant and pair.student.whole is pair.teacher.whole
        terms = _fitted(preset, pair) if meant else None
        if terms is not None:
            same = all(fields['loss'] == preset.terms[t]['loss'] for t, fields in terms.items())
            return preset._replace(
                terms=terms,
                inherit=pair.inherited(preset.inherit),
                source=preset.source + ('' if same else ' (weights scaled to these maps)'),
                elsewhere=preset.elsewhere or not same,
            )
    known = ', '.join(dict.fromkeys(preset.models for preset in METHODS[name].presets))
    student, teacher = (type(side.whole).__name__ for side in (pair.student, pair.teacher))
    raise ValueError(
        f'preset {name!r} has settings for {known}, and none of these fits a student {student} '
        f'with a teacher {teacher}: say `terms` instead (kd_dense taps lists what both have)'
    )


def _fitted(preset: Preset, pair: Pair) -> dict[str, Any] | None:
    """The terms of a preset for two models; None, if one of them lacks a place they need."""
    terms = {}
    for name, fields in preset.terms.items():
        found = pair.places(fields['tap'])
        needs = MODELS.get(fields['loss']['type']).needs
        if pair.student.segments and 'boxes' in needs:
            return None
        if fields.get('optional') and not (found and pair.agree(fields['tap'], needs)):
            continue
        if found is None:
            return None
        ours, theirs, maps = found
        tap = ours if ours == theirs else dict(student=ours, teacher=theirs)
        loss = dict(fields['loss'])
        if preset.layout is not None and maps:  # of logits there is one, whatever the layout
            loss = scaled(loss, maps, preset.layout, SUMS[loss['type']])
        terms[name] = {k: v for k, v in fields.items() if k != 'optional'}
        terms[name].update(tap=tap, loss=loss)
    return terms or None

"""What a recipe must say beside its model, so that it trains as another config does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kd_dense.mm.configs import type_name
from kd_dense.mm.mmrazor.note import Notes

__all__ = ['changes', 'kept_settings']

# What mmengine's Runner reads of a config beside the model, and is not chosen anew for each run.
SETTINGS = (
    'default_scope', 'custom_imports', 'train_dataloader', 'val_dataloader', 'test_dataloader',
    'train_cfg', 'val_cfg', 'test_cfg', 'auto_scale_lr', 'optim_wrapper', 'param_scheduler',
    'val_evaluator', 'test_evaluator', 'data_preprocessor', 'default_hooks', 'custom_hooks',
    'env_cfg', 'log_processor', 'visualizer', 'randomness', 'runner_type', 'strategy',
)  # fmt: skip
# What stays switched on in the base of a recipe unless the recipe says otherwise.
EMPTY: dict[str, Any] = {'param_scheduler': None, 'auto_scale_lr': None, 'custom_hooks': []}
# Parts of mmrazor that have something in their place here.
STOPS = {'StopDistillHook': 'stop_epoch', 'DistillationLossDetachHook': 'detach_epoch'}
LOOP, PICTURES = 'SingleTeacherDistillValLoop', 'RazorVisualizationHook'


def kept_settings(
    config: Mapping[str, Any], base: Mapping[str, Any], notes: Notes
) -> tuple[dict[str, Any], int | None]:
    """The settings of a config of mmrazor that a recipe keeps.

    Args:
        config: The config, without scopes.
        base: What the recipe builds on, which tells what stands in the place of mmrazor's.
        notes: What is left out is added.

    Returns:
        The settings, and the epoch in which distillation stops, if it does.
    """
    found = {name: config[name] for name in SETTINGS if name in config}
    for name, value in EMPTY.items():
        if base.get(name):
            found.setdefault(name, value)
    if found.get('default_scope') == 'mmrazor':
        found['default_scope'] = base.get('default_scope')
    for name in ('val_cfg', 'test_cfg'):
        if _is_mmrazors(found.get(name)):
            _leave_out_loop(name, found, base, notes)
    stop = None
    if 'custom_hooks' in found:
        found['custom_hooks'], stop = _hooks(found['custom_hooks'] or [], notes)
    if 'default_hooks' in found:
        stock = base.get('default_hooks') or {}
        found['default_hooks'] = _default_hooks(found['default_hooks'], stock, notes)
    for where, name in [*_of_mmrazor(found)]:
        notes.changed(where, f'left out: {name} is a part of mmrazor, and needs it')
        found.pop(where.partition('.')[0], None)
    clip = (config.get('optimizer_config') or {}).get('grad_clip')
    if clip:
        arguments = ', '.join(f'{key}={value!r}' for key, value in clip.items())
        notes.known(
            'optimizer_config',
            'left out: mmengine passes over this setting of mmcv 1.x, so that no gradient was '
            f'clipped; meant was optim_wrapper=dict(clip_grad=dict({arguments}))',
        )
    return found, stop


def _is_mmrazors(part: Any) -> bool:
    kind = part.get('type') if isinstance(part, Mapping) else None
    return isinstance(kind, str) and kind.startswith('mmrazor.')


def _leave_out_loop(
    name: str, found: dict[str, Any], base: Mapping[str, Any], notes: Notes
) -> None:
    if type_name(found[name]) == LOOP:
        notes.known(
            name,
            'the loop of the student: the teacher is not evaluated beside it, which kd_dense '
            'check does once, before training',
        )
    else:
        notes.changed(name, f'left out: {_no_counterpart(found[name])}')
    found[name] = base.get(name)


def _hooks(hooks: list[Any], notes: Notes) -> tuple[list[Any], int | None]:
    """The hooks that are kept, and the epoch in which distillation stops, if it does."""
    kept, stop = [], None
    for hook in hooks:
        if type_name(hook) in STOPS:
            stop = hook[STOPS[type_name(hook)]]
        elif _is_mmrazors(hook):
            notes.changed('custom_hooks', f'left out: {_no_counterpart(hook)}')
        else:
            kept.append(hook)
    return kept, stop


def _default_hooks(
    hooks: Mapping[str, Any], stock: Mapping[str, Any], notes: Notes
) -> dict[str, Any]:
    kept = dict(hooks)
    for name, hook in hooks.items():
        where = f'default_hooks.{name}'
        if type_name(hook) == PICTURES:
            notes.known(where, 'left out: PictureHook and kd_dense visualize draw maps here')
        elif _is_mmrazors(hook):
            notes.changed(where, f'left out: {_no_counterpart(hook)}')
        else:
            continue
        kept.pop(name)
        if name in stock:
            kept[name] = stock[name]
    return kept


def _no_counterpart(part: Mapping[str, Any]) -> str:
    return f'there is nothing like {type_name(part)} here'


def _of_mmrazor(value: Any, where: str = '') -> Iterator[tuple[str, str]]:
    """Where a nested value names mmrazor, and what of it."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _of_mmrazor(item, f'{where}.{key}' if where else str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _of_mmrazor(item, where)
    elif isinstance(value, str) and (value == 'mmrazor' or value.startswith('mmrazor.')):
        yield where, value


def changes(wanted: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """What a config must say that builds on another one to come out as wanted.

    Args:
        wanted: Settings, without scopes.
        base: Those of the base.

    Examples:
        >>> changes(dict(a=dict(x=1, y=2), b=3), dict(a=dict(x=1, y=0), b=3))
        {'a': {'y': 2}}
        >>> changes(dict(a=dict(y=2)), dict(a=dict(x=1, y=2)))
        {'a': {'_delete_': True, 'y': 2}}
    """
    found: dict[str, Any] = {}
    for name, value in wanted.items():
        before = base.get(name)
        if name in base and before == value:
            continue
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            whole = not before.keys() <= value.keys()
            value = {'_delete_': True, **value} if whole else changes(value, before)
        found[name] = value
    return found

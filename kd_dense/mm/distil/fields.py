"""What the fields of a term say: read, checked and built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from typing import Any

from mmengine.logging import MessageHub
from torch import nn

from kd_dense.losses import DistillLoss
from kd_dense.mm.arguments import check_arguments
from kd_dense.registry import MODELS
from kd_dense.schedules import Schedule
from kd_dense.shares import Share
from kd_dense.taps import near_names

__all__ = [
    'WHOLE',
    'build_adapter',
    'build_losses',
    'build_schedule',
    'build_shares',
    'check_kinds',
    'factor_now',
    'share_now',
    'tap_names',
    'teacher_names',
]

WHOLE = 'whole'  # in the place of a part: the loss with all its parts


def tap_names(name: str, tap: str | Mapping[str, str]) -> tuple[str, str]:
    """The taps of a term in the student and in the teacher.

    Args:
        name: The name of the term.
        tap: Its field.

    Raises:
        ValueError: If that is neither a tap nor one for each side.
    """
    if isinstance(tap, str):
        return tap, tap
    names = {k: v for k, v in tap.items() if k != '_scope_'} if isinstance(tap, Mapping) else tap
    if (
        not isinstance(names, Mapping)
        or names.keys() != {'student', 'teacher'}
        or not all(isinstance(value, str) for value in names.values())
    ):
        raise ValueError(
            f"term {name!r}: expected tap='NAME' or tap=dict(student='NAME', teacher='NAME'), "
            f'got {names!r}'
        )
    return names['student'], names['teacher']


def teacher_names(name: str, teacher: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names of the teachers of a term; none, where it names none.

    Args:
        name: The name of the term.
        teacher: Its field.

    Raises:
        ValueError: If that is no name, nor a list of different names.
    """
    if teacher is None:
        return ()
    names = (teacher,) if isinstance(teacher, str) else teacher
    if (
        not isinstance(names, Sequence)
        or not names
        or not all(isinstance(one, str) for one in names)
        or len(set(names)) < len(names)
    ):
        raise ValueError(
            f"term {name!r}: expected teacher='NAME', or a list of names, each once, got {names!r}"
        )
    return tuple(names)


def build_schedule(name: str, config: Mapping[str, Any]) -> Schedule:
    """The schedule of a term.

    Args:
        name: The name of the term.
        config: Its field.

    Raises:
        ValueError: If that is no dict, or an argument is unknown or has a bad value.
    """
    owner = f'term {name!r}: schedule'
    if not isinstance(config, Mapping):
        raise ValueError(f'{owner}: expected dict(warmup=..., stop=...), got {config!r}')
    arguments = {k: v for k, v in config.items() if k != '_scope_'}
    check_arguments(owner, Schedule, arguments)
    try:
        return Schedule(**arguments)
    except ValueError as error:
        raise ValueError(f'{owner}: {error}') from None


def check_kinds(name: str, adapter: object, shared_rois: object) -> None:
    """Raise ``ValueError`` unless these fields of a term are of the right kind."""
    if not isinstance(adapter, (bool, Mapping)):
        raise ValueError(
            f'term {name!r}: expected adapter=True, False or the config of a module, '
            f'got {adapter!r}'
        )
    if not isinstance(shared_rois, bool):
        raise ValueError(f'term {name!r}: expected shared_rois=True or False, got {shared_rois!r}')


def factor_now(name: str, schedule: Schedule) -> float:
    """The factor of a schedule in this iteration.

    Args:
        name: The name of the term.
        schedule: Its schedule.

    Raises:
        RuntimeError: If nobody says which iteration it is.
        ValueError: If it counts epochs, and the training does not.
    """
    if schedule.constant:
        return 1.0
    hub = MessageHub.get_current_instance()
    now, end = (hub.get_info(key, None) for key in ('iter', 'max_iters'))
    if now is None or end is None:
        raise RuntimeError(
            f'term {name!r} has a schedule, which needs to know the iteration: train '
            "with mmengine's Runner, or keep 'iter' and 'max_iters' in its MessageHub"
        )
    if schedule.by_epoch:
        epochs = hub.get_info('max_epochs', 1)
        if epochs == 1:
            raise ValueError(
                f'term {name!r}: schedule: by_epoch=True in a training that does not '
                'count epochs; give iterations'
            )
        now, end = now * epochs / end, epochs
    return schedule.factor(now, end)


def share_now(every: int) -> float:
    """What terms count for in this iteration, whose teacher runs in each `every`-th alone.

    Over all iterations that is 1.

    Raises:
        RuntimeError: If nobody says which iteration it is.
    """
    if every == 1:
        return 1.0
    now = MessageHub.get_current_instance().get_info('iter', None)
    if now is None:
        raise RuntimeError(
            f"teacher: every={every} needs to know the iteration: train with mmengine's Runner, "
            "or keep 'iter' in its MessageHub"
        )
    return 0.0 if now % every else float(every)


def build_shares(name: str, share: float | Mapping[str, float] | None) -> nn.ModuleDict:
    """The shares of a term: none, one for the whole loss, or one for each part.

    Args:
        name: The name of the term.
        share: Its field.

    Raises:
        ValueError: If one is no positive number.
    """
    if share is None:
        return nn.ModuleDict()
    if 'loss' in name:
        raise ValueError(
            f"term {name!r} has a share, whose weight is logged under the term's name, and "
            "mmengine adds up all that has 'loss' in its name: name the term otherwise"
        )
    given = share if isinstance(share, Mapping) else {WHOLE: share}
    try:
        return nn.ModuleDict({k: Share(v) for k, v in given.items() if k != '_scope_'})
    except ValueError as error:
        raise ValueError(f'term {name!r}: {error}') from None


def build_losses(
    name: str,
    loss: Mapping[str, Any] | DistillLoss,
    student: Sequence[tuple[int, ...]],
    teacher: Sequence[tuple[int, ...]],
    given: Mapping[str, Any],
    through: bool = False,
) -> list[DistillLoss]:
    """The loss for all maps; or, where it is made for maps of certain widths, one for each.

    Args:
        name: The name of the term.
        loss: Config of a loss, or a loss.
        student: The shapes of the student's maps.
        teacher: Those of the teacher's.
        given: What a loss gets that has an argument of that name and is not told it in its
            config; None, where it is not known.
        through: Whether all maps of the student go through an adapter to the teacher's width.

    Raises:
        ValueError: If there is no such loss, or it refuses or lacks an argument.
    """
    if isinstance(loss, DistillLoss):
        return [loss]
    if not isinstance(loss, Mapping):
        raise ValueError(
            f"term {name!r}: expected loss=dict(type='CWDLoss', ...) or a DistillLoss of "
            f'kd_dense.losses, got {loss!r}'
        )
    cls = _class_of(name, 'loss', loss)
    parameters = signature(cls).parameters
    config = dict(loss)
    for argument, value in given.items():
        if argument not in parameters or argument in loss:
            continue
        if value is not None:
            config[argument] = value
        elif parameters[argument].default is Parameter.empty:
            raise ValueError(
                f'term {name!r}: {loss["type"]} takes {argument} from the decode_head of a '
                'segmenter, and the student has none'
            )
    # As wide as the loss is given them.
    if through or not getattr(cls, 'any_channels', False):
        student = teacher
    told = {
        argument: _widths(name, loss, whose, shapes)
        for argument, whose, shapes in (
            ('channels', 'teacher', teacher),
            ('student_channels', 'student', student),
            ('teacher_channels', 'teacher', teacher),
        )
        if argument in parameters and argument not in loss
    }
    configs = [{**config, **told}]
    if told and not getattr(cls, 'all_maps', False):
        configs = [
            {**config, **dict(zip(told, widths, strict=True))}
            for widths in zip(*told.values(), strict=False)
        ]
    built = [_build(name, cls, one) for one in configs]
    if not isinstance(built[0], DistillLoss):
        raise ValueError(
            f'term {name!r}: expected a subclass of kd_dense.losses.DistillLoss, '
            f'got {type(built[0]).__name__}'
        )
    return built


def _widths(
    name: str, loss: Mapping[str, Any], whose: str, shapes: Sequence[tuple[int, ...]]
) -> list[int]:
    """The channels of the maps of one side."""
    flat = [shape for shape in shapes if len(shape) < 2]
    if flat:
        raise ValueError(
            f'term {name!r}: {loss["type"]} is made for maps (N, C, H, W), and the {whose} '
            f'yields a tensor of shape {flat[0]}'
        )
    return [shape[1] for shape in shapes]


def build_adapter(name: str, config: Mapping[str, Any]) -> Any:
    """The adapter of a term.

    Args:
        name: The name of the term.
        config: That of a module.

    Raises:
        ValueError: If there is no such module, or it refuses its arguments.
    """
    return _build(name, _class_of(name, 'adapter', config), config)


def _class_of(name: str, what: str, config: Mapping[str, Any]) -> Any:
    """What the config of a loss or an adapter builds."""
    kind = config.get('type')
    if kind is None:
        raise ValueError(f'term {name!r}: the {what} has no type: {dict(config)}')
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    if cls is None:
        known = [key for key in MODELS.module_dict if key.endswith('Loss') == (what == 'loss')]
        raise ValueError(f'term {name!r}: there is no {what} {kind!r}, {near_names(kind, known)}')
    if not callable(cls):
        raise ValueError(
            f'term {name!r}: expected the type of the {what} as a class or its name, got {kind!r}'
        )
    return cls


def _build(name: str, cls: Any, config: Mapping[str, Any]) -> Any:
    """Build a loss or an adapter, and say whose it is where that fails."""
    arguments = {k: v for k, v in config.items() if k not in ('type', '_scope_')}
    check_arguments(f'term {name!r}: {cls.__name__}', cls, arguments)
    try:
        return MODELS.build({'_scope_': 'kd_dense', **config})
    except Exception as error:  # whatever a user's own class raises
        kind = '' if isinstance(error, ValueError) else f'{cls.__name__}: {type(error).__name__}: '
        raise ValueError(f'term {name!r}: {kind}{error}') from error

"""The replacement of ``mmcv._ext``, the module with mmcv's compiled operators.

mmcv from PyPI comes without them, and then ``import mmdet.models`` fails. `install` puts a module
into ``sys.modules`` that runs NMS, soft-NMS, RoIAlign, both deformable convolutions, and NMS and
IoU of rotated boxes in plain PyTorch, on any device; every other operator can be looked up, but
raises `NotImplementedError` when it is called. Where the compiled operators exist, `install`
leaves them alone.
"""

from __future__ import annotations

import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from multiprocessing.pool import ThreadPool
from typing import Any, NoReturn

from kd_dense.mm.stack import deform_conv, rotated
from kd_dense.mm.stack.nms import nms, softnms
from kd_dense.mm.stack.roi_align import roi_align_backward, roi_align_forward

__all__ = ['install', 'score_in_threads']

NAME = 'mmcv._ext'
REPLACED = 'NMS, soft-NMS, RoIAlign, deformable convolutions, and NMS and IoU of rotated boxes'


def _no_version() -> str:
    """Stands for the compiler versions of mmcv, which `collect_env` prints."""
    return 'n/a'


_OPERATORS: dict[str, Callable[..., object]] = {
    'nms': nms,
    'softnms': softnms,
    'roi_align_forward': roi_align_forward,
    'roi_align_backward': roi_align_backward,
    **deform_conv.OPERATORS,
    **rotated.OPERATORS,
}


class _Replacement(types.ModuleType):
    """Module in the place of ``mmcv._ext``."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        # mmcv asks for every operator when it is imported, so all public names must exist.
        if name.startswith('_'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')

        def missing(*args: object, **kwargs: object) -> NoReturn:
            raise NotImplementedError(
                f'The operator {name!r} is not available: mmcv was installed without its '
                f'compiled operators, and kd_dense replaces only {REPLACED}. '
                'Install mmcv with compiled operators to use it, for example with '
                '`mim install mmcv`, or build mmcv from source with MMCV_WITH_OPS=1.'
            )

        missing.__name__ = missing.__qualname__ = name
        setattr(self, name, missing)
        return missing


def _make_module() -> types.ModuleType:
    """Builds the replacement module."""
    module = _Replacement(NAME, 'PyTorch replacement for the compiled operators of mmcv.')
    # `importlib.util.find_spec` raises for a module without a spec.
    module.__spec__ = ModuleSpec(NAME, None, origin=__name__)
    for name, function in _OPERATORS.items():
        setattr(module, name, function)
    for name in ('get_compiler_version', 'get_compiling_cuda_version'):
        setattr(module, name, _no_version)
    return module


def install() -> bool:
    """Replaces ``mmcv._ext`` where mmcv has no compiled operators.

    Call it before the first import of ``mmcv.ops``, ``mmdet.models`` or ``mmseg.models``; mmcv
    itself may be imported already. Further calls change nothing. It warns once, when the
    replacement is put in place.

    Returns:
        Whether the replacement is in place. False where the compiled operators exist, and where
        mmcv is not installed.
    """
    present = sys.modules.get(NAME)
    if present is not None:
        return isinstance(present, _Replacement)
    spec = importlib.util.find_spec('mmcv')
    if spec is None:
        return False
    # Not `find_spec(NAME)`: it would import mmcv.
    if PathFinder.find_spec(NAME, spec.submodule_search_locations) is not None:
        return False
    module = _make_module()
    sys.modules[NAME] = module
    if 'mmcv' in sys.modules:
        setattr(sys.modules['mmcv'], '_ext', module)  # noqa: B010
    warnings.warn(
        f'mmcv has no compiled operators; kd_dense runs {REPLACED} in PyTorch instead (slower on '
        'a GPU); install mmcv with compiled operators for all others',
        stacklevel=2,
    )
    return True


def score_in_threads() -> None:
    """Have mmrotate's ``DOTAMetric`` score in threads, where its operators are replaced.

    It starts processes of its own, in which nobody has put the replacement in place.
    """
    if isinstance(sys.modules.get(NAME), _Replacement):
        mean_ap: Any = importlib.import_module('mmrotate.evaluation.functional.mean_ap')
        mean_ap.get_context = lambda method: types.SimpleNamespace(Pool=ThreadPool)

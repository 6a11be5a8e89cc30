"""Cures for what keeps the two OpenMMLab stacks from running as they are."""

from __future__ import annotations

import collections
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

__all__ = ['install', 'safe_types']


def install() -> None:
    """Apply the cures; calling it twice does no more than calling it once."""
    _find_packages_by_module()
    # mmengine 0.10.7 reads its own checkpoints with ``weights_only``, which refuses the
    # bookkeeping that it has written itself.
    torch.serialization.add_safe_globals(safe_types())


def _find_packages_by_module() -> None:
    """Let ``mmseg::`` resolve where the distribution is not called ``mmsegmentation``."""
    for module, package in list(MODULE2PACKAGE.items()):
        if module == 'mmseg' and package != module:
            try:
                version(package)
            except PackageNotFoundError:
                MODULE2PACKAGE[module] = module


def safe_types() -> list[Any]:
    """Types that mmengine's checkpoints hold beside tensors. None of them runs code."""
    arrays: Any = import_module(
        'numpy._core.multiarray' if np.__version__ >= '2' else 'numpy.core.multiarray'
    )
    dtypes = {type(np.dtype(code)) for code in np.typecodes['All']}
    return [
        HistoryBuffer,
        OneCycleParamScheduler,
        (_own_function, 'builtins.getattr'),
        collections.defaultdict,
        # NumPy 2 has moved these two; files know them under either name.
        *(
            (f, f'numpy.{place}.{f.__name__}')
            for f in (arrays._reconstruct, arrays.scalar)
            for place in ('core.multiarray', '_core.multiarray')
        ),
        np.ndarray,
        np.dtype,
        *sorted(dtypes, key=lambda dtype: dtype.__name__),
    ]


def _own_function(owner: Any, name: str) -> Any:
    """Stand in for ``getattr``, by which two types of mmengine name functions of their own."""
    public_statistic = owner is HistoryBuffer and not name.startswith('_')
    annealing = owner is OneCycleParamScheduler and name.startswith('_annealing_')
    if not (public_statistic or annealing):
        raise UnpicklingError(f'Unsupported global: GLOBAL getattr of {owner!r}')
    return getattr(owner, name)

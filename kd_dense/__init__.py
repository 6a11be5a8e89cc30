"""Knowledge distillation for dense prediction on OpenMMLab.

What is named here is imported when it is first used: ``import kd_dense`` needs torch alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd_dense.mm.datasets.unlabelled import Unlabelled
    from kd_dense.mm.distil.distilled import Distilled
    from kd_dense.mm.run.check import check
    from kd_dense.mm.run.distill import distill
    from kd_dense.mm.run.export import export

__version__ = '0.2.0'
__all__ = ['Distilled', 'Unlabelled', 'check', 'distill', 'export']

HOMES = {
    'Distilled': 'kd_dense.mm.distil.distilled',
    'Unlabelled': 'kd_dense.mm.datasets.unlabelled',
    'check': 'kd_dense.mm.run.check',
    'distill': 'kd_dense.mm.run.distill',
    'export': 'kd_dense.mm.run.export',
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})

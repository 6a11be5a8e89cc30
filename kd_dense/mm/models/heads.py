"""Heads with box distributions that mmdet lacks, registered without importing mmdet.

Who distils a segmenter imports this file too. The classes lie in ``distribution_heads.py`` and,
where they need mmrotate, in ``rotated_heads.py``, which are imported when the first of them is
built.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from kd_dense.registry import MODELS

__all__: list[str] = []


def _register(name: str, file: str) -> None:
    def build(**arguments: Any) -> nn.Module:
        head: nn.Module = getattr(import_module(f'kd_dense.mm.models.{file}'), name)(**arguments)
        return head

    MODELS.register_module(name=name, module=build)


for _name in (
    'DistributionATSSHead',
    'DistributionFCOSHead',
    'DistributionRetinaHead',
    'DistributionRotatedRetinaHead',
):
    _register(_name, 'distribution_heads')
_register('DistributionRotatedFCOSHead', 'rotated_heads')

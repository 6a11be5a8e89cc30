"""Heads that mmdet lacks, registered without importing mmdet.

Who distils a segmenter imports this file too. The classes lie in files of their own, which are
imported when the first of them is built.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from kd_dense.registry import MODELS

__all__: list[str] = []


HEADS = {
    'distribution_heads': (
        'DistributionATSSHead',
        'DistributionFCOSHead',
        'DistributionRetinaHead',
        'DistributionRotatedRetinaHead',
    ),
    'incremental_heads': ('IncrementalGFLHead',),
    'rotated_heads': ('DistributionRotatedFCOSHead',),
}


def _register(file: str, name: str) -> None:
    def build(**arguments: Any) -> nn.Module:
        head: nn.Module = getattr(import_module(f'kd_dense.mm.models.{file}'), name)(**arguments)
        return head

    MODELS.register_module(name=name, module=build)


for _file, _names in HEADS.items():
    for _name in _names:
        _register(_file, _name)

"""Heads with box distributions that mmdet lacks, registered without importing mmdet.

Who distils a segmenter imports this file too. The classes lie in ``distribution_heads.py``,
which is imported when the first of them is built.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from kd_dense.registry import MODELS

__all__: list[str] = []


def _register(name: str) -> None:
    def build(**arguments: Any) -> nn.Module:
        head: nn.Module = getattr(import_module('kd_dense.mm.models.distribution_heads'), name)(
            **arguments
        )
        return head

    MODELS.register_module(name=name, module=build)


for _name in ('DistributionATSSHead', 'DistributionFCOSHead', 'DistributionRetinaHead'):
    _register(_name)

"""What the tests of mmcv's operators share."""

import importlib
import sys
import warnings

import pytest
import torch

from kd_dense.mm.stack.install import install

with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # mmcv and install() warn about the missing operators
    install()
    importlib.import_module('mmcv.ops')

EXT = sys.modules['mmcv._ext']
HAS_COMPILED = hasattr(EXT, '__file__')
needs_compiled = pytest.mark.skipif(
    not HAS_COMPILED, reason='mmcv has no compiled operators here to compare with'
)
needs_plain = pytest.mark.skipif(
    HAS_COMPILED, reason='mmcv has its compiled operators here, nothing is replaced'
)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def make_boxes(n, seed=0, size=60.0, dtype=torch.float32):
    g = rng(seed)
    corner = torch.rand(n, 2, generator=g, dtype=dtype) * size
    return torch.cat([corner, corner + torch.rand(n, 2, generator=g, dtype=dtype) * 30], dim=1)

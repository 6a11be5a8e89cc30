import io
import itertools
import logging

import pytest
import torch
from mmengine.logging import MMLogger

import kd_dense.mm  # noqa: F401  (before mmdet is imported)

NAMES = itertools.count()


@pytest.fixture
def log():
    """What mmengine's logger says during a test, as text."""
    logger = MMLogger.get_instance(f'test{next(NAMES)}', log_level='INFO')
    stream = io.StringIO()
    logger.addHandler(logging.StreamHandler(stream))
    return stream.getvalue


@pytest.fixture
def without_onednn(monkeypatch):
    """Convolutions in PyTorch's own kernels.

    Those of oneDNN leave bfloat16 values unset where a convolution with stride has an output one
    pixel wide (docs/performance.md), as in the pyramid of a small picture.
    """
    monkeypatch.setattr(torch.backends.mkldnn, 'enabled', False)

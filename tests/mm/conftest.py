import io
import itertools
import logging

import pytest
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

import sys

import pytest

from kd_dense.mm.stack import install
from tests.mm.stack import operators  # noqa: F401  (imports mmcv.ops)


@pytest.fixture
def ops(monkeypatch):
    """mmcv.ops on top of the replacement, also where the compiled operators exist."""
    module = install._make_module()
    for name in (
        'nms',
        'roi_align',
        'deform_conv',
        'modulated_deform_conv',
        'box_iou_rotated',
        'diff_iou_rotated',
    ):
        monkeypatch.setattr(sys.modules[f'mmcv.ops.{name}'], 'ext_module', module)
    return sys.modules['mmcv.ops']

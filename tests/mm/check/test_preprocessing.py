import pytest
from mmengine.registry import MODELS

from kd_dense.mm.check.preprocessing import _suspicious

RGB, BGR = [123.675, 116.28, 103.53], [103.53, 116.28, 123.675]


@pytest.mark.parametrize(
    ('mean', 'swapped', 'problem'),
    [
        (RGB, True, ''),
        (BGR, False, ''),
        (BGR, True, 'as red, green, blue, and the mean looks like that of blue, green, red'),
        (RGB, False, 'as blue, green, red, and the mean looks like that of red, green, blue'),
    ],
)
@pytest.mark.parametrize('kind', ['mmseg.SegDataPreProcessor', 'mmdet.DetDataPreprocessor'])
def test_channels_in_the_wrong_order(kind, mean, swapped, problem):
    built = MODELS.build(dict(type=kind, mean=mean, std=[58.0, 57.0, 57.0], bgr_to_rgb=swapped))
    found = _suspicious(built)
    assert problem in found
    assert bool(found) == bool(problem)

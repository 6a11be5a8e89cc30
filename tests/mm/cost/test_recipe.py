"""What is measured needs neither data nor downloads."""

import pytest
from mmengine.config import Config
from mmseg.models import EncoderDecoder

from kd_dense.mm.configs import RequestError
from kd_dense.mm.cost.recipe import DETECTION_SIZE, prepared
from tests.mm.cost.recipes import read


@pytest.mark.parametrize(
    ('name', 'size', 'expected'),
    [
        ('seg_cwd', None, (48, 48)),
        ('seg_cwd', (64, 96), (64, 96)),
        ('det_fgd', None, DETECTION_SIZE),
        ('det_fgd', (64, 96), (64, 96)),
    ],
)
def test_the_size(name, size, expected):
    config = read(name)
    recipe = prepared(config, size)
    assert recipe.size == expected
    if name == 'seg_cwd':
        assert recipe.config.model.student.data_preprocessor.size == expected


def test_weights_are_fetched_on_request_only():
    config = read('seg_cwd')
    assert config.model.teacher.checkpoint
    assert prepared(config).config.model.teacher.checkpoint is None
    kept = prepared(config, pretrained=True).config.model.teacher
    assert kept.checkpoint == config.model.teacher.checkpoint
    config.model.teacher = 'configs/quickstart/seg_teacher.py'
    assert prepared(config).config.model.teacher.checkpoint is None
    assert 'checkpoint' not in prepared(config, pretrained=True).config.model.teacher


@pytest.mark.parametrize(
    ('config', 'kind'),
    [({}, 'None'), (dict(type='mmdet.FCOS'), 'FCOS'), (dict(type=EncoderDecoder), 'EncoderDec')],
)
def test_what_is_no_recipe(config, kind):
    message = f'distils nothing: expected a model of type kd_dense.*, got {kind}'
    with pytest.raises(RequestError, match=message):
        prepared(Config(dict(model=config)))

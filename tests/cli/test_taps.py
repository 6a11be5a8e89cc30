import json

import pytest
from mmengine.config import Config

from kd_dense.cli import taps
from kd_dense.mm.check.survey import Pair, Place
from kd_dense.mm.configs import build_model
from kd_dense.mm.models.probe import Yield
from tests.launch import DETECTOR, SEGMENTER, call
from tests.mm import toy


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '140')

    def run(*arguments):
        call('taps', *arguments)
        return capsys.readouterr().out

    return run


def test_a_stock_config(run):
    out = run('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', '--size', 256, 256)
    assert 'On images of 256x256 pixels' in out
    [neck] = [line for line in out.splitlines() if line.startswith('│ neck ')]
    assert [cell.strip() for cell in neck.split('│')[1:-1]] == [
        'neck',
        'FPN',
        '256',
        '8 16 32 64 128',
        '32x32 16x16 8x8 4x4 2x2',
    ]
    assert '│   backbone.layer1 ' in out
    assert 'neck.fpn_convs.*' not in out  # deeper
    assert '--depth 3, or --all' in out


def test_a_recipe_knows_its_teacher(run):
    out = run(SEGMENTER)
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith('│ ')}
    assert '64 128 256 512 ch' in rows['backbone']
    assert '256 512 1024 2048 ch' in rows['backbone']
    assert rows['backbone'].split('│')[-2].strip() == 'adapter'
    assert rows['decode_head.conv_seg'].split('│')[-2].strip() == 'fits'


def test_another_teacher_for_machines(run):
    teacher = (
        'mmdet::fcos/fcos_r50-dcn-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py'
    )
    found = {tap['tap']: tap for tap in json.loads(run(DETECTOR, '--match', teacher, '--json'))}
    assert found['neck']['verdict'] == 'fits'
    assert found['neck']['student']['shapes'][0] == [2, 256, 32, 64]
    assert found['bbox_head.conv_cls']['verdict'] == 'no: not in the student'
    assert found['bbox_head.conv_cls']['student'] is None


def test_what_does_not_exist(run):
    with pytest.raises(SystemExit, match=r'the config missing\.py does not exist'):
        run('missing.py')
    with pytest.raises(SystemExit, match=r'the config nothing\.py does not exist'):
        run(SEGMENTER, '--match', 'nothing.py')


def test_of_many_maps_the_first_are_shown():
    shapes = [(2, 4 + index, 64 // 2**index, 64) for index in range(7)]
    shown = taps.described(Place('tap', 'Layer', Yield(7, shapes)), (32, 64))
    assert shown == [
        '4 5 6 7 8 ...',
        '0.5 1 2 4 8 ...',
        '64x64 32x64 16x64 8x64 4x64 ...',
    ]
    six = taps.described(Place('tap', 'Layer', Yield(6, shapes[:6])), (32, 64))
    assert six[0] == '4 5 6 7 8 9'


def test_a_model_alone_for_machines():
    pair = Pair('tap', Place('tap', 'Layer', Yield(1, [(2, 4, 8, 8)])), None, '')
    found = taps.record(pair, alone=True)
    assert found == dict(tap='tap', layer='Layer', calls=1, shapes=[(2, 4, 8, 8)])


def test_preprocessing_may_stand_beside_the_model():
    model = toy.segmenter()
    preprocessor = model.pop('data_preprocessor')
    config = Config(dict(model=model, data_preprocessor=preprocessor, default_scope='mmseg'))
    found = build_model(config).data_preprocessor
    assert found.mean.flatten().tolist() == preprocessor.mean

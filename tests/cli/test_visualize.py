import re
import shutil
from urllib.parse import unquote, urlsplit

import cv2
import pytest
import torch
from mmengine.config import Config
from mmseg.datasets.transforms import LoadAnnotations

from kd_dense.cli import visualize
from kd_dense.mm.configs import build_model
from tests.launch import DETECTOR, SEGMENTER, call
from tests.miniature import ROOT, make_data, write_miniature, write_small


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp('data'))


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '140')

    def run(*arguments):
        call('visualize', *arguments)
        return capsys.readouterr().out

    return run


def check_page(folder):
    """Every picture of the page is there, and nothing else is needed."""
    page = (folder / 'index.html').read_text()
    names = re.findall(r'<a href="([^"]+)"><img src="\1"', page)  # each leads to its full size
    assert len(names) == page.count('<img')
    files = [unquote(urlsplit(name).path) for name in names]
    assert {*files} == {path.name for path in folder.glob('*.png')}
    assert len(files) == len({*files})
    for file in files:
        height, width, _ = cv2.imread(str(folder / file)).shape
        assert width >= 600
        assert height >= 150
    assert '<script' not in page
    assert 'http' not in page
    return page, files


def test_a_detector_before_and_after(run, data, tmp_path):
    config = write_small(DETECTOR, data, tmp_path / 'run')
    states = {}
    for name in ('alone', 'distilled'):
        torch.manual_seed(len(states))
        states[name] = build_model(Config.fromfile(config)).state_dict()
    bare = {k: v for k, v in states['alone'].items() if not k.startswith('kd.')}
    torch.save({'state_dict': bare}, tmp_path / 'alone.pth')
    torch.save({'state_dict': states['distilled']}, tmp_path / 'distilled.pth')
    out = run(
        config,
        '--checkpoint', tmp_path / 'distilled.pth',
        '--student-checkpoint', tmp_path / 'alone.pth',
        '--indices', 1,
        '--out', tmp_path / 'out',
    )  # fmt: skip
    assert 'drawing val 1: 000000000002.jpg' in out
    page, files = check_page(tmp_path / 'out')
    assert files == ['val1_predictions.png', 'val1_cwd.png', 'val1_cwd_differences.png']
    values = re.search(r'Weighted loss: student alone (\S+), distilled student (\S+)\.<', page)
    assert float(values[1]) != float(values[2])
    assert 'CWDLoss at <code>neck</code>' in page


def test_a_segmenter_and_files_without_ground_truth(run, data, tmp_path):
    """What needs label maps is left out, with the reason."""
    recipe = (
        ROOT / 'configs/intrakd/intrakd_pspnet-r18_from_pspnet-r101_80k_cityscapes-512x1024.py'
    )
    config = write_small(recipe, data, tmp_path / 'run')
    picture = tmp_path / '50% #1.png'
    shutil.copy(next((data / 'cityscapes/leftImg8bit/val').rglob('*.png')), picture)
    run(config, '--images', picture, '--out', tmp_path / 'out')
    page, files = check_page(tmp_path / 'out')
    assert f'0-{picture.stem}_predictions.png' in files
    assert 'Not shown: it needs segmentation: the picture has no ground truth.' in page
    assert not [file for file in files if 'affinity' in file]
    assert 'untrained student' in page


def test_a_detector_and_files(run, data, tmp_path):
    """mmdet packs objects without boxes for them."""
    recipe = ROOT / 'configs/fgd/fgd_retinanet-r50_from_retinanet-x101-64x4d_2x_coco.py'
    config = write_miniature(
        recipe, data, tmp_path / 'run',
        model__teacher=dict(
            config='mmdet::retinanet/retinanet_r18_fpn_1x_coco.py', checkpoint=None
        ),
    )  # fmt: skip
    [picture, *_] = (data / 'coco').rglob('*.jpg')
    run(config, '--images', picture, '--out', tmp_path / 'out')
    page, files = check_page(tmp_path / 'out')
    assert files == [f'0-{picture.stem}_predictions.png']
    assert 'Not shown: it needs boxes: the picture has no ground truth.' in page


@pytest.mark.parametrize('kind', ['classes', 'concatenated'])
def test_steps_of_the_pipeline(kind):
    """However they are spelt, and wherever the data sets that are concatenated have them."""
    steps = [dict(type='LoadImageFromFile'), dict(type=LoadAnnotations), dict(type='X')]
    config = dict(type='A', pipeline=steps)
    if kind == 'concatenated':
        config = dict(dataset=dict(datasets=[config, dict(type='B', pipeline=[])]))
    assert visualize.find_pipeline(config) == steps
    assert visualize.without_annotations(steps) == [steps[0], steps[2]]


def test_maps_behind_an_adapter_that_was_not_trained_are_left_out(run, data, tmp_path):
    recipe = (
        ROOT / 'configs/cwd/cwd-feature_pspnet-r18_from_pspnet-r101_80k_cityscapes-512x1024.py'
    )
    config = write_miniature(
        recipe, data, tmp_path / 'run',
        model__teacher=dict(
            config='mmseg::pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-512x1024.py', checkpoint=None
        ),
    )  # fmt: skip
    state = build_model(Config.fromfile(config)).state_dict()
    bare = {k: v for k, v in state.items() if not k.startswith('kd.')}
    torch.save({'state_dict': bare}, tmp_path / 'alone.pth')
    more = '--student-checkpoint', tmp_path / 'alone.pth', '--indices', 0
    run(config, *more, '--out', tmp_path / 'out')
    page, files = check_page(tmp_path / 'out')
    assert files == ['val0_predictions.png']
    assert 'an adapter that is trained with it: student alone not shown' in page


class TestWhatCannotBeShown:
    @pytest.fixture(scope='class')
    def config(self, data, tmp_path_factory):
        return write_small(SEGMENTER, data, tmp_path_factory.mktemp('run') / 'run')

    def test_no_such_picture(self, run, config):
        with pytest.raises(SystemExit, match=r'there is no picture missing\.png \(looked in'):
            run(config, '--images', 'missing.png')
        with pytest.raises(
            SystemExit, match='val data: there is no entry 7 in the data set, which'
        ):
            run(config, '--indices', 7)

    def test_no_config(self, run):
        with pytest.raises(SystemExit, match=r'the config missing\.py does not exist'):
            run('missing.py')

    def test_no_data_set(self, run, data, tmp_path):
        config = write_small(SEGMENTER, tmp_path / 'nothing', tmp_path / 'run')
        with pytest.raises(SystemExit, match='put it where the config looks for it'):
            run(config)

    def test_no_recipe(self, run, data, tmp_path):
        config = write_miniature(ROOT / 'configs/ld/gfl_r18_1x_coco.py', data, tmp_path / 'run')
        with pytest.raises(SystemExit, match='is no recipe: expected model=dict'):
            run(config)

    def test_no_terms(self, run, config):
        with pytest.raises(SystemExit, match='terms is empty: say what to distil'):
            run(config, '--cfg-options', 'model.terms._delete_=True')

    def test_no_checkpoint(self, run, config):
        with pytest.raises(SystemExit, match=r'the checkpoint missing\.pth does not exist'):
            run(config, '--checkpoint', 'missing.pth')

    def test_checkpoint_of_another_model(self, run, config, tmp_path):
        torch.save({'state_dict': {'backbone.weight': torch.zeros(3)}}, tmp_path / 'other.pth')
        message = r'(?s)other\.pth does not fit DistilledEncoderDecoder.*of another model\?$'
        with pytest.raises(SystemExit, match=message):
            run(config, '--student-checkpoint', tmp_path / 'other.pth')

    def test_no_teacher(self, run, config):
        with pytest.raises(SystemExit, match=r'the checkpoint nothing\.pth does not exist'):
            run(config, '--cfg-options', 'model.teacher.checkpoint=nothing.pth')

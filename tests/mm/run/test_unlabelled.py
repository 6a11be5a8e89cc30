"""`--unlabelled FOLDER` on the command line, and in `kd_dense.distill` and `kd_dense.check`."""

import shutil

import mmcv
import numpy as np
import pytest
from mmengine.config import Config

import kd_dense
from examples.quickstart.make_scenes import make_scenes
from kd_dense.mm.configs import RequestError
from kd_dense.mm.run.recipes import read_recipe
from tests.launch import call, losses
from tests.mm.run.test_distill import QUICK, SHORT, STUDENT, TEACHER, WEIGHTS, taught

DETECTOR = QUICK / 'det_cwd.py'


@pytest.fixture(autouse=True)
def scenes(tmp_path, monkeypatch):
    make_scenes(tmp_path / 'scenes', train=4, val=2, test=1)
    monkeypatch.setenv('SCENES', str(tmp_path / 'scenes'))
    return tmp_path / 'scenes'


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(3):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        mmcv.imwrite(pixels, str(tmp_path / 'more' / f'{index}.png'))
    return tmp_path / 'more'


def test_beside_pictures_with_labels(folder, tmp_path):
    options = [f'{key}={value}' for key, value in SHORT.items()]
    call('train', QUICK / 'seg_cwd.py', '--unlabelled', folder, '--work-dir', tmp_path / 'run',
         '--cfg-options', *options, 'default_hooks.logger.interval=1')  # fmt: skip
    steps = losses(tmp_path / 'run')
    assert len(steps) == 3
    assert {'decode.loss_ce', 'loss_kd_logits', 'loss_kd_features'} <= steps[0].keys()


def test_without_labels_and_without_what_they_lie_in(folder, scenes, tmp_path):
    shutil.rmtree(scenes)
    found = kd_dense.distill(
        STUDENT, TEACHER, 'cwd', teacher_checkpoint=WEIGHTS, work_dir=tmp_path / 'run',
        unlabelled=folder, labels=False,
        options={**SHORT, 'default_hooks.logger.interval': 1})  # fmt: skip
    assert found.scores == {}  # there is no validation
    assert found.student.is_file()
    steps = losses(tmp_path / 'run')
    assert not any('decode' in name for name in steps[0])
    assert steps[0]['loss'] == pytest.approx(steps[0]['loss_kd_cwd'])


def test_check_understands_it(folder):
    given = dict(teacher_checkpoint=str(WEIGHTS), batches=1, images=2, options=SHORT)
    mixed = kd_dense.check(STUDENT, TEACHER, 'cwd', unlabelled=folder, **given)
    assert all(one.status != 'error' for one in mixed), mixed
    [data] = [one for one in mixed if one.check == 'data']
    assert '7 training pictures, 3 of them without labels, 4 in a batch' in data.message
    alone = kd_dense.check(STUDENT, TEACHER, 'cwd', unlabelled=folder, labels=False, **given)
    assert all(one.status != 'error' for one in alone), alone
    said = ' '.join(one.message for one in alone)
    assert '3 training pictures, 3 of them without labels' in said
    assert 'the student learns from the teacher alone' in said


def test_what_the_config_becomes(folder):
    found = read_recipe(DETECTOR, None, (), unlabelled=folder)
    loader, size = found.train_dataloader, read_recipe(DETECTOR, None, ()).train_dataloader
    assert loader.batch_size == 2 * size.batch_size
    assert loader.sampler.batch_size == loader.batch_size
    assert loader.sampler.infinite == ('max_iters' in found.train_cfg)
    assert 'batch_sampler' not in loader
    assert loader.dataset.beside == size.dataset
    assert found.model.unlabelled is True


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (dict(unlabelled='no/such'), 'there is no folder and no list no/such'),
        (dict(labels=False), r'needs pictures: --unlabelled FOLDER'),
    ],
)
def test_bad_input(given, message):
    with pytest.raises(RequestError, match=message):
        read_recipe(DETECTOR, None, (), **given)


def test_without_a_teacher(folder):
    with pytest.raises(RequestError, match='want a teacher: name one'):
        read_recipe(STUDENT, None, (), unlabelled=folder)


def test_a_recipe_is_not_written_with_it(folder):
    with pytest.raises(SystemExit, match='leave out --unlabelled now'):
        call('train', STUDENT, '--teacher', TEACHER, '--teacher-checkpoint', WEIGHTS,
             '--distill', 'cwd', '--unlabelled', folder, '--dump-config')  # fmt: skip
    with pytest.raises(RequestError, match='leave out unlabelled now'):
        kd_dense.distill(STUDENT, TEACHER, 'cwd', unlabelled=folder, dump_config='a.py')


def test_models_that_are_built_already(folder, tmp_path):
    found = kd_dense.distill(
        taught(), taught(), 'cwd', config=TEACHER, work_dir=tmp_path / 'run', unlabelled=folder,
        options={**SHORT, 'default_hooks.logger.interval': 1})  # fmt: skip
    assert found.student.is_file()
    config = Config.fromfile(next((tmp_path / 'run').glob('*.py')))
    assert config.train_dataloader.dataset.type == 'kd_dense.Unlabelled'
    assert {'decode.loss_ce', 'loss_kd_cwd'} <= losses(tmp_path / 'run')[0].keys()
    with pytest.raises(RequestError, match='needs pictures: unlabelled=FOLDER'):
        kd_dense.distill(taught(), TEACHER, 'cwd', config=TEACHER, labels=False)

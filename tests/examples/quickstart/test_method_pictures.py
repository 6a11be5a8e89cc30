"""The pictures of the methods, with students that have learnt nothing."""

import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from examples.quickstart import method_pictures

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def draw(monkeypatch, capsys):
    def draw(*arguments):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, 'argv', ['method_pictures', *map(str, arguments)])
        method_pictures.main()
        return capsys.readouterr().out

    return draw


@pytest.fixture(scope='module')
def work_dir(tmp_path_factory):
    """What the quickstart leaves, untrained."""
    folder = tmp_path_factory.mktemp('quickstart')
    for task in ('seg', 'det'):
        config = Config.fromfile(ROOT / f'configs/quickstart/{task}_student.py')
        save(config, *(folder / f'{task}_{x}_seed0' for x in ('student', 'cwd')))
    return folder


def save(config, *folders):
    """The untrained weights of a config, as if it had been trained there."""
    with DefaultScope.overwrite_default_scope(config.default_scope):
        model = MODELS.build(config.model.get('student', config.model))
    for folder in folders:
        folder.mkdir(exist_ok=True)
        file = folder / f'iter_{config.train_cfg.max_iters}.pth'
        torch.save({'state_dict': model.state_dict()}, file)


@pytest.mark.long
def test_draws_all_methods(work_dir, tmp_path, draw):
    for task in method_pictures.TRAINED:
        for who in ('teacher', 'student'):
            config = Config.fromfile(ROOT / method_pictures.OWN / f'{task}_{who}.py')
            save(config, work_dir / f'{task}_{who}')
    printed = draw('--work-dir', work_dir, '--out', tmp_path)
    pictures = {path.stem: path for path in tmp_path.iterdir()}
    assert pictures.keys() == method_pictures.METHODS.keys() > {'cwd', 'fgd'}
    for path in pictures.values():
        assert path.read_bytes().startswith(b'\x89PNG')
        assert 30_000 < path.stat().st_size < 300_000
        assert str(path) in printed


def test_students_may_lie_elsewhere(work_dir, tmp_path, draw):
    """And a method needs the student of its own task alone; this picture shows one digit."""
    student = work_dir / 'seg_student_seed0' / 'iter_600.pth'
    where = ('--work-dir', tmp_path / 'nothing', '--out', tmp_path / 'pictures')
    draw(*where, '--student-seg', student, '--methods', 'cwd', '--picture', 35)
    assert [path.name for path in (tmp_path / 'pictures').iterdir()] == ['cwd.png']


def test_says_what_to_run_first(tmp_path, draw, capsys):
    with pytest.raises(SystemExit, match=r'^2$'):
        draw('--work-dir', tmp_path, '--out', tmp_path / 'pictures', '--methods', 'ld')
    said = capsys.readouterr().err
    missing = tmp_path / 'det_student_seed0' / 'iter_600.pth'
    first = 'run bash examples/quickstart/quickstart.sh first'
    assert f'there is no student {missing}: {first}' in said
    assert '--student-det' in said
    assert not (tmp_path / 'pictures').exists()


def test_says_what_it_trains_on(tmp_path, draw, monkeypatch):
    monkeypatch.setenv('SCENES', str(tmp_path / 'none'))
    with pytest.raises(
        SystemExit, match=r'no data in .*none/coco/: run bash .*quickstart\.sh first'
    ):
        draw('--work-dir', tmp_path, '--out', tmp_path / 'pictures', '--methods', 'rois')


def test_nonsense_is_refused(draw, capsys):
    with pytest.raises(SystemExit, match=r'^2$'):
        draw('--picture', -1)
    assert '--picture must be at least 0, got -1' in capsys.readouterr().err

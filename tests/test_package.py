"""What a stranger gets: the wheel, installed alone, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

import kd_dense
from tests.miniature import ROOT, make_data, recipes

SIZE = '(133,80)'
LOADERS = [f'{name}_dataloader' for name in ('train', 'val', 'test')]
# Any config of a detector on COCO, cut down to the two iterations that the miniature has.
SMALL = [
    *(f'{name}.num_workers=0' for name in LOADERS),
    *(f'{name}.persistent_workers=False' for name in LOADERS),
    'train_dataloader.batch_size=2',
    'train_dataloader.dataset.pipeline.2.scale=' + SIZE,
    *(f'{name}.dataset.pipeline.1.scale={SIZE}' for name in LOADERS[1:]),
    *('train_cfg.max_epochs=1', 'default_hooks.logger.interval=1', 'randomness.seed=0'),
]
NO_WEIGHTS = {False: 'model.backbone.init_cfg=None', True: 'model.student.backbone.init_cfg=None'}
STUDENT = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
TEACHER = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
SMALL_RECIPE = 'kd_dense::ld/ld-self_gfl-r18_from_gfl-r18_1x_coco.py'
RECIPE = 'kd_dense::ld/ld_atss-r50_from_atss-r101_1x_coco.py'


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
    """The repository's files, as a clone has them."""
    folder = tmp_path_factory.mktemp('sources') / 'kd_dense'
    left_out = ('.git', '.venv*', 'work_dirs', 'data', '*.egg-info', 'build', 'dist', '.*_cache')
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*left_out))
    return folder


@pytest.fixture(scope='module')
def wheel(sources, tmp_path_factory):
    return build_wheel(sources, tmp_path_factory.mktemp('wheel'))


def build_wheel(sources: Path, out: Path) -> Path:
    pip('wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', out, sources)
    [found] = out.glob('*.whl')
    return found


def pip(*words: object) -> None:
    run(sys.executable, '-m', 'pip', '--disable-pip-version-check', *words)


def run(*words: object, cwd: Path | None = None, status: int = 0) -> str:
    environment = {**os.environ, 'PYTHONPATH': '', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, text=True, timeout=300,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == status, f'{words}: {done.stdout[-4000:]}'
    return done.stdout


def test_the_wheel_is_whole(wheel):
    names = ZipFile(wheel).namelist()
    assert Path(wheel).stat().st_size < 1_000_000
    assert 'kd_dense/py.typed' in names
    for path in (ROOT / 'kd_dense').rglob('*.py'):
        assert path.relative_to(ROOT).as_posix() in names
    for recipe in recipes():
        assert f'kd_dense/.mim/{recipe.relative_to(ROOT).as_posix()}' in names
    for tool in ('train.py', 'test.py', 'dist_train.sh', 'slurm_train.sh'):
        assert f'kd_dense/.mim/tools/{tool}' in names
    assert not [
        name for name in names if name.split('/')[0] in ('tests', 'benchmarks', 'examples')
    ]


def test_the_index_has_every_recipe():
    """And nothing else, in the form that mim and mmengine read."""
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    found = [yaml.safe_load((ROOT / file).read_text()) for file in index]
    models = [model for one in found for model in one['Models']]
    assert {ROOT / model['Config'] for model in models} == {*ROOT.glob('configs/*/*_from_*.py')}
    assert all(model['Name'] == Path(model['Config']).stem for model in models)
    collections = {one['Name']: one for file in found for one in file['Collections']}
    assert {model['In Collection'] for model in models} == {*collections}
    assert all((ROOT / one['README']).is_file() for one in collections.values())


def test_an_sdist_builds_the_same_wheel(sources, wheel, tmp_path):
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', tmp_path, sources)
    [again] = tmp_path.glob('*.whl')  # made from the sdist beside it
    with ZipFile(wheel) as first, ZipFile(again) as second:
        assert first.namelist() == second.namelist()
        for name in first.namelist():
            if not name.endswith('RECORD'):
                assert first.read(name) == second.read(name), name


@pytest.fixture(scope='module')
def elsewhere(wheel, tmp_path_factory):
    """An environment that has the wheel, and of all else what the tests' own has."""
    folder = tmp_path_factory.mktemp('elsewhere')
    run(sys.executable, '-m', 'venv', '--without-pip', folder / 'venv')
    python = folder / 'venv' / 'bin' / 'python'
    pip('--python', python, 'install', '--no-index', '--no-deps', wheel)
    [packages] = (folder / 'venv').glob('lib/*/site-packages')
    others = Path(sysconfig.get_path('purelib'))
    # since Python 3.12, distutils, which mmengine asks for, is setuptools'
    distutils = (others / 'distutils-precedence.pth').read_text()
    (packages / 'others.pth').write_text(f'{others}\n{distutils}')
    work = folder / 'work'
    work.mkdir()
    where = run(python, '-c', 'import kd_dense; print(kd_dense.__file__)', cwd=work)
    assert Path(where.strip()).is_relative_to(packages)
    make_data(work / 'data')
    return python, work


def test_trains_and_exports_without_a_checkout(elsewhere):
    python, work = elsewhere
    command = partial(run, python.with_name('kd_dense'), cwd=work)
    said = command()
    assert said.startswith(f'kd_dense {kd_dense.__version__}: distil a large detector')
    options = ['--work-dir', 'small', '--cfg-options', 'model.teacher.checkpoint=None', *SMALL,
               NO_WEIGHTS[True], 'val_cfg=None', 'val_dataloader=None',
               'val_evaluator=None']  # fmt: skip
    options = [one for one in options if not one.startswith('val_dataloader.')]
    command('train', SMALL_RECIPE, *options)
    [log] = (work / 'small').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line['loss_kd_ld.main'] > 0 for line in lines] == [True, True]
    said = command('export', 'small/epoch_1.pth', 'small.pth')
    assert re.search(r'Wrote small\.pth: \d+ tensors', said)


@pytest.mark.long
def test_all_that_the_command_can_do(elsewhere):
    """Without a checkout: a pair of the zoo, a recipe of ours, and what comes after a training."""
    python, work = elsewhere
    command = partial(run, python.with_name('kd_dense'), cwd=work)

    said = command()
    assert said.startswith(f'kd_dense {kd_dense.__version__}: distil a large detector')
    assert run(python, '-m', 'kd_dense', '--version', cwd=work).strip() == kd_dense.__version__

    teacher = ['--teacher', TEACHER, '--teacher-checkpoint', 'none', '--distill', 'fgd']
    command('train', STUDENT, *teacher, '--cfg-options', *SMALL, NO_WEIGHTS[False])
    zoo = work / 'work_dirs' / 'retinanet_r18_fpn_1x_coco'
    [log] = zoo.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line['loss_kd_fgd.foreground'] > 0 for line in lines[:2]] == [True, True]

    untrained = ['model.teacher.checkpoint=None', *SMALL, NO_WEIGHTS[True]]
    untrained += ['model.student.test_cfg.score_thr=0.0']
    command('train', RECIPE, '--work-dir', 'ours', '--cfg-options', *untrained)
    said = command('check', RECIPE, '--batches', 1, '--images', 1, '--json',
                   '--cfg-options', *untrained, status=1)  # fmt: skip
    [verdict] = [line for line in said.splitlines() if line.startswith('{')]
    errors = [found for found in json.loads(verdict)['findings'] if found['status'] == 'error']
    assert [found['check'] for found in errors] == ['teacher checkpoint']  # there is none
    said = command('export', 'ours/epoch_1.pth', 'student.pth')
    assert re.search(r'Wrote student\.pth: \d+ tensors', said)
    # with its own config, by name, and with that of the recipe
    own = 'kd_dense::ld/atss-distribution_r50_1x_coco.py'
    for config, small in ((own, [*SMALL, 'model.test_cfg.score_thr=0.0']), (RECIPE, untrained)):
        command('test', config, 'student.pth', '--work-dir', 'tested', '--cfg-options', *small)
    scores = [json.loads(file.read_text()) for file in (work / 'tested').glob('*/*.json')]
    found = [{k: v for k, v in one.items() if 'mAP' in k} for one in scores]
    assert found[0]
    assert found[0] == found[1]

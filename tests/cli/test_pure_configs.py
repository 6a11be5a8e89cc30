"""Recipes in mmengine's pure Python style, where types are classes, and types spelt as paths."""

import json
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from examples.quickstart.make_scenes import make_scenes
from kd_dense.mm.configs import read_config
from kd_dense.mm.files.checkpoint import read_file
from tests.launch import call, losses
from tests.miniature import ROOT
from tests.pure import write_pure

QUICK = ROOT / 'configs' / 'quickstart'
SHORT = {
    'train_cfg.max_iters': 4,
    'train_cfg.val_interval': 4,
    'train_dataloader.batch_size': 2,
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
    'val_dataloader.num_workers': 0,
    'val_dataloader.persistent_workers': False,
    'test_dataloader.num_workers': 0,
    'default_hooks.checkpoint.interval': 2,
    'default_hooks.checkpoint.save_optimizer': True,
    'default_hooks.logger.interval': 1,
}
# Classes by other paths than those that mmengine writes.
PATHS = {'Distilled': 'kd_dense.mm.Distilled', 'CriticHook': 'kd_dense.mm.CriticHook'}


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """Recipes of the quickstart in other styles, and the folder of their data."""
    folder = tmp_path_factory.mktemp('pure')
    make_scenes(folder / 'scenes', train=4, val=2, test=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SCENES', str(folder / 'scenes'))
        for name in ('seg_skd', 'det_fgd', 'seg_student', 'seg_teacher'):
            config = read_config(QUICK / f'{name}.py', SHORT)
            write_pure(config, folder / f'{name}.py')
            if name == 'seg_skd':
                text = config.pretty_text
                for own, path in PATHS.items():
                    text = text.replace(f"'kd_dense.{own}'", f"'{path}'")
                (folder / 'seg_skd_paths.py').write_text(text)
        yield folder


def train(source, work_dir, *options):
    """Train in this process, where mmengine keeps loggers and visualizers by name."""
    name = f'experiment_name={"-".join(work_dir.parts[-2:])}'
    call('train', source, '--work-dir', work_dir, *(options or ['--cfg-options']), name)
    return work_dir


def of_terms(work_dir):
    return [{k: v for k, v in entry.items() if 'loss' in k} for entry in losses(work_dir)]


def weights(file):
    return read_file(str(file))['state_dict']


@pytest.fixture(scope='module')
def runs(written, tmp_path_factory):
    """The work directories of trainings without an interruption."""
    folder = tmp_path_factory.mktemp('runs')
    options = ['--cfg-options', *[f'{key}={value}' for key, value in SHORT.items()]]
    found = {}
    for name in ('seg_skd', 'det_fgd'):
        found[f'{name}.py'] = train(QUICK / f'{name}.py', folder / f'{name}_text', *options)
        found[name] = train(written / f'{name}.py', folder / f'{name}_pure')
    found['seg_skd_paths'] = train(written / 'seg_skd_paths.py', folder / 'seg_skd_paths')
    return found


@pytest.mark.parametrize('name', ['seg_skd', 'det_fgd'])
def test_trains_as_the_same_recipe_in_text(name, runs):
    assert of_terms(runs[name]) == of_terms(runs[f'{name}.py'])
    assert len(of_terms(runs[name])) == 4
    # the config of the run, and the one in its checkpoints, can be read and built
    kept = Config.fromfile(*runs[name].glob('*/vis_data/config.py'))
    inside = Config.fromstring(read_file(str(runs[name] / 'iter_4.pth'))['meta']['cfg'], '.py')
    for config in (kept, inside):
        with DefaultScope.overwrite_default_scope('mmseg' if name == 'seg_skd' else 'mmdet'):
            assert type(MODELS.build(config.model)).__name__.startswith('Distilled')


@pytest.mark.parametrize('name', ['seg_skd', 'seg_skd_paths'])
def test_a_resumed_critic_trains_on(name, written, runs, tmp_path):
    """There is one hook, which trains it, and whose optimizer is in the checkpoint."""
    half = runs[name] / 'iter_2.pth'
    assert read_file(str(half))['kd_dense_critics']['state']
    hooks = Config.fromfile(*runs[name].glob('*/vis_data/config.py')).custom_hooks
    assert [hook.type.rpartition('.')[2] for hook in hooks] == [
        'CriticHook',
        'RandomStateHook',
        'AverageHook',
    ]
    again = train(written / f'{name}.py', tmp_path / 'again', '--resume', half, '--cfg-options')
    ours, theirs = (weights(folder / 'iter_4.pth') for folder in (runs[name], again))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_is_tested(written, runs, tmp_path):
    """As a segmenter, though it has no default scope."""
    call('test', written / 'seg_skd.py', runs['seg_skd'] / 'iter_4.pth', '--work-dir',
         tmp_path / 'tested', '--out', tmp_path / 'out.pkl', '--cfg-options',
         'experiment_name=pure-tested')  # fmt: skip
    assert (tmp_path / 'out.pkl').is_file()


def test_is_checked(written, capsys):
    call('check', written / 'seg_skd.py', '--batches', 1, '--images', 2, '--json')
    said = json.loads(capsys.readouterr().out)
    assert said['ok']
    assert not [one for one in said['findings'] if 'CriticHook' in one['message']]


def test_is_shown_and_timed(written, tmp_path, capsys):
    picture = next((written / 'scenes' / 'cityscapes' / 'leftImg8bit' / 'val').rglob('*.png'))
    call('visualize', written / 'seg_skd.py', '--images', picture, '--out', tmp_path / 'page')
    assert 'Term holistic' in (tmp_path / 'page' / 'index.html').read_text()
    call('benchmark', written / 'seg_skd.py', '--rounds', 1, '--size', 48, 48)
    assert 'seg_skd' in capsys.readouterr().out


class TestDumpedRecipes:
    def test_is_the_same_training(self, written, tmp_path, capsys):
        teacher = ['--teacher', QUICK / 'seg_teacher.py', '--teacher-checkpoint', 'none']
        options = [*teacher, '--distill', 'skd']
        dumped = written / 'recipes' / 'dumped.py'
        call('train', written / 'seg_student.py', *options, '--dump-config', dumped)
        text = dumped.read_text()
        assert 'from ..seg_student import *' in text
        assert 'from kd_dense.mm import CriticHook, Distilled' in text
        assert 'student=model,' in text
        asked = train(written / 'seg_student.py', tmp_path / 'asked', *options, '--cfg-options')
        read = train(dumped, tmp_path / 'read')
        assert of_terms(read) == of_terms(asked)
        assert {'loss_kd_pixel', 'loss_kd_holistic'} < of_terms(read)[0].keys()

    def test_of_a_recipe_that_names_a_preset(self, written):
        (written / 'named.py').write_text(
            'from mmengine.config import read_base\n\nfrom kd_dense.mm import Distilled\n\n'
            'with read_base():\n    from .seg_student import *\n\n'
            "model = dict(type=Distilled, student=model, preset='cwd',\n"
            f"             teacher=dict(config='{QUICK}/seg_teacher.py', checkpoint=None))\n"
        )
        call('train', written / 'named.py', '--dump-config', written / 'spelt.py')
        model = read_config(written / 'spelt.py').model
        assert model.type == 'kd_dense.Distilled'
        assert model.student.type == 'mmseg.EncoderDecoder'
        assert [*model.terms] == ['cwd']
        assert model.teacher.checkpoint is None
        assert 'preset' not in model

    def test_a_base_that_cannot_be_imported(self, written):
        shutil.copy(written / 'seg_student.py', written / 'seg-student.py')
        with pytest.raises(SystemExit, match=r'seg-student cannot be imported: give it a name of'):
            call('train', written / 'seg-student.py', '--teacher', QUICK / 'seg_teacher.py',
                 '--teacher-checkpoint', 'none', '--distill', 'cwd', '--dump-config')  # fmt: skip


def test_a_teacher_in_this_style(written, tmp_path):
    found = train(QUICK / 'seg_student.py', tmp_path / 'run', '--teacher',
                  written / 'seg_teacher.py', '--teacher-checkpoint',
                  QUICK / 'checkpoints' / 'seg_teacher.pth', '--distill', 'cwd', '--cfg-options',
                  *[f'{key}={value}' for key, value in SHORT.items()])  # fmt: skip
    assert of_terms(found)[0]['loss_kd_cwd'] > 0

"""Distil without a recipe: what the options do, and the recipe that stands for them."""

import textwrap
from functools import partial
from pathlib import Path

import pytest
from mmengine.config import Config

from kd_dense.mm.configs import RequestError
from kd_dense.mm.presets import recipe as recipe_module
from kd_dense.mm.presets.choose import listed_methods
from kd_dense.mm.presets.recipe import recipe
from kd_dense.mm.presets.settings import Preset
from tests.launch import call, framework, losses, run_here
from tests.miniature import ROOT, make_data, write_miniature

TRAIN = ROOT / 'tools' / 'train.py'
SEGMENTER = 'pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
DETECTOR = 'retinanet/retinanet_r18_fpn_1x_coco.py'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp('data'))


@pytest.fixture
def program(monkeypatch):
    """Run `kd_dense train` with these arguments, and nothing else."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    return partial(call, 'train')


def terms(entries):
    """The losses of a log, without what differs from run to run."""
    return [{k: v for k, v in entry.items() if 'loss' in k or k == 'step'} for entry in entries]


@pytest.mark.parametrize(
    ('package', 'stock', 'methods', 'keys'),
    [
        ('mmseg', SEGMENTER, ['skd'], {'loss_kd_pixel', 'loss_kd_pair', 'loss_kd_holistic'}),
        ('mmdet', DETECTOR, ['fgd', 'cwd'], {'loss_kd_fgd.relation', 'loss_kd_cwd'}),
    ],
    ids=['mmseg', 'mmdet'],
)
def test_the_dumped_recipe_is_the_same_training(
    package, stock, methods, keys, data, tmp_path, monkeypatch, program, capsys
):
    path = framework(package) / 'configs' / stock
    config = write_miniature(path, data, tmp_path / 'plain', default_hooks__checkpoint=None)
    options = ['--teacher', f'{package}::{stock}', '--teacher-checkpoint', 'none']
    options += ['--distill', *methods]
    short = dict(val_cfg=None, val_dataloader=None, val_evaluator=None)

    run_here(monkeypatch, TRAIN, config, *options, '--work-dir', tmp_path / 'options', **short)
    dumped = tmp_path / 'recipes' / 'dumped.py'
    capsys.readouterr()
    program(config, *options, '--dump-config', dumped)

    said = capsys.readouterr().out
    assert f'kd_dense train {dumped}' in said
    text = dumped.read_text()
    assert "'../plain.py'" in text
    assert 'configs/_base_/kd_dense.py' in text
    assert not [line for line in text.splitlines() if len(line) > 99 and '_base_/' not in line]
    run_here(monkeypatch, TRAIN, dumped, '--work-dir', tmp_path / 'recipe', **short)

    found = terms(losses(tmp_path / 'recipe'))
    assert found == terms(losses(tmp_path / 'options'))
    assert len(found) == 2
    assert keys < found[0].keys()


def test_a_recipe_is_printed_where_no_file_is_named(program, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program(f'mmdet::{DETECTOR}', '--teacher', f'mmdet::{DETECTOR}', '--distill', 'fgd',
            '--distill', 'cwd', '--teacher-checkpoint', 'none', '--weights', 'shares',
            '--dump-config')  # fmt: skip
    said = capsys.readouterr()
    assert 'current folder' in said.err
    (tmp_path / 'mine.py').write_text(said.out)
    config = Config.fromfile(tmp_path / 'mine.py')
    assert config.model.teacher == dict(config=f'mmdet::{DETECTOR}', checkpoint=None)
    assert [*config.model.terms] == ['fgd', 'cwd']
    assert config.model.terms.fgd.share == config.model.terms.cwd.share == 0.5
    assert config.model.inherit == ('neck', 'bbox_head')
    assert config.model.student.type == 'RetinaNet'


def test_a_recipe_that_names_a_preset_is_spelt_out(program, tmp_path):
    (tmp_path / 'preset.py').write_text(
        f"_base_ = ['{ROOT}/configs/_base_/kd_dense.py', 'mmseg::{SEGMENTER}']\n"
        "model = dict(_delete_=True, type='kd_dense.Distilled', student=_base_.model,\n"
        f"             teacher=dict(config='mmseg::{SEGMENTER}', checkpoint=None), preset='cwd',\n"
        '             compile_losses=True, pseudo=dict(score_thr=0.5))\n'
    )
    program(tmp_path / 'preset.py', '--dump-config', tmp_path / 'spelt.py')
    before, after = (Config.fromfile(tmp_path / f'{n}.py').model for n in ('preset', 'spelt'))
    assert after.terms.cwd.tap == 'decode_head.conv_seg'
    assert 'preset' not in after
    for name in ('student', 'teacher', 'compile_losses', 'pseudo'):
        assert after[name] == before[name]


def test_a_critic_gets_its_hook_beside_those_of_the_base(tmp_path):
    term = dict(tap='x', loss=dict(type='HolisticLoss', weight=0.1))
    chosen = Preset({'holistic': term}, (), 'ours')
    made = partial(recipe, 'a.py', 't.py', ['skd'], chosen, tmp_path)
    text = made(hooks=True)
    assert "custom_hooks = [*_base_.custom_hooks, dict(type='kd_dense.CriticHook')]" in text
    assert 'custom_hooks = [*custom_hooks, dict(type=CriticHook)]' in made(hooks=True, pure=True)
    assert "custom_hooks = [dict(type='kd_dense.CriticHook')]" in made()
    assert 'custom_hooks' not in made(hooks=True, critic=False)


@pytest.mark.parametrize(
    ('base', 'folder', 'expected'),
    [('x/a.py', 'x', '.a'), ('x/y/a.py', 'x', '.y.a'), ('a.py', 'x/y', '...a'),
     ('x/z/a.py', 'x/y', '..z.a')],
)  # fmt: skip
def test_a_base_in_the_pure_style_is_imported(base, folder, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    term = dict(tap='x', loss=dict(type='CWDLoss'))
    chosen = Preset({'cwd': term}, (), 'ours')
    text = recipe(base, 't.py', ['cwd'], chosen, Path(folder), pure=True)
    assert f'with read_base():\n    from {expected} import *\n' in text
    Path(base).parent.mkdir(parents=True, exist_ok=True)
    Path(folder).mkdir(parents=True, exist_ok=True)
    Path(base).write_text("model = dict(type='FCOS')\n")
    Path(folder, 'recipe.py').write_text(text)
    model = Config.fromfile(Path(folder, 'recipe.py')).model
    assert (model.student, model.terms) == (dict(type='FCOS'), dict(cwd=term))


@pytest.mark.parametrize('name', ['my-student', 'my.student', '4x', 'class'])
def test_a_base_in_the_pure_style_that_cannot_be_imported(name, tmp_path):
    chosen = Preset({}, (), 'ours')
    with pytest.raises(RequestError, match=rf'{name} cannot be imported: give it a name of'):
        recipe(str(tmp_path / f'{name}.py'), 't.py', ['cwd'], chosen, tmp_path, pure=True)


def test_without_the_repository_a_recipe_says_how_it_can_be_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe_module, 'BASE', tmp_path / 'nowhere.py')
    term = dict(tap='neck', loss=dict(type='CWDLoss'))
    text = recipe(f'mmdet::{DETECTOR}', 't.py', ['cwd'], Preset({'cwd': term}, (), ''), tmp_path)
    assert 'was not found' in text
    assert f"_base_ = ['mmdet::{DETECTOR}']" in text


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--teacher', f'mmdet::{DETECTOR}x', '--distill', 'cwd'], 'did you mean mmdet::'),
        (['--teacher', 'gone.py', '--distill', 'cwd'], 'gone.py does not exist'),
        (['--teacher', f'mmdet::{DETECTOR}', '--distill', 'cwd', '--teacher-checkpoint', 'no.pth'],
         'checkpoint no.pth does not exist'),
        (['--teacher', str(ROOT / 'configs/ld/gfl_r34_1x_coco.py'), '--distill', 'cwd'],
         'comes without published weights: give --teacher-checkpoint'),
        (['--dump-config'], 'say --teacher and --distill'),
        (['--teacher', f'mmdet::{DETECTOR}', '--distill', 'cwd', '--dump-config',
          '--cfg-options', 'train_cfg.max_epochs=1'], 'leave out --cfg-options'),
        (['--teacher', f'mmdet::{DETECTOR}', '--distill', 'cwd', '--dump-config', __file__],
         'exists already'),
        (['--teacher', f'mmdet::{DETECTOR}', '--distill', 'cwd', '--dump-config', 'a.txt'],
         'end in .py'),
    ],
    ids=['teacher', 'path', 'checkpoint', 'weights', 'dump', 'options', 'exists', 'suffix'],
)  # fmt: skip
def test_mistakes_in_the_options(options, message, program):
    with pytest.raises(SystemExit, match=message):
        program(f'mmdet::{DETECTOR}', *options)


def test_a_recipe_has_its_teacher_already(program):
    mine = ROOT / 'configs/cwd/cwd_retinanet-r50_from_retinanet-r101_1x_coco.py'
    with pytest.raises(SystemExit, match='is a recipe and has a teacher already'):
        program(mine, '--teacher', f'mmdet::{DETECTOR}', '--distill', 'cwd')


def test_a_student_that_does_not_exist(program):
    with pytest.raises(SystemExit, match=r'does not exist; did you mean mmdet::'):
        program(f'mmdet::{DETECTOR}x', '--teacher', f'mmdet::{DETECTOR}', '--distill', 'cwd')


def test_an_unknown_method_is_answered_with_the_known_ones(program, capsys):
    with pytest.raises(SystemExit, match='2'):
        program(f'mmdet::{DETECTOR}', '--teacher', f'mmdet::{DETECTOR}', '--distill', 'fdg')
    said = capsys.readouterr().err
    assert "no method 'fdg', did you mean 'fgd'" in said
    assert listed_methods() in said


def test_a_missing_method_is_answered_likewise_and_help_lists_them(program, capsys):
    for options in (['--distill'], ['--help']):
        with pytest.raises(SystemExit, match='0' if options == ['--help'] else '2'):
            program(f'mmdet::{DETECTOR}', *options)
        out, err = capsys.readouterr()
        assert textwrap.indent(listed_methods(), '  ' if out else '') in out + err

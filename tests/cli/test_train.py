import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner

from tests.launch import DETECTOR, SEGMENTER, STOCK, framework, logged, losses, run, run_here
from tests.miniature import ROOT, make_data, write_miniature, write_small

TRAIN = ROOT / 'tools' / 'train.py'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp('data'))


def has_distilled(work_dir, steps):
    found = losses(work_dir)
    assert [entry['step'] for entry in found] == steps
    assert all(entry['loss_kd_cwd'] > 0 for entry in found)
    return True


def test_trains_then_resumes(data, tmp_path, monkeypatch):
    config = write_small(SEGMENTER, data, tmp_path / 'configured')
    work_dir = tmp_path / 'run'

    run(
        sys.executable, TRAIN, config, '--work-dir', work_dir, '--cfg-options', 'randomness.seed=3'
    )

    assert has_distilled(work_dir, [1, 2])
    assert logged(work_dir)[-1]['mIoU'] >= 0
    assert Config.fromfile(*work_dir.glob('*/vis_data/config.py')).randomness.seed == 3
    assert not (tmp_path / 'configured').exists()

    run_here(monkeypatch, TRAIN, config, '--work-dir', work_dir, '--resume',
             train_cfg__max_iters=3, train_cfg__val_interval=3)  # fmt: skip

    assert has_distilled(work_dir, [3])
    saved = torch.load(work_dir / 'iter_3.pth', weights_only=False)
    assert saved['meta']['iter'] == 3
    assert saved['optimizer']['state']
    assert 'kd_dense_random_state' in saved
    shutil.rmtree(work_dir)


@pytest.mark.long  # tests/configs/test_quickstart.py has the same with small models
@pytest.mark.parametrize('recipe', [SEGMENTER, DETECTOR], ids=['mmseg', 'mmdet'])
def test_the_frameworks_own_tool_runs_a_recipe(recipe, data, tmp_path):
    # In a process of its own: nothing but the recipe imports kd_dense there.
    name, _ = STOCK[recipe]
    config = write_miniature(recipe, data, tmp_path / 'run', default_hooks__checkpoint=None)

    run(sys.executable, framework(name) / 'tools' / 'train.py', config)

    assert has_distilled(tmp_path / 'run', [1, 2])
    score = 'coco/bbox_mAP' if name == 'mmdet' else 'mIoU'
    assert logged(tmp_path / 'run')[-1][score] >= 0


@pytest.fixture
def built(monkeypatch):
    """Stop where the Runner would be built, and keep its config."""
    seen = SimpleNamespace(config=None)

    def from_cfg(config):
        seen.config = config
        return SimpleNamespace(train=lambda: None, register_hook=lambda hook: None)

    monkeypatch.setattr(Runner, 'from_cfg', from_cfg)
    return seen


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)


class TestOptions:
    """What the options do to a config."""

    def test_a_stock_config_is_distilled_without_a_recipe(self, built, monkeypatch, tmp_path):
        student = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
        teacher = 'mmdet::retinanet/retinanet_r101_fpn_1x_coco.py'
        run_here(monkeypatch, TRAIN, student)
        stock = built.config.model
        run_here(monkeypatch, TRAIN, student, '--teacher', teacher, '--distill', 'cwd')
        assert built.config.model == dict(
            type='kd_dense.Distilled', student=stock, teacher=dict(config=teacher), preset=['cwd']
        )
        assert built.config.work_dir == 'work_dirs/retinanet_r50_fpn_1x_coco'
        model = MODELS.build({'_scope_': 'mmdet', **built.config.model})
        recipe = Config.fromfile(DETECTOR).model.terms.cwd
        assert model.kd.cwd.student_tap == recipe.tap
        assert model.kd.cwd.loss.weight == recipe.loss.weight
        mine = tmp_path / 'mine.pth'
        mine.touch()
        run_here(monkeypatch, TRAIN, student, '--teacher', teacher, '--distill', 'cwd', 'fgd',
                 '--teacher-checkpoint', mine)  # fmt: skip
        assert built.config.model.teacher.checkpoint == str(mine)
        assert built.config.model.preset == ['cwd', 'fgd']

    @pytest.mark.parametrize('options', [['--teacher-checkpoint', 'a'], ['--distill', 'cwd']])
    def test_a_method_needs_a_teacher(self, built, monkeypatch, options):
        with pytest.raises(SystemExit, match=r'want a teacher \(--teacher\)'):
            run_here(monkeypatch, TRAIN, DETECTOR, *options)

    def test_a_teacher_alone_teaches_by_the_default(self, built, monkeypatch):
        student = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
        teacher = 'mmdet::retinanet/retinanet_r101_fpn_1x_coco.py'
        run_here(monkeypatch, TRAIN, student, '--teacher', teacher)
        assert built.config.model.preset == ['auto']

    def test_the_work_directory(self, built, monkeypatch, tmp_path):
        run_here(monkeypatch, TRAIN, DETECTOR)
        assert built.config.work_dir == f'work_dirs/{DETECTOR.stem}'
        run_here(monkeypatch, TRAIN, DETECTOR, work_dir='from_options')
        assert built.config.work_dir == 'from_options'
        run_here(monkeypatch, TRAIN, DETECTOR, '--work-dir', tmp_path, work_dir='from_options')
        assert built.config.work_dir == str(tmp_path)

    def test_hooks_that_a_training_should_have_are_added(self, built, monkeypatch, tmp_path):
        kinds = 'RandomState', 'Critic', 'Average'
        state, critic, average = (dict(type=f'kd_dense.{name}Hook') for name in kinds)
        run_here(monkeypatch, TRAIN, DETECTOR)
        assert built.config.custom_hooks == [state, critic, average]
        own = tmp_path / 'own.py'
        slower = dict(type='kd_dense.CriticHook', optimizer=dict(type='Adam', lr=1e-4))
        own.write_text(f"_base_ = ['{DETECTOR}']\ncustom_hooks = [dict(type='X'), {slower}]\n")
        run_here(monkeypatch, TRAIN, own)
        assert built.config.custom_hooks == [dict(type='X'), slower, state, average]

    @pytest.mark.usefixtures('gpu')
    def test_amp(self, built, monkeypatch):
        run_here(monkeypatch, TRAIN, DETECTOR, '--amp')
        assert built.config.optim_wrapper.type == 'AmpOptimWrapper'
        assert built.config.optim_wrapper.loss_scale == 'dynamic'

    @pytest.mark.usefixtures('gpu')
    def test_amp_keeps_what_the_config_says(self, built, monkeypatch):
        run_here(monkeypatch, TRAIN, DETECTOR, '--amp', optim_wrapper__loss_scale=512)
        assert built.config.optim_wrapper.loss_scale == 512

    def test_amp_needs_a_wrapper_that_it_can_replace(self, built, monkeypatch):
        with pytest.raises(SystemExit, match='the config has Mine'):
            run_here(monkeypatch, TRAIN, DETECTOR, '--amp', optim_wrapper__type='Mine')

    @pytest.mark.parametrize('options', [['--amp'], []])
    def test_amp_needs_a_gpu(self, options, monkeypatch):
        monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: False)
        written = {} if options else {'optim_wrapper__type': 'AmpOptimWrapper'}
        with pytest.raises(SystemExit, match=r'needs a GPU.*Train in float32: leave out --amp'):
            run_here(monkeypatch, TRAIN, DETECTOR, *options, **written)

    def test_auto_scale_lr(self, built, monkeypatch):
        run_here(monkeypatch, TRAIN, DETECTOR)
        assert not built.config.auto_scale_lr.enable
        run_here(monkeypatch, TRAIN, DETECTOR, '--auto-scale-lr')
        assert built.config.auto_scale_lr.enable

    def test_auto_scale_lr_needs_a_batch_size(self, built, monkeypatch):
        with pytest.raises(SystemExit, match=r'needs auto_scale_lr\.base_batch_size'):
            run_here(monkeypatch, TRAIN, SEGMENTER, '--auto-scale-lr')

    def test_checkpoints_are_written_by_our_hook(self, built, monkeypatch):
        run_here(monkeypatch, TRAIN, DETECTOR)
        assert built.config.default_hooks.checkpoint.type == 'kd_dense.SafeCheckpointHook'
        assert built.config.default_hooks.logger.type == 'LoggerHook'
        run_here(monkeypatch, TRAIN, DETECTOR, default_hooks__checkpoint__type='Mine')
        assert built.config.default_hooks.checkpoint.type == 'Mine'
        run_here(monkeypatch, TRAIN, DETECTOR, default_hooks__checkpoint=None)
        assert built.config.default_hooks.checkpoint is None

    def test_resume_from_a_checkpoint(self, built, monkeypatch, tmp_path):
        some = tmp_path / 'some.pth'
        torch.save({}, some)
        run_here(monkeypatch, TRAIN, DETECTOR, '--resume', some, load_from='start.pth')
        assert (built.config.resume, built.config.load_from) == (True, str(some))

    def test_resume_goes_before_load_from(self, built, monkeypatch, tmp_path):
        torch.save({}, tmp_path / 'epoch_3.pth')
        (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_3.pth'))
        run_here(monkeypatch, TRAIN, DETECTOR, '--work-dir', tmp_path, '--resume',
                 load_from='start.pth')  # fmt: skip
        assert built.config.resume is True
        assert built.config.load_from == str(tmp_path / 'epoch_3.pth')

    def test_resume_at_the_first_start_keeps_load_from(self, built, monkeypatch, tmp_path):
        run_here(monkeypatch, TRAIN, DETECTOR, '--work-dir', tmp_path, '--resume',
                 load_from='start.pth')  # fmt: skip
        assert (built.config.resume, built.config.load_from) == (False, 'start.pth')

    def test_the_launcher(self, built, monkeypatch):
        run_here(monkeypatch, TRAIN, DETECTOR, '--launcher', 'slurm')
        assert built.config.launcher == 'slurm'


class TestMistakes:
    """One clear error each, before the first iteration."""

    def test_no_such_config(self, monkeypatch):
        with pytest.raises(SystemExit, match=r'the config nowhere/x\.py does not exist'):
            run_here(monkeypatch, TRAIN, 'nowhere/x.py')

    def test_a_checkpoint_for_a_config(self, monkeypatch, tmp_path):
        (tmp_path / 'x.pth').touch()
        with pytest.raises(SystemExit, match=r'expected a config \(\.py\), got .*x\.pth'):
            run_here(monkeypatch, TRAIN, tmp_path / 'x.pth')

    @pytest.mark.parametrize(
        ('option', 'value', 'error', 'says'),
        [
            (
                'model__teacher__config',
                'mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1025.py',
                SystemExit,
                'did you mean .*pspnet_r101-d8_4xb2-80k_cityscapes-512x1024',
            ),
            (
                'model__teacher__checkpoint',
                'gone.pth',
                FileNotFoundError,
                r'the checkpoint gone\.pth does not exist',
            ),
            (
                'model__terms__cwd__tap',
                'decode_head.conv_sge',
                ValueError,
                "did you mean 'decode_head.conv_seg'",
            ),
            (
                'model__student__decode_head__num_classes',
                5,
                ValueError,
                'logits of 5 classes in the student .* of 19 classes in the teacher',
            ),
        ],
        ids=['teacher', 'checkpoint', 'tap', 'classes'],
    )
    def test_in_the_options(self, option, value, error, says, data, tmp_path, monkeypatch):
        config = write_small(SEGMENTER, data, tmp_path / 'run')
        trained = []
        monkeypatch.setattr(Runner, 'call_hook', lambda self, name, **_: trained.append(name))
        with pytest.raises(error, match=says):
            run_here(monkeypatch, TRAIN, config, **{option: value})
        assert 'before_train_iter' not in trained


def test_the_miniature_is_the_recipe_but_for_its_size(data, tmp_path):
    config = Config.fromfile(write_miniature(DETECTOR, data, tmp_path / 'run'))
    recipe = Config.fromfile(DETECTOR)
    assert config.model.terms == recipe.model.terms
    assert config.model.teacher.config == recipe.model.teacher
    for part in ('neck', 'bbox_head'):
        assert config.model.student[part] == recipe.model.student[part]

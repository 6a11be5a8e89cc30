"""Each check, on the quickstart's models and teachers, with one thing broken at a time."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from mmseg.models import EncoderDecoder

from kd_dense.mm import CriticHook, Distilled
from kd_dense.mm.check import weights
from kd_dense.mm.check.check import CHECKS, Check, check
from kd_dense.mm.check.finding import ERROR, OK, WARNING
from kd_dense.mm.files.checkpoint import read_checkpoint
from kd_dense.mm.randomness import get_random_state
from kd_dense.mm.teachers import guest as teacher
from tests.mm.check.checking import QUICKSTART, TEACHER, of, run


def flat(state):
    return repr({key: str(value) for key, value in state.items()})


def test_a_segmenter_in_order(recipe, tmp_path, monkeypatch):
    config = recipe('seg_cwd')
    before, random, told = copy.deepcopy(config.to_dict()), flat(get_random_state()), []
    findings = run(config, progress=told.append)
    assert [finding.status for finding in findings] == [OK] * len(findings), findings
    assert flat(get_random_state()) == random
    assert config.to_dict() == before
    assert 'cost: 1 of 4' in told
    logits, features = of(findings, 'taps')
    assert 'decode_head.conv_seg (2, 11, 6, 6) of both, compared as they are' in logits.message
    assert '1 of 1 through Adapter' in features.message
    assert of(findings, 'teacher checkpoint').figures == {'tensors': 140}
    scores = of(findings, 'scores').figures
    assert scores['metric'] == 'mIoU'
    assert scores['teacher']['mIoU'] > 20 > 5 > scores['student']['mIoU']
    assert not scores['student_is_trained']
    for term in of(findings, 'terms'):
        assert 0.1 < term.figures['ratio'] < 10
        assert 0 < term.figures['agreement'] <= 1
    cost = of(findings, 'cost').figures
    assert cost['iterations'] == 600
    assert cost['seconds'] > 0
    assert cost['bytes'].keys() == {'student and kd', 'teacher', 'optimizer', 'a step'}
    assert all(cost['bytes'].values())


def test_a_detector_in_order(recipe, monkeypatch):
    config = recipe('det_fgd', model__inherit=['neck'])
    read = []
    for module in (weights, teacher):
        monkeypatch.setattr(
            module, 'read_checkpoint', lambda x: read.append(x) or read_checkpoint(x)
        )
    findings = run(config)
    assert read == [config.model.teacher.checkpoint]
    assert [finding.status for finding in findings] == [OK] * len(findings), findings
    assert (
        'neck (2, 64, 8, 8), (2, 64, 4, 4), (2, 64, 2, 2) of both' in of(findings, 'taps').message
    )
    assert of(findings, 'scores').figures['metric'] == 'coco/bbox_mAP'
    assert of(findings, 'scores').figures['teacher']['coco/bbox_mAP'] > 0.5
    inherit = of(findings, 'inherit')
    assert '3 of 6 tensors' not in inherit.message
    assert 'neck.lateral_convs.0.conv.weight ((64, 16, 1, 1) here' in inherit.message
    assert inherit.figures['fit']


def test_the_checkpoint_of_another_model(recipe):
    backbone = str(QUICKSTART / 'checkpoints' / 'backbone_student.pth')
    findings = run(recipe('seg_cwd', model__teacher__checkpoint=backbone))
    found = of(findings, 'teacher checkpoint')
    assert found.status == ERROR
    assert found.figures.keys() == {'misshapen'}
    assert len(found.figures['misshapen']) > 100
    assert 'backbone.stem.0.weight ((4, 3, 3, 3), expected (12, 3, 3, 3))' in found.message
    assert 'config of this checkpoint' in found.remedy
    assert 'not scored' in of(findings, 'scores').message
    # All others go on.
    assert 'without its weights' in of(findings, 'terms')[0].message
    assert of(findings, 'cost').status == OK


def test_a_checkpoint_that_fits_in_part(recipe, tmp_path):
    weights = torch.load(TEACHER, weights_only=True)
    del weights['state_dict']['decode_head.conv_seg.bias']
    torch.save(weights, tmp_path / 'part.pth')
    checkpoint = str(tmp_path / 'part.pth')
    options = dict(model__teacher__checkpoint=checkpoint, model__teacher__strict=False)
    found = of(run(recipe('seg_cwd', **options)), 'teacher checkpoint')
    assert found.status == WARNING
    assert found.message.endswith(': 1 missing: decode_head.conv_seg.bias')
    assert 'the rest is loaded' in found.remedy


def test_preprocessing_that_differs(recipe):
    config = recipe('seg_cwd')
    teacher = Config.fromfile(QUICKSTART / 'seg_teacher.py').model
    teacher.data_preprocessor.update(mean=[64.0] * 3, std=[128.0] * 3)
    config.model.teacher.config = teacher
    both, warned = of(run(config), 'preprocessing')
    assert both.status == OK
    assert 'student: mean 128 128 128, std 64 64 64' in both.message
    assert 'teacher: mean 64 64 64, std 128 128 128' in both.message
    assert 'each batch is converted for the teacher' in both.message
    assert warned.status == WARNING
    assert warned.message == 'teacher: mean and std look exchanged'


def test_terms_off_scale(recipe):
    config = recipe(
        'seg_cwd',
        model__terms__logits__loss__weight=3e-6,
        model__terms__features__loss__weight=1e4,
    )
    off = dict(tap='decode_head.conv_seg', loss=dict(type='CWDLoss', weight=0.0))
    config.model.terms.off = off
    logits, features, off = of(run(config), 'terms')
    assert off.message == 'off is switched off (weight 0)'
    assert logits.status == features.status == WARNING
    assert 'it has no effect' in logits.message
    assert 'it drowns the task' in features.message
    for term, weight in ((logits, 3e-6), (features, 1e4)):
        key, proposed = term.figures['option'].split('=')
        assert key == f'model.terms.{term.figures["term"]}.loss.weight'
        assert float(proposed) == pytest.approx(weight / term.figures['ratio'], rel=0.05)
        assert 0.05 < float(proposed) < 100
        assert term.remedy.startswith(f'{key}={proposed} makes its gradient as long')


class TestATeacherThatIsWorse:
    @pytest.fixture
    def config(self, recipe, tmp_path):
        """One whose weights fit, and are those of nothing."""
        torch.manual_seed(0)
        weights = torch.load(TEACHER, weights_only=True)['state_dict']
        state = {k: torch.randn_like(v.float()).to(v.dtype) * 0.01 for k, v in weights.items()}
        state |= {k: v for k, v in weights.items() if 'running' in k or 'tracked' in k}
        torch.save(dict(state_dict=state), tmp_path / 'nothing.pth')
        config = recipe('seg_cwd', model__teacher__checkpoint=str(tmp_path / 'nothing.pth'))
        config.model.student = Config.fromfile(QUICKSTART / 'seg_teacher.py').model
        config.model.terms.pop('features')
        return config

    def test_than_a_student_trained_alone(self, config):
        findings = run(config, student=str(TEACHER))
        found = of(findings, 'scores')
        assert found.status == ERROR
        assert 'the student of configs/quickstart/checkpoints/seg_teacher.pth' in found.message
        assert 'nothing can be learnt from it' in found.message
        assert found.figures['student']['mIoU'] > 20 > found.figures['teacher']['mIoU']
        assert of(findings, 'student weights').message.startswith('the student starts untrained')

    def test_than_what_the_student_starts_from(self, config):
        config.load_from = str(TEACHER)
        findings = run(config)
        assert of(findings, 'student weights').message.startswith('140 of 140 tensors')
        assert of(findings, 'scores').status == ERROR
        assert of(findings, 'scores').figures['student_is_trained']

    def test_a_student_of_another_model(self, config):
        found = of(run(config, student=str(QUICKSTART / 'checkpoints/det_teacher.pth')), 'scores')
        assert found.status == ERROR
        assert 'does not fit' in found.message


def test_a_frozen_stage(recipe):
    config = recipe('det_cwd', model__terms__fpn__tap='backbone.layer1')
    config.model.student.backbone.frozen_stages = 1
    findings = run(config)
    [found] = [finding for finding in findings if finding.status == ERROR]
    assert "no gradient flows back from tap 'backbone.layer1'" in found.message
    assert of(findings, 'data').status == OK


def test_parameters_without_gradient_and_a_teacher_without_checkpoint(recipe):
    config = recipe('seg_cwd', model__teacher__checkpoint=None)
    config.model.terms.pop('features')
    config.model.student.decode_head.update(in_index=2, in_channels=32)
    findings = run(config)
    found = of(findings, 'gradients')
    assert found.status == WARNING
    assert '15 trainable parameters' in found.message
    assert all(name.startswith('backbone.layer4.') for name in found.figures['names'])
    found = of(findings, 'teacher checkpoint')
    assert found.status == ERROR
    assert 'untrained (checkpoint=None)' in found.message


def test_data_that_is_not_there(recipe, monkeypatch, tmp_path):
    monkeypatch.setenv('SCENES', str(tmp_path))
    findings = run(recipe('seg_cwd'))
    assert of(findings, 'data').status == of(findings, 'scores').status == ERROR
    assert 'FileNotFoundError' in of(findings, 'data').message
    assert of(findings, 'teacher checkpoint').status == OK


class NotFromAFew(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(None)

    def compute_metrics(self, results):
        raise ValueError('not from a few')


def test_a_metric_that_wants_all_pictures_and_a_critic_without_its_hook(recipe):
    METRICS.register_module(module=NotFromAFew, force=True)
    config = recipe('seg_skd', custom_hooks=[])
    config.val_evaluator = dict(type='NotFromAFew')
    findings = run(config)
    scores, hooks = of(findings, 'scores'), of(findings, 'hooks')
    assert 'cannot score 6 pictures: ValueError: not from a few' in scores.message
    assert 'kd_dense test' in scores.remedy
    assert "custom_hooks=[dict(type='kd_dense.CriticHook')]" in hooks.remedy
    assert 'its critic is still untrained' in of(findings, 'terms')[2].message
    assert [found for found in findings if found.status != OK] == [hooks, scores]
    assert scores.status == hooks.status == WARNING


@pytest.mark.parametrize('kinds', ['classes', 'paths'])
def test_types_that_are_classes_or_full_paths(recipe, kinds):
    """As in mmengine's pure Python configs: the critic's hook is known, and what is no recipe."""
    config = recipe('seg_skd')
    config.model.type = Distilled if kinds == 'classes' else 'kd_dense.mm.Distilled'
    hook = CriticHook if kinds == 'classes' else 'kd_dense.mm.CriticHook'
    config.custom_hooks = [dict(type=hook)]
    findings = run(config)
    assert [found for found in findings if found.status != OK] == []
    config.custom_hooks = []
    assert of(run(config), 'hooks').status == WARNING
    config.model = config.model.student
    config.model.type = EncoderDecoder if kinds == 'classes' else 'mmseg.models.EncoderDecoder'
    assert 'its model is a EncoderDecoder' in run(config)[0].message


def test_an_optimizer_that_cannot_be_built(recipe):
    found = of(run(recipe('seg_cwd', optim_wrapper__optimizer__type='NoSuch')), 'cost')
    assert found.status == OK
    assert 'measured in float32 without the optimizer (' in found.message
    assert found.figures['bytes']['optimizer'] == 0
    assert found.figures['bytes']['a step'] > 0


def test_what_is_no_recipe(recipe):
    config = Config.fromfile(QUICKSTART / 'seg_student.py')
    finding = run(config)[0]
    assert finding.status == ERROR
    assert 'distils nothing: its model is a EncoderDecoder' in finding.message
    assert '--teacher' in finding.remedy


def test_arguments():
    with pytest.raises(ValueError, match='batches and images >= 1, got 0 and 50'):
        check(Config(dict(model=dict(type='x'))), batches=0)


def test_another_check_is_a_function_in_the_list(monkeypatch):
    def count(subject):
        subject.say(OK, f'{subject.images} pictures', images=subject.images)

    def never(subject):
        raise AssertionError('it needs a model')

    monkeypatch.setattr('kd_dense.mm.check.check.CHECKS', [
        *CHECKS, Check('own', count, needs=()), Check('of the model', never)
    ])  # fmt: skip
    found = run(Config(dict(model=dict(type='x'))))
    assert [finding.check for finding in found] == ['model', 'data', 'own']
    assert found[-1] == ('own', OK, '6 pictures', '', {'images': 6})


def test_several_teachers_each_with_its_memory_and_time(recipe):
    findings = run(recipe('seg_two_teachers'))
    model = of(findings, 'model')
    assert "in the teacher 'large' (frozen)" in model.message
    assert "in the teacher 'average' (frozen)" in model.message
    loaded = [finding.message for finding in of(findings, 'teacher checkpoint')]
    assert loaded[0].startswith('all 140 tensors')
    assert loaded[1] == "the student's running average starts as the student does"
    assert 'learns from the average of the student' in of(findings, 'terms')[-1].message
    assert "the teacher 'large' has mIoU" in of(findings, 'scores').message
    cost = of(findings, 'cost').figures
    names = {"teacher 'large'", "teacher 'average'"}
    assert cost['bytes'].keys() > names == cost['seconds_of_teachers'].keys()
    assert all(cost['seconds_of_teachers'].values())

"""Scores of any metric and evaluator that the Runner builds."""

import copy

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.registry import METRICS

from kd_dense.mm.check.finding import ERROR, OK, WARNING, Subject
from tests.mm.check.checking import TEACHER, of, run


class Wrong(BaseMetric):
    """Pixels that are wrong, and how far from sure a model is: the less the better."""

    def __init__(self, name='rmse', **others):
        super().__init__(**others)
        self.name = name

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            wrong = sample['pred_sem_seg']['data'] != sample['gt_sem_seg']['data']
            self.results.append(float(wrong.float().mean()))

    def compute_metrics(self, results):
        return {self.name: sum(results) / len(results), 'count': torch.tensor(len(results))}


@pytest.fixture(autouse=True)
def wrong(monkeypatch):
    monkeypatch.setitem(METRICS._module_dict, 'Wrong', Wrong)


LESS = dict(save_best='distance', rule='less')


@pytest.mark.parametrize(('name', 'hook'), [('rmse', {}), ('distance', LESS)])
def test_the_lower_the_better(recipe, name, hook):
    """A good teacher beside an untrained student."""
    config = recipe('seg_cwd', val_evaluator=dict(_delete_=True, type='Wrong', name=name))
    config.default_hooks.checkpoint.update(hook)
    found = of(run(config), 'scores')
    assert found.status == OK, found
    assert found.figures['metric'] == name
    assert found.figures['teacher'][name] < 0.3 < found.figures['student'][name]
    assert found.figures['teacher']['count'] == 6


@pytest.mark.parametrize(('name', 'hook'), [('rmse', {}), ('distance', LESS)])
def test_a_teacher_that_is_worse_where_lower_is_better(recipe, tmp_path, name, hook):
    config = recipe('seg_cwd', val_evaluator=dict(_delete_=True, type='Wrong', name=name))
    config.default_hooks.checkpoint.update(hook)
    config.model.student = copy.deepcopy(recipe('seg_teacher').model)
    config.model.terms.pop('features')
    untrained = torch.load(TEACHER, weights_only=True)['state_dict']
    untrained['decode_head.conv_seg.weight'] *= -1
    torch.save(dict(state_dict=untrained), tmp_path / 'inverted.pth')
    config.model.teacher.checkpoint = str(tmp_path / 'inverted.pth')
    found = of(run(config, student=str(TEACHER)), 'scores')
    assert found.status == ERROR
    assert 'nothing can be learnt from it' in found.message


def scores(lower, teacher, student, trained):
    """What is said of these values."""
    from kd_dense.mm.check.scores import _compare, _Student

    subject = Subject({}, check='scores')
    found = {'teacher': teacher, 'student': student}
    _compare(subject, 'teacher', _Student(None, trained, 'the student'), found, 'x', lower, 6)
    return subject.findings[0]


@pytest.mark.parametrize(
    ('lower', 'teacher', 'student', 'trained', 'expected'),
    [
        (False, 0.5, 0.4, True, OK),
        (False, 0.39, 0.4, True, WARNING),
        (False, 0.3, 0.4, True, ERROR),
        (False, 0.39, 0.4, False, ERROR),
        (True, 0.4, 0.5, True, OK),
        (True, 0.41, 0.4, True, WARNING),
        (True, 0.5, 0.4, True, ERROR),
        (True, 0.41, 0.4, False, ERROR),
        (True, 0.4, float('nan'), False, OK),  # the logarithm of nothing, from an untrained one
        (True, float('nan'), 0.4, True, ERROR),
        (False, float('nan'), float('nan'), False, ERROR),
        (False, -3.0, -4.0, True, OK),
        (False, -4.1, -4.0, True, WARNING),
        (False, -5.0, -4.0, True, ERROR),
    ],
)
def test_which_one_leads(lower, teacher, student, trained, expected):
    assert scores(lower, {'x': teacher}, {'x': student}, trained).status == expected


def test_a_model_without_a_score():
    """COCO's metric gives none where nothing is found."""
    found = scores(False, {'x': 0.5}, {}, False)
    assert found.status == OK
    assert 'the teacher has x 0.5, the student 0' in found.message
    found = scores(True, {}, {'x': 0.5}, False)
    assert found.status == ERROR
    assert 'x inf' in found.message


def test_a_direction_that_is_assumed_is_said():
    found = scores(False, {'x': 0.1}, {'x': 0.5}, False)
    assert (
        'default_hooks.checkpoint.save_best=x default_hooks.checkpoint.rule=less' in found.remedy
    )


EVALUATORS = {
    'dict': dict(type='IoUMetric', iou_metrics=['mIoU']),
    'list': [dict(type='IoUMetric', iou_metrics=['mIoU'])],
    'evaluator': dict(type='Evaluator', metrics=[dict(type='IoUMetric', iou_metrics=['mIoU'])]),
    'metrics': dict(metrics=dict(type='IoUMetric', iou_metrics=['mIoU'])),
}


@pytest.mark.parametrize('kind', EVALUATORS)
def test_an_evaluator_as_the_runner_builds_it(recipe, kind):
    config = recipe('seg_cwd')
    config.val_evaluator = EVALUATORS[kind]
    before = copy.deepcopy(config.to_dict())
    assert mean_iou(config) > 20
    assert config.to_dict() == before


def test_what_a_metric_writes_is_left_alone(recipe, tmp_path):
    before = tmp_path / 'results.pkl'
    before.write_text('of a run')
    written = [
        dict(type='DumpResults', out_file_path=str(before)),
        dict(type='IoUMetric', output_dir=str(tmp_path / 'pictures')),
    ]
    assert of(run(recipe('seg_cwd', val_evaluator=written)), 'scores').status == OK
    assert [*tmp_path.iterdir()] == [before]
    assert before.read_text() == 'of a run'


def test_an_evaluator_that_is_built(recipe):
    config = recipe('seg_cwd')
    with_scope = METRICS.build(dict(_scope_='mmseg', **EVALUATORS['dict']))
    config.val_evaluator = Evaluator([with_scope])
    assert mean_iou(config) > 20


def mean_iou(config):
    found = of(run(config), 'scores')
    assert found.figures['metric'] == 'mIoU', found
    return found.figures['teacher']['mIoU']


@pytest.fixture
def several(recipe):
    """A detector that is validated on two data sets, each by a metric of its own."""
    config = recipe('det_cwd')
    first = config.val_dataloader.dataset
    second = {**config.train_dataloader.dataset, 'pipeline': first.pipeline, 'test_mode': True}
    config.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[first, second])
    ann_file = config.data_root + second['ann_file']
    metrics = [config.val_evaluator, dict(type='CocoMetric', ann_file=ann_file, metric='bbox')]
    config.val_evaluator = dict(
        type='MultiDatasetsEvaluator', metrics=metrics, dataset_prefixes=['val', 'train']
    )
    return config


def test_several_data_sets(several, recipe):
    found = of(run(several, images=14), 'scores')
    assert found.figures['metric'] == 'val/coco/bbox_mAP', found
    assert found.figures['images'] == 14
    alone = of(run(recipe('det_cwd')), 'scores').figures['teacher']
    both = found.figures['teacher']
    assert both['val/coco/bbox_mAP'] == alone['coco/bbox_mAP'] > 0.5
    assert both['train/coco/bbox_mAP'] > 0.5


@pytest.mark.parametrize('images', [1, 5])
def test_some_pictures_of_several_data_sets(several, images):
    """At least one of each, and those alone count."""
    found = of(run(several, images=images), 'scores')
    assert found.status == OK, found
    assert found.figures['images'] == max(images, 2)
    assert min(v for k, v in found.figures['teacher'].items() if k.endswith('bbox_mAP')) > 0.4

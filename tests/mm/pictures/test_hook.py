"""Pictures during a training that goes on as if nobody looked."""

import itertools
import re
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.structures import InstanceData
from mmengine.visualization import Visualizer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kd_dense.mm import PictureHook
from kd_dense.mm.pictures import canvas, differences, observe, predictions, terms, views
from kd_dense.registry import HOOKS
from tests.mm import methods, toy

CRITIC = dict(type='kd_dense.CriticHook')
RANDOM = dict(type='kd_dense.RandomStateHook')


def segmenter(**others):
    """With all that looking could disturb: dropout, BN, a critic, an adapter."""
    terms = dict(
        features=dict(tap='backbone.layer4', loss=toy.CWD),
        holistic=dict(tap='decode_head.conv_seg', loss=dict(type='HolisticLoss', width=2)),
    )
    return toy.distilled(terms=terms, **others)


def detector():
    config = methods.distilled('ld')
    config.student.test_cfg.max_per_img = config.teacher.config.test_cfg.max_per_img = 10
    config.terms = dict(ld=config.terms.ld)
    return config


def train(model, scenes, work_dir, hook, max_iters=3, hooks=(), **others):
    torch.manual_seed(0)
    data = dict(batch_size=2, num_workers=0, dataset=scenes)
    config = dict(
        max_iters=max_iters,
        train_dataloader=dict(sampler=dict(type='InfiniteSampler', shuffle=True), **data),
        val_dataloader=dict(sampler=dict(type='DefaultSampler', shuffle=False), **data),
        val_cfg=dict(),
        val_evaluator=dict(type='Nothing'),
        custom_hooks=[*hooks, *([dict(type='kd_dense.PictureHook', **hook)] if hook else [])],
    )
    runner = toy.runner(model, work_dir, **{**config, **others})
    runner.train()
    return runner


@pytest.fixture(scope='module', autouse=True)
def evaluator():
    from mmengine.evaluator import BaseMetric
    from mmengine.registry import METRICS

    class Nothing(BaseMetric):
        def process(self, data_batch, data_samples):
            self.results.append(0)

        def compute_metrics(self, results):
            return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METRICS._module_dict, 'Nothing', Nothing)
        yield


@pytest.fixture
def quick(monkeypatch):
    """Compose the figures, but do not render them."""
    monkeypatch.setattr(canvas, 'pixels_of', lambda figure: np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ('model', 'scenes', 'hooks'),
    [
        (segmenter, toy.SegScenes, [CRITIC]),
        (detector, toy.DetScenes, []),
    ],
    ids=['segmenter', 'detector'],
)
def test_training_is_the_same_bit_for_bit(model, scenes, hooks, tmp_path, request):
    if model is detector:
        request.getfixturevalue('quick')  # one of both is enough
    ends = []
    for name, hook in (('with', dict(indices=[1], interval=2)), ('without', None)):
        runner = train(model(), scenes(), tmp_path / name, hook, hooks=hooks)
        ends.append((runner.model.state_dict(), runner.optim_wrapper.state_dict()))
    (weights, optimizer), (others, other) = ends
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[key], others[key]) for key in weights)
    moments, other_moments = optimizer['state'], other['state']
    assert all(
        torch.equal(moments[i][key], other_moments[i][key])
        for i in moments
        for key in ('exp_avg', 'exp_avg_sq')
    )
    assert [*tmp_path.glob('with/*/vis_data/vis_image/*_0.png')]
    assert not [*tmp_path.glob('without/*/vis_data/vis_image')]


def test_backends_get_the_pictures(tmp_path):
    """What TensorBoard has in its file is what lies beside it as PNG."""
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    visualizer = dict(type='Visualizer', vis_backends=backends, name=str(tmp_path))
    hook = dict(indices=[0, 2], interval=3)
    train(toy.distilled(), toy.SegScenes(), tmp_path, hook, visualizer=visualizer)
    names = {
        f'val{index}_{what}'
        for index in (0, 2)
        for what in ('predictions', 'logits', 'logits_differences')
    }
    [folder] = tmp_path.glob('*/vis_data')
    files = {path.stem: path for path in (folder / 'vis_image').iterdir()}
    # before and at the end
    assert files.keys() == {f'{name}_{step}' for name in names for step in (0, 3)}
    events = EventAccumulator(str(folder), size_guidance={'images': 0}).Reload()
    assert {*events.Tags()['images']} == names
    for name in names:
        logged = events.Images(name)
        assert [one.step for one in logged] == [0, 3]
        shown = cv2.imdecode(np.frombuffer(logged[-1].encoded_image_string, np.uint8), 1)
        assert np.array_equal(shown, cv2.imread(str(files[f'{name}_3'])))
        assert min(shown.shape[:2]) > 300
        assert shown.std() > 10


@HOOKS.register_module()
class StopAfter(Hook):
    """Stops a training as a power cut would."""

    def __init__(self, after):
        self.after = after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after:
            raise KeyboardInterrupt('power cut')


def test_goes_on_after_a_resume(tmp_path, quick):
    """The weights are those of a run that nobody stopped or watched."""
    hook, hooks = dict(indices=[1], interval=2), [CRITIC, RANDOM]
    stop = dict(type='StopAfter', after=3, _scope_='kd_dense')
    with pytest.raises(KeyboardInterrupt, match='power cut'):
        train(segmenter(), toy.SegScenes(), tmp_path / 'run', hook, 5, [*hooks, stop])
    resumed = train(
        segmenter(), toy.SegScenes(), tmp_path / 'run', hook, 5, hooks, resume=True
    ).model.state_dict()
    whole = train(segmenter(), toy.SegScenes(), tmp_path / 'whole', None, 5, hooks)
    assert all(torch.equal(x, resumed[key]) for key, x in whole.model.state_dict().items())
    images = sorted(tmp_path.glob('run/*/vis_data/vis_image/val1_predictions_*.png'))
    runs = [[int(p.stem[-1]) for p in images if p.parents[2] == run] for run in _runs(images)]
    assert runs == [[0, 2], [4, 5]]  # the last saved iteration was the second


def _runs(images):
    return sorted({image.parents[2] for image in images})


def test_by_epoch(tmp_path, quick):
    train(
        detector(),
        toy.DetScenes(length=2),
        tmp_path,
        dict(indices=[1], interval=1, by_epoch=True),
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=5),
        param_scheduler=None,
        train_dataloader=dict(
            batch_size=1,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=True),
            dataset=toy.DetScenes(length=2),
        ),
    )
    images = tmp_path.glob('*/vis_data/vis_image/val1_ld_[0-9]*.png')
    assert sorted(path.stem for path in images) == ['val1_ld_0', 'val1_ld_2', 'val1_ld_4']


def fail(*args, **kwargs):
    torch.rand(3)  # that much of the random state is used up
    raise AttributeError(f'no luck {next(COUNT)}')  # each time for another reason


COUNT = itertools.count()


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """The weights after a training without the hook."""
    work_dir = tmp_path_factory.mktemp('alone') / 'alone'
    return train(toy.distilled(), toy.SegScenes(), work_dir, None, 2).model.state_dict()


@pytest.mark.parametrize(
    ('module', 'name', 'lost'),
    [
        (views, 'load', 'entry 1 of the validation set'),
        (views, 'look', 'entry 1 of the validation set'),
        (observe, 'predict', 'entry 1 of the validation set'),
        (observe, 'compare', 'the terms of val1'),
        (predictions, 'draw_predictions', 'val1_predictions'),
        (terms, 'draw_term', 'val1_logits'),
        (differences, 'differences', 'val1_logits_differences'),
        (differences, 'draw_differences', 'val1_logits_differences'),
        (canvas, 'pixels_of', 'val1_predictions'),
        (Visualizer, 'add_image', 'val1_predictions'),
        (canvas, None, 'the terms of val1'),
    ],
)
def test_what_fails_to_be_shown_stops_no_training(
    module, name, lost, alone, tmp_path, quick, monkeypatch
):
    """It is warned about once, and the training is the one without the hook."""
    if name:
        monkeypatch.setattr(module, name, fail)
    else:
        monkeypatch.setitem(sys.modules, module.__name__, None)  # it cannot be imported
    hook = dict(indices=[1], interval=1)
    shown = train(
        toy.distilled(), toy.SegScenes(), tmp_path / 'shown', hook, 2, log_level='WARNING'
    ).model.state_dict()
    assert all(torch.equal(x, shown[key]) for key, x in alone.items())
    [log] = tmp_path.glob('shown/*/*.log')
    warned = [line for line in log.read_text().splitlines() if 'PictureHook' in line]
    told = [line for line in warned if f'PictureHook cannot show {lost} (' in line]
    assert len(told) == 1, warned
    assert ': the training goes on without' in told[0]
    assert len(warned) == len({line.partition('cannot show')[2].split(' (')[0] for line in warned})
    images = {path.name for path in tmp_path.glob('shown/*/vis_data/vis_image/*.png')}
    assert not [image for image in images if re.match(rf'{lost}_\d', image)]
    if lost.startswith('val1_logits'):
        assert {'val1_predictions_0.png', 'val1_predictions_2.png'} <= images


def test_one_reason_is_told_once(tmp_path, quick, monkeypatch):
    def nothing(*args, **kwargs):
        raise OSError('No space left on device')

    monkeypatch.setattr(Visualizer, 'add_image', nothing)
    hook = dict(indices=[0, 1], interval=1)
    train(toy.distilled(), toy.SegScenes(), tmp_path, hook, log_level='WARNING')
    [log] = tmp_path.glob('*/*.log')
    assert log.read_text().count('PictureHook cannot show') == 1
    assert 'val0_predictions (OSError: No space left on device)' in log.read_text()


class WithoutBoxes(toy.DetScenes):
    """As mmdet packs what is not annotated."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        item['data_samples'].gt_instances = InstanceData()
        return item


def test_pictures_without_boxes(tmp_path, quick):
    """What can be shown of them is shown."""
    data = dict(batch_size=1, num_workers=0, dataset=WithoutBoxes())
    train(
        detector(), toy.DetScenes(), tmp_path, dict(indices=[1]), log_level='WARNING',
        val_dataloader=dict(sampler=dict(type='DefaultSampler', shuffle=False), **data),
    )  # fmt: skip
    images = {path.name for path in tmp_path.glob('*/vis_data/vis_image/*.png')}
    assert images == {'val1_predictions_0.png', 'val1_predictions_3.png'}
    [log] = tmp_path.glob('*/*.log')
    assert 'PictureHook' not in log.read_text()


def test_what_cannot_be_shown(tmp_path):
    data = toy.SegScenes()
    with pytest.raises(ValueError, match='PictureHook: there is no entry 8 in the data set'):
        train(toy.distilled(), data, tmp_path, dict(indices=[8]))
    with pytest.raises(ValueError, match='PictureHook shows what is distilled, and the model is'):
        train(toy.segmenter(), data, tmp_path, dict(indices=[0]))
    with pytest.raises(ValueError, match='the config has no val_dataloader'):
        toy.runner(
            toy.distilled(), tmp_path, custom_hooks=[dict(type='kd_dense.PictureHook')]
        ).train()
    with pytest.raises(ValueError, match='training that does not count epochs'):
        train(toy.distilled(), data, tmp_path, dict(by_epoch=True))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(interval=0), 'expects interval >= 1, got interval=0'),
        (dict(indices=()), 'expects indices of the validation set'),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        PictureHook(**arguments)

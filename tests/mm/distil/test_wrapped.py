"""Trackers, semi-supervised detectors and others whose batches or forward pass are their own."""

from __future__ import annotations

import copy

import pytest
import torch
from mmdet.models import BaseMOTModel, SemiBaseDetector
from mmdet.models.data_preprocessors import MultiBranchDataPreprocessor, TrackDataPreprocessor
from mmdet.structures import DetDataSample, TrackDataSample
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope

from kd_dense.mm import Distilled
from kd_dense.mm.batches.made_up import add_labels, blank_batch, labelled_samples
from kd_dense.mm.batches.preprocessing import Repreprocess
from kd_dense.mm.distil.term import Term
from kd_dense.mm.models.probe import Yield, probe
from tests.mm import toy

VIDEO = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0], bgr_to_rgb=True)
OTHER = dict(mean=[1.0, 2.0, 3.0], std=[1.0, 2.0, 4.0], bgr_to_rgb=False)
BRANCHES = ('sup', 'unsup_teacher', 'unsup_student')
FGD = dict(type='FGDLoss')


@pytest.fixture(autouse=True)
def scope():
    """These models build parts of theirs in mmdet's scope, whatever ran before."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


class ToyTracker(BaseMOTModel):
    """Looks at a key frame and at another one, as QDTrack does."""

    def __init__(self, detector, data_preprocessor):
        super().__init__(data_preprocessor)
        self.detector = toy.build(detector)

    def loss(self, inputs, data_samples):
        keys = [sample.get_key_frames()[0] for sample in data_samples]
        maps = self.detector.extract_feat(inputs[:, 0])
        others = self.detector.extract_feat(inputs[:, 1])
        losses = self.detector.bbox_head.loss(maps, keys)
        return {**losses, 'loss_track': (maps[0] - others[0]).square().mean()}

    def predict(self, inputs, data_samples):
        raise NotImplementedError


def tracker(width=8, **settings):
    return ToyTracker(toy.detector(width), TrackDataPreprocessor(**{**VIDEO, **settings}))


def semi_supervised(width=8):
    detector = toy.detector(width)
    detector.test_cfg.max_per_img = 10
    preprocessor = MultiBranchDataPreprocessor(detector.data_preprocessor)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return toy.build(
            dict(
                type=SemiBaseDetector,
                detector=detector,
                data_preprocessor=preprocessor,
                semi_train_cfg=ConfigDict(
                    freeze_teacher=True,
                    sup_weight=1.0,
                    unsup_weight=1.0,
                    cls_pseudo_thr=0.5,
                    min_pseudo_bbox_wh=(1, 1),
                ),
            )
        )


def labelled_batch(model, seed=0):
    torch.manual_seed(seed)
    inputs, samples = blank_batch(model, (64, 64), 'cpu')
    add_labels(model, samples, (64, 64))
    for images in inputs.values() if isinstance(inputs, dict) else [inputs]:
        images.normal_()
    return inputs, samples


def distil(student, teacher, tap, loss):
    terms = dict(term=dict(tap=tap, loss=loss))
    return toy.build(toy.distilled(student=student, teacher=teacher, terms=terms))


class TestBatches:
    def test_a_video_has_frames(self):
        inputs, samples = labelled_batch(tracker())
        assert inputs.shape == (2, 2, 3, 64, 64)
        assert [len(sample) for sample in samples] == [2, 2]
        keys = labelled_samples(samples)
        assert all(key is sample[0] for key, sample in zip(keys, samples, strict=True))
        assert [len(key.gt_instances) for key in keys] == [1, 1]

    def test_branches_have_images_each(self):
        inputs, samples = labelled_batch(semi_supervised())
        assert inputs.keys() == samples.keys() == {*BRANCHES}
        assert labelled_samples(samples) == samples['sup']

    def test_samples_do_not_share_their_fields(self):
        first, second = blank_batch(toy.build(toy.detector()), (64, 64), 'cpu')[1]
        first.gt_instances = 1
        assert 'gt_instances' not in second


class TestProbe:
    def test_a_model_without_a_forward_pass_computes_its_loss(self):
        found = probe(tracker(), ['detector.neck'], tracker(), ['detector.neck[:5]'])
        assert found.by_loss
        assert found.student['detector.neck'].calls == 2
        assert len(found.student['detector.neck'].shapes) == 10
        assert len(found.teacher['detector.neck[:5]'].shapes) == 5

    def test_one_with_a_forward_pass_does_not(self):
        model = toy.build(toy.detector())
        assert not probe(model, ['bbox_head'], model, ['bbox_head']).by_loss

    def test_what_fails_behind_the_taps_does_not_matter(self):
        class Broken(ToyTracker):
            def loss(self, inputs, data_samples):
                super().loss(inputs, data_samples)
                raise ValueError('in eval mode')

        model = Broken(toy.detector(), TrackDataPreprocessor(**VIDEO))
        assert probe(model, ['detector.neck'], model, ['detector.neck']).by_loss

    def test_what_fails_before_them_is_told(self):
        class Broken(ToyTracker):
            def loss(self, inputs, data_samples):
                raise ValueError('no data like these')

        model = Broken(toy.detector(), TrackDataPreprocessor(**VIDEO))
        with pytest.raises(RuntimeError, match='in its loss: no data like these'):
            probe(model, ['detector.neck'], model, ['detector.neck'])


class TestTraining:
    @pytest.mark.parametrize('tap', ['detector.neck', 'detector.neck[:5]', 'detector.backbone'])
    def test_a_tracker(self, tap):
        teacher = tracker(16, **OTHER)
        model = distil(tracker(), teacher, tap, toy.CWD)
        self.check(model, teacher, 'detector.')

    def test_boxes_are_those_of_the_key_frames(self):
        teacher = tracker(16)
        model = distil(tracker(), teacher, 'detector.neck[:5]', FGD)
        losses = self.check(model, teacher, 'detector.')
        assert losses['loss_kd_term.foreground'] > 0

    def test_a_semi_supervised_detector(self):
        teacher = semi_supervised(16)
        model = distil(semi_supervised(), teacher, 'student.neck[:5]', FGD)
        losses = self.check(model, teacher, 'student.')
        assert losses['loss_kd_term.foreground'] > 0

    def test_a_term_that_is_off_needs_no_single_tensor(self):
        teacher = semi_supervised(16)
        model = distil(semi_supervised(), teacher, 'student.neck[:5]', dict(FGD, weight=0.0))
        assert float(model.train().loss(*labelled_batch(model))['loss_kd_term.foreground']) == 0

    @staticmethod
    def check(model, teacher, part):
        before = copy.deepcopy(teacher.state_dict())
        losses = model.train().loss(*labelled_batch(model))
        ours = [value for name, value in losses.items() if name.startswith('loss_kd_')]
        sum(ours).backward()
        moved = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()]
        assert any(name.startswith(part + 'backbone') for name in moved)
        assert all(torch.equal(x, before[name]) for name, x in teacher.state_dict().items())
        return losses


class TestPreprocessing:
    def test_of_a_video(self):
        theirs = TrackDataPreprocessor(**OTHER, pad_size_divisor=32)
        ours = TrackDataPreprocessor(**VIDEO, pad_size_divisor=32, pad_value=3)
        frames = torch.randint(0, 256, (2, 3, 40, 64), dtype=torch.uint8)

        def run(preprocessor):
            sample = TrackDataSample()
            sample.video_data_samples = [
                DetDataSample(metainfo=dict(img_shape=(40, 64))) for _ in frames
            ]
            return preprocessor(dict(inputs=[frames.clone()], data_samples=[sample]), True)

        mine, expected = run(ours), run(theirs)
        converted = Repreprocess(ours, theirs)(mine['inputs'], mine['data_samples'])
        assert (converted - expected['inputs']).abs().max() < 1e-4

    def test_of_branches(self):
        def preprocessor(**settings):
            return MultiBranchDataPreprocessor(dict(type='mmdet.DetDataPreprocessor', **settings))

        convert = Repreprocess(preprocessor(**VIDEO), preprocessor(**OTHER))
        samples = [DetDataSample(metainfo=dict(img_shape=(8, 8)))]
        inputs = {name: torch.randn(1, 3, 8, 8) for name in BRANCHES}
        converted = convert(inputs, dict.fromkeys(BRANCHES, samples))
        assert converted.keys() == inputs.keys()
        one = Repreprocess(
            preprocessor(**VIDEO).data_preprocessor, preprocessor(**OTHER).data_preprocessor
        )
        assert torch.equal(converted['sup'], one(inputs['sup'], samples))


class TestBranchesOfALayer:
    """TridentNet's student sees each image three times, its teacher once."""

    @staticmethod
    def term():
        term = Term('t', tap='backbone', loss=toy.CWD)
        found = Yield(1, [(2, 4, 8, 8)])
        term.build_losses(found, found)
        term.fit(found, found)
        return term

    def test_the_teacher_is_repeated(self):
        one = torch.randn(2, 4, 8, 8, requires_grad=True)
        teacher = torch.randn(2, 4, 8, 8)
        expected = self.term()([one], [teacher], 1.0, {})
        found = self.term()([torch.cat([one, one, one])], [teacher], 1.0, {})
        torch.testing.assert_close(found, expected)

    def test_other_numbers_of_images_are_refused(self):
        with pytest.raises(ValueError, match='two maps of one shape'):
            self.term()([torch.randn(3, 4, 8, 8, requires_grad=True)], [torch.zeros(2, 4, 8, 8)],
                        1.0, {})  # fmt: skip


def test_a_teacher_whose_train_returns_nothing(monkeypatch):
    """As those of mmdet's own distillation, LD and LAD."""
    teacher = toy.build(toy.detector())
    train = type(teacher).train
    monkeypatch.setattr(type(teacher), 'train', lambda self, mode=True: train(self, mode) and None)
    terms = dict(cwd=dict(tap='neck', loss=toy.CWD))
    student = toy.build(toy.detector())
    distilled = Distilled(student=student, teacher=teacher, terms=terms)
    assert not distilled.kd_plan.teacher.model.training
    assert not any(p.requires_grad for p in teacher.parameters())


def test_of_a_list_of_heads_the_last_has_the_classes():
    """As in OCRNet and PointRend."""
    head = toy.segmenter().decode_head
    other = {key: value for key, value in head.items() if key != 'num_convs'}
    config = ConfigDict(
        {**toy.segmenter(), 'type': 'CascadeEncoderDecoder', 'num_stages': 2},
        decode_head=[head, {**other, 'type': 'OCRHead', 'ocr_channels': 8}],
    )
    terms = dict(affinity=dict(tap='backbone[-1]', loss=dict(type='IntRALoss')))
    model = Distilled(student=toy.build(config), teacher=toy.build(config), terms=terms)
    assert model.kd['affinity'].loss.num_classes == 5

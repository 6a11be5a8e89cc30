"""Images that are not of three channels, or whose preprocessor does not say so."""

from __future__ import annotations

import pytest
import torch

from tests.mm import toy

IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)


class Pictures(toy.DetScenes):
    """Pictures of as many channels as asked for."""

    def __init__(self, channels):
        super().__init__()
        self.images = [image[:1].repeat(channels, 0) for image in self.images]


class Maps(toy.SegScenes):
    def __init__(self, channels):
        super().__init__(augment=False)
        self.images = self.images[:, :1].repeat(channels, 1)


def detector(width, channels, mean=None, **norm):
    config = toy.detector(width)
    config.backbone.in_channels = channels
    norm = {**norm, **({} if mean is None else dict(mean=mean, std=[64.0] * len(mean)))}
    config.data_preprocessor = dict(type='DetDataPreprocessor', pad_size_divisor=32, **norm)
    return config


def segmenter(width, channels, **norm):
    config = toy.segmenter(width)
    config.backbone.in_channels = channels
    config.data_preprocessor = dict(type='SegDataPreProcessor', size=(32, 32), **norm)
    return config


def distilled(student, teacher, tap):
    return toy.build(
        toy.distilled(
            student=student,
            teacher=dict(config=teacher, checkpoint=None),
            terms=dict(term=dict(tap=tap, loss=toy.CWD)),
        )
    )


MEANS = {'none': {}, 'one': dict(mean=[127.5], std=[64.0])}


@pytest.mark.parametrize('channels', [1, 3, 4, 6])
@pytest.mark.parametrize('norm', MEANS.values(), ids=MEANS)
class TestChannels:
    def test_of_detectors(self, channels, norm):
        config = detector(8, channels, **norm), detector(16, channels, **norm)
        losses = toy.losses(distilled(*config, 'neck'), Pictures(channels))
        assert losses['loss_kd_term'] > 0

    def test_of_segmenters(self, channels, norm):
        config = segmenter(8, channels, **norm), segmenter(16, channels, **norm)
        losses = toy.losses(distilled(*config, 'decode_head.conv_seg'), Maps(channels))
        assert losses['loss_kd_term'] > 0

    def test_other_means_on_one_side(self, channels, norm):
        other = dict(mean=[100.0], std=[50.0])
        config = detector(8, channels, **norm), detector(16, channels, **other)
        losses = toy.losses(distilled(*config, 'neck'), Pictures(channels))
        assert losses['loss_kd_term'] > 0


@pytest.mark.parametrize('norm', MEANS.values(), ids=MEANS)
class TestGreyAndColour:
    def test_a_teacher_of_colour_sees_what_it_would_see_of_a_grey_file(self, norm):
        model = distilled(detector(8, 1, **norm), detector(16, 3, **IMAGENET), 'neck')
        assert toy.losses(model, Pictures(1))['loss_kd_term'] > 0
        teacher = model.kd_plan.teacher.model
        expected, _ = toy.batch(teacher, Pictures(3))
        converted = model.kd_plan.guest.preprocess(*toy.batch(model, Pictures(1)))
        assert (converted - expected).abs().max() < 1e-4

    def test_a_grey_teacher_sees_the_luminance(self, norm):
        model = distilled(segmenter(8, 3, **IMAGENET), segmenter(16, 1, **norm), 'backbone')
        assert toy.losses(model, Maps(3))['loss_kd_term'] > 0
        teacher = model.kd_plan.teacher.model
        expected, _ = toy.batch(teacher, Maps(1))  # of three equal channels it is that channel
        converted = model.kd_plan.guest.preprocess(*toy.batch(model, Maps(3)))
        assert (converted - expected).abs().max() < 1e-3


def test_a_conversion_is_told(log):
    distilled(detector(8, 1), detector(16, 3), 'neck')
    assert 'the student have 1 channels, those of the teacher 3: they are converted' in log()


@pytest.mark.parametrize(('ours', 'theirs'), [(1, 4), (4, 3), (3, 6), (6, 1)])
def test_others_are_refused_when_the_model_is_built(ours, theirs):
    message = rf'the student has {ours} channels in its images, and the teacher {theirs}'
    with pytest.raises(ValueError, match=message):
        distilled(detector(8, ours), detector(16, theirs), 'neck')


def test_a_student_of_four_channels_trains(tmp_path):
    config = toy.distilled(
        student=segmenter(8, 4), teacher=dict(config=segmenter(16, 4), checkpoint=None)
    )
    runner = toy.runner(
        config,
        tmp_path,
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=True),
            dataset=Maps(4),
        ),
    )
    runner.train()
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())

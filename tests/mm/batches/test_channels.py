"""How many channels the images of a model have, whatever its preprocessor says of them."""

from __future__ import annotations

import pytest
import torch
from mmdet.models import SemiBaseDetector
from mmdet.models.backbones.csp_darknet import Focus
from mmdet.models.data_preprocessors import DetDataPreprocessor, MultiBranchDataPreprocessor
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from torch import nn

from kd_dense.mm.batches.channels import input_channels
from tests.mm import toy

PLAIN = dict(type='DetDataPreprocessor', pad_size_divisor=32)


def detector(channels, mean=None, **norm):
    config = toy.detector()
    config.backbone.in_channels = channels
    config.data_preprocessor = dict(PLAIN, **norm)
    if mean is not None:
        config.data_preprocessor.update(mean=mean, std=[64.0] * len(mean))
    return config


class Features(BaseModel):
    """A model that is nothing but layers, and a preprocessor without means."""

    def __init__(self, *layers):
        super().__init__(DetDataPreprocessor())
        self.layers = nn.Sequential(*layers)

    def extract_feat(self, inputs):
        return self.layers(inputs)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        raise AssertionError('runs on')


class ForwardOnly(Features):
    extract_feat = None

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.layers(inputs)


class Tokens(nn.Module):
    def forward(self, x):
        return nn.functional.unfold(x, 4, stride=4).transpose(1, 2)


@pytest.mark.parametrize('channels', [1, 3, 4, 6])
@pytest.mark.parametrize('mean', [None, [127.5]], ids=['no-mean', 'one-mean'])
def test_are_read_off_the_first_layer(channels, mean):
    assert input_channels(toy.build(detector(channels, mean))) == channels


def test_are_those_of_the_means_where_there_are_several():
    assert input_channels(toy.build(detector(3, [1.0, 2.0, 3.0]))) == 3


@pytest.mark.parametrize('channels', [1, 3, 5])
@pytest.mark.parametrize(
    'layers',
    [
        lambda n: [nn.Conv2d(n, 2, 1)],
        lambda n: [nn.BatchNorm2d(n), nn.Conv2d(n, 2, 1)],
        lambda n: [Focus(n, 2)],
        lambda n: [nn.PixelUnshuffle(4), nn.Conv2d(16 * n, 2, 1)],
        lambda n: [nn.AvgPool2d(2), nn.Identity(), nn.Conv2d(n, 2, 1)],
        lambda n: [Tokens(), nn.Linear(16 * n, 2)],
    ],
    ids=['conv', 'norm', 'focus', 'unshuffle', 'pool', 'tokens'],
)
@pytest.mark.parametrize('kind', [Features, ForwardOnly])
def test_whatever_comes_before_it(kind, layers, channels):
    assert input_channels(kind(*layers(channels))) == channels


@pytest.mark.parametrize(
    'backbone',
    [
        dict(type='mmdet.SwinTransformer', embed_dims=8, num_heads=(1, 2, 4, 8)),
        dict(type='mmseg.VisionTransformer', img_size=32, embed_dims=8, num_heads=1, num_layers=1),
        dict(type='mmseg.MixVisionTransformer', embed_dims=8),
    ],
    ids=lambda config: config['type'],
)
def test_of_patch_embeddings(backbone):
    assert input_channels(Features(toy.build(dict(backbone, in_channels=4)))) == 4


def test_of_a_semi_supervised_detector():
    config = detector(4)
    with DefaultScope.overwrite_default_scope('mmdet'):
        preprocessor = MultiBranchDataPreprocessor(config.data_preprocessor)
        model = toy.build(
            dict(
                type=SemiBaseDetector,
                detector=config,
                data_preprocessor=preprocessor,
                semi_train_cfg=ConfigDict(freeze_teacher=True),
            )
        )
    assert input_channels(model) == 4


def test_of_a_detector_in_a_tracker():
    class Tracker(BaseModel):
        def __init__(self):
            super().__init__(DetDataPreprocessor())
            self.detector = toy.build(detector(4))

        def forward(self, inputs, data_samples=None, mode='tensor'):
            raise NotImplementedError('only in its loss')

    assert input_channels(Tracker()) == 4


def test_of_a_backbone_whose_model_runs_on_videos_alone():
    class Videos(BaseModel):
        def __init__(self):
            super().__init__(DetDataPreprocessor())
            self.backbone = nn.Sequential(nn.Conv2d(4, 2, 1))

        def forward(self, inputs, data_samples=None, mode='tensor'):
            raise NotImplementedError('only in its loss')

    assert input_channels(Videos()) == 4


@pytest.mark.parametrize(('mean', 'expected'), [(None, 3), ([5.0], 1), ([5.0] * 3, 3)])
def test_are_guessed_where_no_layer_tells(mean, expected):
    model = nn.Identity()
    norm = {} if mean is None else dict(mean=mean, std=mean)
    model.data_preprocessor = DetDataPreprocessor(**norm)
    assert input_channels(model) == expected


def test_leaves_the_model_as_it_is():
    model = toy.build(detector(4)).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = [set(vars(m)) for m in model.modules()]
    random = torch.get_rng_state()
    ran = []
    model.backbone.conv1.register_forward_hook(lambda *_: ran.append(True))
    assert input_channels(model) == 4
    assert not ran
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert all(m.training for m in model.modules())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_of_a_model_without_data():
    with torch.device('meta'):
        assert input_channels(Features(nn.Conv2d(4, 2, 1))) == 4

"""What is said of the taps is what the training does."""

import pytest
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

from kd_dense.mm.check.finding import OK
from tests.mm import toy_rois
from tests.mm.check.checking import of, run


class Halves(BaseModule):
    """Halves the map three times; with ``padding`` 1 it rounds up, with 0 down."""

    def __init__(self, kernel, padding):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(8 if i else 3, 8, kernel, 2, padding) for i in range(3)
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return [x]


@pytest.fixture
def config(recipe, monkeypatch):
    """Student and teacher agree at 48x48, the size of the crops, and differ at 49x49."""
    monkeypatch.setitem(MODELS._module_dict, 'Halves', Halves)
    config = recipe('seg_cwd')
    head = dict(in_channels=8, in_index=0)
    teacher = recipe('seg_teacher').model
    for model, kernel, padding in ((config.model.student, 3, 1), (teacher, 2, 0)):
        backbone = dict(type='mmengine.Halves', kernel=kernel, padding=padding)
        model.backbone, model.decode_head = backbone, {**model.decode_head, **head}
    config.model.teacher = dict(config=teacher, checkpoint=None)
    config.model.terms.pop('features')
    return config


@pytest.mark.parametrize(
    ('size', 'shapes', 'how'),
    [
        (48, '(2, 11, 6, 6) of both', 'compared as they are'),
        (
            49,
            '(2, 11, 7, 7) of the student, decode_head.conv_seg (2, 11, 6, 6) of the teacher',
            '1 of 1 resized',
        ),
    ],
)
def test_maps_at_the_size_of_the_batches(config, size, shapes, how):
    config.model.student.data_preprocessor.size = (size, size)
    findings = run(config)
    assert of(findings, 'terms').status == OK  # it does train
    expected = f'logits: decode_head.conv_seg {shapes}, {how}, on images of {size}x{size}'
    assert of(findings, 'taps').message == expected


def test_without_data_small_images_are_tried(config, tmp_path, monkeypatch):
    monkeypatch.setenv('SCENES', str(tmp_path))
    config.train_dataloader.dataset.data_root = str(tmp_path)
    message = of(run(config), 'taps').message
    assert message.endswith('(2, 11, 8, 8) of both, compared as they are, on images of 64x64')


def test_where_features_cross_into_the_head_of_the_teacher(recipe):
    config = recipe('det_ld')
    loss = dict(type='CrossKDLoss', boxes='distributions')
    config.model.teacher = dict(config=recipe('det_teacher').model, checkpoint=None)
    config.model.terms = dict(crosskd=dict(tap='bbox_head', cross_at=-1, loss=loss))
    findings = run(config)
    assert of(findings, 'terms').status == OK
    message = of(findings, 'taps').message
    assert message.startswith('crosskd: bbox_head.cls_convs|reg_convs.0 (2, 64')
    assert 'compared as they are' in message


def test_rows_of_shared_regions(recipe):
    config = recipe('det_fgd')
    config.model = toy_rois.distilled(
        student=toy_rois.detector(classes=10), teacher=dict(
            config=toy_rois.detector(16, classes=10), checkpoint=None),
    )  # fmt: skip
    findings = run(config)
    said = [one.message for one in of(findings, 'taps')]
    assert said[0] == (
        'dkd: roi_head.bbox_head.fc_cls (2, 11) of both, compared as they are, on the same RoIs, '
        'here 2'
    )
    assert of(findings, 'terms')[0].status == OK

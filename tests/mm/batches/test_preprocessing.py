import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmdet.structures import DetDataSample
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample

from kd_dense.mm.batches.preprocessing import Repreprocess

IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
BARE = dict(bgr_to_rgb=False)


def images(sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *s), generator=generator, dtype=torch.uint8) for s in sizes]


def det(sizes, **settings):
    preprocessor = DetDataPreprocessor(pad_size_divisor=32, **settings)
    samples = [DetDataSample(metainfo=dict(img_shape=s, pad_shape=s)) for s in sizes]
    data = preprocessor(dict(inputs=images(sizes), data_samples=samples))
    return preprocessor, data['inputs'], data['data_samples']


def seg(sizes, **settings):
    preprocessor = SegDataPreProcessor(size=(64, 64), **settings)
    samples = [SegDataSample(metainfo=dict(img_shape=s)) for s in sizes]
    data = preprocessor(dict(inputs=images(sizes), data_samples=samples), training=True)
    return preprocessor, data['inputs'], data['data_samples']


PAIRS = [
    (IMAGENET, CAFFE),
    (CAFFE, IMAGENET),
    (IMAGENET, BARE),
    (BARE, CAFFE),
    (IMAGENET, {**IMAGENET, 'bgr_to_rgb': False}),
]


@pytest.mark.parametrize('framework', [det, seg])
@pytest.mark.parametrize(('student', 'teacher'), PAIRS)
@pytest.mark.parametrize('sizes', [[(64, 64)] * 2, [(64, 40), (33, 64)]], ids=['equal', 'padded'])
def test_equals_the_teachers_own_preprocessing(framework, student, teacher, sizes):
    pad = 'pad_value' if framework is det else 'pad_val'
    ours, inputs, samples = framework(sizes, **student, **{pad: 3})
    theirs, expected, _ = framework(sizes, **teacher, **{pad: 7})
    before = inputs.clone()
    converted = Repreprocess(ours, theirs)(inputs, samples)
    # The std of BARE is 1: errors are on the scale of 255 levels.
    assert (converted - expected).abs().max() < 1e-4
    assert torch.equal(inputs, before)


@pytest.mark.parametrize('framework', [det, seg])
def test_equal_preprocessing_is_left_alone(framework):
    ours, inputs, samples = framework([(64, 40), (33, 64)], **IMAGENET)
    theirs, *_ = framework([(64, 64)], **IMAGENET)
    assert Repreprocess(ours, theirs)(inputs, samples) is inputs


def test_padding_that_differs_alone_is_converted():
    sizes = [(64, 40)]
    ours, inputs, samples = det(sizes, **IMAGENET)
    theirs, expected, _ = det(sizes, **IMAGENET, pad_value=9)
    assert torch.equal(Repreprocess(ours, theirs)(inputs, samples), expected)


def test_padding_matters():
    """Without the second step the padded part would be far off."""
    sizes = [(64, 40)]
    ours, inputs, _ = det(sizes, **IMAGENET)
    theirs, expected, _ = det(sizes, **BARE)
    affine_alone = Repreprocess(ours, theirs)(inputs, [])
    assert (affine_alone - expected).abs().max() > 100


def test_half_precision_is_kept():
    ours, inputs, samples = det([(64, 64)], **IMAGENET)
    theirs, *_ = det([(64, 64)], **CAFFE)
    assert Repreprocess(ours, theirs)(inputs.half(), samples).dtype == torch.float16

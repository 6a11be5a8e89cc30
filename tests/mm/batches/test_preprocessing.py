import cv2
import pytest
import torch
from mmdet.models import DetDataPreprocessor
from mmdet.models.data_preprocessors import TrackDataPreprocessor
from mmdet.structures import DetDataSample, TrackDataSample
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample

from kd_dense.mm.batches.preprocessing import Repreprocess

IMAGENET = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
CAFFE = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)
BARE = dict(bgr_to_rgb=False)


def images(sizes, channels=3):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (channels, *s), generator=generator, dtype=torch.uint8)
        for s in sizes
    ]


def det(sizes, pictures=None, **settings):
    preprocessor = DetDataPreprocessor(pad_size_divisor=32, **settings)
    samples = [DetDataSample(metainfo=dict(img_shape=s, pad_shape=s)) for s in sizes]
    data = preprocessor(dict(inputs=pictures or images(sizes), data_samples=samples))
    return preprocessor, data['inputs'], data['data_samples']


def seg(sizes, pictures=None, **settings):
    preprocessor = SegDataPreProcessor(size=(64, 64), **settings)
    samples = [SegDataSample(metainfo=dict(img_shape=s)) for s in sizes]
    data = dict(inputs=pictures or images(sizes), data_samples=samples)
    data = preprocessor(data, training=True)
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


ONE = dict(mean=[127.5], std=[64.0])
SIZES = [(64, 40), (33, 64)]


class TestChannels:
    @pytest.mark.parametrize('framework', [det, seg])
    @pytest.mark.parametrize('channels', [1, 3, 4, 6])
    @pytest.mark.parametrize(
        ('student', 'teacher'), [(ONE, {}), ({}, ONE), (ONE, dict(mean=[3.0], std=[2.0]))]
    )
    def test_one_mean_is_that_of_all(self, framework, channels, student, teacher):
        pictures = images(SIZES, channels)
        ours, inputs, samples = framework(SIZES, pictures, **student)
        theirs, expected, _ = framework(SIZES, pictures, **teacher)
        converted = Repreprocess(ours, theirs, (channels, channels))(inputs, samples)
        assert converted.shape == expected.shape
        assert (converted - expected).abs().max() < 1e-4

    @pytest.mark.parametrize('framework', [det, seg])
    @pytest.mark.parametrize(('student', 'teacher'), [(ONE, IMAGENET), (CAFFE, ONE), (BARE, ONE)])
    def test_one_mean_beside_three(self, framework, student, teacher):
        ours, inputs, samples = framework(SIZES, **student)
        theirs, expected, _ = framework(SIZES, **teacher)
        converted = Repreprocess(ours, theirs)(inputs, samples)
        assert (converted - expected).abs().max() < 1e-4

    def test_one_mean_equals_three_of_it(self):
        ours, inputs, samples = det(SIZES, **ONE)
        theirs, *_ = det(SIZES, mean=[127.5] * 3, std=[64.0] * 3)
        assert Repreprocess(ours, theirs)(inputs, samples) is inputs

    @pytest.mark.parametrize('channels', [1, 4])
    def test_mmseg_swaps_three_channels_alone(self, channels):
        pictures = images(SIZES, channels)
        ours, inputs, samples = seg(SIZES, pictures, bgr_to_rgb=True)
        theirs, *_ = seg(SIZES, pictures, bgr_to_rgb=False)
        assert Repreprocess(ours, theirs, (channels, channels))(inputs, samples) is inputs

    @pytest.mark.parametrize('framework', [det, seg])
    @pytest.mark.parametrize('student', [ONE, {}], ids=['one', 'none'])
    @pytest.mark.parametrize('teacher', [IMAGENET, CAFFE, BARE], ids=['imagenet', 'caffe', 'bare'])
    def test_grey_becomes_three_equal_channels(self, framework, student, teacher):
        """As LoadImageFromFile reads a grey file."""
        grey = images(SIZES, 1)
        colour = [image.expand(3, -1, -1).contiguous() for image in grey]
        pad = 'pad_value' if framework is det else 'pad_val'
        ours, inputs, samples = framework(SIZES, grey, **student, **{pad: 3})
        theirs, expected, _ = framework(SIZES, colour, **teacher, **{pad: 7})
        converted = Repreprocess(ours, theirs, (1, 3))(inputs, samples)
        assert converted.shape == expected.shape
        assert (converted - expected).abs().max() < 1e-4

    @pytest.mark.parametrize('framework', [det, seg])
    @pytest.mark.parametrize('student', [IMAGENET, CAFFE, BARE], ids=['imagenet', 'caffe', 'bare'])
    @pytest.mark.parametrize('teacher', [ONE, {}], ids=['one', 'none'])
    def test_colour_becomes_its_luminance(self, framework, student, teacher):
        """As LoadImageFromFile(color_type='grayscale') reads a coloured file, which rounds."""
        colour = images(SIZES)
        grey = [
            torch.from_numpy(cv2.cvtColor(x.permute(1, 2, 0).numpy(), cv2.COLOR_BGR2GRAY))[None]
            for x in colour
        ]
        pad = 'pad_value' if framework is det else 'pad_val'
        ours, inputs, samples = framework(SIZES, colour, **student, **{pad: 3})
        theirs, expected, _ = framework(SIZES, grey, **teacher, **{pad: 7})
        converted = Repreprocess(ours, theirs, (3, 1))(inputs, samples)
        assert converted.shape == expected.shape
        level = 1 / (64 if teacher else 1)
        assert (converted - expected).abs().max() < 0.51 * level

    def test_grey_and_colour_of_one_mean_each_are_not_the_same(self):
        ours, inputs, samples = det(SIZES, images(SIZES, 1), **ONE)
        theirs, *_ = det(SIZES, **ONE)
        convert = Repreprocess(ours, theirs, (1, 3))
        assert not convert.identical
        assert convert(inputs, samples).shape == (2, 3, 64, 64)

    def test_grey_videos(self):
        theirs = TrackDataPreprocessor(**IMAGENET)
        ours = TrackDataPreprocessor(**ONE)
        sample = TrackDataSample()
        sample.video_data_samples = [DetDataSample(metainfo=dict(img_shape=(8, 8)))] * 2
        videos = torch.rand(1, 2, 1, 8, 8)
        converted = Repreprocess(ours, theirs, (1, 3))(videos, [sample])
        assert converted.shape == (1, 2, 3, 8, 8)
        flat, _ = DetDataPreprocessor(**ONE), DetDataPreprocessor(**IMAGENET)
        frames = Repreprocess(flat, _, (1, 3))(videos[0], sample.video_data_samples)
        assert torch.equal(converted[0], frames)

    @pytest.mark.parametrize('channels', [(1, 4), (4, 3), (3, 6), (6, 1), (2, 3)])
    def test_other_numbers_are_refused(self, channels):
        message = r'student has {} channels .* the teacher {}: only'.format(*channels)
        with pytest.raises(ValueError, match=message):
            Repreprocess(DetDataPreprocessor(), DetDataPreprocessor(), channels)


class TestPadding:
    @staticmethod
    def seg(**settings):
        return SegDataPreProcessor(mean=[0.0], std=[1.0], **settings)

    @staticmethod
    def det(divisor):
        return DetDataPreprocessor(pad_size_divisor=divisor)

    @pytest.mark.parametrize(
        ('size', 'divisor'), [((64, 64), 32), ((64, 96), 32), ((512, 1024), 64), ((65, 65), 1)]
    )
    def test_a_size_that_is_a_multiple_fits(self, size, divisor):
        Repreprocess(self.seg(size=size), self.seg(size_divisor=divisor))
        Repreprocess(self.seg(size=size), self.det(divisor))

    @pytest.mark.parametrize('size', [(65, 65), (64, 80), (80, 64)])
    def test_another_size_does_not(self, size):
        message = (
            r'multiple of 32, the student pads to the size {}x{}: set '
            r'student\.data_preprocessor\.size=\({}, {}\)'
        ).format(*size, *(-(-side // 32) * 32 for side in size))
        with pytest.raises(ValueError, match=message):
            Repreprocess(self.seg(size=size), self.seg(size_divisor=32))

    @pytest.mark.parametrize('padding', [{}, dict(size_divisor=16)])
    def test_the_argument_that_mmseg_has_is_named(self, padding):
        with pytest.raises(ValueError, match=r'student\.data_preprocessor\.size_divisor=32$'):
            Repreprocess(self.seg(**padding), self.seg(size_divisor=32))

    def test_the_argument_that_mmdet_has_is_named(self):
        with pytest.raises(ValueError, match=r'student\.data_preprocessor\.pad_size_divisor=32$'):
            Repreprocess(self.det(16), self.seg(size_divisor=32))

    def test_what_is_advised_is_followed(self):
        for student in (self.seg(size_divisor=32), self.det(32), self.seg(size=(96, 96))):
            Repreprocess(student, self.seg(size_divisor=32))

    def test_the_size_of_the_teacher_does_not_matter(self):
        Repreprocess(self.seg(size=(65, 65)), self.seg(size=(64, 64)))

import pytest
from mmengine.registry import MODELS

from kd_dense.mm.check.finding import OK, Subject
from kd_dense.mm.check.preprocessing import _suspicious, check_preprocessing
from tests.mm import toy

RGB, BGR = [123.675, 116.28, 103.53], [103.53, 116.28, 123.675]


@pytest.mark.parametrize(
    ('mean', 'swapped', 'problem'),
    [
        (RGB, True, ''),
        (BGR, False, ''),
        (BGR, True, 'as red, green, blue, and the mean looks like that of blue, green, red'),
        (RGB, False, 'as blue, green, red, and the mean looks like that of red, green, blue'),
    ],
)
@pytest.mark.parametrize('kind', ['mmseg.SegDataPreProcessor', 'mmdet.DetDataPreprocessor'])
def test_channels_in_the_wrong_order(kind, mean, swapped, problem):
    built = MODELS.build(dict(type=kind, mean=mean, std=[58.0, 57.0, 57.0], bgr_to_rgb=swapped))
    found = _suspicious(built)
    assert problem in found
    assert bool(found) == bool(problem)


def with_channels(count, width=8):
    config = toy.segmenter(width)
    config.backbone.in_channels = count
    means = count if count == 3 else 1  # one mean may belong to any number of channels
    swaps = count == 3
    config.data_preprocessor.update(mean=[128.0] * means, std=[64.0] * means, bgr_to_rgb=swaps)
    return config


@pytest.mark.parametrize(
    ('ours', 'theirs', 'said'),
    [
        (1, 1, 'the same on both sides: mean 128, std 64, grey'),
        (4, 4, 'the same on both sides: mean 128, std 64, 4 channels'),
        (1, 3, 'student: mean 128, std 64, grey; teacher: mean 128 128 128, std 64 64 64, '
               'channels swapped: each batch is converted for the teacher'),
    ],
)  # fmt: skip
def test_other_numbers_of_channels(ours, theirs, said):
    teacher = dict(config=with_channels(theirs, 16), checkpoint=None)
    subject = Subject({}, model=toy.build(toy.distilled(with_channels(ours), teacher)))
    check_preprocessing(subject)
    assert [(found.status, found.message) for found in subject.findings] == [(OK, said)]

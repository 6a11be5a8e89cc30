import pytest

from tests.mm import toy


def build(**others):
    config = toy.distilled_detector(**others) if 'student' in others else toy.distilled(**others)
    config.pop('terms')
    return toy.build(config)


def test_a_segmenter_is_distilled_on_its_logits(log):
    model = build(preset='cwd')
    term = model.kd.cwd
    assert (term.student_tap, term.loss.weight, term.loss.temperature) == (
        'decode_head.conv_seg',
        3.0,
        4.0,
    )
    assert 'from authors, exp_cwd.sh' in log()
    assert toy.losses(model)['loss_kd_cwd'] > 0


def test_a_detector_is_distilled_on_its_pyramid():
    model = build(preset='cwd', student=toy.detector())
    assert (model.kd.cwd.student_tap, model.kd.cwd.loss.weight) == ('neck', 10.0)
    assert toy.losses(model, toy.DetScenes())['loss_kd_cwd'] > 0


@pytest.mark.parametrize(
    ('others', 'message'),
    [
        (dict(preset='cdw'), "no preset 'cdw', did you mean 'cwd'"),
        (dict(preset='cwd', inherit=['backbone']), 'either preset, or terms and inherit'),
        (dict(preset='cwd', teacher=dict(config=toy.detector(), checkpoint=None)),
         'EncoderDecoder and RetinaNet do not share one'),
        ({}, 'terms is empty'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(others, message):
    with pytest.raises(ValueError, match=message):
        build(**others)

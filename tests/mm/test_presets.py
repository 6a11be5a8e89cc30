import pytest

from tests.mm import toy, toy_heads


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


def detector(head):
    return build(
        preset='ld',
        student=toy_heads.detector(head),
        teacher=dict(config=toy_heads.detector(head, 16), checkpoint=None),
    )


@pytest.mark.parametrize('head', toy_heads.HEADS)
def test_every_head_with_distributions_has_a_preset_of_ld(head):
    losses = toy.losses(detector(head), toy.DetScenes(), count=4)
    assert losses['loss_kd_ld.main'] > 0


@pytest.mark.parametrize('preset', ['skd', 'intrakd'])
def test_segmenters_have_presets_of_several_terms(preset):
    model = build(preset=preset)
    losses = toy.losses(model)
    assert len(model.kd) == 3
    assert all(losses[f'loss_kd_{name}'] != 0 for name in model.kd)
    assert {term.student_tap for term in model.kd.values()} == {
        'backbone[-1]',
        'decode_head.conv_seg',
    }


def test_fgd_inherits_what_fits(log):
    teacher = toy.detector(16)
    teacher.neck.out_channels = teacher.bbox_head.in_channels = 16
    model = build(
        preset='fgd', student=toy.detector(), teacher=dict(config=teacher, checkpoint=None)
    )
    model.init_weights()
    assert 'inherited 12 of 16 tensors of neck' in log()
    assert toy.losses(model, toy.DetScenes())['loss_kd_fgd.foreground'] > 0


def test_settings_of_fgd_follow_the_kind_of_head():
    fcos = toy_heads.detector('fcos')
    plain = build(preset='fgd', student=toy.detector()).kd.fgd.loss
    found = build(preset='fgd', student=fcos, teacher=dict(config=fcos, checkpoint=None)).kd.fgd
    assert (plain.temperature, found.loss.temperature) == (0.5, 0.8)
    assert (plain.weights['foreground'], found.loss.weights['foreground']) == (1e-3, 1.6e-3)


@pytest.mark.parametrize(
    ('others', 'message'),
    [
        (dict(preset='cdw'), "no preset 'cdw', did you mean 'cwd'"),
        (dict(preset='cwd', inherit=['backbone']), 'either preset, or terms and inherit'),
        (dict(preset='cwd', teacher=dict(config=toy.detector(), checkpoint=None)),
         'EncoderDecoder and RetinaNet do not share one'),
        (dict(preset='ld', student=toy.detector()), r'with bbox_head \(GFLHead\), bbox_head'),
        ({}, 'terms is empty'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(others, message):
    with pytest.raises(ValueError, match=message):
        build(**others)

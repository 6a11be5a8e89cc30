import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

import kd_dense.losses
from kd_dense.losses import CWDLoss, FGDLoss
from kd_dense.losses.ld import mean_kl
from kd_dense.mm import presets
from kd_dense.mm.presets import COCO, P3_TO_P7, PRESETS, SUMS, choose_preset, scaled
from kd_dense.mm.roles import IMAGE, Map, Pair, Side
from tests.mm import toy, toy_heads

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'presets.md'


def build(**others):
    config = toy.distilled_detector(**others) if 'student' in others else toy.distilled(**others)
    config.pop('terms')
    return toy.build(config)


def untrained(config):
    return dict(config=config, checkpoint=None)


def published(model):
    """A toy with a pyramid as wide as the published ones."""
    model.neck.out_channels = model.bbox_head.in_channels = 256
    return model


class TestFamilies:
    def test_a_segmenter_is_distilled_on_its_logits(self, log):
        model = build(preset='cwd')
        term = model.kd.cwd
        assert (term.student_tap, term.loss.weight, term.loss.temperature) == (
            'decode_head.conv_seg',
            3.0,
            4.0,
        )
        said = log()
        assert "preset 'cwd' for EncoderDecoder from EncoderDecoder" in said
        assert 'cwd: CWDLoss(weight=3.0, temperature=4.0) on decode_head.conv_seg' in said
        assert 'cwd: authors, exp_cwd.sh' in said
        assert '--dump-config' in said
        assert toy.losses(model)['loss_kd_cwd'] > 0

    def test_a_detector_is_distilled_on_its_pyramid(self):
        model = build(preset='cwd', student=toy.detector())
        assert (model.kd.cwd.student_tap, model.kd.cwd.loss.weight) == ('neck', 10.0)
        assert toy.losses(model, toy.DetScenes())['loss_kd_cwd'] > 0

    @pytest.mark.parametrize('head', toy_heads.HEADS)
    def test_every_head_with_distributions_has_a_preset_of_ld(self, head):
        teacher = untrained(toy_heads.detector(head, 16))
        model = build(preset='ld', student=toy_heads.detector(head), teacher=teacher)
        assert toy.losses(model, toy.DetScenes(), count=4)['loss_kd_ld.main'] > 0
        assert model.kd.ld.loss.settings['kd_weight'] == 10 * 3 / 80  # 10 belongs to 80 classes

    @pytest.mark.parametrize('preset', ['skd', 'intrakd'])
    def test_segmenters_have_presets_of_several_terms(self, preset):
        model = build(preset=preset)
        losses = toy.losses(model)
        assert len(model.kd) == 3
        assert all(losses[f'loss_kd_{name}'] != 0 for name in model.kd)
        assert {term.student_tap for term in model.kd.values()} == {
            'backbone[-1]',
            'decode_head.conv_seg',
        }

    def test_fgd_inherits_what_fits(self, log):
        teacher = toy.detector(16)
        teacher.neck.out_channels = teacher.bbox_head.in_channels = 16
        model = build(preset='fgd', student=toy.detector(), teacher=untrained(teacher))
        model.init_weights()
        assert 'inherited 12 of 16 tensors of neck' in log()
        assert toy.losses(model, toy.DetScenes())['loss_kd_fgd.foreground'] > 0

    def test_settings_of_fgd_follow_the_kind_of_head(self):
        loss = {}
        for name, student in (
            ('plain', toy.detector()),
            ('fcos', toy_heads.detector('fcos')),
        ):
            student = published(student)
            model = build(preset='fgd', student=student, teacher=untrained(student))
            loss[name] = model.kd.fgd.loss
        assert (loss['plain'].temperature, loss['fcos'].temperature) == (0.5, 0.8)
        assert loss['plain'].weights['foreground'] == 1e-3
        assert loss['fcos'].weights['foreground'] == 1.6e-3


class TestRoles:
    def test_maps_of_a_pyramid_are_paired_by_stride(self, log):
        # A pyramid from stride 4 on beside one from stride 8 on: RetinaNet from Faster R-CNN.
        lower = toy.detector(16)
        lower.neck.start_level = 0
        lower.bbox_head.anchor_generator.strides = [4, 8, 16, 32, 64]
        model = build(preset='cwd', student=toy.detector(), teacher=untrained(lower))
        term = model.kd.cwd
        assert (term.student_tap, term.teacher_tap) == ('neck[:4]', 'neck[1:5]')
        assert term.loss.weight == 12.5  # 10 belongs to five maps
        said = log()
        assert 'on neck[:4] (teacher: neck[1:5])' in said
        assert 'weights scaled to these maps' in said
        assert toy.losses(model, toy.DetScenes())['loss_kd_cwd'] > 0

    def test_nothing_is_inherited_from_another_kind_of_model(self):
        student = toy.detector()
        teacher = toy_heads.detector('fcos')
        preset = build(preset='fgd', student=student, teacher=untrained(teacher)).kd_plan
        assert preset.inherit == ()
        same = build(preset='fgd', student=student, teacher=untrained(student)).kd_plan
        assert same.inherit == ('neck', 'bbox_head')

    @pytest.mark.parametrize(
        ('ours', 'theirs', 'expected'),
        [
            ([8, 4, 2], [8, 4, 2], ('neck', 'neck')),
            ([8, 4, 2], [16, 8, 4], ('neck[:2]', 'neck[1:3]')),
            ([2], [8, 4, 2], ('neck', 'neck[2]')),
            ([4, 4], [4, 4], ('neck', 'neck')),
            ([3], [16, 8, 2], ('neck', 'neck[2]')),  # the nearest, which is resized
        ],
    )
    def test_which_maps_are_compared(self, ours, theirs, expected):
        assert Pair(*map(pyramid, (ours, theirs))).places('neck')[:2] == expected

    def test_the_last_map_is_found_among_other_tensors(self):
        class Tokens(nn.Module):
            def forward(self, x):
                return [(x, x.mean((2, 3))), (x, x.mean((2, 3)))]

        model = pyramid([4])
        model.neck = Tokens()
        places = Pair(model, pyramid([4])).places('neck[-1]')
        assert places[:2] == ('neck[-2]', 'neck[-1]')

    def test_the_map_that_pidnet_yields_in_training_too_is_taken(self):
        model = nn.Module()
        model.backbone = type('PIDNet', (nn.Module,), {})()
        assert Side(model).spelt('backbone') == 'backbone.dfm'
        assert Side(model).spelt('neck') == 'neck'
        assert Side(pyramid([4])).spelt('backbone') == 'backbone'

    def test_of_two_stage_detectors_the_first_four_maps_are_compared(self):
        five = pyramid([16, 8, 4, 2, 1])
        assert Pair(five, five).places('neck[:4]')[0] == 'neck[:4]'
        four = pyramid([16, 8, 4, 2])
        assert Pair(four, five).places('neck[:4]')[:2] == ('neck', 'neck[:4]')

    def test_the_model_in_a_tracker_is_meant(self):
        tracker = nn.Module()
        tracker.detector = pyramid([8, 4])
        assert Pair(tracker, pyramid([8, 4])).places('neck')[:2] == ('detector.neck', 'neck')
        chosen = choose_preset('cwd', tracker, pyramid([8, 4]))
        assert chosen.terms['cwd']['tap'] == dict(student='detector.neck', teacher='neck')

    @pytest.mark.parametrize(
        ('heads', 'expected'),
        [
            ([], None),
            ([['conv_seg']], 'decode_head.conv_seg'),
            ([['conv_seg'], ['conv_seg']], 'decode_head.1.conv_seg'),
            ([['conv_seg'], ['fc_seg']], 'decode_head.0.conv_seg[0]'),
            ([['cls_embed']], None),
        ],
    )
    def test_where_logits_are(self, heads, expected):
        modules = [nn.ModuleDict({name: nn.Conv2d(1, 1, 1) for name in names}) for names in heads]
        model = nn.Module()
        if modules:
            model.decode_head = modules[0] if len(modules) == 1 else nn.ModuleList(modules)
        assert Side(model).logits() == expected

    @pytest.mark.parametrize(
        ('kind', 'expected'),
        [
            ('IterativeDecodeHead', 'decode_head[-1]'),
            ('SegmenterMaskTransformerHead', 'decode_head'),
        ],
    )
    def test_heads_whose_output_is_their_logits(self, kind, expected):
        model = nn.Module()
        model.decode_head = type(kind, (nn.Module,), {})()
        assert Side(model).logits() == expected


def pyramid(sizes):
    """A model whose neck yields maps of 8 channels and these sizes, of images of 256x256."""

    class Neck(nn.Module):
        def forward(self, x):
            return tuple(x.new_zeros(len(x), 8, size, size) for size in sizes)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.neck = nn.Identity(), Neck()

        def extract_feat(self, x):
            return self.neck(self.backbone(x))

    return Model()


class TestSeveral:
    def test_terms_and_inheritance_are_joined(self):
        config = toy_heads.detector('gfl')
        model = build(preset=['fgd', 'ld'], student=config, teacher=untrained(config))
        assert [*model.kd] == ['fgd', 'ld']
        assert model.kd_plan.inherit == ('neck', 'bbox_head')
        losses = toy.losses(model, toy.DetScenes(), count=4)
        assert losses['loss_kd_fgd.foreground'] > 0
        assert losses['loss_kd_ld.main'] > 0

    def test_a_name_that_is_taken_gets_its_method_in_front(self, monkeypatch):
        monkeypatch.setitem(presets.PRESETS, 'other', PRESETS['cwd'])
        model = build(preset=['cwd', 'other'])
        assert [*model.kd] == ['cwd', 'other_cwd']


class TestScale:
    def test_published_layouts_keep_the_published_weights(self):
        for rows in PRESETS.values():
            for preset in rows:
                if preset.layout is None:
                    continue
                maps = layout_maps(preset.layout.channels, preset.layout.strides)
                for term in preset.terms.values():
                    assert scaled(term['loss'], maps, preset.layout) == term['loss']

    def test_every_loss_of_a_row_with_a_layout_has_a_rule(self):
        for rows in PRESETS.values():
            for preset in rows:
                for term in preset.terms.values() if preset.layout else ():
                    weights = SUMS[term['loss']['type']]
                    assert weights.keys() <= term['loss'].keys()

    # Fewer levels, other widths, other strides.
    @pytest.mark.parametrize(('channels', 'strides'), [(64, (8, 16)), (32, (4, 8, 16, 32))])
    def test_terms_of_other_layouts_keep_their_size(self, channels, strides):
        published = 256, (8, 16, 32, 64, 128)
        fgd = PRESETS['fgd'][-1].terms['fgd']['loss']
        cwd = PRESETS['cwd'][-2].terms['cwd']['loss']
        maps = layout_maps(channels, strides)
        for loss in (fgd, cwd):
            expected = worth(loss, *published)
            unscaled = worth(loss, channels, strides)
            found = worth(scaled(loss, maps, P3_TO_P7), channels, strides)
            for part, value in expected.items():
                # The attention varies more where it averages over fewer channels.
                within = 4.0 if part == 'attention' else 1.15
                assert 1 / within < found[part] / value < within, part
            assert any(abs(unscaled[part] / expected[part] - 1) > 0.15 for part in expected)

    @pytest.mark.parametrize(
        ('classes', 'strides'), [(3, (8, 16, 32)), (20, (8, 16, 32, 64, 128))]
    )
    def test_classes_are_distilled_alike_whatever_their_number(self, classes, strides):
        loss = PRESETS['ld'][0].terms['ld']['loss']
        config = scaled(loss, layout_maps(classes, strides), COCO)
        expected = worth_of_classes(loss['kd_weight'], 80, len(COCO.strides))
        found = worth_of_classes(config.pop('kd_weight'), classes, len(strides))
        assert 1 / 1.6 < found / expected < 1.6  # unscaled, 3 classes are worth 10 times as much
        assert config == {k: v for k, v in loss.items() if k != 'kd_weight'}


@torch.no_grad()
def worth_of_classes(weight, classes, levels):
    """What the part of the classes makes of random logits at positives on all levels."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5000, classes, generator=generator) for _ in range(2))
    return weight * levels * mean_kl(a, b, temperature=2.0, dim=1).mean().item()


def layout_maps(channels, strides):
    return [Map(channels, IMAGE / stride**2) for stride in strides]


@torch.no_grad()
def worth(loss, channels, strides):
    """What a loss makes of random maps of images of 400x608, part by part."""
    generator = torch.Generator().manual_seed(0)
    arguments = {k: v for k, v in loss.items() if k != 'type'}
    total = {}
    for stride in strides:
        shape = 1, channels, -(-400 // stride), -(-608 // stride)
        maps = [torch.randn(shape, generator=generator) for _ in range(2)]
        if loss['type'] == 'CWDLoss':
            parts = {'': CWDLoss(**arguments)(*maps)}
        else:
            boxes = [torch.tensor([[100.0, 50.0, 300.0, 250.0], [400.0, 100.0, 500.0, 390.0]])]
            shapes = dict(batch_shape=(400, 608), image_shapes=[(400, 608)])
            parts = FGDLoss(channels=channels, **arguments)(*maps, boxes=boxes, **shapes)
        total = {part: total.get(part, 0.0) + value.item() for part, value in parts.items()}
    return total


@pytest.mark.parametrize(
    ('others', 'message'),
    [
        (dict(preset='cdw'), "no preset 'cdw', did you mean 'cwd'"),
        (dict(preset=['cwd', 'cdw']), "no preset 'cdw', did you mean 'cwd'"),
        (dict(preset=['cwd', 'cwd']), 'comes twice'),
        (dict(preset=[]), 'expected preset as a name or a list of names'),
        (dict(preset='cwd', inherit=['backbone']), 'either preset, or terms and inherit'),
        (dict(preset='cwd', teacher=untrained(toy.detector())),
         'none of these fits a student EncoderDecoder with a teacher RetinaNet'),
        (dict(preset='ld', student=toy.detector()), 'has settings for GFL, ATSS with'),
        ({}, 'terms is empty'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(others, message):
    with pytest.raises(ValueError, match=message):
        build(**others)


def table(method):
    """The table of a method as docs/presets.md has it."""
    lines = ['| student | tap | loss | inherits | source |', '|-|-|-|-|-|']
    for preset in PRESETS[method]:
        groups = {}
        for name, fields in preset.terms.items():
            arguments = {k: v for k, v in fields['loss'].items() if k != 'type'}
            said = ', '.join(f'{k}={v!r}' for k, v in arguments.items())
            groups.setdefault(fields['tap'], []).append(
                f'{name}: `{fields["loss"]["type"]}({said})`'
            )
        taps = '<br>'.join(f'`{tap}`' for tap in groups)
        losses = '<br>'.join('; '.join(said) for said in groups.values())
        inherits = ', '.join(f'`{part}`' for part in preset.inherit)
        cells = [preset.models, taps, losses, inherits, preset.source]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


@pytest.mark.parametrize('method', PRESETS)
def test_the_page_has_the_table(method):
    assert table(method) in PAGE.read_text(), f'docs/presets.md lacks:\n\n{table(method)}'


def test_every_weight_in_the_table_is_one_of_its_loss():
    for rows in PRESETS.values():
        for preset in rows:
            for fields in preset.terms.values():
                loss = dict(fields['loss'])
                takes = inspect.signature(getattr(kd_dense.losses, loss.pop('type'))).parameters
                assert loss.keys() <= takes.keys()

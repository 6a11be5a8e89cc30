from math import ceil, floor

import pytest
from torch import nn

from kd_dense.mm.presets.choose import choose_preset
from kd_dense.mm.presets.roles import Pair, Side
from tests.mm import toy, toy_heads
from tests.mm.presets.building import build, untrained


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

    def test_a_model_that_takes_small_images_alone(self):
        """As vision transformers whose biases belong to one size."""

        def refuse(module, inputs):
            if inputs[0].shape[-1] > 64:
                raise RuntimeError('The size of tensor a (257) must match that of tensor b (17)')

        pair = [toy.build(toy.segmenter(width)) for width in (8, 16)]
        for model in pair:
            model.backbone.register_forward_pre_hook(refuse)
        ours, theirs, maps = Pair(*pair).places('backbone[-1]')
        assert ours == theirs == 'backbone[-1]'
        assert [m.channels for m in maps] == [128]

    def test_nothing_is_inherited_from_another_kind_of_model(self):
        student = toy.detector()
        teacher = toy_heads.detector('fcos')
        preset = build(preset='fgd', student=student, teacher=untrained(teacher)).kd_plan
        assert preset.inherit == ()
        same = build(preset='fgd', student=student, teacher=untrained(student)).kd_plan
        assert same.inherit == ('neck', 'bbox_head')

    def test_a_head_of_another_depth_is_not_inherited(self):
        student, deeper = toy.detector(), toy.detector()
        deeper.bbox_head.stacked_convs = student.bbox_head.get('stacked_convs', 4) + 1
        for ours, theirs in ((student, deeper), (deeper, student)):
            preset = build(preset='fgd', student=ours, teacher=untrained(theirs)).kd_plan
            assert preset.inherit == ('neck',)

    @pytest.mark.parametrize(
        ('ours', 'theirs', 'expected'),
        [
            ([8, 4, 2], [8, 4, 2], ('neck', 'neck')),
            ([8, 4, 2], [16, 8, 4], ('neck[:2]', 'neck[1:3]')),
            ([2], [8, 4, 2], ('neck', 'neck[2]')),
            ([4, 4], [4, 4], ('neck', 'neck')),
            ([3], [16, 8, 2], ('neck', 'neck[2]')),  # the nearest, which is resized
            # Rounded up in one model and down in the other, as on images of 769x769 ...
            ([97, 49, 25, 13, 7], [96, 48, 24, 12, 6], ('neck', 'neck')),
            ([97, 49, 25], [192, 96, 48, 24], ('neck', 'neck[1:4]')),
            ([24, 12, 6], [97, 49, 25, 13, 7], ('neck', 'neck[2:5]')),
            # ... or of layers without padding.
            ([127, 63, 31], [64, 32], ('neck[1:3]', 'neck')),
            ([32, 16, 9], [33, 32, 16, 8], ('neck', 'neck[1:4]')),
            ([8], [9, 8, 7], ('neck', 'neck[1]')),  # the same size before one that is near
            ([4, 2], [2, 1], ('neck[1]', 'neck[0]')),  # one cell more, and twice as many
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


@pytest.mark.parametrize(
    ('classes', 'expected'),
    [
        ([], None),
        ([5], 'auxiliary_head.conv_seg'),
        ([5, 5], 'auxiliary_head.1.conv_seg'),
        ([5, 2], 'auxiliary_head.0.conv_seg'),  # of boundaries, as STDC's last
        ([2], None),
    ],
)
def test_where_auxiliary_logits_are(classes, expected):
    def head(count):
        module = nn.ModuleDict(dict(conv_seg=nn.Conv2d(1, count, 1)))
        module.num_classes = count
        return module

    model = nn.Module()
    model.decode_head = head(5)
    heads = nn.ModuleList(map(head, classes))
    if classes:
        model.auxiliary_head = heads[0] if len(heads) == 1 else heads
    assert Side(model).aux_logits() == expected
    assert Pair(model, model).places('aux_logits') == (expected and (expected, expected, []))


def test_where_both_run_at_their_own_size_alone():
    """A student that rounds up and a teacher that rounds down, at 769x769 only."""

    class Halves(nn.Module):
        def __init__(self, round_):
            super().__init__()
            self.round = round_

        def forward(self, x):
            if len(x[0, 0]) != 769:
                raise ValueError('made for another size')
            sizes = [self.round(769 / stride) for stride in (8, 16, 32)]
            return tuple(x.new_zeros(len(x), 8, size, size) for size in sizes)

    models = [pyramid([]) for _ in range(2)]
    for model, round_ in zip(models, (ceil, floor), strict=True):
        model.neck = Halves(round_)
        model.test_cfg = dict(crop_size=(769, 769))
    assert Pair(*models).places('neck')[:2] == ('neck', 'neck')


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

"""What a term learns from the heads that it taps: which channels are logits, what to ignore."""

from __future__ import annotations

import pytest
from torch import nn

from kd_dense.losses import DistillLoss
from kd_dense.registry import MODELS
from tests.mm import toy, toy_heads


def segmenter(width, channels=None, classes=2, **head):
    config = toy.segmenter(width, classes)
    config.decode_head.update(out_channels=channels, **head)
    if channels == 1:
        config.decode_head.update(threshold=0.5, loss_decode=dict(
            type='CrossEntropyLoss', use_sigmoid=True))  # fmt: skip
    return config


def distilled(student, teacher, tap='decode_head.conv_seg', loss=toy.CWD, **fields):
    return toy.build(
        toy.distilled(
            student=student,
            teacher=dict(config=teacher, checkpoint=None),
            terms=dict(term=dict(tap=tap, loss=loss, **fields)),
        )
    )


@MODELS.register_module(force=True)
class OwnAdapter(nn.Conv2d):
    def __init__(self, in_channels, out_channels):
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x, size):
        return super().forward(x)


class TestLogitsOfUnlikeLayout:
    """A 1x1 convolution between class scores would learn to swap the classes."""

    @pytest.mark.parametrize('tap', ['decode_head.conv_seg', 'decode_head'])
    @pytest.mark.parametrize(('ours', 'theirs'), [(1, 2), (2, 1)])
    def test_one_and_two_channels_for_two_classes(self, tap, ours, theirs):
        message = (
            rf"'term': tap '{tap}' yields logits of {ours} channels? in the student and tap "
            rf"'{tap}' of {theirs} in the teacher, for the same 2 classes.* heads alike"
        )
        with pytest.raises(ValueError, match=message):
            distilled(segmenter(8, ours), segmenter(16, theirs), tap)

    def test_in_a_head_of_a_list(self):
        student, teacher = segmenter(8, 1), segmenter(16, 2)
        for config in (student, teacher):
            config.auxiliary_head = [config.decode_head]
        with pytest.raises(ValueError, match='logits of 1 channel in the student'):
            distilled(student, teacher, 'auxiliary_head.0.conv_seg')

    def test_other_numbers_of_anchors(self):
        student, teacher = toy.detector(8), toy.detector(16)
        teacher.bbox_head.anchor_generator.ratios = [1.0]
        with pytest.raises(ValueError, match=r'of 27 channels .* of 9 in .* the same 3 classes'):
            distilled(student, teacher, 'bbox_head.retina_cls')

    def test_with_and_without_a_background(self):
        student, teacher = toy.detector(8), toy.detector(16)
        teacher.bbox_head.loss_cls = dict(type='CrossEntropyLoss', use_sigmoid=False)
        with pytest.raises(ValueError, match=r'of 27 channels .* of 36 in .* the same 3 classes'):
            distilled(student, teacher, 'bbox_head.retina_cls')

    @pytest.mark.parametrize('channels', [1, 2])
    def test_of_one_layout_they_are_compared(self, channels):
        model = distilled(segmenter(8, channels), segmenter(16, channels))
        assert isinstance(model.kd['term'].adapters[0], nn.Identity)

    def test_losses_that_take_any_width_need_no_adapter(self):
        loss = dict(type='PairWiseLoss')
        model = distilled(segmenter(8, 1), segmenter(16, 2), loss=loss)
        assert not [*model.kd.parameters()]

    def test_your_own_adapter_is_your_own_choice(self):
        model = distilled(segmenter(8, 1), segmenter(16, 2), adapter=dict(type='OwnAdapter'))
        assert isinstance(model.kd['term'].adapters[0], OwnAdapter)

    @pytest.mark.parametrize('classes', [2, 16, 8])
    def test_features_in_such_heads_get_one(self, classes):
        """Their widths, 8 and 16, are multiples of the number of classes."""
        student, teacher = segmenter(8, classes=classes), segmenter(16, classes=classes)
        model = distilled(student, teacher, 'decode_head.convs')
        assert [*model.kd.parameters()]

    def test_boxes_get_one(self):
        student, teacher = toy_heads.detector('gfl'), toy_heads.detector('gfl', 16, reg_max=4)
        model = distilled(student, teacher, 'bbox_head.gfl_reg')
        assert [*model.kd.parameters()]


@MODELS.register_module(force=True)
class IgnoringLoss(DistillLoss):
    def __init__(self, weight=1.0, ignore_index=255):
        super().__init__(weight)
        self.ignore_index = ignore_index

    def forward(self, student, teacher):
        return self.weight * (student.mean() - teacher.detach().mean()).square()


@MODELS.register_module(force=True)
class StrictlyIgnoringLoss(IgnoringLoss):
    def __init__(self, ignore_index, weight=1.0):
        super().__init__(weight, ignore_index)


@MODELS.register_module(force=True)
class WideLoss(DistillLoss):
    """Is told the widths of its maps."""

    def __init__(self, student_channels, teacher_channels, weight=1.0, sigmoid=None):
        super().__init__(weight)
        self.told = student_channels, teacher_channels
        self.sigmoid = sigmoid

    def forward(self, student, teacher):
        assert (student.shape[1], teacher.shape[1]) == self.told
        return self.weight * (student.mean() - teacher.detach().mean()).square()


@MODELS.register_module(force=True)
class AnyWidthLoss(WideLoss):
    any_channels = True


@MODELS.register_module(force=True)
class AllWidthsLoss(AnyWidthLoss):
    all_maps = True

    def forward(self, student, teacher):
        widths = [[x.shape[1] for x in maps] for maps in (student, teacher)]
        assert widths == [*self.told]
        return self.weight * sum(x.mean() for x in student)


class TestWidths:
    """As wide as the maps are that the loss is given."""

    @staticmethod
    def told(kind, tap='backbone', loss=None, **fields):
        sides = toy.segmenter(8), toy.segmenter(16)
        model = distilled(*sides, tap, dict(type=kind, **(loss or {})), **fields)
        return [loss.told for loss in model.kd['term'].losses]

    def test_of_each_map_a_number(self):
        pairs = [(8, 16), (16, 32), (32, 64), (64, 128)]
        assert self.told('AnyWidthLoss') == pairs
        assert self.told('WideLoss') == [(wide, wide) for _, wide in pairs]  # behind an adapter
        own = dict(type='Adapter', norm=True)
        assert self.told('AnyWidthLoss', adapter=own) == [(wide, wide) for _, wide in pairs]

    def test_of_all_maps_lists(self):
        assert self.told('AllWidthsLoss') == [([8, 16, 32, 64], [16, 32, 64, 128])]

    def test_what_the_config_says_stays(self):
        loss = dict(teacher_channels=32)
        assert self.told('AnyWidthLoss', 'backbone[1]', loss) == [(16, 32)]
        with pytest.raises(ValueError, match='AssertionError'):
            self.told('AnyWidthLoss', 'backbone[1]', dict(student_channels=7))


class TestSigmoid:
    @pytest.mark.parametrize(
        ('tap', 'expected'), [('bbox_head.retina_cls', True), ('bbox_head', True), ('neck', None)]
    )
    def test_is_that_of_the_head_that_is_tapped(self, tap, expected):
        model = distilled(toy.detector(8), toy.detector(8), tap, dict(type='AnyWidthLoss'))
        assert model.kd['term'].loss.sigmoid is expected

    def test_of_a_softmax_head(self):
        sides = toy.detector(8), toy.detector(8)
        for side in sides:
            side.bbox_head.loss_cls = dict(type='CrossEntropyLoss', use_sigmoid=False)
        model = distilled(*sides, 'bbox_head.retina_cls', dict(type='AnyWidthLoss'))
        assert model.kd['term'].loss.sigmoid is False


@MODELS.register_module(force=True)
class NewClassesLoss(DistillLoss):
    extra_classes = any_channels = True

    def forward(self, student, teacher):
        known = student[:, : teacher.shape[1]]
        return self.weight * (known - teacher.detach()).square().mean()


class TestExtraClasses:
    def test_of_the_student_are_allowed(self):
        loss = dict(type='NewClassesLoss')
        model = distilled(segmenter(8, classes=5), segmenter(16, classes=3), loss=loss)
        assert not [*model.kd.parameters()]
        assert toy.losses(model)['loss_kd_term'] > 0

    def test_of_the_teacher_are_not(self):
        loss = dict(type='NewClassesLoss')
        with pytest.raises(ValueError, match=r'logits of 3 classes in the student and .* of 5'):
            distilled(segmenter(8, classes=3), segmenter(16, classes=5), loss=loss)


class TestIgnoreIndex:
    @staticmethod
    def found(student, tap='decode_head.conv_seg', kind='IgnoringLoss', **loss):
        teacher = segmenter(16) if 'decode_head' in student else toy.detector(16)
        if 'auxiliary_head' in student:
            teacher.auxiliary_head = teacher.decode_head
        model = distilled(student, teacher, tap, dict(type=kind, **loss))
        return model.kd['term'].loss.ignore_index

    @pytest.mark.parametrize('tap', ['decode_head.conv_seg', 'backbone.layer4'])
    @pytest.mark.parametrize('kind', ['IgnoringLoss', 'StrictlyIgnoringLoss'])
    def test_is_that_of_the_decode_head(self, tap, kind):
        assert self.found(segmenter(8, ignore_index=7), tap, kind) == 7

    def test_is_that_of_the_head_that_is_tapped(self):
        student = segmenter(8, ignore_index=7)
        student.auxiliary_head = {**student.decode_head, 'ignore_index': 9}
        assert self.found(student, 'auxiliary_head.conv_seg') == 9
        assert self.found(student, 'decode_head.conv_seg') == 7

    def test_of_a_real_loss(self):
        assert self.found(segmenter(8, ignore_index=7), 'backbone[-1]', 'IntRALoss') == 7

    def test_is_the_one_that_was_asked_for(self):
        assert self.found(segmenter(8, ignore_index=7), ignore_index=3) == 3

    def test_is_the_default_where_no_head_has_one(self):
        assert self.found(toy.detector(), 'neck') == 255

    def test_is_missed_where_it_must_be_known(self):
        message = 'StrictlyIgnoringLoss takes ignore_index from the decode_head of a segmenter'
        with pytest.raises(ValueError, match=message):
            self.found(toy.detector(), 'neck', 'StrictlyIgnoringLoss')

"""Maps that agree in size on the images that are tried out, and not on all that are trained on."""

from __future__ import annotations

import pytest
import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS as ROOT_MODELS
from torch import nn

from kd_dense.adapters import Adapter, resize
from kd_dense.losses import DistillLoss, cwd_loss
from kd_dense.mm.distil.tokens import shapes_as_maps
from kd_dense.mm.models.probe import Yield, probe
from kd_dense.registry import MODELS
from tests.mm import toy

SIZES = [64, 65, 97]
# As ResNet, and as ConvNeXt or any embedding of patches without padding.
UP, DOWN = dict(kernel=3, padding=1), dict(kernel=2, padding=0)


@ROOT_MODELS.register_module(force=True)
class Halves(BaseModule):
    """Halves the map again and again, and yields each."""

    def __init__(self, width, kernel, padding, times=3):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(width if i else 3, width, kernel, 2, padding) for i in range(times)
        )

    def forward(self, x):
        return [x := layer(x) for layer in self.layers]


class Tokens(nn.Module):
    """A neck that yields the last map as a sequence, too, behind some more tokens."""

    def __init__(self, extra=0):
        super().__init__()
        self.extra = extra

    def forward(self, maps):
        self.tokens(maps[-1])
        return maps

    def tokens(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return torch.cat([tokens[:, : self.extra].square(), tokens], 1), x.shape[2:]


@MODELS.register_module(force=True)
class StubbornLoss(DistillLoss):
    """As LDLoss: no adapter makes sense in front of it."""

    adaptable = False

    def forward(self, student, teacher):
        return self.weight * (student.mean((2, 3)) - teacher.detach().mean((2, 3))).square().mean()


@MODELS.register_module(force=True)
class ExactLoss(DistillLoss):
    """One that would take maps of unlike size without a word."""

    def forward(self, student, teacher):
        assert student.shape == teacher.shape
        return self.weight * (student - teacher.detach()).square().mean()


class Scenes(toy.SegScenes):
    def __init__(self, size):
        super().__init__(4, max(size), augment=False)
        self.images = self.images[..., : size[0], : size[1]]
        self.labels = self.labels[..., : size[0], : size[1]]


def segmenter(width, rounding, size=64, **backbone):
    config = toy.segmenter(width)
    config.data_preprocessor.size = size if isinstance(size, tuple) else (size, size)
    config.backbone = dict(type='mmengine.Halves', width=width, **rounding, **backbone)
    config.decode_head.update(in_channels=width, in_index=2)
    return config


def distilled(size, tap='decode_head.conv_seg', loss=toy.CWD, teacher=(16, DOWN), **fields):
    fields.setdefault('student', segmenter(8, UP, size))
    return toy.build(
        toy.distilled(
            student=fields.pop('student'),
            teacher=dict(config=segmenter(*teacher, size), checkpoint=None),
            terms=dict(term=dict(tap=tap, loss=loss, **fields)),
        )
    )


def losses(model, size):
    return toy.losses(model, Scenes(size if isinstance(size, tuple) else (size, size)))


def maps(model, size):
    """The maps of both sides, as they are recorded."""
    found = {}
    term = model.kd['term']
    own = term.forward

    def record(student, teacher, *args):
        found.update(student=student[0], teacher=teacher[0])
        return own(student, teacher, *args)

    term.forward = record
    value = losses(model, size)['loss_kd_term']
    del term.forward
    return found['student'], found['teacher'], value


class TestSizesThatDiffer:
    @pytest.mark.parametrize('size', [*SIZES, (33, 769), (70, 64)])
    def test_the_student_is_resized_where_they_do(self, size):
        model = distilled(size)
        assert not [*model.kd.parameters()]
        student, teacher, value = maps(model, size)
        height, width = size if isinstance(size, tuple) else (size, size)
        assert student.shape[2:] == (-(-height // 8), -(-width // 8))
        assert teacher.shape[2:] == (height // 8, width // 8)
        expected = 3 * cwd_loss(resize(student, teacher.shape[2:]), teacher, temperature=4.0)
        torch.testing.assert_close(value, expected)

    @pytest.mark.parametrize('size', SIZES)
    @pytest.mark.parametrize('tap', ['backbone', 'backbone[1]'])
    def test_maps_of_unlike_width_too(self, size, tap):
        model = distilled(size, tap)
        value = losses(model, size)['loss_kd_term']
        assert value > 0
        value.backward()
        assert all(p.grad.abs().sum() > 0 for p in model.kd.parameters())

    @pytest.mark.parametrize('size', SIZES)
    @pytest.mark.parametrize('kind', ['AttentionMapLoss', 'PairWiseLoss'])
    def test_losses_that_take_any_width(self, size, kind):
        model = distilled(size, 'backbone[2]', dict(type=kind))
        assert not [*model.kd.parameters()]
        assert losses(model, size)['loss_kd_term'] > 0

    @pytest.mark.parametrize('size', SIZES)
    def test_a_teacher_that_rounds_up(self, size):
        model = distilled(size, student=segmenter(8, DOWN, size), teacher=(16, UP))
        assert losses(model, size)['loss_kd_term'] > 0

    @pytest.mark.parametrize('size', [64, 65, 97, 160])
    def test_pyramids_of_other_strides_that_meet_on_a_small_image(self, size):
        student = segmenter(8, UP, size, times=7)
        teacher = segmenter(8, UP, size, times=8)
        tap = dict(student='backbone[5]', teacher='backbone[7]')  # strides 64 and 256: 1x1 at 64
        config = toy.distilled(
            student=student,
            teacher=dict(config=teacher, checkpoint=None),
            terms=dict(term=dict(tap=tap, loss=dict(type='ExactLoss'))),
        )
        ours, theirs, value = maps(toy.build(config), size)
        assert ours.shape[-1] == -(-size // 64)
        assert theirs.shape[-1] == 1
        torch.testing.assert_close(value, ExactLoss()(resize(ours, (1, 1)), theirs))

    def test_one_model_at_several_sizes(self):
        model = distilled(64)
        for size in (64, 65, 72, 97, 64):
            assert losses(model, size)['loss_kd_term'] > 0


class TestTokens:
    """Tokens (N, L, C) of an image are a map, whatever stands in front of them."""

    @staticmethod
    def model(student, teacher, tap='neck.tokens', **fields):
        sides = [toy.build(segmenter(*one)) for one in ((8, UP), (16, DOWN))]
        for side, extra in zip(sides, (student, teacher), strict=True):
            side.neck = Tokens(extra)
        return toy.build(
            toy.distilled(*sides, terms=dict(term=dict(tap=tap, loss=toy.CWD, **fields)))
        )

    @pytest.mark.parametrize('extra', [(0, 0), (1, 0), (0, 1), (5, 2)])
    @pytest.mark.parametrize('size', [64, 65, (48, 96)])
    def test_are_compared_as_their_maps_are(self, extra, size):
        """With an adapter, and of the sizes of each side."""
        tokens = self.model(*extra)
        as_maps = self.model(*extra, tap='backbone[-1]')
        as_maps.load_state_dict(tokens.state_dict())
        teacher = tokens.kd_plan.teacher.model.state_dict()
        as_maps.kd_plan.teacher.model.load_state_dict(teacher)
        student, teacher, value = maps(tokens, size)
        expected_student, expected_teacher, expected = maps(as_maps, size)
        assert torch.equal(student, expected_student)
        assert torch.equal(teacher, expected_teacher)
        assert torch.equal(value, expected)

    def test_beside_a_map(self):
        tap = dict(student='backbone[-1]', teacher='neck.tokens')
        model = self.model(0, 1, tap)
        assert isinstance(model.kd['term'].adapters[0], Adapter)
        student, teacher, _ = maps(model, 64)
        assert student.shape[2:] == teacher.shape[2:] == (8, 8)
        found = probe(model, [tap['student']], model.kd_plan.teacher.model, [tap['teacher']])
        ways = model.kd['term'].ways(
            found.student[tap['student']], found.teacher[tap['teacher']], found.size
        )
        assert ways == ['Adapter']

    def test_what_a_head_yields_stays_as_it_is(self):
        """Queries (N, Q, C), of which there may be as many as a map has positions."""
        sides = [Yield(1, [(2, 100, 8)]), Yield(1, [(2, 100, 8)])]
        same = shapes_as_maps(*sides, (512, 512), features=False)
        assert list(same) == sides
        turned = shapes_as_maps(*sides, (512, 512), features=True)
        assert [one.shapes for one in turned] == [[(2, 8, 10, 10)]] * 2

    def test_without_an_adapter(self):
        with pytest.raises(
            ValueError, match=r'\(2, 8, 8, 8\), the .* \(2, 16, 8, 8\).*adapter=False'
        ):
            self.model(1, 1, adapter=False)


class TestRefuses:
    SHAPES = r"'term': the student map has shape \(2, 5, 9, 9\), the teacher map \(2, 5, 8, 8\), "
    REMEDY = 'agree on other images: pad these to a multiple of .*pad_size_divisor'

    def test_where_no_adapter_is_wanted(self):
        model = distilled(64, adapter=False)
        assert losses(model, 64)['loss_kd_term'] > 0
        with pytest.raises(ValueError, match=f'{self.SHAPES}.*adapter=False; .*{self.REMEDY}'):
            losses(model, 65)

    def test_where_none_makes_sense(self):
        model = distilled(64, loss=dict(type='StubbornLoss'))
        assert losses(model, 64)['loss_kd_term'] > 0
        message = f'{self.SHAPES}.*StubbornLoss compares .*{self.REMEDY}'
        with pytest.raises(ValueError, match=message):
            losses(model, 65)

    def test_what_is_no_map(self):
        sides = [toy.build(segmenter(8, rounding)) for rounding in (UP, DOWN)]
        for side in sides:
            side.neck = Tokens(extra=3)
        terms = dict(term=dict(tap='neck.tokens', loss=dict(type='ExactLoss')))
        model = toy.build(toy.distilled(*sides, terms=terms))
        assert losses(model, 64)['loss_kd_term'] > 0
        message = r'\(2, 84, 8\), the teacher map \(2, 67, 8\); .* maps \(N, C, H, W\) only'
        with pytest.raises(ValueError, match=message):
            losses(model, 65)


def test_maps_of_one_size_are_compared_as_they_are():
    student, teacher, value = maps(distilled(64), 64)
    assert torch.allclose(value, 3 * cwd_loss(student, teacher, temperature=4.0), rtol=1e-6)


class TestWays:
    @pytest.mark.parametrize(
        ('tap', 'size', 'expected'),
        [
            ('decode_head.conv_seg', (64, 64), ['']),
            ('decode_head.conv_seg', (65, 65), ['resized']),
            ('backbone', (65, 65), ['Adapter'] * 3),
        ],
    )
    def test_are_those_of_training_at_that_size(self, tap, size, expected):
        model = distilled(64, tap)
        teacher = model.kd_plan.teacher.model
        found = probe(model, [tap], teacher, [tap], first=size)
        assert model.kd['term'].ways(found.student[tap], found.teacher[tap], size) == expected

import math

import pytest
import torch
from torch.nn import functional as F

from kd_dense.losses import DeFeatLoss, FGFILoss, FRSLoss, masked_loss
from kd_dense.losses.features.masked.masked import _stride
from kd_dense.losses.features.masked.masks import (
    Anchors,
    anchor_masks,
    object_masks,
    score_masks,
)
from tests.losses.contract import LossContract

# On a map of 5x6: small, one that covers no position, and one that reaches out of the picture.
BOXES = torch.tensor([[4.0, 6, 25, 30], [9, 9, 12, 12], [-9, 20, 7.5, 55]])
BATCH = (40, 48)
ANCHORS = Anchors([torch.tensor([[-4.0, -4, 11, 11], [0, -8, 7, 15]])], [(8, 8)])


class OneMap(LossContract):
    """A loss of all maps, given one."""

    test_two_half_batches_average_to_the_whole = None  # it divides by a count of the batch
    test_order_of_images_does_not_matter = None  # what it needs has an order

    def value(self, student, teacher):
        result = self.loss([student], [teacher], **self.extra())
        return sum(result.values()) if isinstance(result, dict) else result

    def test_is_a_finite_scalar_or_its_named_parts(self):
        student, teacher = self.example()
        result = self.loss([student], [teacher], **self.extra())
        assert tuple(result if isinstance(result, dict) else ()) == self.loss.parts
        assert set(self.extra()) == set(self.loss.needs)
        values = result.values() if isinstance(result, dict) else [result]
        assert all(value.shape == () and value.isfinite() for value in values)


class TestDeFeat(OneMap):
    loss = DeFeatLoss(weight=3.0)

    def extra(self):
        return dict(boxes=[BOXES, BOXES[:0], BOXES[:1]], batch_shape=BATCH)

    def function(self, student, teacher, boxes, batch_shape):
        (mask,) = object_masks(boxes, [(5, 6)], [8])
        inside, outside = (masked_loss([student], [teacher], [m], 'number') for m in (mask, ~mask))
        return 4 / 2 * inside + 16 / 2 * outside


class TestFGFI(OneMap):
    loss = FGFILoss(weight=3.0)

    def extra(self):
        return dict(boxes=[BOXES, BOXES[:0], BOXES[:1]], anchors=ANCHORS)

    def function(self, student, teacher, boxes, anchors):
        return masked_loss([student], [teacher], anchor_masks(boxes, [(5, 6)], anchors)) / 2


class TestFRS(OneMap):
    loss = FRSLoss(weight=3.0)
    zero_on_match = False  # the class logits are others

    def extra(self):
        generator = torch.Generator().manual_seed(2)
        ours, theirs = torch.randn(2, 3, 7, 5, 6, generator=generator, dtype=torch.float64)
        return dict(head_outputs=([ours], [theirs]))

    def function(self, student, teacher, head_outputs):
        ours, theirs = (x[0] for x in head_outputs)
        (mask,) = score_masks([theirs])
        entropy = F.binary_cross_entropy(ours.sigmoid(), theirs.sigmoid(), reduction='none')
        classes = (entropy * mask).sum() / mask.sum()
        return 0.002 * masked_loss([student], [teacher], [mask]) + 0.1 * classes

    def test_half_precision_maps_give_a_float32_loss(self):
        outputs = tuple([x.half() for x in side] for side in self.extra()['head_outputs'])
        for dtype in (torch.float16, torch.bfloat16):
            student, teacher = self.example(dtype)
            parts = self.loss([student], [teacher], outputs)
            exact = self.loss([student.float()], [teacher.float()], outputs)
            for name, part in parts.items():
                assert part.dtype == torch.float32
                assert torch.allclose(part, exact[name])

    def test_a_gradient_flows_into_the_logits_of_the_student_alone(self):
        ours, theirs = (
            [x.requires_grad_() for x in side] for side in self.extra()['head_outputs']
        )
        student, teacher = self.example()
        sum(self.loss([student], [teacher], (ours, theirs)).values()).backward()
        assert ours[0].grad.abs().sum() > 0
        assert theirs[0].grad is None

    def test_region_proposals_in_the_place_of_a_dense_head(self):
        student, teacher = self.example()
        (outputs,) = self.extra().values()
        loss = FRSLoss(scores='rpn_head', weight=3.0)
        assert loss.needs == ('rpn_outputs',)
        found = loss([student], [teacher], rpn_outputs=outputs)
        assert found == self.loss([student], [teacher], outputs)
        with pytest.raises(TypeError, match='expects rpn_outputs'):
            loss([student], [teacher])


# The squared error


def test_each_position_counts_as_much_as_its_mask_says():
    student, teacher = LossContract().example()
    mask = torch.rand(3, 1, 5, 6, dtype=torch.float64)
    squares = (student - teacher).square()
    expected = (squares * mask).sum() / mask.sum()
    assert torch.allclose(masked_loss([student], [teacher], [mask]), expected)
    assert torch.allclose(masked_loss([student], [teacher], [mask], 'number'), expected / 4)


def test_levels_are_added_and_one_without_a_mask_is_0():
    student, teacher = LossContract().example()
    masks = [torch.ones(3, 1, 5, 6), torch.zeros(3, 1, 5, 6), torch.ones(3, 1, 5, 6)]
    once = masked_loss([student], [teacher], masks[:1])
    assert torch.allclose(masked_loss([student] * 3, [teacher] * 3, masks), 2 * once)
    masked_loss([student], [teacher], masks[1:2]).backward()
    assert not student.grad.any()


@pytest.mark.parametrize(
    ('masks', 'message'),
    [
        ([torch.ones(3, 4, 5, 6)], r'a mask \(3, 1, 5, 6\) .* got \(3, 4, 5, 6\)'),
        ([], 'got 1 of the student, 1 of the teacher and 0 masks'),
    ],
)
def test_masks_of_other_shapes_are_an_error(masks, message):
    student, teacher = LossContract().example()
    with pytest.raises(ValueError, match=message):
        masked_loss([student], [teacher], masks)


# The masks


def slow_object_mask(boxes, level, levels, size, stride):
    """As DeFeat says it, object by object."""
    mask = torch.zeros(size, dtype=torch.bool)
    for x1, y1, x2, y2 in boxes.tolist():
        side = math.sqrt((x2 - x1 + 1) * (y2 - y1 + 1))
        if min(max(math.floor(math.log2(side / 56 + 1e-6)), 0), levels - 1) != level:
            continue
        left, top, right, bottom = (int(v / stride) for v in (x1, y1, x2, y2))
        if left == right or top == bottom:
            mask[min(top, size[0] - 1), min(left, size[1] - 1)] = True
        mask[max(top, 0) : bottom, max(left, 0) : right] = True
    return mask


@pytest.mark.parametrize('seed', range(4))
def test_objects_lie_where_the_equations_say(seed):
    generator = torch.Generator().manual_seed(seed)
    corners = 300 * torch.rand(2, 7, 2, generator=generator)
    sides = 600 * torch.rand(2, 7, 2, generator=generator) ** 4 + 1
    boxes = [*torch.cat([corners, corners + sides], -1)]
    boxes[1] = boxes[1][: 7 * (seed % 2)]
    strides, sizes = (8, 16, 32), [(80, 90), (40, 45), (20, 23)]
    masks = object_masks(boxes, sizes, strides)
    for level, (mask, size, stride) in enumerate(zip(masks, sizes, strides, strict=True)):
        expected = [slow_object_mask(b, level, 3, size, stride) for b in boxes]
        assert torch.equal(mask[:, 0], torch.stack(expected))
    assert any(mask.any() for mask in masks)


def test_small_objects_may_be_left_out():
    (mask,) = object_masks([BOXES], [(5, 6)], [8], smallest=4.0)
    (without,) = object_masks([BOXES[[0, 2]]], [(5, 6)], [8])
    assert torch.equal(mask, without)


def slow_anchor_mask(boxes, anchors, size):
    laid = anchors.at(0, size)
    mask = torch.zeros(len(laid), dtype=torch.bool)
    for box in boxes:
        low, high = torch.maximum(laid[:, :2], box[:2]), torch.minimum(laid[:, 2:], box[2:])
        shared = (high - low + 1).clamp(min=0).prod(1)
        areas = [(x[..., 2:] - x[..., :2] + 1).prod(-1) for x in (laid, box)]
        iou = shared / (areas[0] + areas[1] - shared)
        mask |= iou > 0.5 * iou.max()
    return mask.view(*size, -1).any(-1)


def test_anchors_near_objects_are_those_of_the_equation():
    inside = BOXES[:2]
    (mask,) = anchor_masks([inside, inside[:1], inside[:0]], [(5, 6)], ANCHORS)
    expected = [slow_anchor_mask(b, ANCHORS, (5, 6)) for b in (inside, inside[:1], inside[:0])]
    assert torch.equal(mask[:, 0], torch.stack(expected))
    assert 0 < mask[0].sum() < 30


def test_anchors_lie_position_by_position():
    laid = ANCHORS.at(0, (2, 3)).view(2, 3, 2, 4)
    assert torch.equal(laid[1, 2, 0], ANCHORS.base[0][0] + torch.tensor([16.0, 8, 16, 8]))


def test_each_object_has_anchors_on_one_level():
    anchors = Anchors([torch.tensor([[0.0, 0, 31, 31]])] * 2, [(8, 8), (16, 16)])
    small, large = torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([[8.0, 8, 248, 248]])
    for boxes, level in ((small, 0), (large, 1)):
        masks = anchor_masks([boxes], [(32, 32), (16, 16)], anchors)
        assert [bool(mask.any()) for mask in masks] == [level == 0, level == 1]


@pytest.mark.parametrize('batch', [(800, 1216), (799, 1333), (480, 1344), (64, 96)])
def test_strides_are_read_off_sizes(batch):
    for stride in (4, 8, 16, 32, 64):
        size = [-(-side // stride) for side in batch]
        assert _stride(size, batch) == stride


def test_a_score_mask_is_the_largest_score():
    logits = torch.randn(2, 6, 3, 4)
    (mask,) = score_masks([logits])
    assert torch.allclose(mask[:, 0], logits.sigmoid().amax(1))
    assert not score_masks([logits.requires_grad_()])[0].requires_grad


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: FRSLoss(scores='roi_head'), "scores to be one of .*got 'roi_head'"),
        (lambda: FRSLoss(classes=-1.0), 'FRSLoss expects a finite classes >= 0'),
        (lambda: DeFeatLoss(background=-1.0), 'DeFeatLoss expects a finite background >= 0'),
        (lambda: masked_loss([], [], [], 'channel'), "per to be one of .*got 'channel'"),
        (
            lambda: FGFILoss()([torch.zeros(1, 1, 2, 2)] * 2, [], [], ANCHORS),
            'which are 1, got 2',
        ),
    ],
)
def test_bad_arguments_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()

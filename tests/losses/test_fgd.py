import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kd_dense.functional import divergence
from kd_dense.losses import FGDLoss, fgd_loss
from kd_dense.losses.fgd import GlobalContext, box_masks
from tests.losses.contract import LossContract

PARTS = ('foreground', 'background', 'attention', 'relation')
BATCH = (40, 48)
# overlapping, nested, one reaching out of the image on two sides
BOXES = torch.tensor([[4.0, 6, 25, 30], [8, 10, 20, 17], [-9, 20, 7.5, 55]])
NO_BOXES = torch.zeros(0, 4)


def contexts(channels, dtype=torch.float64):
    """A pair with parameters that are not as at the start, where they add nothing."""
    generator = torch.Generator().manual_seed(1)
    pair = GlobalContext(channels), GlobalContext(channels)
    for parameter in (p for context in pair for p in context.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return pair


def parts(student, teacher, boxes, batch_shape=BATCH, image_shapes=(), pair=None, **arguments):
    pair = pair or contexts(student.shape[1], student.dtype)
    return fgd_loss(student, teacher, boxes, batch_shape, image_shapes, *pair, **arguments)


class TestFGD(LossContract):
    loss = FGDLoss(channels=4, weight=3.0)

    @staticmethod
    def function(student, teacher, **needs):
        pair = TestFGD.loss.student_context, TestFGD.loss.teacher_context
        values = fgd_loss(student, teacher, **needs, student_context=pair[0],
                          teacher_context=pair[1])  # fmt: skip
        return sum(w * values[n] for n, w in zip(PARTS, (1e-3, 5e-4, 5e-4, 5e-6), strict=True))

    def example(self, dtype=torch.float64):
        self.loss.to(torch.promote_types(dtype, torch.float32))
        return super().example(dtype)

    def extra(self, images=3):
        return dict(boxes=[BOXES] * images, batch_shape=BATCH, image_shapes=[(40, 32)] * images)

    def value(self, student, teacher):
        return sum(self.loss(student, teacher, **self.extra(len(student))).values())

    @pytest.mark.parametrize('weight', [-1.0, float('nan'), float('inf')])
    def test_rejects_a_weight_that_is_negative_or_not_finite(self, weight):
        for name in ('weight', *PARTS):
            with pytest.raises(ValueError, match=f'FGDLoss expects a finite {name} >= 0'):
                FGDLoss(channels=4, **{name: weight})

    def test_backward_under_autocast_is_not_rounded_in_the_reductions(self):
        grads, pair = [], contexts(4, torch.float32)
        pair[0].transform = torch.nn.Identity()  # PyTorch rounds the backward pass of a Linear
        for enabled in (False, True):
            student, teacher = self.example(torch.float32)
            values = fgd_loss(student, teacher, **self.extra(), student_context=pair[0],
                              teacher_context=pair[1])  # fmt: skip
            with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
                sum(values.values()).backward()
            grads.append(student.grad)
        assert torch.equal(*grads)

    def test_each_part_has_its_own_weight(self):
        maps, needs = self.example(), self.extra()
        loss = FGDLoss(4, 2.0, foreground=3, background=5, attention=7, relation=11).double()
        pair = loss.student_context, loss.teacher_context
        plain = fgd_loss(*maps, **needs, student_context=pair[0], teacher_context=pair[1])
        for name, factor in zip(PARTS, (3, 5, 7, 11), strict=True):
            assert torch.allclose(loss(*maps, **needs)[name], 2 * factor * plain[name])

    def test_passes_its_settings_on(self):
        maps, needs = self.example(), self.extra()
        loss = FGDLoss(4, temperature=2.0, box_scale='image').double()
        pair = loss.student_context, loss.teacher_context
        settings = dict(temperature=2.0, box_scale='image')
        for kept in settings:
            other = fgd_loss(*maps, *needs.values(), *pair, **{kept: settings[kept]})
            expected = fgd_loss(*maps, *needs.values(), *pair, **settings)
            assert not torch.allclose(other['foreground'], expected['foreground'])
            assert torch.allclose(loss(*maps, **needs)['foreground'],
                                  1e-3 * expected['foreground'])  # fmt: skip


# The formula, once more, in Python's own numbers.


def softmax(values):
    exps = [math.exp(v - max(values)) for v in values]
    return [e / sum(exps) for e in exps]


def slow_masks(boxes, shape, height, width):
    foreground = [[0.0] * width for _ in range(height)]
    for x1, y1, x2, y2 in boxes:
        if not (x2 > max(x1, 0) and y2 > max(y1, 0)):
            continue
        left, right = math.floor(x1 * width / shape[1]), math.ceil(x2 * width / shape[1])
        top, bottom = math.floor(y1 * height / shape[0]), math.ceil(y2 * height / shape[0])
        area = (right + 1 - left) * (bottom + 1 - top)
        for row in range(max(top, 0), min(bottom + 1, height)):
            for column in range(max(left, 0), min(right + 1, width)):
                foreground[row][column] = max(foreground[row][column], 1 / area)
    free = sum(value == 0 for row in foreground for value in row)
    background = [[1 / free if value == 0 else 0.0 for value in row] for row in foreground]
    return foreground, background


def slow_attention(x, temperature):
    channels, positions = len(x), len(x[0])
    where = [sum(abs(x[c][p]) for c in range(channels)) / channels for p in range(positions)]
    which = [sum(abs(v) for v in row) / positions for row in x]
    return (
        [positions * v for v in softmax([v / temperature for v in where])],
        [channels * v for v in softmax([v / temperature for v in which])],
    )


def slow_context(x, context):
    query = context.attention.weight[0].tolist()
    first, norm, _, last = context.transform
    logits = [sum(q * row[p] for q, row in zip(query, x, strict=True)) for p in range(len(x[0]))]
    weights = softmax(logits)
    pooled = [sum(w * v for w, v in zip(weights, row, strict=True)) for row in x]

    def linear(layer, values):
        rows = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
        return [b + sum(w * v for w, v in zip(row, values, strict=True)) for row, b in rows]

    hidden = linear(first, pooled)
    mean = sum(hidden) / len(hidden)
    scale = (sum((h - mean) ** 2 for h in hidden) / len(hidden) + norm.eps) ** -0.5
    normed = [
        max(0.0, (h - mean) * scale * w + b)
        for h, w, b in zip(hidden, norm.weight.tolist(), norm.bias.tolist(), strict=True)
    ]
    return linear(last, normed)


def slow_parts(student, teacher, boxes, shapes, pair, temperature, relative=False):
    images, _, height, width = student.shape
    totals = dict.fromkeys(PARTS, 0.0)
    for n in range(images):
        s, t = student[n].flatten(1).tolist(), teacher[n].flatten(1).tolist()
        every = [abs(v) for row in t for v in row]
        unit = temperature * (sum(every) / len(every) if relative else 1)
        where, which = slow_attention(t, unit)
        for ours, theirs in zip(slow_attention(s, unit), (where, which), strict=True):
            totals['attention'] += sum(abs(a - b) for a, b in zip(ours, theirs, strict=True))
        masks = slow_masks(boxes[n].tolist(), shapes[n], height, width)
        fore, back = ([v for row in mask for v in row] for mask in masks)
        added, added_t = slow_context(s, pair[0]), slow_context(t, pair[1])
        for c in range(len(s)):
            for p in range(height * width):
                squared = where[p] * which[c] * (s[c][p] - t[c][p]) ** 2
                totals['foreground'] += fore[p] * squared
                totals['background'] += back[p] * squared
                totals['relation'] += (s[c][p] + added[c] - t[c][p] - added_t[c]) ** 2
    return {name: total / images for name, total in totals.items()}


@pytest.mark.parametrize('relative', [False, True])
@pytest.mark.parametrize('box_scale', ['batch', 'image'])
def test_matches_the_equations_written_out(box_scale, relative):
    student, teacher = (x.detach() for x in LossContract().example())
    boxes, images = [BOXES, NO_BOXES, BOXES[1:2]], [(40, 48), (32, 48), (40, 33)]
    shapes = [BATCH] * 3 if box_scale == 'batch' else images
    pair = contexts(4)
    teacher = teacher * torch.tensor([0.1, 1.0, 10.0])[:, None, None, None]
    values = parts(student, teacher, boxes, BATCH, images, pair, temperature=0.7,
                   box_scale=box_scale, relative_temperature=relative)  # fmt: skip
    expected = slow_parts(student, teacher, boxes, shapes, pair, 0.7, relative)
    for name in PARTS:
        assert values[name].item() == pytest.approx(expected[name], rel=1e-12)


@pytest.mark.parametrize('part', PARTS)
def test_gradients_are_right_for_maps_and_all_parameters(part):
    student, teacher = LossContract().example()
    pair = contexts(4)
    inputs = [student, *(p for context in pair for p in context.parameters())]
    assert all(p.requires_grad for p in inputs)

    def value(*_):
        return parts(student, teacher, [BOXES] * 3, pair=pair)[part]

    assert torch.autograd.gradcheck(value, inputs)


def test_a_relative_temperature_forgets_the_size_of_features():
    student, teacher = (x.detach() for x in LossContract().example())
    for relative in (False, True):
        found = [
            parts(factor * student, factor * teacher, [BOXES] * 3, relative_temperature=relative)
            for factor in (1.0, 100.0)
        ]
        assert torch.isclose(*(x['attention'] for x in found)).item() == relative
        far = found[1]['foreground'] / found[0]['foreground']
        assert torch.isclose(far, torch.tensor(1e4, dtype=far.dtype)).item() == relative


@pytest.mark.parametrize('relative', [False, True])
def test_all_levels_at_once_are_the_same(relative, monkeypatch):
    torch.manual_seed(0)
    sizes = [(8, 12), (4, 6), (2, 3)]
    levels = [FGDLoss(4, relative_temperature=relative).double() for _ in sizes]
    parameters = [p for loss in levels for p in loss.parameters()]
    for parameter in parameters:
        torch.nn.init.normal_(parameter)
    students = [torch.randn(2, 4, *s, dtype=torch.double, requires_grad=True) for s in sizes]
    teachers = [9**i * torch.randn(2, 4, *s).double() for i, s in enumerate(sizes)]
    teachers[1][1] = 0
    needs = dict(boxes=[BOXES, NO_BOXES], batch_shape=BATCH, image_shapes=[BATCH] * 2)
    found = []
    for kept in ('cpu', 'none'):
        monkeypatch.setattr(divergence, 'CACHED', kept)
        values = FGDLoss.over_maps(levels, students, teachers, **needs)
        total = sum(i * value for i, value in enumerate(values.values(), start=1))
        found.append([*values.values(), *torch.autograd.grad(total, [*students, *parameters])])
    for one_by_one, at_once in zip(*found, strict=True):
        torch.testing.assert_close(at_once, one_by_one, rtol=1e-9, atol=1e-12)
    assert all(x.isfinite().all() for x in found[0])


def test_both_contexts_are_trained():
    loss = FGDLoss(channels=4)
    maps = torch.randn(2, 1, 4, 5, 6)
    for _ in range(2):  # at the start nothing but the last layer has a gradient
        value = loss(*maps, boxes=[BOXES], batch_shape=BATCH, image_shapes=[BATCH])
        torch.autograd.backward(value['relation'], inputs=list(loss.parameters()))
        for parameter in loss.parameters():
            parameter.data -= 0.1 * torch.randn(parameter.shape)
    assert len(list(loss.parameters())) == 14
    for name, parameter in loss.named_parameters():
        assert parameter.grad.any(), name


def test_contexts_add_nothing_at_the_start():
    student, teacher = torch.randn(2, 3, 4, 5, 6)
    pair = GlobalContext(4), GlobalContext(4)
    value = parts(student, teacher, [BOXES] * 3, pair=pair)['relation']
    assert torch.allclose(value, (student - teacher).square().sum() / 3)


def test_images_keep_their_boxes():
    student, teacher = LossContract().example()
    boxes = [BOXES, NO_BOXES, BOXES[1:2]]
    whole = parts(student, teacher, boxes)
    turned = parts(student.flip(0), teacher.flip(0), boxes[::-1])
    single = [parts(student[i : i + 1], teacher[i : i + 1], boxes[i : i + 1]) for i in range(3)]
    for name in PARTS:
        assert torch.allclose(whole[name], turned[name])
        assert torch.allclose(whole[name], sum(s[name] for s in single) / 3)


# Masks


@pytest.mark.parametrize('size', [(5, 6), (1, 1), (7, 3), (40, 48)])
def test_masks_of_random_boxes(size):
    generator = torch.Generator().manual_seed(0)
    boxes = [torch.rand(n, 4, generator=generator) * 80 - 16 for n in (0, 1, 30, 7)]
    boxes[3][:, 2:] += boxes[3][:, :2]
    shapes = [(40, 48), (33, 48), (40, 30), (20, 20)]
    for fast, slow in zip(
        box_masks(boxes, shapes, size, torch.float64),
        zip(*(slow_masks(b.tolist(), s, *size) for b, s in zip(boxes, shapes, strict=True)),
            strict=True),
        strict=True,
    ):  # fmt: skip
        assert torch.allclose(fast, torch.tensor(slow, dtype=torch.float64), rtol=1e-12, atol=0)


def test_images_without_boxes_are_background():
    foreground, background = box_masks([NO_BOXES, BOXES], [BATCH], (5, 6))
    assert not foreground[0].any()
    assert torch.allclose(background[0], torch.full((5, 6), 1 / 30))
    for mask in box_masks([NO_BOXES] * 2, [BATCH], (5, 6)):
        assert mask.shape == (2, 5, 6)


def test_where_everything_is_an_object_there_is_no_background():
    foreground, background = box_masks([torch.tensor([[0.0, 0, 48, 40]])], [BATCH], (5, 6))
    assert torch.allclose(foreground, torch.full((1, 5, 6), 1 / 42))  # ends count twice
    assert not background.any()


nan, inf = float('nan'), float('inf')


@pytest.mark.parametrize(
    'box',
    [
        (-20, -20, -4, -4),
        (-20, 0, 0, 40),
        (48, 0, 60, 40),
        (500, 500, 600, 600),
        (10, 10, 10, 30),
        (10, 10, 10, 10),
        (30, 30, 10, 10),
        (-1e6, 10, -1e5, 30),
        (nan, 10, 20, 30),
        (10, 10, 20, nan),
        (nan, nan, nan, nan),
        (-inf, -inf, inf, inf),
        (inf, 0, inf, 40),
        (10, 10, inf, 30),
    ],
)
def test_boxes_that_mark_nothing(box):
    boxes = torch.cat([BOXES, torch.tensor([box], dtype=torch.float32)])
    for with_it, without in zip(
        box_masks([boxes], [BATCH], (5, 6)), box_masks([BOXES], [BATCH], (5, 6)), strict=True
    ):
        assert torch.equal(with_it, without)
    for mask in box_masks([boxes[3:]], [BATCH], (5, 6)):
        assert mask.isfinite().all()


def test_a_box_that_reaches_out_covers_what_lies_on_the_map():
    # columns -1 to 2 and rows 3 to 7; two and three of them exist
    foreground, _ = box_masks([torch.tensor([[-8.0, 24, 8, 48]])], [BATCH], (5, 6))
    expected = torch.zeros(1, 5, 6)
    expected[:, 3:, :2] = 1 / (3 * 4)
    assert torch.allclose(foreground, expected)


def test_the_smallest_box_wins():
    boxes = torch.tensor([[0.0, 0, 48, 40], [8, 8, 24, 24], [0, 0, 48, 24]])
    foreground, _ = box_masks([boxes], [BATCH], (5, 6))
    assert torch.equal(foreground, box_masks([boxes[[1, 0, 2]]], [BATCH], (5, 6))[0])
    assert torch.allclose(foreground[0, 2, 2], torch.tensor(1 / 9))
    assert torch.allclose(foreground[0, 0, 0], torch.tensor(1 / 28))
    assert torch.allclose(foreground[0, 4, 5], torch.tensor(1 / 42))


def test_boxes_lie_where_they_are_unless_scaled_as_published():
    # The image fills the left half of the batch, the object the right half of the image.
    box, image = torch.tensor([[24.0, 0, 31, 64]]), (64, 32)
    as_is, _ = box_masks([box], [(64, 64)], (8, 8))
    published, _ = box_masks([box], [image], (8, 8))
    assert as_is[0].any(0).tolist() == [False] * 3 + [True] * 2 + [False] * 3
    assert published[0].any(0).tolist() == [False] * 6 + [True] * 2

    maps = torch.randn(2, 1, 4, 8, 8)
    for box_scale, mask in (('batch', as_is), ('image', published)):
        foreground = parts(*maps, [box], (64, 64), [image], box_scale=box_scale)['foreground']
        expected = parts(*maps, [box], (64, 64) if mask is as_is else image)['foreground']
        assert torch.allclose(foreground, expected)


# Size and speed


class Recorder(TorchDispatchMode):
    """Notes the operators that run and the largest tensor that they make."""

    def __init__(self):
        super().__init__()
        self.operators, self.largest = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operators.append(str(function))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_a_thousand_boxes_cost_no_more_memory_than_the_map():
    size, corner = (100, 152), torch.rand(1000, 2) * 700
    boxes = [torch.cat([corner, corner + torch.rand(1000, 2) * 300 + 1], 1)] * 2
    with Recorder() as record:
        foreground, background = box_masks(boxes, [(800, 1216)], size)
    assert record.largest == 2 * 1000 * (152 + 152)  # boxes by rows and by columns, not by cells
    assert ((foreground > 0) != (background > 0)).all()
    cell = torch.tensor([[40, 60]]) * 8 + 4
    inside = ((boxes[0][:, :2] < cell.flip(1)) & (boxes[0][:, 2:] > cell.flip(1))).all(1)
    x1, y1, x2, y2 = (boxes[0][inside] / 8).unbind(1)
    areas = (x2.ceil() + 1 - x1.floor()) * (y2.ceil() + 1 - y1.floor())
    assert foreground[0, 40, 60] >= 1 / areas.min()


def test_operators_do_not_grow_with_the_number_of_boxes():
    maps = torch.randn(2, 2, 4, 5, 6)
    counts = []
    for count in (1, 3, 300):
        with Recorder() as record:
            parts(*maps, [BOXES[:1].expand(count, 4)] * 2)
        counts.append(len(record.operators))
    assert counts[0] == counts[1] == counts[2]


def test_keeps_nothing_for_the_backward_pass_but_the_maps():
    student, teacher = torch.randn(2, 2, 8, 20, 20)
    student.requires_grad_()
    kept = {}

    def keep(tensor):
        if tensor.numel() >= student.numel():
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        parts(student, teacher, [BOXES] * 2)
    assert kept.keys() <= {x.untyped_storage().data_ptr() for x in (student, teacher)}


# Numbers


def test_constant_maps():
    student, teacher = torch.zeros(1, 4, 5, 6), torch.full((1, 4, 5, 6), 2.0)
    pair = GlobalContext(4), GlobalContext(4)
    boxes = torch.tensor([[8.0, 8, 16, 16]])  # 3 x 3 cells
    values = parts(student, teacher, [boxes], pair=pair)
    expected = dict(foreground=16.0, background=16.0, attention=0.0, relation=480.0)
    assert {n: round(v.item(), 4) for n, v in values.items()} == expected


@pytest.mark.parametrize('boxes', [NO_BOXES, BOXES])
def test_maps_of_one_pixel(boxes):
    student, teacher = torch.randn(2, 2, 4, 1, 1)
    student.requires_grad_()
    values = parts(student, teacher, [boxes] * 2)
    sum(values.values()).backward()
    assert student.grad.isfinite().all()
    assert all(v.isfinite() for v in values.values())
    assert (values['foreground'] > 0) == (len(boxes) > 0)


def test_half_precision_maps_near_their_limit():
    student, teacher = 6e4 * torch.rand(2, 1, 4, 5, 6)
    student = student.half().requires_grad_()
    values = FGDLoss(channels=4)(
        student, teacher.half(), boxes=[BOXES], batch_shape=BATCH, image_shapes=[BATCH]
    )
    sum(values.values()).backward()
    assert student.grad.isfinite().all()
    assert all(v.isfinite() for v in values.values())


def test_attention_where_exp_would_overflow():
    student, teacher = 1e4 * torch.randn(2, 1, 4, 5, 6)
    values = parts(student, teacher, [BOXES], temperature=1e-3)
    assert all(v.isfinite() for v in values.values())
    assert values['attention'] <= 2 * 30 + 2 * 4


def test_memory_format_does_not_matter():
    student, teacher = LossContract().example()
    student = student.detach()
    turned = student.to(memory_format=torch.channels_last).requires_grad_()
    student.requires_grad_()
    grads = []
    for x in (student, turned):
        value = parts(x, teacher, [BOXES] * 3)
        grads += torch.autograd.grad(sum(value.values()), x)
    assert torch.allclose(*grads)


# Bad input


def test_rejects_what_does_not_fit():
    maps = torch.zeros(2, 3, 4, 5, 6)
    with pytest.raises(ValueError, match='boxes for 3 images, got 2'):
        parts(*maps, [BOXES] * 2)
    with pytest.raises(ValueError, match=r'box_masks expects boxes .*\(n, 4\).*got \(3, 5\)'):
        parts(*maps, [BOXES, BOXES, torch.zeros(3, 5)])
    with pytest.raises(ValueError, match=r'box_masks expects one shape, .*3 images, got 2'):
        parts(*maps, [BOXES] * 3, image_shapes=[BATCH] * 2, box_scale='image')
    with pytest.raises(ValueError, match=r"FGDLoss expects box_scale .*'batch'.*got 'img_shape'"):
        FGDLoss(channels=4, box_scale='img_shape')
    with pytest.raises(ValueError, match=r"fgd_loss expects box_scale .*'batch'.*got 'img_shape'"):
        parts(*maps, [BOXES] * 3, box_scale='img_shape')
    with pytest.raises(ValueError, match='temperature > 0'):
        parts(*maps, [BOXES] * 3, temperature=0.0)
    with pytest.raises(ValueError, match='temperature > 0'):
        FGDLoss(channels=4, temperature=-1.0)
    with pytest.raises(ValueError, match='at least 2 channels, got 1'):
        FGDLoss(channels=1)
    message = r'maps of 4 channels and a context of 8: expected FGDLoss\(channels=4\)'
    for pair in ((GlobalContext(8), GlobalContext(4)), (GlobalContext(4), GlobalContext(8))):
        with pytest.raises(ValueError, match=message):
            parts(*maps, [BOXES] * 3, pair=pair)

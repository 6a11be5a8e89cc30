import pytest
import torch

from kd_dense.losses import ERDLoss, erd_loss
from kd_dense.losses.erd import kept_by_class
from kd_dense.losses.predictions.boxes import (
    Decoded,
    HeadBoxes,
    decode_distances,
    expected_distances,
    rows_of_priors,
)
from tests.losses.ld_head import STRIDES, Packed, make_anchors, make_maps


def decode(maps):
    """The boxes of the head of the tests, one anchor at a position."""
    priors = [x.to(maps[0].dtype) for x in make_anchors()]
    boxes = [
        decode_distances(p, stride * expected_distances(rows_of_priors(x, 1)))
        for p, x, stride in zip(priors, maps, STRIDES, strict=True)
    ]
    return Decoded(priors, boxes)


BOXES = HeadBoxes(decode, decode)
SETTINGS = dict(sigmas=0.5, max_iou=0.01)


class TestERD(Packed):
    loss = ERDLoss(weight=2.0, **SETTINGS)

    def keywords(self, images):
        return dict(head_boxes=BOXES)

    def function(self, student, teacher, **needs):
        return self.call(lambda s, t, **k: erd_loss(s, t, **k, **SETTINGS), student, teacher)

    def extra(self):
        return {}

    def test_module_is_weight_times_function(self):
        student, teacher = self.example()
        assert torch.allclose(
            self.value(student, teacher), 2 * self.function(student, teacher), rtol=1e-14
        )

    test_names_both_shapes_when_they_differ = None  # below

    def test_gradient_is_right(self):
        """Of the logits: the likelihood that weighs the boxes has none."""
        student, teacher = (x[:2].detach() for x in self.example())
        classes = student[:, : student.shape[1] // 4].clone().requires_grad_()

        def value(x):
            return self.call(
                ERDLoss(boxes=0.0, **SETTINGS),
                torch.cat([x, student[:, x.shape[1] :]], 1),
                teacher,
            )

        def value_of_boxes(x):
            return self.call(
                ERDLoss(classes=0.0, **SETTINGS),
                torch.cat([student[:, : -x.shape[1]], x], 1),
                teacher,
            )

        assert torch.autograd.gradcheck(value, (classes,))
        boxes = student[:, -20:].clone().requires_grad_()
        assert torch.autograd.gradcheck(value_of_boxes, (boxes,))

    def test_matches_the_equations_written_out(self):
        student, teacher = make_maps(seed=0), make_maps(seed=1)
        found = erd_loss(student, teacher, BOXES, published_batch=None, **SETTINGS)
        totals = dict(classes=0.0, boxes=0.0)
        for image in range(3):
            s, t = (
                [torch.cat([x[image].flatten(1).T for x in maps[i : i + 2]]) for i in (0, 2)]
                for maps in (student, teacher)
            )
            sure, label = t[0].sigmoid().max(1)
            strong = (sure > sure.mean() + sure.std() / 2).nonzero()[:, 0].tolist()
            totals['classes'] += float((s[0][strong] - t[0][strong]).square().mean())
            side = t[1].amax(1)
            order = [
                i
                for i in sure.argsort(descending=True).tolist()
                if side[i] > side.mean() + side.std() / 2
            ]
            boxes = torch.cat(decode(teacher[2:]).boxes, 1)[image]
            kept = []
            for i in order:
                if not any(label[i] == label[j] and iou(boxes[i], boxes[j]) > 0.01 for j in kept):
                    kept.append(i)
            assert 0 < len(kept) < len(order)
            for i in kept:
                p, q = (x[1][i].view(4, -1).div(10).log_softmax(1) for x in (t, s))
                kl = (p.exp() * (p - q)).mean(1).sum() * 100
                totals['boxes'] += 0.25 / 4 * float(kl * s[0][i].sigmoid().max())
        for part, value in totals.items():
            assert float(found[part]) == pytest.approx(value, rel=1e-6), part

    def test_new_classes_do_not_matter(self):
        student, teacher = make_maps(seed=0), make_maps(seed=1)
        expected = erd_loss(student, teacher, BOXES, **SETTINGS)
        more = [torch.cat([x, torch.randn_like(x)], 1) for x in student[:2]] + student[2:]
        assert erd_loss(more, teacher, BOXES, **SETTINGS) == expected

    def test_without_strides_boxes_are_small(self):
        student, teacher = make_maps(seed=0), make_maps(seed=1)
        values = [
            erd_loss(student, teacher, BOXES, sigmas=1.0, max_iou=0.005, without_strides=x)[
                'boxes'
            ]
            for x in (False, True)
        ]
        assert 0 < values[0] < values[1]  # few of these overlap

    def test_a_teacher_without_response_teaches_nothing(self):
        student = [x.requires_grad_() for x in make_maps()]
        found = erd_loss(student, [torch.zeros_like(x) for x in student], BOXES)
        sum(found.values()).backward()
        assert found == dict(classes=0, boxes=0)
        assert all(x.grad.isfinite().all() for x in student)

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (lambda s, t: (s[:3], t), 'two kinds of maps on all levels.*got 3 maps'),
            (lambda s, t: ([x[..., :3] for x in s], t), r'maps of the same positions.*\(3, 3, 6'),
            (lambda s, t: ([x[:, :2] for x in s], t), 'classes of its teacher and more'),
            (lambda s, t: (s[:2] + [x[:, :4] for x in s[2:]], t[:2] + [x[:, :4] for x in t[2:]]),
             'expects distributions'),
        ],
    )  # fmt: skip
    def test_maps_that_do_not_fit(self, change, message):
        with pytest.raises(ValueError, match=message):
            erd_loss(*change(make_maps(seed=0), make_maps(seed=1)), BOXES)

    def test_settings_out_of_range(self):
        for options in (dict(candidates=0), dict(temperature=0.0), dict(boxes=-1.0)):
            with pytest.raises(ValueError, match=next(iter(options))):
                ERDLoss(**options)


def iou(a, b):
    shared = (torch.minimum(a, b)[2:] - torch.maximum(a, b)[:2]).clamp(min=0).prod()
    return shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared)


def test_boxes_that_drop_one_another_in_a_row():
    """Each overlaps the next: every other one is kept."""
    corner = 5.0 * torch.arange(20)
    boxes = torch.stack([corner, torch.zeros(20), corner + 8, torch.full((20,), 8.0)], 1)
    scores = torch.linspace(1, 0, 20)[None]
    labels = torch.zeros(1, 20)
    kept = kept_by_class(scores, boxes[None], labels, 0.1)
    assert kept[0].tolist() == [True, False] * 10
    assert kept_by_class(scores, boxes[None], torch.arange(20)[None], 0.1).all()
    assert not kept_by_class(scores - 2, boxes[None], labels, 0.1).any()

import copy

import pytest
import torch
from torch import distributed
from torch.nn import functional as F

from kd_dense.losses import APDLoss, IFVDLoss, apd_loss, ifvd_loss
from kd_dense.losses.features.prototypes.centres import region_centres
from tests.losses.contract import LossContract
from tests.mm.processes import in_two_processes

CLASSES = 4


def labels(images=3):
    """Of 10x12 pixels for maps of 5x6; some without, and class 3 is nowhere."""
    generator = torch.Generator().manual_seed(1)
    found = torch.randint(3, (images, 10, 12), generator=generator)
    found[:, :2] = 255
    found[0, 4] = 9
    return found


def at_map(segmentation):
    return segmentation[:, ::2, ::2]


class OfLabels(LossContract):
    def extra(self):
        return dict(segmentation=labels())

    def value(self, student, teacher):
        result = self.loss(student, teacher, segmentation=labels()[: len(student)])
        return sum(result.values()) if isinstance(result, dict) else result

    def test_order_of_images_does_not_matter(self):
        student, teacher = self.example()
        turned = self.loss(student.flip(0), teacher.flip(0), segmentation=labels().flip(0))
        turned = sum(turned.values()) if isinstance(turned, dict) else turned
        assert torch.allclose(turned, self.value(student, teacher))

    def test_two_half_batches_average_to_the_whole(self):
        student, teacher = (x[:2] for x in self.example())
        halves = [
            self.loss(student[i : i + 1], teacher[i : i + 1], segmentation=labels()[i : i + 1])
            for i in range(2)
        ]
        assert torch.allclose(sum(halves) / 2, self.value(student, teacher))

    def test_without_any_label_nothing_is_taught(self):
        student, teacher = self.example()
        result = self.loss(student, teacher, segmentation=torch.full((3, 10, 12), 255))
        value = sum(result.values()) if isinstance(result, dict) else result
        value.backward()
        assert value == 0
        assert not student.grad.any()

    def test_labels_of_another_batch_are_refused(self):
        student, teacher = self.example()
        with pytest.raises(ValueError, match=r'N=3 as in the maps, got \(2, 10, 12\)'):
            self.loss(student, teacher, segmentation=labels(2))

    @pytest.mark.parametrize('weight', [-1.0, float('nan'), float('inf')])
    def test_rejects_a_weight_that_is_negative_or_not_finite(self, weight):
        more = dict(channels=4) if isinstance(self.loss, APDLoss) else {}
        with pytest.raises(ValueError, match='finite weight >= 0'):
            type(self.loss)(CLASSES, weight=weight, **more)


class TestIFVD(OfLabels):
    loss = IFVDLoss(CLASSES, weight=3.0)

    @staticmethod
    def function(student, teacher, segmentation):
        """Class by class, image by image."""
        maps = []
        for x in (student, teacher):
            found = torch.ones(len(x), 5, 6, dtype=x.dtype)
            for n, k in ((n, k) for n in range(len(x)) for k in range(CLASSES)):
                mask = at_map(segmentation)[n] == k
                if mask.any():
                    features = x[n][:, mask]
                    centre = features.mean(1, keepdim=True)
                    found[n][mask] = F.cosine_similarity(features, centre, dim=0)
            maps.append(found)
        return (maps[0] - maps[1]).square().mean()

    def test_widths_may_differ(self):
        student, teacher = self.example()
        wide = torch.cat([teacher, teacher], 1)
        assert torch.allclose(self.value(student, wide), self.value(student, teacher))

    def test_scale_does_not_matter(self):
        student, teacher = self.example()
        assert torch.allclose(self.value(9 * student, teacher), self.value(student, teacher))

    def test_ignored_classes_are_no_classes(self):
        student, teacher = self.example()
        value = ifvd_loss(student, teacher, labels(), CLASSES, ignore_index=2)
        without = labels().where(labels() != 2, 255)
        assert torch.allclose(value, ifvd_loss(student, teacher, without, CLASSES))


class TestAPD(OfLabels):
    torch.manual_seed(0)
    loss = APDLoss(CLASSES, channels=4, weight=3.0, teacher=0.5, hidden=5).double()
    test_zero_when_student_equals_teacher = None  # behind layers of their own
    test_two_half_batches_average_to_the_whole = None  # centres are those of the batch, see below

    def value(self, student, teacher):
        loss = copy.deepcopy(self.loss).to(torch.promote_types(student.dtype, torch.float32))
        return sum(loss(student, teacher, segmentation=labels()[: len(student)]).values())

    def function(self, student, teacher, segmentation):
        """Class by class."""
        loss, there = self.loss, [0, 1, 2]
        small = at_map(segmentation)
        s, t = (
            F.normalize(layers(x), dim=1)
            for x, layers in ((student, loss.student_layers), (teacher, loss.teacher_layers))
        )
        centres = [
            torch.stack([
                F.normalize(x.permute(0, 2, 3, 1)[small == k].mean(0), dim=0) for k in there
            ])
            for x in (s, t)
        ]  # fmt: skip
        p, q = (
            10 * torch.einsum('nchw,kc->nkhw', x, c) for x, c in zip((s, t), centres, strict=True)
        )
        perspective = F.kl_div(p.log_softmax(1), q.softmax(1), reduction='none').mean()
        align = (1 - F.cosine_similarity(*centres)).mean() / 2
        q = torch.cat([q, torch.zeros_like(q[:, :1])], 1)
        q = F.interpolate(q, (10, 12), mode='bilinear', align_corners=True)
        known = segmentation.where(segmentation < CLASSES, 255)
        teaching = F.cross_entropy(q, known, ignore_index=255)
        return 10 * perspective + 10 * align + 0.5 * teaching

    def test_module_is_weight_times_function(self):
        maps = self.example()
        assert torch.allclose(self.value(*maps), 3 * self.function(*maps, labels()), rtol=1e-12)

    def test_without_any_label_nothing_is_taught(self):
        student, teacher = self.example()
        found = self.loss(student, teacher, segmentation=torch.full((3, 10, 12), 255))
        sum(found.values()).backward()
        assert all(value == 0 for value in found.values())
        assert not student.grad.any()

    def test_each_part_trains_what_it_is_for(self):
        student, teacher = (x.detach().requires_grad_() for x in self.example())
        found = apd_loss(student, teacher, labels(), CLASSES)
        for name, trained, other in (
            ('perspective', student, teacher),
            ('centres', student, teacher),
            ('teacher', teacher, student),
        ):
            grads = torch.autograd.grad(
                found[name], [trained, other], retain_graph=True, allow_unused=True
            )
            assert grads[0].abs().sum() > 0
            assert grads[1] is None or not grads[1].any()

    def test_a_setting_out_of_range_is_refused(self):
        for argument, value in (('perspective', -1.0), ('temperature', 0.0), ('hidden', 0)):
            with pytest.raises(ValueError, match=f'{argument}'):
                APDLoss(CLASSES, 4, **{argument: value})


def test_centres_of_regions_are_mean_directions():
    features = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    unit = F.normalize(features, dim=1)
    known = at_map(labels())
    valid = (known >= 0) & (known < CLASSES)
    centres = region_centres(unit, known.where(valid, 0), valid, CLASSES)
    assert centres.any(2).tolist() == [[True, True, True, False]] * 3
    for n, k in ((0, 1), (2, 0)):
        mean = unit[n][:, known[n] == k].mean(1)
        assert torch.allclose(centres[n, k], F.normalize(mean, dim=0))


# In two processes


def values_and_gradients(rank):
    """Of 4 images, whose second half has other classes; or of the half that this process has."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 4, 4, 5, 6, generator=generator, dtype=torch.float64)
    segmentation = labels(4)
    segmentation[2:] = 3
    segmentation[3, :5] = 255
    mine = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    torch.manual_seed(0)
    found = {}
    for loss in (IFVDLoss(CLASSES), APDLoss(CLASSES, channels=4).double()):
        student = maps[0, mine].clone().requires_grad_()
        result = loss(student, maps[1, mine], segmentation=segmentation[mine])
        value = sum(result.values()) if isinstance(result, dict) else result
        grad, *grads = torch.autograd.grad(value, [student, *loss.parameters()])
        found[type(loss).__name__] = value.detach(), grad, grads
    return found


def test_two_processes_find_what_one_does():
    """After the mean over processes, which DDP takes of the gradients."""
    assert not distributed.is_initialized()
    first, second = in_two_processes(values_and_gradients)
    for name, (value, grad, grads) in values_and_gradients(None).items():
        ours, theirs = first[name], second[name]
        torch.testing.assert_close((ours[0] + theirs[0]) / 2, value, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(torch.cat([ours[1], theirs[1]]) / 2, grad)
        for one, other, whole in zip(ours[2], theirs[2], grads, strict=True):
            torch.testing.assert_close((one + other) / 2, whole, rtol=1e-9, atol=1e-11)

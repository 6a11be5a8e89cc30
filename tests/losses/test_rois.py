import pytest
import torch

from kd_dense.losses import DISTLoss, DKDLoss, KDLoss, RoIBoxLoss, roi_box_loss
from tests.losses.contract import LossContract
from tests.mm.processes import in_two_processes

LABELS = torch.tensor([2, 0, 3, 1, 3, 2])  # of 3 classes; 3 is the background


class TestRoIBoxes(LossContract):
    loss = RoIBoxLoss(weight=2.0, beta=0.5)
    function = staticmethod(lambda s, t, segmentation: roi_box_loss(s, t, segmentation, beta=0.5))

    def example(self, dtype=torch.float64):
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(2, len(LABELS), 12, generator=generator, dtype=torch.float64).to(dtype)
        return rows[0].requires_grad_(), rows[1].requires_grad_()

    def extra(self):
        return dict(segmentation=LABELS)

    def test_matches_the_equation_written_out(self):
        student, teacher = self.example()
        total, count = 0.0, 0
        for s, t, label in zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True):
            if label == 3:
                continue
            count += 1
            for i in range(4 * label, 4 * label + 4):
                apart = abs(s[i] - t[i])
                total += apart**2 / (2 * 0.5) if apart < 0.5 else apart - 0.5 / 2
        found = roi_box_loss(student, teacher, LABELS, beta=0.5)
        assert found.item() == pytest.approx(total / count, rel=1e-12)

    def test_offsets_for_all_classes_are_those_of_each(self):
        student, teacher = (x.detach() for x in self.example())
        one = student[:, :4]
        expected = roi_box_loss(one.repeat(1, 3), teacher, LABELS)
        assert torch.equal(roi_box_loss(one, teacher, LABELS), expected)
        assert torch.equal(roi_box_loss(teacher, one, LABELS), expected)
        both = roi_box_loss(one, teacher[:, :4], LABELS, num_classes=3)
        assert torch.equal(
            both, roi_box_loss(one.repeat(1, 3), teacher[:, :4].repeat(1, 3), LABELS)
        )

    @pytest.mark.parametrize('labels', [torch.full((6,), 3), torch.full((6,), -1)], ids=str)
    def test_without_an_object_it_is_0_and_in_touch_with_the_student(self, labels):
        student, teacher = self.example()
        value = roi_box_loss(student, teacher, labels)
        value.backward()
        assert value == 0
        assert not student.grad.any()

    def test_order_of_images_does_not_matter(self):
        student, teacher = self.example()
        flipped = roi_box_loss(student.flip(0), teacher.flip(0), LABELS.flip(0), beta=0.5)
        assert torch.allclose(2 * flipped, self.value(student, teacher))

    def test_two_half_batches_average_to_the_whole(self):
        """With as many objects in each."""
        student, teacher = self.example()
        halves = [
            roi_box_loss(student[i], teacher[i], LABELS[i], beta=0.5)
            for i in (slice(0, 3), slice(3, 6))
        ]
        assert torch.allclose(sum(halves), self.value(student, teacher))

    def test_names_both_shapes_when_they_differ(self):
        student, teacher = self.example()
        for other in (teacher[:, :5], teacher[:5]):
            with pytest.raises(
                ValueError, match=rf'\(6, 12\).*\({len(other)}, {other.shape[1]}\)'
            ):
                self.value(student, other)
        with pytest.raises(ValueError, match=r'a class for each of 6 regions, got \(5,\)'):
            roi_box_loss(student, teacher, LABELS[:5])

    def test_rejects_a_negative_beta(self):
        for call in (
            RoIBoxLoss,
            lambda **options: roi_box_loss(*self.example(), LABELS, **options),
        ):
            with pytest.raises(ValueError, match=r'expects beta >= 0, got beta=-1\.0'):
                call(beta=-1.0)


@pytest.mark.parametrize(
    'loss', [DKDLoss(), DISTLoss(), KDLoss(), KDLoss(valid_only=False)], ids=str
)
@pytest.mark.parametrize('count', [0, 1, 1000])
def test_any_number_of_regions_is_compared(loss, count):
    student = torch.randn(count, 4, requires_grad=True)
    needs = dict(segmentation=torch.randint(4, (count,))) if loss.needs else {}
    value = loss(student, torch.randn(count, 4), **needs)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()
    assert (value > 0) == (count > 0)


def rows(rank):
    """Logits, offsets and labels of the regions of a process; of both, those of all."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(4, 7, 12, generator=generator, dtype=torch.float64)
    own = (slice(0, 5), slice(5, 7), slice(None))[rank]  # not the same number in each
    return [x[own] for x in (*drawn[:2], torch.randint(4, (7,), generator=generator))]


LOSSES = {
    'dkd': lambda s, t, labels: DKDLoss()(s[:, :4], t[:, :4], labels),
    'dist': lambda s, t, labels: DISTLoss(intra=2.0)(s[:, :4], t[:, :4]),
    'boxes': lambda s, t, labels: RoIBoxLoss(num_classes=3)(s, t, labels),
}


def gradients(rank):
    student, *others = rows(rank)
    found = {}
    for name, loss in LOSSES.items():
        leaf = student.detach().requires_grad_()
        value = loss(leaf, *others)
        found[name] = value.detach(), torch.autograd.grad(value, leaf)[0]
        if rank < 2:  # and one of the two has no region at all
            assert loss(*(x[: 5 * (1 - rank)] for x in (leaf, *others))).isfinite(), name
    return found


def test_two_processes_find_what_one_does():
    """After the mean over processes, which DDP takes of the gradients."""
    first, second = in_two_processes(gradients)
    for name, (value, grad) in gradients(2).items():
        assert torch.allclose((first[name][0] + second[name][0]) / 2, value), name
        assert torch.allclose(torch.cat([first[name][1], second[name][1]]) / 2, grad), name

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kd_dense.losses import IntRALoss, intra_loss
from tests.losses.contract import LossContract
from tests.losses.test_intrakd_regions import example, slow_masks, slow_moments

VARIANTS = list(
    itertools.product(
        ('dilate', 'smooth'), ('inside', 'literal'), ('std', 'var'), ('present', 'all')
    )
)
every_variant = pytest.mark.parametrize(
    ('regions', 'pixels', 'third_denominator', 'normaliser'), VARIANTS, ids='-'.join
)


def slow_loss(
    student,
    teacher,
    labels,
    num_classes,
    regions,
    kernel,
    pixels,
    third_denominator,
    normaliser,
    eps,
    cos_eps=1e-12,
    ignore_index=255,
):
    """The definition with loops over everything, image by image."""
    per_image = []
    for image in range(len(student)):
        size = student.shape[2:]
        masks = slow_masks(labels[image], size, num_classes, regions, kernel, ignore_index)
        present = [c for c in range(num_classes) if masks[c].any()]
        student_moments, teacher_moments = (
            [
                slow_moments(maps[image], masks[c], regions, pixels, third_denominator, eps)
                for c in present
            ]
            for maps in (student, teacher)
        )

        def cosine(a, b):
            sizes = np.sqrt((a * a).sum() + cos_eps) * np.sqrt((b * b).sum() + cos_eps)
            return (a * b).sum() / sizes

        total = 0.0
        for m in range(3):
            for r, q in itertools.product(range(len(present)), repeat=2):
                total += (
                    cosine(student_moments[r][m], student_moments[q][m])
                    - cosine(teacher_moments[r][m], teacher_moments[q][m])
                ) ** 2
        n = len(present) if normaliser == 'present' else num_classes
        per_image.append(total / (3 * max(n, 1) ** 2))
    return np.array(per_image)


class SegmentationContract(LossContract):
    """All images have the same labels, because the contract shuffles and halves batches."""

    labels = torch.tensor([[0, 0, 1, 1], [0, 3, 3, 1], [2, 2, 255, 1]])
    labels = labels.repeat_interleave(7, 0).repeat_interleave(5, 1)

    def extra(self):
        return {'segmentation': self.labels.expand(3, -1, -1)}

    def value(self, student, teacher):
        return self.loss(student, teacher, segmentation=self.labels.expand(len(student), -1, -1))

    @pytest.mark.parametrize('weight', [-1.0, float('nan'), float('inf')])
    def test_rejects_a_weight_that_is_negative_or_not_finite(self, weight):
        with pytest.raises(ValueError, match='finite weight >= 0'):
            IntRALoss(num_classes=4, weight=weight)


class TestIntRA(SegmentationContract):
    loss = IntRALoss(num_classes=4, weight=2.0, kernel=3)

    @staticmethod
    def function(student, teacher, segmentation):
        return intra_loss(student, teacher, segmentation, 4, kernel=3)


class TestIntRASmooth(SegmentationContract):
    loss = IntRALoss(num_classes=4, weight=2.0, regions='smooth', normaliser='all')

    @staticmethod
    def function(student, teacher, segmentation):
        return intra_loss(student, teacher, segmentation, 4, 'smooth', normaliser='all')


class TestIntRALiteral(SegmentationContract):
    arguments = dict(kernel=5, pixels='literal', third_denominator='var', eps=1e-3, cos_eps=1e-9)
    loss = IntRALoss(num_classes=4, weight=2.0, ignore_index=3, **arguments)

    @staticmethod
    def function(student, teacher, segmentation):
        return intra_loss(
            student, teacher, segmentation, 4, ignore_index=3, **TestIntRALiteral.arguments
        )


@every_variant
def test_matches_the_definition_written_out(regions, pixels, third_denominator, normaliser):
    student, teacher, labels = example()
    choices = dict(
        regions=regions, pixels=pixels, third_denominator=third_denominator, normaliser=normaliser
    )
    expected = slow_loss(
        student.detach().numpy(),
        teacher.numpy(),
        labels.numpy(),
        num_classes=4,
        kernel=5,
        eps=1e-6 if regions == 'dilate' else 1e-10,
        **choices,
    )
    value = intra_loss(student, teacher, labels, 4, kernel=5, **choices)
    assert value.item() == pytest.approx(expected.mean(), rel=1e-10)
    assert expected[:2].min() > 0
    assert expected[2] == 0  # it has no label


@every_variant
def test_gradient_is_right_in_every_variant(regions, pixels, third_denominator, normaliser):
    student, teacher, labels = example()
    choices = (pixels, third_denominator, normaliser, 1e-3, 1e-6)
    assert torch.autograd.gradcheck(
        lambda x: intra_loss(x, teacher, labels, 4, regions, 3, *choices), (student,)
    )


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_the_layout_of_the_maps_does_not_matter(memory_format):
    student, teacher, labels = example()
    expected = intra_loss(student, teacher, labels, 4, kernel=3)
    (expected_grad,) = torch.autograd.grad(expected, student)
    other = student.detach().contiguous(memory_format=memory_format).requires_grad_()
    value = intra_loss(other, teacher.contiguous(memory_format=memory_format), labels, 4, kernel=3)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, other)[0], expected_grad)


@pytest.mark.parametrize('regions', ['dilate', 'smooth'])
def test_names_of_classes_do_not_matter(regions):
    student, teacher, labels = example()
    names = torch.cat([torch.tensor([2, 0, 3, 1]), torch.full((252,), 255)])
    value = intra_loss(student, teacher, labels, 4, regions, 3)
    assert torch.allclose(value, intra_loss(student, teacher, names[labels], 4, regions, 3))


def test_order_of_channels_does_not_matter():
    student, teacher, labels = example()
    value = intra_loss(student, teacher, labels, 4, kernel=3)
    shuffled = intra_loss(student[:, [2, 0, 3, 1]], teacher.flip(1), labels, 4, kernel=3)
    assert torch.allclose(value, shuffled)


def test_scale_of_the_maps_does_not_matter():
    student, teacher, labels = example()
    arguments = dict(num_classes=4, kernel=3, eps=1e-14, cos_eps=1e-24)
    value = intra_loss(student, teacher, labels, **arguments)
    scaled = intra_loss(100 * student, 0.01 * teacher, labels, **arguments)
    assert torch.allclose(value, scaled, rtol=1e-8)


def test_each_image_has_its_own_labels():
    student, teacher, labels = example()
    value = intra_loss(student, teacher, labels, 4, kernel=3)
    flipped = intra_loss(student.flip(0), teacher.flip(0), labels.flip(0), 4, kernel=3)
    assert torch.allclose(value, flipped)
    assert not torch.allclose(value, intra_loss(student, teacher, labels[[1, 0, 2]], 4, kernel=3))


@pytest.mark.parametrize('regions', ['dilate', 'smooth'])
@pytest.mark.parametrize('pixels', ['inside', 'literal'])
def test_a_class_that_is_absent_counts_only_where_all_do(regions, pixels):
    student, teacher, labels = example()

    def value(num_classes, normaliser):
        return intra_loss(
            student, teacher, labels, num_classes, regions, 3, pixels, normaliser=normaliser
        )

    assert torch.allclose(value(4, 'present'), value(9, 'present'))
    assert torch.allclose(value(4, 'all') * 16, value(9, 'all') * 81)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@every_variant
def test_is_finite_where_nothing_varies(regions, pixels, third_denominator, normaliser, dtype):
    choices = (regions, 1, pixels, third_denominator, normaliser)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 3, 3, generator=generator).to(dtype)
    one_pixel = torch.full((1, 3, 3), 255)
    one_pixel[0, 1, 1] = 0
    two_classes = torch.zeros(1, 3, 3, dtype=torch.long)
    two_classes[0, :, 2] = 1
    for maps, labels in (
        (noise, torch.full((1, 3, 3), 255)),  # nothing is labelled
        (noise, one_pixel),
        (noise[..., :1, :1], two_classes),  # a map of one pixel
        (torch.zeros_like(noise), two_classes),
        (torch.full_like(noise, 0.1), two_classes),
        (torch.full_like(noise, 1e4), two_classes),
        (noise.relu(), two_classes),
    ):
        student = maps.clone().requires_grad_()
        value = intra_loss(
            student, noise[..., : maps.shape[2], : maps.shape[3]], labels, 2, *choices
        )
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()
        if (labels == 255).all():
            assert value == 0
            assert (student.grad == 0).all()


class Operators(TorchDispatchMode):
    """Counts the operators that run and keeps the size of the largest result."""

    def __init__(self):
        super().__init__()
        self.count = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count += 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.largest = max(self.largest, leaf.untyped_storage().nbytes() // 8)
        return result


def run_operators(images, channels, classes, regions, pixels, device='cpu'):
    student = torch.ones(images, channels, 16, 16, requires_grad=True, device=device)
    labels = torch.zeros(images, 32, 32, dtype=torch.long, device=device)
    with Operators() as operators:
        intra_loss(student, student.detach(), labels, classes, regions, 3, pixels).backward()
    return operators


@pytest.mark.parametrize('regions', ['dilate', 'smooth'])
@pytest.mark.parametrize('pixels', ['inside', 'literal'])
def test_no_loop_and_no_tensor_of_classes_times_channels_times_positions(regions, pixels):
    few = run_operators(2, 8, 3, regions, pixels)
    many = run_operators(3, 32, 30, regions, pixels)
    assert few.count == many.count
    assert many.largest <= 3 * 32 * 16 * 16  # channels times positions, in float64


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_classes=0), 'num_classes >= 1, got 0'),
        (dict(kernel=4), 'odd kernel >= 1, got kernel=4'),
        (dict(kernel=-1), 'odd kernel >= 1, got kernel=-1'),
        (dict(regions='dilated'), r"regions to be one of .*'dilate'.*got 'dilated'"),
        (dict(pixels='all'), r"pixels to be one of .*'literal'.*got 'all'"),
        (dict(third_denominator='sd'), r"third_denominator to be one of .*got 'sd'"),
        (dict(normaliser='both'), r"normaliser to be one of .*got 'both'"),
        (dict(eps=0.0), r'eps > 0, got eps=0\.0'),
        (dict(cos_eps=-1.0), r'cos_eps > 0, got cos_eps=-1\.0'),
    ],
)
def test_rejects_choices_that_do_not_exist(arguments, message):
    maps, arguments = torch.zeros(1, 1, 2, 2), {'num_classes': 2, **arguments}
    with pytest.raises(ValueError, match=message):
        intra_loss(maps, maps, torch.zeros(1, 2, 2, dtype=torch.long), **arguments)
    with pytest.raises(ValueError, match=message):
        IntRALoss(**arguments)


def test_rejects_labels_that_do_not_fit():
    maps = torch.zeros(2, 1, 2, 2)
    for shape in ((2, 1, 4, 4), (1, 4, 4)):
        with pytest.raises(ValueError, match=r'\(N, H, W\) with N=2 .*got \('):
            intra_loss(maps, maps, torch.zeros(shape, dtype=torch.long), 2)
    with pytest.raises(ValueError, match=r'integers, got torch\.float32'):
        intra_loss(maps, maps, torch.zeros(2, 4, 4), 2)


def test_rejects_a_kernel_that_mirroring_cannot_serve():
    maps, labels = torch.zeros(1, 1, 2, 2), torch.zeros(1, 5, 9, dtype=torch.long)
    with pytest.raises(ValueError, match=r'kernel=11 reaches .*\(5, 9\) pixels'):
        intra_loss(maps, maps, labels, 2, 'smooth')
    assert intra_loss(maps, maps, labels, 2, 'smooth', kernel=9).isfinite()

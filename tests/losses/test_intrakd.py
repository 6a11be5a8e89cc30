import itertools

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kd_dense.losses import AttentionMapLoss, IntRALoss, attention_map_loss, intra_loss, intrakd
from kd_dense.losses.intrakd import region_masks, region_moments
from tests.losses.contract import LossContract

VARIANTS = list(
    itertools.product(
        ('dilate', 'smooth'), ('inside', 'literal'), ('std', 'var'), ('present', 'all')
    )
)
every_variant = pytest.mark.parametrize(
    ('regions', 'pixels', 'third_denominator', 'normaliser'), VARIANTS, ids='-'.join
)


def slow_masks(label, size, num_classes, regions, kernel, ignore_label=255):
    """Pixel by pixel, for one image."""
    whole, half = label.shape, kernel // 2
    masks = np.zeros((num_classes, *size))
    for c in range(num_classes):
        one_hot = ((label == c) & (label != ignore_label)).astype(float)
        padded = np.pad(one_hot, half, mode='reflect' if regions == 'smooth' else 'constant')
        mean = np.zeros(whole)
        for i, j in np.ndindex(whole):
            mean[i, j] = padded[i : i + kernel, j : j + kernel].sum() / kernel**2
        for i, j in np.ndindex(size):
            if regions == 'dilate':
                masks[c, i, j] = mean[i * whole[0] // size[0], j * whole[1] // size[1]] > 0
                continue
            corners = []
            for k, axis in ((i, 0), (j, 1)):
                at = (k + 0.5) * whole[axis] / size[axis] - 0.5
                at = min(max(at, 0), whole[axis] - 1)
                low = int(at)
                corners.append([(low, 1 - at + low), (min(low + 1, whole[axis] - 1), at - low)])
            for (y, a), (x, b) in itertools.product(*corners):
                masks[c, i, j] += a * b * mean[y, x]
    return masks


def slow_moments(features, mask, regions, pixels, third_denominator, eps):
    """Of one region of one image. Works for complex features too."""
    channels, height, width = features.shape
    inside = [(i, j) for i, j in np.ndindex(height, width) if mask[i, j] > 0]
    everywhere = list(np.ndindex(height, width))
    n = height * width if regions == 'smooth' else len(inside)
    moments = np.zeros((3, channels), dtype=features.dtype)
    for c in range(channels):
        f = features[c]
        mean = sum(mask[p] * f[p] for p in inside) / n

        def average(power, f=f, mean=mean):
            if pixels == 'literal':
                return sum((mask[p] * f[p] - mean) ** power for p in everywhere) / n
            return sum(mask[p] * (f[p] - mean) ** power for p in inside) / n

        variance = average(2)
        sigma = variance + eps if third_denominator == 'var' else np.sqrt(variance + eps)
        moments[:, c] = mean, variance, average(3) / sigma**3
    return moments


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
    ignore_label=255,
):
    """The definition with loops over everything, image by image."""
    per_image = []
    for image in range(len(student)):
        size = student.shape[2:]
        masks = slow_masks(labels[image], size, num_classes, regions, kernel, ignore_label)
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


def example(dtype=torch.float64):
    """Two images with an ignored and an unknown label, and one without any label."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64)
    teacher = torch.randn(3, 3, 5, 6, generator=generator, dtype=torch.float64)
    blocks = torch.randint(0, 4, (3, 4, 5), generator=generator)
    labels = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :14, :19].clone()
    labels[0, :5, :7], labels[1, 7:9, 3:5], labels[2] = 255, 17, 255
    return student.to(dtype).requires_grad_(), teacher.to(dtype), labels


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
    loss = IntRALoss(num_classes=4, weight=2.0, ignore_label=3, **arguments)

    @staticmethod
    def function(student, teacher, segmentation):
        return intra_loss(
            student, teacher, segmentation, 4, ignore_label=3, **TestIntRALiteral.arguments
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


@pytest.mark.parametrize('size', [(5, 6), (7, 7), (14, 19), (20, 25), (1, 1)])
@pytest.mark.parametrize('regions', ['dilate', 'smooth'])
def test_regions_match_those_written_out(regions, size):
    labels = example()[2]
    masks = region_masks(labels, size, 4, regions, kernel=5)
    expected = [slow_masks(image, size, 4, regions, 5).reshape(4, -1) for image in labels.numpy()]
    assert np.abs(masks.numpy() - np.stack(expected)).max() < 1e-14


@pytest.mark.parametrize('num_classes', [61, 62, 63, 150])
def test_dilated_regions_of_many_classes_match_those_written_out(num_classes):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes + 2, (1, 9, 13), generator=generator)
    labels[0, 0, :3] = torch.tensor([num_classes - 1, 255, -1])
    masks = region_masks(labels, (4, 5), num_classes, kernel=3)
    expected = slow_masks(labels[0].numpy(), (4, 5), num_classes, 'dilate', 3)
    assert np.array_equal(masks[0].numpy(), expected.reshape(num_classes, -1))
    assert masks[0, num_classes - 1].any()


@pytest.mark.parametrize('pixels', ['inside', 'literal'])
@pytest.mark.parametrize('regions', ['dilate', 'smooth'])
def test_moments_do_not_depend_on_how_many_positions_are_taken_at_a_time(
    regions, pixels, monkeypatch
):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 5, 15, 13, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (2, 15, 13), generator=generator)
    masks = region_masks(labels, (15, 13), 3, regions, kernel=3)
    weights = torch.randn(2, 3, 3, 5, generator=generator, dtype=torch.float64)
    results = []
    for size in (2**17, 1):  # all of them, or the least number, which is 64
        monkeypatch.setitem(intrakd.BLOCK, 'cpu', size)
        x = maps.clone().requires_grad_()
        moments = region_moments(x, masks, regions, pixels, eps=1e-3)
        results.append((moments, *torch.autograd.grad((moments * weights).sum(), x)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(
        # times the positions, because small gradients pass any check
        lambda x: 195 * region_moments(x, masks, regions, pixels, eps=1e-3),
        maps[:, :2].clone().requires_grad_(),
        fast_mode=True,
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


def test_smooth_regions_are_those_of_opencv():
    label = example()[2][1].numpy()
    for c in range(4):
        blurred = cv2.blur((label == c).astype(np.float64), (11, 11))
        expected = cv2.resize(blurred, (6, 5))
        mask = region_masks(torch.from_numpy(label)[None], (5, 6), 4, 'smooth')[0, c]
        # OpenCV's weights are float32
        assert np.abs(mask.view(5, 6).numpy() - expected).max() < 1e-6


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


def test_labels_that_are_no_class_belong_to_no_region():
    _, _, labels = example()
    as_ignored = torch.where(labels == 17, 255, labels)
    negative = torch.where(labels == 255, -100, labels)
    masks = region_masks(labels, (5, 6), 4)
    assert torch.equal(masks, region_masks(as_ignored, (5, 6), 4))
    assert torch.equal(masks, region_masks(negative, (5, 6), 4))
    assert torch.equal(masks, region_masks(labels.byte(), (5, 6), 4))
    assert region_masks(labels, (5, 6), 4, ignore_label=2)[:, 2].sum() == 0


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


def test_a_region_of_one_pixel_has_a_mean_and_nothing_else():
    maps = 50 * torch.randn(1, 300, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.full((1, 4, 4), 255)
    labels[0, 2, 1] = 0
    mean, variance, skew = region_moments(maps, region_masks(labels, (4, 4), 1, kernel=1))[0]
    assert torch.allclose(mean[0].float(), maps[0, :, 2, 1])
    assert variance.max() < 1e-10
    assert (skew == 0).all()


def test_rounding_makes_no_variance_negative():
    """Half of the map is constant, far from the mean of all."""
    maps = torch.rand(1, 300, 4, 4, generator=torch.Generator().manual_seed(0)) * 1e4
    maps[:, :, :2] = maps[:, :, :1, :1]
    labels = torch.tensor([0, 0, 255, 255])[None, :, None].repeat(1, 1, 4)
    labels[..., 3] = 255
    moments = region_moments(maps, region_masks(labels, (4, 4), 1, kernel=1), eps=1e-10)
    assert moments.isfinite().all()
    assert (moments[:, 1] >= 0).all()
    assert (moments[:, 2] == 0).all()


@pytest.mark.parametrize('third_denominator', ['std', 'var'])
def test_float32_maps_lose_nothing(third_denominator):
    """Channels far from 0, others dead in some regions: sums of powers cancel."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 6, 12, 12, generator=generator)
    labels = torch.arange(3).repeat_interleave(4)[None, :, None].repeat(1, 1, 12)
    maps[:, 0] += 30000
    maps[:, 1, :5] = 7.0
    maps[:, 2, :5] = 1e-3
    maps[:, 3] *= 1e-2
    masks = region_masks(labels, (12, 12), 3, kernel=3)
    moments = region_moments(maps, masks, third_denominator=third_denominator)
    for c in range(3):
        expected = slow_moments(
            maps[0].double().numpy(),
            masks[0, c].view(12, 12).numpy(),
            'dilate',
            'inside',
            third_denominator,
            1e-6,
        )
        actual = moments[0, :, c].numpy()
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-9)
        assert (expected[2] == 0).sum() == (actual[2] == 0).sum() == (2 if c == 0 else 0)


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


class TestAttentionMap(LossContract):
    loss = AttentionMapLoss(weight=3.0)
    function = staticmethod(attention_map_loss)

    def test_is_the_distance_between_unit_vectors(self):
        student, teacher = (x.detach().numpy() for x in self.example())
        total = 0.0
        for s, t in zip(student, teacher, strict=True):
            a, b = ((x * x).sum(0).ravel() for x in (s, t))
            total += 2 - 2 * a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
        value = attention_map_loss(torch.from_numpy(student), torch.from_numpy(teacher))
        assert value.item() == pytest.approx(total / 3, rel=1e-10)

    def test_scale_and_channels_do_not_matter(self):
        student, teacher = self.example()
        wide = torch.cat([student, -2 * student], dim=1)
        assert torch.allclose(
            attention_map_loss(wide, teacher), attention_map_loss(student, 7 * teacher)
        )


class TestAttentionMapSoftmax(LossContract):
    loss = AttentionMapLoss(weight=3.0, norm='softmax')
    function = staticmethod(lambda s, t: attention_map_loss(s, t, norm='softmax'))

    def test_is_the_distance_between_distributions(self):
        student, teacher = (x.detach().numpy() for x in self.example())
        total = 0.0
        for s, t in zip(student, teacher, strict=True):
            a, b = (np.exp((x * x).sum(0)) for x in (s, t))
            total += ((a / a.sum() - b / b.sum()) ** 2).sum()
        value = attention_map_loss(
            torch.from_numpy(student), torch.from_numpy(teacher), norm='softmax'
        )
        assert value.item() == pytest.approx(total / 3, rel=1e-10)


@pytest.mark.parametrize('norm', ['l2', 'softmax'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.float32])
@pytest.mark.parametrize('value', [0.0, 1.0, 60000.0])
def test_attention_of_constant_maps_is_finite(norm, dtype, value):
    student = torch.full((2, 3, 4, 4), value, dtype=dtype, requires_grad=True)
    teacher = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    loss = attention_map_loss(student, teacher, norm)
    loss.backward()
    assert 0 <= loss <= 2
    assert student.grad.isfinite().all()
    pixel = attention_map_loss(student[..., :1, :1], 1 + teacher[..., :1, :1].abs(), norm)
    assert pixel.item() == pytest.approx(1.0 if norm == 'l2' and value == 0 else 0.0, abs=1e-6)


@pytest.mark.parametrize('make', [AttentionMapLoss, lambda **a: attention_map_loss(*MAPS, **a)])
def test_rejects_attention_that_does_not_exist(make):
    with pytest.raises(ValueError, match=r"norm to be one of .*'softmax'.*got 'l1'"):
        make(norm='l1')
    with pytest.raises(ValueError, match=r'eps > 0, got eps=0'):
        make(eps=0)


MAPS = (torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))

import itertools

import cv2
import numpy as np
import pytest
import torch

from kd_dense.functional import divergence
from kd_dense.losses.intrakd.regions import region_masks, region_moments


def slow_masks(label, size, num_classes, regions, kernel, ignore_index=255):
    """Pixel by pixel, for one image."""
    whole, half = label.shape, kernel // 2
    masks = np.zeros((num_classes, *size))
    for c in range(num_classes):
        one_hot = ((label == c) & (label != ignore_index)).astype(float)
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


def example(dtype=torch.float64):
    """Two images with an ignored and an unknown label, and one without any label."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 4, 5, 6, generator=generator, dtype=torch.float64)
    teacher = torch.randn(3, 3, 5, 6, generator=generator, dtype=torch.float64)
    blocks = torch.randint(0, 4, (3, 4, 5), generator=generator)
    labels = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, :14, :19].clone()
    labels[0, :5, :7], labels[1, 7:9, 3:5], labels[2] = 255, 17, 255
    return student.to(dtype).requires_grad_(), teacher.to(dtype), labels


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


def test_smooth_regions_are_those_of_opencv():
    label = example()[2][1].numpy()
    for c in range(4):
        blurred = cv2.blur((label == c).astype(np.float64), (11, 11))
        expected = cv2.resize(blurred, (6, 5))
        mask = region_masks(torch.from_numpy(label)[None], (5, 6), 4, 'smooth')[0, c]
        # OpenCV's weights are float32
        assert np.abs(mask.view(5, 6).numpy() - expected).max() < 1e-6


def test_labels_that_are_no_class_belong_to_no_region():
    _, _, labels = example()
    as_ignored = torch.where(labels == 17, 255, labels)
    negative = torch.where(labels == 255, -100, labels)
    masks = region_masks(labels, (5, 6), 4)
    assert torch.equal(masks, region_masks(as_ignored, (5, 6), 4))
    assert torch.equal(masks, region_masks(negative, (5, 6), 4))
    assert torch.equal(masks, region_masks(labels.byte(), (5, 6), 4))
    assert region_masks(labels, (5, 6), 4, ignore_index=2)[:, 2].sum() == 0


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
        monkeypatch.setattr(divergence, 'CPU_BLOCK_BYTES', 8 * size)
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


EXACT = pytest.mark.parametrize('dtype', [torch.float16, torch.float32, torch.float64])


@EXACT
@pytest.mark.parametrize('third_denominator', ['std', 'var'])
@pytest.mark.parametrize('positions', [1, 3, 40, 280])
@pytest.mark.parametrize(('scale', 'offset'), [(1e-4, 0), (1, 0), (50, 0), (1, 1e3), (1e4, 0)])
def test_a_region_without_variety_has_a_mean_and_nothing_else(
    scale, offset, positions, third_denominator, dtype
):
    """One position, or several of one value: of a part of the image, or of all of it."""
    maps = scale * torch.randn(2, 60, 14, 20, generator=torch.Generator().manual_seed(0)) + offset
    maps = maps.to(dtype).flatten(2)
    maps[:, :, :positions] = maps[:, :, :1]
    masks = (torch.arange(280) < positions).double().expand(2, 1, -1)
    maps = maps.unflatten(2, (14, 20)).requires_grad_()
    moments = region_moments(maps, masks, third_denominator=third_denominator, eps=1e-10)
    torch.testing.assert_close(moments[:, 0, 0], maps[:, :, 0, 0].double(), rtol=1e-13, atol=0)
    assert (moments[:, 1:] == 0).all()
    (grad,) = torch.autograd.grad(moments.sum(), maps)
    expected = (masks / positions).to(dtype).expand(2, 60, -1)  # that of the mean
    torch.testing.assert_close(grad.flatten(2), expected, rtol=1e-12, atol=0)


@EXACT
@pytest.mark.parametrize('pixels', ['inside', 'literal'])
@pytest.mark.parametrize('third_denominator', ['std', 'var'])
@pytest.mark.parametrize('kernel', [1, 11])
@pytest.mark.parametrize('regions', ['dilate', 'smooth'])
def test_an_image_of_one_class_and_one_value_has_a_mean_and_nothing_else(
    regions, kernel, third_denominator, pixels, dtype
):
    """Smooth regions are not quite 1 there, so that the mean is not quite the value."""
    value = torch.randn(50, generator=torch.Generator().manual_seed(0)).mul(200).to(dtype)
    maps = value[None, :, None, None].expand(1, -1, 24, 30)
    masks = region_masks(torch.zeros(1, 96, 120, dtype=torch.long), (24, 30), 2, regions, kernel)
    moments = region_moments(maps, masks, regions, pixels, third_denominator, eps=1e-10)
    torch.testing.assert_close(moments[0, 0, 0], value.double(), rtol=1e-12, atol=0)
    assert (moments[0, 1:] == 0).all()
    assert (moments[0, :, 1] == 0).all()  # the other class


def test_a_variety_that_float32_can_tell_is_not_taken_for_rounding():
    """A part of the image is far from the rest, and nearly of one value."""
    maps = torch.zeros(1, 1, 8, 8)
    maps[..., :4, :] = 1000
    maps[..., :2, :] += 2**-7  # float32 has steps of 2**-14 there
    masks = (torch.arange(64) < 32).double().expand(1, 1, -1)
    variance = region_moments(maps, masks)[0, 1].item()
    assert variance == pytest.approx(2.0**-16, rel=1e-3)


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

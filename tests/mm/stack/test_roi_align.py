"""RoIAlign, alone, through mmcv and beside the compiled operators."""

import itertools

import numpy as np
import pytest
import torch

from kd_dense.mm.stack import roi_align, roi_points
from tests.mm.stack.operators import EXT, make_boxes, needs_compiled, rng

CASES = list(
    itertools.product(['avg', 'max'], [True, False], [0, 1, 2], [(1.0, (2, 3)), (0.25, (3, 2))])
)


def read_by_hand(image, y, x):
    """Value of an image (C, H, W) between the pixels."""
    height, width = image.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return image[:, 0, 0] * 0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    value = 0
    for row in range(height):
        for column in range(width):
            weight = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
            if weight:
                value = value + weight * image[:, row, column]
    return value


def roi_align_by_hand(maps, rois, size, scale, ratio, mode, aligned):
    result = []
    for image, *corners in rois.tolist():
        x1, y1, x2, y2 = (c * scale - (0.5 if aligned else 0) for c in corners)
        h, w = y2 - y1, x2 - x1
        if not aligned:
            h, w = max(h, 1), max(w, 1)
        bin_h, bin_w = h / size[0], w / size[1]
        rows = ratio or int(np.ceil(bin_h))
        columns = ratio or int(np.ceil(bin_w))
        for ph, pw in itertools.product(range(size[0]), range(size[1])):
            values = [
                read_by_hand(
                    maps[int(image)],
                    y1 + (ph + (i + 0.5) / rows) * bin_h,
                    x1 + (pw + (j + 0.5) / columns) * bin_w,
                )
                for i in range(rows)
                for j in range(columns)
            ]
            if not values:
                result.append(maps.new_zeros(maps.shape[1]))
            elif mode == 'max':
                result.append(torch.stack(values).max(0).values)
            else:
                result.append(torch.stack(values).mean(0))
    return torch.stack(result).view(len(rois), *size, -1).permute(0, 3, 1, 2)


def make_rois(n, seed=0, dtype=torch.float32):
    """Rois on two images of about 14 x 18 pixels, some partly or fully outside."""
    boxes = make_boxes(n, seed, 18.0, dtype) * 0.7 - 3
    boxes[0] = torch.tensor([40.0, 40.0, 60.0, 60.0])
    boxes[1] = torch.tensor([-9.3, -9.2, 30.1, 30.0])
    image = torch.randint(0, 2, (n, 1), generator=rng(seed)).to(dtype)
    return torch.cat([image, boxes], dim=1)


def make_maps(seed=0, dtype=torch.float32, channels=3):
    return torch.randn(2, channels, 7, 9, generator=rng(seed), dtype=dtype)


class RoIAlign(torch.autograd.Function):
    """The functions of a module in the place of mmcv._ext, without mmcv.ops."""

    @staticmethod
    def forward(ctx, maps, rois, size, scale, ratio, mode, aligned, ext=roi_align):
        output = maps.new_full((len(rois), maps.shape[1], *size), 7)
        shape = output.shape if mode == 'max' else 0
        ctx.args = (*size, scale, ratio, int(mode == 'avg'), aligned)
        ctx.shape, ctx.ext = maps.shape, ext
        argmax = maps.new_zeros(shape), maps.new_zeros(shape)
        ext.roi_align_forward(maps, rois, output, *argmax, *ctx.args)
        ctx.save_for_backward(rois, *argmax)
        return output

    @staticmethod
    def backward(ctx, grad):
        result = grad.new_zeros(ctx.shape)
        ctx.ext.roi_align_backward(grad.contiguous(), *ctx.saved_tensors, result, *ctx.args)
        return result, None, None, None, None, None, None, None


class TestRoIAlign:
    @pytest.mark.parametrize(('mode', 'aligned', 'ratio', 'scale_size'), CASES)
    def test_matches_by_hand(self, mode, aligned, ratio, scale_size):
        scale, size = scale_size
        rois = make_rois(12, dtype=torch.float64)
        rois[:, 1:] /= scale
        args = (rois, size, scale, ratio, mode, aligned)
        a = make_maps(dtype=torch.float64).requires_grad_()
        b = a.detach().clone().requires_grad_()
        ours, expected = RoIAlign.apply(a, *args), roi_align_by_hand(b, *args)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
        grad = torch.randn(ours.shape, generator=rng(5), dtype=torch.float64)
        ours.backward(grad)
        expected.backward(grad)
        assert b.grad.abs().max() > 0.1
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=1e-12)

    @needs_compiled
    @pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
    @pytest.mark.parametrize(('mode', 'aligned', 'ratio', 'scale_size'), CASES)
    def test_matches_compiled(self, mode, aligned, ratio, scale_size, dtype):
        scale, size = scale_size
        rois = make_rois(200, dtype=dtype)
        rois[:, 1:] /= scale
        args = (rois, size, scale, ratio, mode, aligned)
        a = make_maps(dtype=dtype).requires_grad_()
        b = a.detach().clone().requires_grad_()
        ours, theirs = RoIAlign.apply(a, *args), RoIAlign.apply(b, *args, EXT)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
        grad = torch.randn(ours.shape, generator=rng(5), dtype=dtype)
        ours.backward(grad)
        theirs.backward(grad)
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=tolerance)

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    @pytest.mark.parametrize('ratio', [0, 2])
    def test_gradcheck(self, ops, mode, ratio):
        maps = make_maps(dtype=torch.float64, channels=2).requires_grad_()
        rois = make_rois(5, dtype=torch.float64)
        for function in (ops.roi_align, RoIAlign.apply):
            assert torch.autograd.gradcheck(
                lambda x, f=function: f(x, rois, (2, 2), 0.5, ratio, mode, True), (maps,)
            )

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_through_the_layer_of_mmcv(self, ops, mode):
        maps, rois = make_maps(), make_rois(6)
        layer = ops.RoIAlign((2, 3), 0.5, 2, mode, True)
        expected = roi_align_by_hand(maps.double(), rois.double(), (2, 3), 0.5, 2, mode, True)
        torch.testing.assert_close(layer(maps, rois).double(), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_no_rois(self, ops, mode):
        maps = make_maps().requires_grad_()
        output = ops.roi_align(maps, torch.zeros(0, 5), (2, 3), 1.0, 0, mode, True)
        assert output.shape == (0, 3, 2, 3)
        output.sum().backward()
        assert torch.equal(maps.grad, torch.zeros_like(maps))

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_roi_without_area(self, mode):
        maps = make_maps().requires_grad_()
        rois = torch.tensor([[0.0, 2, 2, 2, 2], [1, 1, 1, 5, 5]])
        output = RoIAlign.apply(maps, rois, (2, 2), 1.0, 0, mode, True)
        assert torch.equal(output[0], torch.zeros(3, 2, 2))
        output.sum().backward()
        assert torch.equal(maps.grad[0], torch.zeros(3, 7, 9))
        assert maps.grad[1].abs().sum() > 0

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_point_one_pixel_outside_counts_as_the_border(self, mode):
        # The outermost point that counts; max pooling in mmcv gives no gradient there.
        maps = make_maps().requires_grad_()
        rois = torch.tensor([[0.0, -1.5, -1.5, 0.5, 0.5]])
        output = RoIAlign.apply(maps, rois, (1, 1), 1.0, 1, mode, True)
        output.sum().backward()
        assert torch.equal(output[0, :, 0, 0], maps[0, :, 0, 0])
        expected = torch.zeros_like(maps)
        expected[0, :, 0, 0] = 1
        assert torch.equal(maps.grad, expected)

    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_roi_outside_of_the_map(self, mode):
        maps = make_maps().requires_grad_()
        rois = torch.tensor([[0.0, 90, 90, 99, 99]])
        output = RoIAlign.apply(maps, rois, (2, 2), 1.0, 2, mode, True)
        output.sum().backward()
        assert torch.equal(output, torch.zeros(1, 3, 2, 2))
        assert torch.equal(maps.grad, torch.zeros_like(maps))

    @pytest.mark.parametrize('ratio', [0, 1, 2])
    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_result_does_not_depend_on_the_chunks(self, monkeypatch, mode, ratio):
        rois = make_rois(12, dtype=torch.float64)

        def both():
            maps = make_maps(dtype=torch.float64).requires_grad_()
            output = RoIAlign.apply(maps, rois, (2, 3), 1.0, ratio, mode, True)
            (output * torch.arange(output.numel()).view_as(output)).sum().backward()
            return output, maps.grad

        expected = both()
        seen = []
        neighbours = roi_points.neighbours

        def recorded(y, x, height, width):
            seen.append(len(y))
            return neighbours(y, x, height, width)

        for module in (roi_points, roi_align):
            monkeypatch.setattr(module, 'neighbours', recorded)
        monkeypatch.setattr(roi_align, 'MAX_POINTS', 20)
        monkeypatch.setattr(roi_align, 'MAX_VALUES', 60)
        for a, b in zip(both(), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
        assert len(seen) > 2
        # One bin may hold more than the limit: 20 x 14 points in the largest roi.
        assert max(seen) <= (280 if ratio == 0 else 20)

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize('mode', ['avg', 'max'])
    def test_half_precision_computes_in_float32(self, mode, dtype):
        maps, rois = make_maps().to(dtype).requires_grad_(), make_rois(12)
        full = maps.detach().float().requires_grad_()
        args = (rois, (2, 2), 1.0, 2, mode, True)
        output, expected = RoIAlign.apply(maps, *args), RoIAlign.apply(full, *args)
        assert output.dtype == dtype
        assert torch.equal(output, expected.to(dtype))
        if mode == 'avg':
            grad = torch.ones_like(output)
            output.backward(grad)
            expected.backward(grad.float())
            assert torch.equal(maps.grad, full.grad.to(dtype))

    def test_backward_adds_to_the_gradient(self):
        rois, grad = make_rois(4), torch.ones(4, 3, 2, 2)
        first, empty = torch.zeros(2, 3, 7, 9), torch.zeros(0)
        args = (2, 2, 1.0, 2, 1, True)
        roi_align.roi_align_backward(grad, rois, empty, empty, first, *args)
        second = torch.ones_like(first)
        roi_align.roi_align_backward(grad, rois, empty, empty, second, *args)
        torch.testing.assert_close(second, first + 1)

    def test_first_of_equal_values_gets_the_gradient(self):
        maps = torch.zeros(1, 1, 4, 4, requires_grad=True)
        rois = torch.tensor([[0.0, 0, 0, 4, 4]])
        RoIAlign.apply(maps, rois, (1, 1), 1.0, 4, 'max', True).sum().backward()
        expected = torch.zeros(4, 4)
        expected[0, 0] = 1
        assert torch.equal(maps.grad[0, 0], expected)

    def test_wrong_arguments(self):
        maps = make_maps()

        def run(roi, mode='avg'):
            RoIAlign.apply(maps, torch.tensor([roi]), (2, 2), 1.0, 2, mode, True)

        with pytest.raises(ValueError, match=r'rois must have shape \(N, 5\).*got \(1, 4\)'):
            run([0.0, 1, 2, 3])
        with pytest.raises(ValueError, match='x2 >= x1 and y2 >= y1'):
            run([0.0, 3, 3, 2, 4])
        with pytest.raises(ValueError, match='x2 >= x1 and y2 >= y1'):
            run([0.0, float('nan'), 3, 2, 4])
        with pytest.raises(ValueError, match='outside of the batch of 2: 2 to 2'):
            run([2.0, 1, 1, 2, 2])
        with pytest.raises(ValueError, match='outside of the batch of 2: -1 to -1'):
            run([-1.0, 1, 1, 2, 2])
        with pytest.raises(ValueError, match=r'pool_mode must be 0 \(max\) or 1 \(avg\), got 2'):
            roi_align.roi_align_forward(maps, make_rois(4), *[maps] * 3, 2, 2, 1.0, 2, 2, True)

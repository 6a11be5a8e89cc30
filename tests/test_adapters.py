import copy
import io

import pytest
import torch
from torch import nn

from kd_dense.adapters import Adapter, OrthogonalConv, map_size, resize, tokens_to_map


@pytest.mark.parametrize('size', [(4, 4), (8, 8), (16, 12), (3, 5)])
@pytest.mark.parametrize('channels', [6, 32])
def test_gives_the_shape_of_the_teacher(size, channels):
    maps = torch.randn(2, 6, 8, 8, requires_grad=True)
    adapted = Adapter(6, channels)(maps, size)
    assert adapted.shape == (2, channels, *size)
    adapted.sum().backward()
    assert maps.grad.abs().sum() > 0


def test_equal_shapes_pass_through_untouched():
    adapter = Adapter(6, 6)
    maps = torch.randn(2, 6, 8, 8)
    assert adapter(maps, (8, 8)) is maps
    assert not list(adapter.parameters())


def test_convolution_and_resize_commute():
    adapter = Adapter(6, 3)
    maps = torch.randn(2, 6, 8, 8)
    for size in ((4, 4), (16, 16)):
        after = resize(adapter.conv(maps), size)
        before = adapter.conv(resize(maps, size))
        assert torch.allclose(after, before, atol=1e-6)
        assert torch.allclose(adapter(maps, size), after, atol=1e-6)


def test_the_convolution_runs_at_the_smaller_size():
    adapter, seen = Adapter(6, 3), []
    adapter.conv.register_forward_hook(lambda module, args, out: seen.append(out.shape[-1]))
    maps = torch.randn(1, 6, 8, 8)
    adapter(maps, (16, 16))
    adapter(maps, (4, 4))
    assert seen == [8, 4]


def test_resize_keeps_a_constant_and_the_corners_in_place():
    assert torch.equal(resize(torch.ones(1, 1, 3, 5), (7, 2)), torch.ones(1, 1, 7, 2))
    ramp = torch.arange(8.0).view(1, 1, 1, 8)
    assert torch.allclose(resize(ramp, (1, 4)), torch.tensor([0.5, 2.5, 4.5, 6.5]))


def test_is_a_module_of_its_own_parameters_only():
    names = [name for name, _ in nn.ModuleList([Adapter(2, 3)]).named_parameters()]
    assert names == ['0.conv.weight', '0.conv.bias']


class TestNorm:
    def test_stands_behind_a_convolution_without_bias(self):
        adapter = Adapter(6, 6, norm=True)
        maps = torch.randn(2, 6, 8, 8)
        adapted = adapter(maps, (4, 4))
        expected = nn.BatchNorm2d(6)(adapter.conv(resize(maps, (4, 4))))
        assert torch.allclose(adapted, expected)
        names = [name for name, _ in adapter.named_parameters()]
        assert names == ['conv.weight', 'norm.weight', 'norm.bias']

    def test_runs_at_the_smaller_size_as_the_convolution_does(self):
        adapter = Adapter(6, 3, norm=True)
        maps = torch.randn(2, 6, 4, 4)
        expected = resize(nn.BatchNorm2d(3)(adapter.conv(maps)), (8, 8))
        assert torch.allclose(adapter(maps, (8, 8)), expected)


class TestAlways:
    def test_is_a_convolution_where_the_channels_agree(self):
        assert isinstance(Adapter(6, 6, always=True).conv, nn.Conv2d)


class TestOrthogonal:
    @pytest.mark.parametrize(('ours', 'theirs'), [(6, 6), (6, 9), (9, 6), (1, 4), (4, 1)])
    def test_whatever_the_parameter_has_become(self, ours, theirs):
        conv = OrthogonalConv(ours, theirs)
        assert torch.allclose(conv.orthogonal(), conv.weight, atol=1e-6)  # as it starts
        with torch.no_grad():
            conv.weight.copy_(3 * torch.randn(theirs, ours))
        weight = conv.orthogonal()
        gram = weight.mT @ weight if theirs >= ours else weight @ weight.mT
        assert torch.allclose(gram, torch.eye(min(ours, theirs)), atol=1e-5)
        maps = torch.randn(2, ours, 3, 5)
        expected = torch.einsum('oi,nihw->nohw', weight, maps)
        assert torch.allclose(conv(maps), expected, atol=1e-5)

    def test_lengths_stay_where_no_channel_is_lost(self):
        maps = torch.randn(2, 6, 3, 5)
        adapted = Adapter(6, 9, orthogonal=True)(maps, (3, 5))
        assert torch.allclose(adapted.norm(dim=1), maps.norm(dim=1), atol=1e-5)

    @pytest.mark.parametrize(('ours', 'theirs'), [(3, 4), (4, 3), (3, 3)])
    def test_gradient_is_right(self, ours, theirs):
        conv = OrthogonalConv(ours, theirs).double()

        def run(weight, maps):
            return torch.func.functional_call(conv, {'weight': weight}, maps)

        weight = torch.randn(theirs, ours, dtype=torch.float64, requires_grad=True)
        maps = torch.randn(1, ours, 2, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(run, (weight, maps))

    def test_learns_a_rotation(self):
        torch.manual_seed(0)
        turn = torch.linalg.qr(torch.randn(4, 4)).Q
        turn[0] *= torch.linalg.det(turn).sign()
        adapter = Adapter(4, 4, orthogonal=True)
        with torch.no_grad():
            adapter.conv.weight[0] *= torch.linalg.det(adapter.conv.weight).sign()
        optimizer = torch.optim.Adam(adapter.parameters(), 0.05)
        for _ in range(150):
            maps = torch.randn(2, 4, 4, 4)
            loss = (adapter(maps, (4, 4)) - torch.einsum('oi,nihw->nohw', turn, maps)).square()
            optimizer.zero_grad()
            loss.mean().backward()
            optimizer.step()
        assert loss.mean() < 1e-3

    def test_is_an_ordinary_module(self):
        """Copies, pickles, moves to half precision and to meta, and runs under autocast."""
        adapter = Adapter(4, 6, norm=True, orthogonal=True).eval()
        maps = torch.randn(2, 4, 3, 3)
        expected = adapter(maps, (3, 3))
        names = [name for name, _ in adapter.named_parameters()]
        assert names == ['conv.weight', 'norm.weight', 'norm.bias']
        file = io.BytesIO()
        torch.save(adapter, file)
        file.seek(0)
        other = Adapter(4, 6, norm=True, orthogonal=True).eval()
        other.load_state_dict(adapter.state_dict())
        for same in (copy.deepcopy(adapter), torch.load(file, weights_only=False), other):
            assert torch.equal(same(maps, (3, 3)), expected)
        with torch.autocast('cpu', torch.bfloat16):
            assert torch.allclose(adapter(maps, (3, 3)).float(), expected, atol=0.05)
        half = copy.deepcopy(adapter).bfloat16()(maps.bfloat16(), (3, 3))
        assert half.dtype == torch.bfloat16
        assert torch.allclose(half.float(), expected, atol=0.1)
        assert copy.deepcopy(adapter).to('meta')(maps.to('meta'), (6, 6)).shape == (2, 6, 6, 6)


class TestTokens:
    def test_are_put_row_by_row_and_those_in_front_left_out(self):
        maps = torch.randn(2, 5, 3, 4)
        tokens = maps.flatten(2).mT
        assert torch.equal(tokens_to_map(tokens, (3, 4)), maps)
        assert torch.equal(tokens_to_map(torch.cat([tokens[:, :2], tokens], 1), (3, 4)), maps)

    @pytest.mark.parametrize('shape', [(2, 11, 5), (2, 5, 3, 4)])
    def test_too_few(self, shape):
        with pytest.raises(ValueError, match=r'L >= 3 \* 4, got \(2, '):
            tokens_to_map(torch.zeros(shape), (3, 4))

    @pytest.mark.parametrize('extra', [0, 1, 2, 5])
    @pytest.mark.parametrize('image', [(64, 64), (128, 256), (512, 1024), (224, 224), (800, 1344)])
    def test_their_size_is_found_in_whole_patches(self, image, extra):
        size = image[0] // 16, image[1] // 16
        assert map_size(size[0] * size[1] + extra, image) == size

    @pytest.mark.parametrize(
        ('image', 'stride'),
        [((800, 1333), 32), ((427, 640), 16), ((97, 769), 8), ((65, 257), 16), ((769, 769), 4)],
    )
    @pytest.mark.parametrize('up', [0, 1])
    def test_their_size_is_found_where_sides_are_rounded(self, image, stride, up):
        size = tuple((side + up * (stride - 1)) // stride for side in image)
        assert map_size(size[0] * size[1], image) == size

    def test_no_map(self):
        assert map_size(101, (512, 1024)) is None
        assert map_size(64 * 64 + 3, (512, 512)) is None

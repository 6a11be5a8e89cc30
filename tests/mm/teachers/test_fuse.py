"""Which batch norms are folded into convolutions."""

import torch
from torch import nn

from kd_dense.mm.teachers.fuse import fuse_norms


def trained(model):
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
    return model.eval().double()


def test_the_function_stays():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    model = trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), inner))
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    expected = model(x)
    assert fuse_norms(model) == 2
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    torch.testing.assert_close(model(x), expected)


def test_a_convolution_with_two_norms_keeps_them():
    conv = nn.Conv2d(4, 4, 1)
    levels = nn.ModuleList(nn.Sequential(conv, nn.BatchNorm2d(4)) for _ in range(2))
    assert fuse_norms(levels.eval()) == 0


def test_what_does_not_fit_stays():
    norms = nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4)
    for norm in norms:
        assert fuse_norms(nn.Sequential(nn.Conv2d(3, 4, 1), norm).eval()) == 0
    assert fuse_norms(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)).eval()) == 0


def test_a_convolution_can_be_kept():
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))).eval()
    assert fuse_norms(model, kept=['0.0']) == 0
    assert fuse_norms(model) == 1

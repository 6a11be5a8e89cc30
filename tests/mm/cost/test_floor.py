import torch
from torch import nn

from kd_dense.mm.cost.floor import largest_layer


def test_largest_layer_counts_input_and_output_once():
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(inplace=True), nn.Conv2d(6, 1, 1))
    x = torch.zeros(1, 2, 4, 4)
    assert largest_layer(model, lambda: model(x)) == 4 * 16 * (2 + 6)
    assert largest_layer(model, lambda: model[1:](torch.zeros(1, 6, 4, 4))) == 4 * 16 * 7

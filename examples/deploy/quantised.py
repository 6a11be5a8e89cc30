"""A student that is trained as it will compute in eight bits, with torch's own fake quantisation.

`type='Quantised'` in a config builds another model and puts it into its convolutions and behind
them. What it returns is a model like any other, which distils like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.ao.quantization as quantization
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch import nn


class Fake(quantization.FakeQuantize):
    """Rounds to eight bits; learns the range of its values in training alone."""

    def train(self, mode: bool = True) -> Fake:
        self.enable_observer(mode)
        super().train(mode)
        return self


@MODELS.register_module(force=True)
def Quantised(  # noqa: N802  (a type in configs)
    model: Mapping[str, Any],
    checkpoint: str | None = None,
    data_preprocessor: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a model, and prepare it for quantisation-aware training.

    Args:
        model: Its config.
        checkpoint: Weights that it starts from; by default what its own config says.
        data_preprocessor: For a model whose config has none.
    """
    config = dict(model)
    if data_preprocessor is not None:
        config.setdefault('data_preprocessor', data_preprocessor)
    found = MODELS.build(config)
    found.train()
    if checkpoint is not None:
        load_checkpoint(found, checkpoint, map_location='cpu', strict=True)
        for part in found.modules():
            part._is_init = True  # the Runner would set all weights anew
    for part in [*found.modules()]:
        names = [
            [first, second]
            for (first, conv), (second, norm) in pairwise(part.named_children())
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d
        ]
        if names:  # the norm belongs to the weights that are rounded
            quantization.fuse_modules_qat(part, names, inplace=True)
    observer = quantization.MovingAverageMinMaxObserver
    found.qconfig = quantization.QConfig(
        activation=Fake.with_args(observer=observer, quant_min=0, quant_max=255),
        weight=Fake.with_args(
            observer=observer,
            quant_min=-128,
            quant_max=127,
            dtype=torch.qint8,
            qscheme=torch.per_tensor_symmetric,
        ),
    )
    return quantization.prepare_qat(found, inplace=True)

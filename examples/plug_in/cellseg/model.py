"""The model: an encoder and a decoder with one jump between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.nn import functional as F

from cellseg.registry import MODELS


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A convolution with what belongs to it."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def stage(inputs: int, outputs: int, depth: int) -> nn.Sequential:
    """Blocks, of which the first halves height and width."""
    more = [block(outputs, outputs) for _ in range(depth - 1)]
    return nn.Sequential(block(inputs, outputs, stride=2), *more)


@MODELS.register_module()
class CellNet(BaseModel):
    """Classify each pixel.

    Args:
        width: Channels of the first layer.
        depth: Blocks of each stage.
        classes: Number of classes.
        data_preprocessor: As mmengine has them.
    """

    def __init__(
        self, width: int, depth: int = 2, classes: int = 3, data_preprocessor: Any = None
    ) -> None:
        super().__init__(data_preprocessor)
        self.stem = block(3, width)
        self.encoder = nn.Sequential(
            stage(width, 2 * width, depth),
            stage(2 * width, 4 * width, depth),
        )
        self.decoder = block(5 * width, 2 * width)
        self.classify = nn.Conv2d(2 * width, classes, 1)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence[BaseDataElement] | None = None,
        mode: str = 'tensor',
    ) -> Any:
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        return self.logits(inputs)

    def logits(self, inputs: Tensor) -> Tensor:
        """Score the classes of each pixel, ``(N, classes, H, W)``."""
        fine = self.stem(inputs)
        coarse = F.interpolate(self.encoder(fine), inputs.shape[-2:], mode='bilinear')
        return self.classify(self.decoder(torch.cat([fine, coarse], 1)))

    def loss(self, inputs: Tensor, data_samples: Any) -> dict[str, Tensor]:
        labels = torch.stack([sample.cells for sample in data_samples])
        return dict(loss_ce=F.cross_entropy(self.logits(inputs), labels))

    def predict(self, inputs: Tensor, data_samples: Any) -> Any:
        for sample, found in zip(data_samples, self.logits(inputs).argmax(1), strict=True):
            sample.found = found
        return data_samples

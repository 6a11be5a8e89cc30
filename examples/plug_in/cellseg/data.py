"""The data: drawn cells, of two kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch.utils.data import Dataset

from cellseg.registry import DATASETS


@DATASETS.register_module()
class Cells(Dataset):
    """Pictures of cells on a noisy ground, with a label for each pixel.

    0 is the ground, 1 a cell with a nucleus, 2 a cell without. A picture depends on its number
    alone.

    Args:
        count: Number of pictures.
        first: The number of the first one.
        side: Height and width, in pixels.
    """

    metainfo = dict(classes=('ground', 'with nucleus', 'without'))

    def __init__(self, count: int, first: int = 0, side: int = 64) -> None:
        self.count, self.first, self.side = count, first, side

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(self.first + index)
        y, x = np.mgrid[: self.side, : self.side]
        labels = np.zeros((self.side, self.side), np.int64)
        picture = np.full((self.side, self.side), rng.uniform(90, 160))
        for kind in rng.integers(1, 3, rng.integers(4, 9)):
            size, squeeze, angle = rng.uniform(5, 11), rng.uniform(0.6, 1), rng.uniform(0, 3.2)
            cx, cy = rng.uniform(0, self.side, 2)
            u = ((x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)) / size
            v = ((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)) / size / squeeze
            radius, contrast = np.hypot(u, v), rng.uniform(12, 35)
            picture = np.where(radius < 1, picture + contrast, picture)
            if kind == 1:
                picture = np.where(radius < 0.35, picture - contrast, picture)
            labels[radius < 1] = kind
        noise = rng.normal(0, rng.uniform(6, 16), (3, self.side, self.side))
        pixels = torch.from_numpy((picture + noise).clip(0, 255).astype(np.uint8))
        sample = BaseDataElement(metainfo=dict(img_shape=(self.side, self.side)))
        sample.cells = torch.from_numpy(labels)
        return dict(inputs=pixels, data_samples=sample)

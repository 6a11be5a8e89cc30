"""A miniature of ApolloScape's road markings, in its folders and with its numbers."""

from __future__ import annotations

from pathlib import Path

import mmcv
import numpy as np

from kd_dense.mm.stack.apolloscape import CLASSES

# 3384x2710 pixels become
APOLLOSCAPE_SIZE = (212, 169)


def make_apolloscape(root: Path) -> Path:
    """Write four pictures of two roads to train on, and two of a third to evaluate on."""
    rng = np.random.default_rng(0)
    width, height = APOLLOSCAPE_SIZE
    numbers = np.array([marking.id for marking in CLASSES[1:]], dtype=np.uint8)
    for road, record, count in (
        ('road02', 'Record001', 2),
        ('road03', 'Record001', 1),
        ('road03', 'Record002', 1),
        ('road04', 'Record015', 2),
    ):
        for index in range(count):
            labels = np.zeros((height, width), dtype=np.uint8)
            labels[:8] = 255
            for left in range(0, width - 16, 16):  # the road lies in the lower part
                labels[120:160, left : left + 8] = rng.choice(numbers)
            noise = rng.integers(0, 60, (height, width, 3))
            pixels = (labels[..., None] // 2 + noise).clip(0, 255).astype(np.uint8)
            name = f'171206_0000{index:05d}_Camera_5'
            place = Path(record, 'Camera_5', name)
            image = root / f'ColorImage_{road}' / 'ColorImage' / place
            mmcv.imwrite(pixels, f'{image}.jpg')
            mmcv.imwrite(labels, f'{root / f"Labels_{road}" / "Label" / place}_bin.png')
    return root

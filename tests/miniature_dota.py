"""A miniature of DOTA, cut into pieces as mmrotate's tool does."""

from __future__ import annotations

from pathlib import Path

import mmcv
import numpy as np

# 1024x1024 pixels become
DOTA_SIZE, DOTA_SHRINK = 128, 8
CLASSES = ('plane', 'ship', 'small-vehicle')


def make_dota(root: Path) -> Path:
    """Write four pieces with objects at all angles, and one more without objects."""
    rng = np.random.default_rng(0)
    labels = root / 'trainval' / 'annfiles'
    labels.mkdir(parents=True)
    for index in range(5):
        pixels = rng.integers(0, 256, (DOTA_SIZE, DOTA_SIZE, 3), dtype=np.uint8)
        mmcv.imwrite(pixels, str(root / 'trainval' / 'images' / f'P{index:04d}.png'))
        lines = []
        for which in range(0 if index == 4 else 3):
            angle, centre = rng.uniform(0, np.pi), rng.uniform(40, 90, 2)
            half = np.array([rng.uniform(16, 30), rng.uniform(6, 12)])
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
            corners = (centre + (signs * half) @ turn.T).round(1).ravel()
            lines.append(f'{" ".join(map(str, corners))} {CLASSES[which]} {which // 2}\n')
        (labels / f'P{index:04d}.txt').write_text(''.join(lines))
    return root

"""The metric: overlap of what was found with what is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric

from cellseg.registry import METRICS


@METRICS.register_module()
class CellIoU(BaseMetric):
    """Mean over the classes of intersection over union, in percent."""

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            pairs = sample['cells'] * classes + sample['found']
            self.results.append(pairs.flatten().bincount(minlength=classes**2).cpu())

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        classes = len(self.dataset_meta['classes'])
        counts = torch.stack(results).sum(0).view(classes, classes)
        both = counts.diag()
        either = counts.sum(0) + counts.sum(1) - both
        return dict(mIoU=100 * (both / either).mean().item())

"""Tiny detectors of rotated boxes, where mmrotate is installed."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.structures import InstanceData

from tests.mm import toy

needs_mmrotate = pytest.mark.skipif(
    find_spec('mmrotate') is None,
    reason='mmrotate is not installed: pip install kd_dense[rotate]',
)
ZOO = {
    'retina': 'rotated_retinanet/rotated-retinanet-hbox-oc_r50_fpn_1x_dota.py',
    'retina-rbox': 'rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py',
    'gwd': 'gwd/rotated-retinanet-hbox-oc_r50_fpn_gwd_1x_dota.py',
    'fcos': 'rotated_fcos/rotated-fcos-le90_r50_fpn_1x_dota.py',
}
# The heads of the zoo with distributions.
DISTRIBUTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    'ld-retina': ('retina', dict(type='kd_dense.DistributionRotatedRetinaHead')),
    'ld-gwd': ('gwd', dict(type='kd_dense.DistributionRotatedRetinaHead')),
    'ld-fcos': (
        'fcos',
        dict(type='kd_dense.DistributionRotatedFCOSHead', norm_on_bbox=False, reg_max=8),
    ),
}
LD = {
    'ld-retina': dict(type='RotatedLDLoss'),
    'ld-gwd': dict(type='RotatedLDLoss'),
    'ld-fcos': dict(type='LDLoss', region='inside', vlr_weight=0.0625, vlr_factor=4.0),
}
KINDS = [*ZOO, *DISTRIBUTIONS]


def config(kind: str) -> Config:
    """The zoo's."""
    return get_config(f'mmrotate::{ZOO[DISTRIBUTIONS.get(kind, (kind,))[0]]}')


def detector(kind: str, width: int = 8, **head: Any) -> ConfigDict:
    """The config of a detector of the zoo, cut down; ``head`` changes fields of its head."""
    model = config(kind).model
    model.pop('_scope_', None)
    model.backbone = dict(type='mmdet.ResNet', depth=18, base_channels=width, norm_eval=False)
    model.neck.in_channels = [width, 2 * width, 4 * width, 8 * width]
    model.neck.out_channels = model.bbox_head.in_channels = 2 * width
    model.bbox_head.update(
        num_classes=3, feat_channels=16, stacked_convs=1, norm_cfg=dict(type='GN', num_groups=2)
    )
    model.bbox_head.update(DISTRIBUTIONS.get(kind, (kind, {}))[1])
    model.bbox_head.update(head)
    return ConfigDict(_scope_='mmrotate', **model)


def distilled(kind: str, terms: Any, **others: Any) -> ConfigDict:
    """The config of such a detector that learns from a wider one."""
    return toy.distilled(
        **{
            'student': detector(kind),
            'teacher': dict(config=detector(kind, 16), checkpoint=None),
            'terms': terms,
            **others,
        }
    )


class RotatedScenes(toy.DetScenes):
    """The same with boxes that are turned; the first picture has none."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        from mmrotate.structures import RotatedBoxes

        item = super().__getitem__(index)
        (x1, y1, x2, y2), count = self.boxes[index].T, len(self.boxes[index])
        angle = torch.linspace(-1.4, 1.4, count)
        boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, (y2 - y1) / 2, angle], 1)
        item['data_samples'].gt_instances = InstanceData(
            bboxes=RotatedBoxes(boxes), labels=torch.arange(count) % 3
        )
        return item

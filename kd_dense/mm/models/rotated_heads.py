"""mmrotate's FCOS head with distributions of the sides and the angle of a box.

Imports mmrotate when it is imported, as ``distribution_heads.py`` imports mmdet.
"""

from __future__ import annotations

from math import pi
from typing import Any

import torch
from mmdet.models.dense_heads import FCOSHead
from mmdet.models.losses import L1Loss, SmoothL1Loss
from mmrotate.models.dense_heads import RotatedFCOSHead
from torch import Tensor, nn

from kd_dense.mm.models.distribution_heads import check_ranges, expected

__all__ = ['DistributionRotatedFCOSHead']


class DistributionRotatedFCOSHead(RotatedFCOSHead):
    """mmrotate's ``RotatedFCOSHead`` with box distributions.

    Where that yields four distances and an angle in two maps, this has one with the distributions
    of all five. Nobody has published results of it: Zheng et al. (TPAMI 2023) distil RetinaNet.

    Args:
        reg_max: Largest distance from a point to a side of its box, in strides. A distribution
            has ``reg_max + 1`` bins, evenly spaced.
        angle_range: What the first and the last bin of the angle stand for, in radians.
        norm_on_bbox: ``False``: distances are in strides in any case.
        kwargs: Those of ``RotatedFCOSHead``.

    Raises:
        ValueError: If ``reg_max`` is less than 1, ``norm_on_bbox`` is true, ``loss_bbox`` is an
            L1 loss, the angle is coded in several numbers, or a range is empty.
    """

    def __init__(
        self,
        *args: Any,
        reg_max: int = 16,
        angle_range: tuple[float, float] = (-pi / 2, pi / 2),
        norm_on_bbox: bool = False,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        if reg_max < 1:
            raise ValueError(f'{name} expects reg_max >= 1, got {reg_max}')
        if norm_on_bbox:
            raise ValueError(
                f'{name} predicts distances in strides in any case: expected '
                'norm_on_bbox=False, got True'
            )
        self.reg_max = reg_max
        self.bins = check_ranges(name, (0.0, float(reg_max)), angle_range)
        super().__init__(*args, norm_on_bbox=False, **kwargs)
        if self.angle_coder.encode_size != 1:
            raise ValueError(
                f'{name} has a distribution of the angle itself: expected the angle_coder '
                f'PseudoAngleCoder, got {type(self.angle_coder).__name__}'
            )
        if isinstance(self.loss_bbox, (L1Loss, SmoothL1Loss)):
            raise ValueError(
                f'{name} compares boxes in pixels, for which {type(self.loss_bbox).__name__} is '
                "no measure: say loss_bbox=dict(type='RotatedIoULoss', loss_weight=1.0)"
            )

    def _init_layers(self) -> None:
        super()._init_layers()
        for name in ('conv_reg', 'conv_angle'):
            layer = getattr(self, name)
            width = layer.out_channels * (self.reg_max + 1)
            wide = nn.Conv2d(layer.in_channels, width, layer.kernel_size, padding=layer.padding)
            setattr(self, name, wide)

    def forward_single(self, x: Tensor, scale: nn.Module, stride: int) -> tuple[Tensor, ...]:
        # What RotatedFCOSHead adds here makes four numbers positive.
        cls_score, sides, cls_feat, reg_feat = super(FCOSHead, self).forward_single(x)
        centerness = self.conv_centerness(reg_feat if self.centerness_on_reg else cls_feat)
        angle = self.conv_angle(reg_feat)
        if self.is_scale_angle:
            angle = self.scale_angle(angle)
        return cls_score, torch.cat([scale(sides).float(), angle.float()], 1), centerness

    def numbers(self, bbox_preds: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Turn the distributions of all levels into expected distances and angles.

        Args:
            bbox_preds: Logits, ``(N, 5 * (reg_max + 1), H, W)`` for each level.

        Returns:
            Distances to the four sides in pixels, ``(N, 4, H, W)`` for each level, and angles in
            radians, ``(N, 1, H, W)``, at least float32.
        """
        sides, angles = (
            torch.linspace(*ends, self.reg_max + 1, device=bbox_preds[0].device)
            for ends in self.bins
        )
        found = [expected(x, torch.stack([sides] * 4 + [angles])) for x in bbox_preds]
        strides = (stride for stride, _ in self.prior_generator.strides)
        distances = [x[:, :4] * stride for x, stride in zip(found, strides, strict=True)]
        return distances, [x[:, 4:] for x in found]

    def loss_by_feat(
        self, cls_scores: list[Tensor], bbox_preds: list[Tensor], *args: Any, **kwargs: Any
    ) -> Any:
        return super().loss_by_feat(cls_scores, *self.numbers(bbox_preds), *args, **kwargs)

    def predict_by_feat(
        self, cls_scores: list[Tensor], bbox_preds: list[Tensor], *args: Any, **kwargs: Any
    ) -> Any:
        return super().predict_by_feat(cls_scores, *self.numbers(bbox_preds), *args, **kwargs)

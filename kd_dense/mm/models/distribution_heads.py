"""mmdet's ATSS, FCOS and RetinaNet heads with a distribution for each side of a box.

Zheng et al., "Localization Distillation for Dense Object Detection", CVPR 2022, distil these
detectors after giving them the box distributions of GFL (Li et al., NeurIPS 2020); and RetinaNet
for rotated boxes in "Localization Distillation for Object Detection", TPAMI 2023.

Importing this file imports mmdet: see ``heads.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import ATSSHead, FCOSHead, RetinaHead
from mmdet.models.losses import L1Loss, SmoothL1Loss
from mmdet.models.task_modules.coders import DistancePointBBoxCoder
from torch import Tensor, nn

from kd_dense.functional import at_least_float32

__all__ = [
    'DistributionATSSHead',
    'DistributionFCOSHead',
    'DistributionRetinaHead',
    'DistributionRotatedRetinaHead',
    'check_ranges',
    'expected',
]


def expected(logits: Tensor, bins: Tensor) -> Tensor:
    """The expected values of distributions.

    Args:
        logits: ``(N, K * S * B, H, W)``: K anchors, S numbers of a box.
        bins: What each of the B bins of a number stands for, ``(S, B)`` or ``(1, B)`` for all.

    Returns:
        ``(N, K * S, H, W)``, at least float32.
    """
    sides, count = bins.shape
    shares = at_least_float32(logits).unflatten(1, (-1, sides, count)).softmax(3)
    numbers: Tensor = (shares * bins[..., None, None]).sum(3)
    return numbers.flatten(1, 2)


def check_ranges(owner: str, *ranges: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """Check what the first and the last bin stand for, and return it as tuples."""
    for low, high in ranges:
        if not low < high:
            raise ValueError(f'{owner} expects bins from low to high, got ({low}, {high})')
    return tuple((float(low), float(high)) for low, high in ranges)


class _Distributions:
    r"""Mixed into a head of mmdet: distributions take the place of four numbers.

    ``forward`` yields, for each side of a box, logits of the distances 0, 1, ..., ``reg_max``
    between the prior and the side, in strides of the level. Loss and prediction of mmdet's
    head see the expected distances, in pixels:

    $$
    d = \mathrm{stride} \sum_{i = 0}^{n} i\, \sigma(x)_i
    $$
    """

    REG_LAYER: str  # the head's layer that predicts boxes
    IN_PIXELS = True  # whether boxes are compared in pixels
    reg_max: int

    def __init__(self, *args: Any, reg_max: int = 16, **kwargs: Any) -> None:
        if reg_max < 1:
            raise ValueError(f'{type(self).__name__} expects reg_max >= 1, got {reg_max}')
        self.reg_max = reg_max
        super().__init__(*args, **kwargs)
        compares = self.loss_bbox  # type: ignore[attr-defined]
        if self.IN_PIXELS and isinstance(compares, (L1Loss, SmoothL1Loss)):
            raise ValueError(
                f'{type(self).__name__} compares boxes in pixels, for which '
                f'{type(compares).__name__} is no measure: '
                "say loss_bbox=dict(type='GIoULoss', loss_weight=2.0)"
            )

    def _init_layers(self) -> None:
        super()._init_layers()  # type: ignore[misc]
        layer = getattr(self, self.REG_LAYER)
        width = layer.out_channels * (self.reg_max + 1)
        wide = nn.Conv2d(layer.in_channels, width, layer.kernel_size, padding=layer.padding)
        setattr(self, self.REG_LAYER, wide)

    def loss_by_feat(
        self, cls_scores: list[Tensor], bbox_preds: list[Tensor], *args: Any, **kwargs: Any
    ) -> Any:
        distances = self.distances(bbox_preds)
        return super().loss_by_feat(cls_scores, distances, *args, **kwargs)  # type: ignore[misc]

    def predict_by_feat(
        self, cls_scores: list[Tensor], bbox_preds: list[Tensor], *args: Any, **kwargs: Any
    ) -> Any:
        distances = self.distances(bbox_preds)
        return super().predict_by_feat(cls_scores, distances, *args, **kwargs)  # type: ignore[misc]

    def distances(self, bbox_preds: Sequence[Tensor]) -> list[Tensor]:
        """Turn the distributions of all levels into expected distances.

        Args:
            bbox_preds: Logits, ``(N, K * 4 * (reg_max + 1), H, W)`` for each level.

        Returns:
            Distances to the left, upper, right and lower side in pixels, ``(N, K * 4, H, W)``
            for each level, at least float32.
        """
        strides = self.prior_generator.strides  # type: ignore[attr-defined]
        bins = torch.arange(self.reg_max + 1, device=bbox_preds[0].device)[None]
        return [
            expected(x, bins) * stride for x, (stride, _) in zip(bbox_preds, strides, strict=True)
        ]


class _DistanceAnchorBBoxCoder(DistancePointBBoxCoder):
    """Boxes as distances from the centre of an anchor to their four sides."""

    def decode(self, priors: Tensor, distances: Tensor, max_shape: Any = None) -> Any:
        centers = (priors[..., :2] + priors[..., 2:]) / 2
        return super().decode(centers, distances, max_shape)


class _AnchorDistributions(_Distributions):
    """The same for a head with anchors: distances are from the centre of an anchor."""

    def __init__(
        self,
        *args: Any,
        bbox_coder: Any = None,
        reg_decoded_bbox: bool = True,
        **kwargs: Any,
    ) -> None:
        if not reg_decoded_bbox:
            raise ValueError(
                f'{type(self).__name__} compares decoded boxes: expected '
                'reg_decoded_bbox=True, got False'
            )
        coder = dict(type=_DistanceAnchorBBoxCoder)
        super().__init__(*args, bbox_coder=coder, reg_decoded_bbox=True, **kwargs)


class DistributionATSSHead(_AnchorDistributions, ATSSHead):
    """mmdet's ``ATSSHead`` with box distributions.

    Args:
        reg_max: Largest distance from the centre of an anchor to a side of its box, in strides.
            A distribution has ``reg_max + 1`` bins.
        bbox_coder: Without effect: what a stock config says here belongs to four numbers.
        reg_decoded_bbox: ``True``; boxes are what is compared.
        kwargs: Those of ``ATSSHead``; ``loss_bbox`` has to compare boxes, as ``GIoULoss`` does.

    Raises:
        ValueError: If ``reg_max`` is less than 1, ``reg_decoded_bbox`` is false or
            ``loss_bbox`` is an L1 loss.

    Examples:
        >>> from mmengine.registry import DefaultScope
        >>> with DefaultScope.overwrite_default_scope('mmdet'):
        ...     head = DistributionATSSHead(
        ...         num_classes=3,
        ...         in_channels=32,
        ...         feat_channels=32,
        ...         anchor_generator=dict(
        ...             type='AnchorGenerator', ratios=[1.0], scales=[8], strides=[8]
        ...         ),
        ...         loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        ...     )
        >>> classes, boxes, centerness = head([torch.zeros(1, 32, 4, 4)])
        >>> boxes[0].shape
        torch.Size([1, 68, 4, 4])
        >>> head.distances(boxes)[0].shape
        torch.Size([1, 4, 4, 4])
    """

    REG_LAYER = 'atss_reg'


class DistributionRetinaHead(_AnchorDistributions, RetinaHead):
    """mmdet's ``RetinaHead`` with box distributions; arguments as of the ATSS head above.

    All anchors of a position have its centre, so that their boxes differ only in what the head
    predicts for them.
    """

    REG_LAYER = 'retina_reg'


class DistributionRotatedRetinaHead(_Distributions, RetinaHead):
    """mmdet's ``RetinaHead`` as mmrotate uses it, with distributions of the five numbers of a box.

    These are those of the ``bbox_coder``: where the centre of the box lies from that of the
    anchor, in sides of the anchor, the logarithms of the ratios of their sides, and the angle.

    Args:
        reg_max: A distribution has ``reg_max + 1`` bins, evenly spaced.
        delta_range: What the first and the last bin of the first four numbers stand for.
        angle_range: Likewise of the angle, in radians.
        kwargs: Those of ``RetinaHead``; ``bbox_coder`` is one of mmrotate's that yields five
            numbers, as ``DeltaXYWHTRBBoxCoder``.

    Raises:
        ValueError: If ``reg_max`` is less than 1, a range is empty, or the coder has not five
            numbers.
    """

    REG_LAYER = 'retina_reg'
    IN_PIXELS = False

    def __init__(
        self,
        *args: Any,
        reg_max: int = 8,
        delta_range: tuple[float, float] = (-2.0, 2.0),
        angle_range: tuple[float, float] = (-5.0, 2.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, reg_max=reg_max, **kwargs)
        if self.bbox_coder.encode_size != 5:
            raise ValueError(
                f'{type(self).__name__} predicts rotated boxes: expected a bbox_coder of five '
                "numbers, as mmrotate's DeltaXYWHTRBBoxCoder, got "
                f'{type(self.bbox_coder).__name__} of {self.bbox_coder.encode_size}'
            )
        self.bins = check_ranges(type(self).__name__, delta_range, angle_range)

    def distances(self, bbox_preds: Sequence[Tensor]) -> list[Tensor]:
        """Turn the distributions of all levels into the expected numbers of boxes.

        Args:
            bbox_preds: Logits, ``(N, K * 5 * (reg_max + 1), H, W)`` for each level.

        Returns:
            What the ``bbox_coder`` decodes, ``(N, K * 5, H, W)`` for each level, at least float32.
        """
        first, second = (
            torch.linspace(*ends, self.reg_max + 1, device=bbox_preds[0].device)
            for ends in self.bins
        )
        bins = torch.stack([first] * 4 + [second])
        return [expected(x, bins) for x in bbox_preds]


class DistributionFCOSHead(_Distributions, FCOSHead):
    """mmdet's ``FCOSHead`` with box distributions.

    Args:
        reg_max: Largest distance from a point to a side of its box, in strides.
        norm_on_bbox: ``False``: distances are in strides in any case.
        kwargs: Those of ``FCOSHead``.

    Raises:
        ValueError: If ``reg_max`` is less than 1, ``norm_on_bbox`` is true or ``loss_bbox`` is
            an L1 loss.
    """

    REG_LAYER = 'conv_reg'

    def __init__(self, *args: Any, norm_on_bbox: bool = False, **kwargs: Any) -> None:
        if norm_on_bbox:
            raise ValueError(
                'DistributionFCOSHead predicts distances in strides in any case: expected '
                'norm_on_bbox=False, got True'
            )
        super().__init__(*args, norm_on_bbox=False, **kwargs)

    def forward_single(self, x: Tensor, scale: nn.Module, stride: int) -> tuple[Tensor, ...]:
        # What FCOSHead adds here makes four numbers positive.
        cls_score, bbox_pred, cls_feat, reg_feat = super(FCOSHead, self).forward_single(x)
        centerness = self.conv_centerness(reg_feat if self.centerness_on_reg else cls_feat)
        return cls_score, scale(bbox_pred).float(), centerness

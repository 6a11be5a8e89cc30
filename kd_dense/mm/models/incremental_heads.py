"""mmdet's GFL head for a student that learns new classes beside those of its teacher.

Imported as ``distribution_heads.py`` is: see ``heads.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmdet.models.dense_heads import GFLHead
from torch import Tensor

__all__ = ['IncrementalGFLHead']


class IncrementalGFLHead(GFLHead):
    """mmdet's ``GFLHead`` that computes its loss on the new classes alone.

    Its first classes are those of a teacher, which ``kd_dense.ERDLoss`` keeps. The labels of the
    training are those of a data set of the new classes, counted from 0; what the head predicts
    has all classes, the old ones first.

    Args:
        old_classes: How many of the classes are the teacher's.
        num_classes: Of all classes.
        kwargs: Those of ``GFLHead``.

    Raises:
        ValueError: If no class is new, or none is old.

    Examples:
        >>> from mmengine.registry import DefaultScope
        >>> with DefaultScope.overwrite_default_scope('mmdet'):
        ...     head = IncrementalGFLHead(
        ...         old_classes=2,
        ...         num_classes=3,
        ...         in_channels=32,
        ...         feat_channels=32,
        ...         anchor_generator=dict(
        ...             type='AnchorGenerator', ratios=[1.0], scales=[8], strides=[8]
        ...         ),
        ...         loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        ...     )
        >>> head.gfl_cls.out_channels
        3
    """

    num_classes: int
    cls_out_channels: int

    def __init__(self, old_classes: int, num_classes: int, *args: Any, **kwargs: Any) -> None:
        if not 0 < old_classes < num_classes:
            raise ValueError(
                f'IncrementalGFLHead expects 0 < old_classes < num_classes = {num_classes}, the '
                f"count of all classes, got old_classes={old_classes}: these are the teacher's"
            )
        super().__init__(num_classes, *args, **kwargs)
        self.old_classes = old_classes

    def loss_by_feat(self, cls_scores: list[Tensor], *args: Any, **kwargs: Any) -> Any:
        new = [x[:, self.old_classes :] for x in cls_scores]
        with self._new_classes():
            return super().loss_by_feat(new, *args, **kwargs)

    @contextmanager
    def _new_classes(self) -> Iterator[None]:
        """Be a head of the new classes."""
        before = self.num_classes, self.cls_out_channels
        self.num_classes = self.num_classes - self.old_classes
        self.cls_out_channels = self.cls_out_channels - self.old_classes
        try:
            yield
        finally:
            self.num_classes, self.cls_out_channels = before

"""Read the regions of interest (RoIs) that the student's box head was trained on."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from kd_dense.taps import TapError, Taps

__all__ = ['RoIs', 'read_rois']


class RoIs(NamedTuple):
    """The RoIs of a step, those of all images one after another.

    Attributes:
        boxes: Index of the image, x1, y1, x2, y2 in pixels of the batch, ``(R, 5)``.
        labels: Their classes, ``(R,)``; the background comes last.
    """

    boxes: Tensor
    labels: Tensor


def read_rois(taps: Taps, targets: str) -> RoIs:
    """Read the RoIs of a step.

    Args:
        taps: What was recorded in the student.
        targets: The tap of its box head's ``get_targets``.

    Raises:
        TapError: If the targets were not computed once.
    """
    from mmdet.structures.bbox import bbox2roi

    given, returned = taps.given(targets), taps.returned(targets)
    if len(returned) != 1:
        raise TapError(
            f'shared_rois=True takes the RoIs from {targets!r} of the student, which was expected '
            f'to run once in a step, and did so {len(returned)} times'
        )
    (sampled, *_), (labels, *_) = given[0], returned[0]
    return RoIs(bbox2roi([one.priors for one in sampled]), labels)

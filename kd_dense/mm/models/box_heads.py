"""Box heads on given regions of interest (RoIs): where they are, and how they are run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from inspect import Parameter, signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd_dense.mm.models.probe import Yield, replicate
from kd_dense.taps import TapError, Taps

__all__ = ['BoxHead', 'box_head_yield', 'check_box_heads', 'run_box_head']

# What a RoI head gives its box heads beside the RoIs, and which part of it makes that.
CONTEXT = {'semantic_feat': 'semantic_head', 'glbctx_feat': 'glbctx_head'}


class BoxHead(NamedTuple):
    """The box head that a tap lies in.

    Attributes:
        roi_head: Path of the RoI head.
        stage: Of a cascade; None, if there is one head.
    """

    roi_head: str
    stage: int | None

    @classmethod
    def of(cls, tap: str) -> BoxHead:
        """Read it off the name of a tap in it, or in what pools the RoIs for it.

        Raises:
            TapError: If the tap lies in no box head, or in those of all stages.

        Examples:
            >>> BoxHead.of('roi_head.bbox_head.1.fc_cls')
            BoxHead(roi_head='roi_head', stage=1)
        """
        form = r'((?:\w+\.)?roi_head)\.(?:bbox_head|bbox_roi_extractor)(?:\.(\d+))?(?:\.[\w.]+)?'
        match = re.fullmatch(form, tap)
        if match is None:
            raise TapError(
                'shared_rois=True is for taps in a box head, one term for each stage of a '
                "cascade: expected one like 'roi_head.bbox_head.fc_cls' or "
                f"'roi_head.bbox_head.0.fc_cls', got {tap!r}"
            )
        roi_head, stage = match.groups()
        return cls(roi_head, None if stage is None else int(stage))

    @property
    def path(self) -> str:
        """Its own path."""
        stage = '' if self.stage is None else f'.{self.stage}'
        return f'{self.roi_head}.bbox_head{stage}'

    @property
    def targets(self) -> str:
        """The tap of its targets: it is given the RoIs, and returns their labels."""
        return f'{self.path}.get_targets'

    def features(self, model: Any) -> str:
        """The tap of the maps that RoIs are pooled from."""
        prefix = self.roi_head.removesuffix('roi_head')
        owner = model.get_submodule(prefix.rstrip('.'))
        return prefix + ('neck' if hasattr(owner, 'neck') else 'backbone')


def check_box_heads(student: Any, ours: str, teacher: Any, theirs: str) -> None:
    """Make sure that two box heads can look at the same RoIs, and say of them what compares.

    Args:
        student: A detector of mmdet with region proposals.
        ours: A tap in its box head.
        teacher: Another one.
        theirs: A tap in its box head.

    Raises:
        ValueError: If a box head needs more than RoIs, or finds several objects in each (as
            CrowdDet's); or if box offsets are compared that are not measured alike.
    """
    heads = []
    for whose, model, tap in (('student', student, ours), ('teacher', teacher, theirs)):
        place = BoxHead.of(tap)
        roi_head = model.get_submodule(place.roi_head)
        takes = signature(roi_head._bbox_forward).parameters
        known = {'x', 'rois', *CONTEXT} | ({'stage'} if place.stage is not None else set())
        more = [
            name
            for name, parameter in takes.items()
            if name not in known and parameter.default is Parameter.empty
        ]
        head = model.get_submodule(place.path)
        if more or not callable(getattr(head, 'get_targets', None)):
            raise ValueError(
                f'the box head {type(head).__name__} of the {whose} takes more than regions of '
                f'interest ({", ".join(more) or "it has no get_targets"}), so that it cannot be '
                "asked about another model's: distil features, or what is before the box head"
            )
        if isinstance(getattr(head, 'fc_cls', None), nn.ModuleList):
            raise ValueError(
                f'the box head {type(head).__name__} of the {whose} finds several objects in a '
                'region, with logits for each, and which is which in the other model is not '
                'known: distil features, or what is before the box head'
            )
        if getattr(head, 'custom_cls_channels', False) and tap.endswith('.fc_cls'):
            raise ValueError(
                f'the class logits of the box head {type(head).__name__} of the {whose} are no '
                'softmax over its classes and the background, because its '
                f'{type(head.loss_cls).__name__} has channels of its own: tap what is before '
                'fc_cls, as its relu'
            )
        heads.append(head)
    if ours.endswith('.fc_reg'):
        _check_offsets(*heads)


def _check_offsets(ours: Any, theirs: Any) -> None:
    for name in ('means', 'stds'):
        a, b = (getattr(getattr(head, 'bbox_coder', None), name, None) for head in (ours, theirs))
        if a is not None and b is not None and tuple(a) != tuple(b):
            raise ValueError(
                f'the box offsets of the student are measured with {name} {tuple(a)}, those of '
                f'the teacher with {tuple(b)}: the numbers cannot be compared; take a stage of '
                'the teacher with the same target_stds, or compare classes alone'
            )


def run_box_head(
    roi_head: Any, features: Sequence[Tensor], rois: Tensor, stage: int | None
) -> None:
    """Run a box head, for the taps in it.

    Args:
        roi_head: A RoI head of mmdet.
        features: What its RoIs are pooled from.
        rois: Index of the image, x1, y1, x2, y2 in pixels of the batch, ``(R, 5)``.
        stage: Of a cascade.
    """
    takes = signature(roi_head._bbox_forward).parameters
    context = {
        name: getattr(roi_head, part)(features)[1]
        for name, part in CONTEXT.items()
        if name in takes and getattr(roi_head, part, None) is not None
    }
    first = () if stage is None else (stage,)
    roi_head._bbox_forward(*first, tuple(features), rois, **context)


@torch.no_grad()
def box_head_yield(model: Any, tap: str, features: Yield, size: tuple[int, int]) -> Yield:
    """What a tap in a box head yields, for two RoIs.

    Args:
        model: A detector; weights and mode stay as they are.
        tap: The tap.
        features: What the maps are that RoIs are pooled from.
        size: Height and width of their images.

    Raises:
        TapError: If the tap does not run, or yields something other than one tensor for all RoIs.
    """
    place = BoxHead.of(tap)
    replica = nn.ModuleDict({'roi_head': replicate(model.get_submodule(place.roi_head), 'cpu')})
    replica.eval()
    height, width = size
    taps = Taps(['roi_head' + tap.removeprefix(place.roi_head)])
    with torch.device('cpu'), taps.on(replica):
        maps = [torch.zeros(shape) for shape in features.shapes]
        rois = torch.tensor([[0.0, 0, 0, width, height], [0.0, 0, 0, width / 2, height / 2]])
        run_box_head(replica['roi_head'], maps, rois, place.stage)
    found = [tuple(x.shape) for x in taps[taps.names[0]]][-1]
    if len(found) < 2 or found[0] != len(rois):
        raise TapError(f'tap {tap!r} yields {found}, where a row for each of 2 RoIs was expected')
    return Yield(1, [found])

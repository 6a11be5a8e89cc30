"""Find the places of two models that play one role, whatever these are called in each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product, takewhile
from math import log
from typing import Any, NamedTuple

from torch import nn

from kd_dense.adapters import map_size
from kd_dense.mm.batches.targets import NEEDS
from kd_dense.mm.models.inherit import fits
from kd_dense.mm.models.probe import FEATURES, Probe, probe
from kd_dense.taps import TapError, Taps

__all__ = ['ENCODER', 'IMAGE', 'LOGITS', 'Map', 'Pair', 'Side']

# The taps that stand for class logits of a segmenter.
LOGITS = ('logits', 'aux_logits')

# The tap that stands for the last map of a teacher that has nothing but features, and for the
# student's map whose stride is nearest to its.
ENCODER = 'encoder'

# The taps that stand for the last convolution of a tower of a dense head, and where it lies.
TOWERS = {'cls_tower': 'bbox_head.cls_convs', 'reg_tower': 'bbox_head.reg_convs'}
BOX_HEAD = 'roi_head.bbox_head'

# Published weights of detectors belong to images of this size, in pixels.
IMAGE = 800 * 1216
# Smaller images have several maps of one cell, whose strides cannot be told apart.
SMALLEST = 256

Shape = tuple[int, ...]


class Map(NamedTuple):
    """The size of a map: its channels, and its positions on an image of 800x1216 pixels."""

    channels: int
    positions: float


class Side:
    """A student or a teacher, and the names of its parts.

    Trackers have a detector and semi-supervised detectors a student, which is the model that is
    meant; ``prefix`` is what its names begin with.
    """

    def __init__(self, whole: nn.Module) -> None:
        self.whole = self.model = whole
        self.prefix = ''
        for name in ('detector', 'student'):
            child = getattr(whole, name, None)
            if isinstance(child, nn.Module) and not hasattr(whole, 'backbone'):
                self.model, self.prefix = child, f'{name}.'
        self.parts = dict(self.model.named_modules())

    @property
    def segments(self) -> bool:
        """Whether this is a semantic segmenter."""
        return 'decode_head' in self.parts

    @property
    def features_only(self) -> bool:
        """Whether it has a backbone and no head."""
        heads = any('head' in name.partition('.')[0] for name in self.parts)
        return 'backbone' in self.parts and 'neck' not in self.parts and not heads

    def has(self, part: str, kinds: Sequence[str] = ()) -> bool:
        """Whether there is such a part, and its class or one of its bases is one of these."""
        if part not in self.parts:
            return False
        names = {cls.__name__ for cls in type(self.parts[part]).__mro__}
        return not kinds or not names.isdisjoint(kinds)

    def spelt(self, path: str) -> str:
        """Where this model has what a path of features stands for."""
        # PIDNet yields three maps in training, of which this is the one that it always yields.
        pidnet = path == 'backbone' and self.has('backbone', ['PIDNet'])
        return 'backbone.dfm' if pidnet else path

    def logits(self) -> str | None:
        """Where a segmenter yields class logits ``(N, classes, H, W)``, if it does."""
        if self.has('decode_head', ['IterativeDecodeHead']):  # K-Net: those of its last stage
            return 'decode_head[-1]'
        if self.has('decode_head', ['SegmenterMaskTransformerHead']):
            return 'decode_head'
        # Of several heads in a list, the last that classifies all positions of a map.
        found = [n for n in self.parts if re.fullmatch(r'decode_head(\.\d+)?\.conv_seg', n)]
        if not found:
            return None
        heads = self.parts['decode_head']
        # In training all of them but the last head run again, for the one behind them.
        again = (
            isinstance(heads, nn.ModuleList)
            and found[-1] != f'decode_head.{len(heads) - 1}.conv_seg'
        )
        return f'{found[-1]}[0]' if again else found[-1]

    def aux_logits(self) -> str | None:
        """Where an auxiliary head of a segmenter yields class logits, the last if several do."""
        classes = [getattr(head, 'num_classes', None) for head in self._heads('decode_head')]
        found = [
            name
            for name in self.parts
            if re.fullmatch(r'auxiliary_head(\.\d+)?\.conv_seg', name)
            # Some classify boundaries.
            and getattr(self.parts[name.rpartition('.')[0]], 'num_classes', None) in classes[-1:]
        ]
        return found[-1] if found else None

    def tower(self, path: str) -> str | None:
        """The last convolution of a tower, of each level where these have their own."""
        stack = self.parts.get(path)
        if not isinstance(stack, nn.ModuleList) or not len(stack):
            return None
        if isinstance(stack[0], nn.ModuleList):
            return f'{path}.*.{len(stack[0]) - 1}'
        return f'{path}.{len(stack) - 1}'

    def classes(self) -> int | None:
        """How many classes the model tells apart, if its head says it."""
        names = ('decode_head', 'roi_head.bbox_head', 'bbox_head', 'mask_head', 'panoptic_head')
        heads = [head for name in names for head in self._heads(name)]
        found = (getattr(head, 'num_classes', None) for head in heads)
        return next((count for count in found if count is not None), None)

    def box_head(self, path: str) -> str | None:
        """A place in a box head, in the notation of another model.

        Of a stage of a cascade it is that stage, or the one head that there is; of one head it is
        that, or the first stage.
        """
        stage, _, inner = path.removeprefix(f'{BOX_HEAD}.').partition('.')
        if not stage.isdigit():
            stage, inner = '0', path.removeprefix(f'{BOX_HEAD}.')
        paths = path, f'{BOX_HEAD}.{inner}', f'{BOX_HEAD}.{stage}.{inner}'
        return next((one for one in paths if self.has(one)), None)

    def _heads(self, name: str) -> list[nn.Module]:
        head = self.parts.get(name)
        if head is None:
            return []
        return [*head] if isinstance(head, nn.ModuleList) else [head]

    def class_maps(self, head: str) -> list[Map]:
        """The maps of class logits of a dense head, or nothing where it does not say them."""
        part: Any = self.parts.get(head)
        strides = getattr(getattr(part, 'prior_generator', None), 'strides', ())
        return [Map(part.num_classes, IMAGE / (width * height)) for width, height in strides]


class _Features(NamedTuple):
    """What a path in backbone or neck yields in a student and in a teacher."""

    paths: tuple[str, str]
    shapes: tuple[list[Shape], list[Shape]]
    pixels: int  # of the images


def _layers(model: nn.Module, part: str) -> set[str]:
    """The names of what a part has to inherit."""
    return {name for name in model.state_dict() if name.startswith(f'{part}.')}


class Pair:
    """A student and a teacher."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        self.student, self.teacher = Side(student), Side(teacher)
        self._features: dict[str, _Features | None] = {}

    def inherited(self, parts: Sequence[str]) -> tuple[str, ...]:
        """Those of the parts that fit and have the same layers; of models of one class alone.

        Of a tower that is deeper in the teacher, the last layers would be given another input.
        """
        ours, theirs = self.student, self.teacher
        if type(ours.model) is not type(theirs.model) or ours.prefix != theirs.prefix:
            return ()
        names = [ours.prefix + part for part in parts if ours.has(part)]
        return tuple(
            name
            for name in names
            if _layers(ours.whole, name) == _layers(theirs.whole, name)
            and fits(ours.whole, theirs.whole, name)
        )

    def agree(self, tap: str, needs: Sequence[str]) -> bool:
        """Whether what a tap yields in both can be compared by a loss with these needs."""
        ours, theirs = self.student, self.teacher
        of_features = tap.partition('[')[0].partition('.')[0] in FEATURES
        if not of_features and ours.classes() != theirs.classes():
            return False
        try:
            for check in (NEEDS[need].check for need in needs):
                if check is not None:
                    check(ours.model, theirs.model)
        except ValueError:
            return False
        return True

    def places(self, tap: str | Mapping[str, str]) -> tuple[str, str, list[Map]] | None:
        """Find a tap in both models.

        Args:
            tap: ``'logits'`` or ``'aux_logits'``; ``'cls_tower'`` or ``'reg_tower'``;
                ``'encoder'``, of a teacher that has nothing but features; the name of a part; or
                a tap in backbone or neck: of its maps those that both models have at
                the same strides, of which ``[:4]`` takes the first four; ``[-1]`` is the last map
                of each, ``[-2]`` the one before, and ``[-2:]`` are both, if they are of one size.
                Or a tap for each, ``dict(student=..., teacher=...)``.

        Returns:
            The student's tap, the teacher's, and the maps that are compared: of features those
            that the teacher yields, of a dense head the class logits, of others none. Or None, if
            one of the models has no such place.

        Raises:
            RuntimeError: If the models run at no size that could be tried.
        """
        if isinstance(tap, Mapping):
            sides = [self.places(tap[side]) for side in ('student', 'teacher')]
            return sides[0] and sides[1] and (sides[0][0], *sides[1][1:])
        ours, theirs = self.student, self.teacher
        if tap == ENCODER and not theirs.features_only:
            return None
        path, _, index = ('backbone', '', tap) if tap == ENCODER else tap.partition('[')
        names: Sequence[str | None]
        maps: list[Map] = []
        if tap in LOGITS:
            names = getattr(ours, tap)(), getattr(theirs, tap)()
        elif tap in TOWERS:
            names = ours.tower(TOWERS[tap]), theirs.tower(TOWERS[tap])
        elif path.partition('.')[0] in FEATURES:
            if path not in self._features:
                self._features[path] = self._probe(path)
            found = self._features[path]
            compared = found and _aligned(found, index)
            if compared is None:
                return None
            names, maps = compared
        elif path.startswith(f'{BOX_HEAD}.'):
            names = [tap if ours.has(path) else None, theirs.box_head(path)]
        else:
            names = [tap if side.has(path) else None for side in (ours, theirs)]
            maps = ours.class_maps(path)
        if names[0] is None or names[1] is None:
            return None
        return ours.prefix + names[0], theirs.prefix + names[1], maps

    def _probe_large(self, ours: str, theirs: str) -> Probe:
        """Run both on images on which strides can be told apart, if they take these."""
        models = self.student.model, self.teacher.model
        try:
            return probe(models[0], [ours], models[1], [theirs], SMALLEST)
        except RuntimeError as error:
            try:
                return probe(models[0], [ours], models[1], [theirs])
            except RuntimeError:
                raise error from None

    def _probe(self, path: str) -> _Features | None:
        """Run both models; None, if one has no such path, or no maps there."""
        if self.student.segments != self.teacher.segments and not self.teacher.features_only:
            return None  # features for different tasks are not compared unasked
        ours, theirs = self.student.spelt(path), self.teacher.spelt(path)
        models = self.student.model, self.teacher.model
        try:
            for model, name in zip(models, (ours, theirs), strict=True):
                with Taps([name]).on(model):
                    pass
            found = self._probe_large(ours, theirs)
        except TapError:
            return None
        shapes = tuple(
            [_as_map(shape, found.size) for shape in one]
            for one in (found.student[ours].shapes, found.teacher[theirs].shapes)
        )
        if not all(any(len(shape) == 4 for shape in one) for one in shapes):
            return None
        return _Features((ours, theirs), (shapes[0], shapes[1]), found.size[0] * found.size[1])


def _as_map(shape: Shape, image: Sequence[int]) -> Shape:
    """The shape of the map that tokens ``(N, L, C)`` are; any other as it is."""
    size = map_size(shape[1], image) if len(shape) == 3 else None
    return shape if size is None else (shape[0], shape[2], *size)


def _aligned(found: _Features, index: str) -> tuple[list[str], list[Map]] | None:
    """Name the maps that are compared, in both models; and those of the teacher; if there are."""
    both = [*zip(found.paths, found.shapes, strict=True)]
    if index == ENCODER:
        names, first, count = _nearest(found)
    elif index.startswith('-'):  # from the end, because some yield more maps in training
        ends = [_from_the_end(shapes, index) for shapes in found.shapes]
        if None in ends:
            return None
        first = [at for at in ends if at is not None]
        count = int(index[1]) if index.endswith(':]') else 1
        names = [
            f'{path}[{at - len(s)}{":" if count > 1 else ""}]'
            for at, (path, s) in zip(first, both, strict=True)
        ]
    else:
        *first, count = _common_run(*found.shapes)
        count = min(count, 4) if index == ':4]' else count
        names = [
            _spelt(path, at, count, len(s)) for at, (path, s) in zip(first, both, strict=True)
        ]
    compared = found.shapes[1][first[1] : first[1] + count]
    return names, [Map(s[1], s[2] * s[3] * IMAGE / found.pixels) for s in compared]


def _from_the_end(shapes: Sequence[Shape], index: str) -> int | None:
    """Which is the map ``-k]`` of these, or the first of the last maps of one size, ``-k:]``."""
    maps = [i for i, shape in enumerate(shapes) if len(shape) == 4][-int(index[1]) :]
    sizes = {shapes[i][2:] for i in maps}
    run = maps == [*range(len(shapes) - len(maps), len(shapes))] and len(sizes) == 1
    whole = len(maps) == int(index[1]) and (run or not index.endswith(':]'))
    return maps[0] if whole else None


def _nearest(found: _Features) -> tuple[list[str], list[int], int]:
    """The teacher's last map, and of those of the student nearest to it in size the last."""
    cells = [
        {i: shape[2] * shape[3] for i, shape in enumerate(side) if len(shape) == 4}
        for side in found.shapes
    ]
    theirs = max(cells[1])
    ours = min(cells[0], key=lambda i: (abs(log(cells[0][i] / cells[1][theirs])), -i))
    counts = [len(side) for side in found.shapes]
    names = [
        _spelt(path, i, 1, n)
        for path, i, n in zip(found.paths, (ours, theirs), counts, strict=True)
    ]
    return names, [ours, theirs], 1


def _common_run(ours: Sequence[Shape], theirs: Sequence[Shape]) -> tuple[int, int, int]:
    """Where the longest run of maps of the same strides begins in both, and how long it is.

    If no strides agree, the two maps that differ least in size.
    """
    run, best = (0, 0, 0), (0, 0)
    for i, j in product(range(len(ours)), range(len(theirs))):
        pairs = [*takewhile(_of_one_stride, zip(ours[i:], theirs[j:], strict=False))]
        length = len(pairs), sum(a[2:] == b[2:] for a, b in pairs)
        if length > best:
            run, best = (i, j, len(pairs)), length
    if run[2]:
        return run
    maps = product(
        *([(i, s[2] * s[3]) for i, s in enumerate(side) if len(s) == 4] for side in (ours, theirs))
    )
    (i, _), (j, _) = min(maps, key=lambda both: abs(log(both[0][1] / both[1][1])))
    return i, j, 1


def _of_one_stride(maps: tuple[Shape, Shape]) -> bool:
    """Whether maps are of one size, but for a cell where one model rounds up and another down."""
    if not all(len(shape) == 4 for shape in maps):
        return False
    sides = [sorted(pair) for pair in zip(*(shape[2:] for shape in maps), strict=True)]
    return all(more - less <= 1 and more < 1.5 * less for less, more in sides)


def _spelt(path: str, first: int, count: int, total: int) -> str:
    """The tap of some maps out of all that a path yields."""
    if count == total:
        return path
    if count == 1:
        return f'{path}[{first}]'
    return f'{path}[{first or ""}:{first + count}]'

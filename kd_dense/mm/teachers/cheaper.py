"""A teacher on a GPU in bfloat16, where its maps stay what they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from kd_dense.functional import without_autocast
from kd_dense.taps import Taps

__all__ = ['TOLERANCE', 'Trial', 'can_be_cheaper']

BATCHES = 2
# Of a map's norm. bfloat16 has 8 bits: layer by layer that adds up to some thousandths.
TOLERANCE = 0.03


def can_be_cheaper(images: Tensor) -> bool:
    """Whether images lie on a GPU that computes in bfloat16."""
    return images.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)


class Trial:
    """Two batches on which a teacher runs both as it was loaded and in bfloat16.

    Where the maps of both stay within 3 % of their norm, the teacher goes on in bfloat16, with
    its memory layout channels-last, on a stream of its own and, where all batches have one size,
    compiled. Otherwise it goes on as it was. The log says which.
    """

    def __init__(self) -> None:
        self.plain: Any = None  # the model as it was loaded
        self._batches = 0
        self._worst = 0.0

    def run(
        self,
        teacher: Any,
        taps: Taps,
        calls: Mapping[str, int],
        images: Tensor,
        record: Callable[[nn.Module], None],
    ) -> bool:
        """Run a teacher both ways; the maps that stay in the taps are those that it goes on with.

        Args:
            teacher: The [`kd_dense.mm.teachers.guest.Teacher`][].
            taps: Where to record.
            calls: The taps that are needed this time.
            images: The student's batch.
            record: Runs a model on it, and records.

        Returns:
            Whether there is another batch to try.
        """
        if self.plain is None:
            self.plain = copy.deepcopy(teacher.model)
        record(self.plain)
        before = {name: taps[name] for name in calls}
        taps.clear()
        reason = ''
        try:
            if self._batches == 0:
                teacher.precision, teacher.channels_last = 'bf16', True
                sized = getattr(teacher.model.data_preprocessor, 'size', None)
                teacher.compile = bool(sized) and teacher.can_compile(taps.names)
                teacher.prepare(taps.names, images)
            with without_autocast(images):
                record(teacher.model)
            worst = max(_differences(before, {name: taps[name] for name in calls}))
            self._worst = max(self._worst, worst)
            if not worst <= TOLERANCE:
                reason = f'a map differs by {worst:.2g} of its norm, more than {TOLERANCE}'
        except Exception as error:  # whatever a compiler or a kernel may raise
            reason = f'{type(error).__name__}: {error}'
        if reason:
            teacher.stay_plain(self.plain)
            taps.clear()
            taps.hold(before)
            self.plain = None
            print_log(f'teacher: stays in float32 ({reason})', logger='current')
            return False
        self._batches += 1
        if self._batches < BATCHES:
            return True
        self.plain = None
        teacher.stream = images.is_cuda
        ways = ['channels-last']
        ways += ['compiled'] * teacher.compile + ['on a stream of its own'] * teacher.stream
        print_log(
            f'teacher: in bfloat16, {", ".join(ways)}; on {BATCHES} batches its maps differed by '
            f"{self._worst:.2g} of their norm at most. precision='fp32' turns that off",
            logger='current',
        )
        return False


def _differences(
    before: Mapping[str, list[Tensor]], after: Mapping[str, list[Tensor]]
) -> Iterator[float]:
    for name, maps in before.items():
        for x, y in zip(maps, after[name], strict=True):
            if not x.is_floating_point():
                yield 0.0
                continue
            reference = x.float()
            norm = reference.norm().clamp_min(torch.finfo(torch.float32).tiny)
            yield float((y.float() - reference).norm() / norm)

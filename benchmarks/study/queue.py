"""Runs of the study side by side, each noted as soon as it has ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.study.cells import Cell
from benchmarks.study.results import Results
from examples.quickstart.queue import Queue


class StudyQueue(Queue):
    """Runs cells, and notes their results.

    Args:
        processes: How many at a time.
        results: Where they are noted.
        minutes: Start no run after so many; never stop, if it is None.
    """

    module = 'benchmarks.study'

    def __init__(self, processes: int, results: Results, minutes: float | None) -> None:
        super().__init__(processes, 0)
        self.results = results
        self.end = None if minutes is None else self.started + 60 * minutes

    def do(self, cells: Sequence[Cell]) -> None:
        """Run those that have no line yet.

        Raises:
            SystemExit: If one fails; or if the time is over, which is said.
        """
        for cell in cells:  # one may have ended while nobody was there to note it
            self._note(cell)
        waiting = [cell for cell in cells if self._missing(cell)]
        self.total = self.finished + sum(cell.iterations for cell in waiting)
        self.bars.update(self.overall, total=self.total)
        self.run(waiting, {cell.model: cell.iterations for cell in waiting})
        left = sum(map(self._missing, waiting))
        if left:
            self.bars.stop()
            raise SystemExit(f'time is over: {left} runs left; the same command goes on')

    def _note(self, cell: Cell) -> None:
        ended = cell.result()
        if ended is not None and self.results.find(cell) is None:
            self.results.add(ended)

    def _missing(self, cell: Cell) -> bool:
        """Whether it has no line; or was trained elsewhere, and is to teach here."""
        return self.results.find(cell) is None or (cell.teacher and not cell.checkpoint.is_file())

    def _goes_on(self) -> bool:
        return self.end is None or time.monotonic() < self.end

    def _report(self, job: Any, code: int) -> None:
        super()._report(job, code)
        self._note(job)

    def _scores(self, job: Any) -> str:
        line = job.result()
        return f'val {line["val"]:.1f}, test {line["test"]:.1f}, {line["cpu_s"]:.0f} CPU s'

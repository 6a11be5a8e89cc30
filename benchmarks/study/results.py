"""The lines of the results file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.study.cells import SETS, Cell

__all__ = ['Results']

# What tells one run from another one.
KEY = (
    'set',
    'task',
    'method',
    'weights',
    'schedule',
    'control',
    'equals',
    'seed',
    'iterations',
    'teacher_iterations',
)


class Results:
    """What has been run.

    Args:
        file: One JSON object a line; it need not exist.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        text = file.read_text() if file.is_file() else ''
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]

    def find(self, cell: Cell) -> dict[str, Any] | None:
        """The line of a run, if it has one."""
        wanted = {**cell.spec(), 'task': cell.data.task, 'set': cell.set.partition('-')[0]}
        if cell.teacher:
            wanted['iterations'] = cell.data.taught
        wanted['teacher_iterations'] = cell.taught
        found = (x for x in self.lines if all(x.get(key) == wanted[key] for key in KEY))
        return next(found, None)

    def add(self, line: dict[str, Any]) -> None:
        """Write a line behind the others."""
        self.lines.append(line)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, 'a') as out:
            out.write(json.dumps(line) + '\n')

    def write(self) -> None:
        """Write all lines anew."""
        self.file.write_text(''.join(json.dumps(line) + '\n' for line in self.lines))

    def seconds(self, name: str, schedule: str, method: str, weights: str) -> list[float]:
        """CPU seconds of the runs of a method, one for each seed."""
        wanted = dict(
            set=name.partition('-')[0],
            task=SETS[name].task,
            schedule=schedule,
            method=method,
            weights=weights,
            control='none',
            teacher_iterations=Cell(name, method, weights, schedule, 0, 0).taught,
        )
        return [x['cpu_s'] for x in self.lines if all(x.get(k) == v for k, v in wanted.items())]

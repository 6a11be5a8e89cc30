"""Runs jobs side by side, each in a process of its own, and shows how far they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from examples.quickstart.jobs import METRICS, ROOT, Run


class Queue:
    """Runs jobs, each on one core.

    Args:
        processes: How many at a time.
        total: What all jobs cost together, in trainings of a student.
    """

    module = 'examples.quickstart'  # what does a job, told it by --job

    def __init__(self, processes: int, total: float) -> None:
        self.processes = processes
        self.total = total
        self.finished = 0.0
        self.started = time.monotonic()
        self.bars = Progress(
            TextColumn('{task.description:<46}'),
            BarColumn(24),
            TextColumn('{task.percentage:>3.0f} %'),
            TimeElapsedColumn(),
            TextColumn('{task.fields[left]}'),
            refresh_per_second=2,
        )
        self.overall = self.bars.add_task('[bold]all runs', total=total, left='')
        self.last_line = 0.0

    def run(self, jobs: Sequence[Run], cost: Mapping[str, float]) -> list[dict[str, Any]]:
        """Run jobs that do not depend on each other.

        Args:
            jobs: The jobs. Those that have been run are not run again.
            cost: What each model costs, in trainings of a student.

        Returns:
            Their results in order, of those that have been run.

        Raises:
            SystemExit: If one fails; the others are ended.
        """
        waiting = [job for job in jobs if job.result() is None]
        self.finished += sum(cost[job.model] for job in jobs if job not in waiting)
        running: list[tuple[Run, Any, Any]] = []
        try:
            while running or (waiting and self._goes_on()):
                while waiting and len(running) < self.processes and self._goes_on():
                    job = waiting.pop(0)
                    bar = self.bars.add_task(job.title, total=1.0, left='')
                    running.append((job, self._start(job), bar))
                time.sleep(0.5)
                for entry in list(running):
                    job, process, bar = entry
                    self.bars.update(bar, completed=job.progress())
                    if process.poll() is None:
                        continue
                    running.remove(entry)
                    self.bars.remove_task(bar)
                    self.finished += cost[job.model]
                    self._report(job, process.returncode)
                self._show(
                    self.finished + sum(job.progress() * cost[job.model] for job, *_ in running)
                )
        finally:  # one has failed, or somebody has had enough
            for _, process, _ in running:
                process.terminate()
        results = (job.result() for job in jobs)
        return [result for result in results if result is not None]

    def _goes_on(self) -> bool:
        """Whether another job may start."""
        return True

    def _start(self, job: Run) -> Any:
        job.folder.mkdir(parents=True, exist_ok=True)
        for old in ('progress', 'result.json'):
            (job.folder / old).unlink(missing_ok=True)
        with open(job.folder / 'log.txt', 'w') as log:
            return subprocess.Popen(
                [sys.executable, '-m', self.module, '--job', json.dumps(job.spec())],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1'},
            )

    def _report(self, job: Run, code: int) -> None:
        if code:
            log = job.folder / 'log.txt'
            tail = '\n'.join(log.read_text().splitlines()[-15:])
            self.bars.stop()
            raise SystemExit(f'{job.title} failed:\n{tail}\nThe whole log is in {log}.')
        self.bars.console.print(f'done: {job.title}: {self._scores(job)}')

    def _scores(self, job: Any) -> str:
        result = job.result()
        assert result is not None
        return f'{METRICS[job.task][1]} {result["metric"]:.1f}'

    def _show(self, done: float) -> None:
        elapsed = time.monotonic() - self.started
        left = ''
        if done > 0.02 * self.total:
            seconds = elapsed * (self.total - done) / done
            left = f'about {max(seconds, 1) / 60:.1f} min left'
        self.bars.update(self.overall, completed=min(done, self.total), left=left)
        # Without a terminal there are no bars: say a line now and then.
        if not self.bars.console.is_terminal and elapsed - self.last_line > 20:
            self.last_line = elapsed
            print(f'{100 * done / self.total:3.0f} % after {elapsed:.0f} s, {left}', flush=True)

"""The runs of the quickstart: what is trained, from which config, and where its result goes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]
# from ROOT, where everything is run
CONFIGS = Path('configs/quickstart')
CHECKPOINTS = CONFIGS / 'checkpoints'

TASKS = {'seg': 'segmentation', 'det': 'detection'}
METRICS = {'seg': ('mIoU', 'mIoU', 1.0), 'det': ('coco/bbox_mAP', 'AP', 100.0)}
TITLES = {
    'auto': 'auto',
    'cwd': 'CWD',
    'skd': 'SKD',
    'intrakd': 'IntRA-KD',
    'fgd': 'FGD',
    'ld': 'LD',
}
LONGER = 'student longer'


class Run(Protocol):
    """What a queue runs."""

    @property
    def model(self) -> str:
        """Whose costs it has."""

    @property
    def title(self) -> str:
        """What its bar says."""

    @property
    def folder(self) -> Path:
        """Where log, progress and result lie."""

    def spec(self) -> dict[str, Any]:
        """What the process that does it is told."""

    def result(self) -> dict[str, Any] | None:
        """The result of this very run, if it has ended."""

    def progress(self) -> float:
        """Between 0 and 1."""


@dataclass
class Job:
    """One run."""

    task: str
    model: str
    config: Path
    folder: Path
    seed: int = 0
    iterations: int | None = None
    checkpoint: Path | None = None
    """What is tested, where nothing is to be trained."""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f'{TASKS[self.task]}: {self.model}, seed {self.seed}'

    def spec(self) -> dict[str, Any]:
        """What the result depends on."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}

    def result(self) -> dict[str, Any] | None:
        """The result of this very job, if it has been run."""
        try:
            found = json.loads((self.folder / 'result.json').read_text())
        except FileNotFoundError:
            return None
        return found if found['spec'] == self.spec() else None

    def progress(self) -> float:
        try:
            return float((self.folder / 'progress').read_text())
        except (FileNotFoundError, ValueError):
            return 0.0


def methods_of(task: str, methods: Sequence[str]) -> list[str]:
    """Those methods that there is a config for; some need boxes, some label maps."""
    return [m for m in methods if (ROOT / CONFIGS / f'{task}_{m}.py').is_file()]


def score(task: str, metrics: Mapping[str, float]) -> float:
    """The metric of a task in percent; without a single detection COCO's has no value."""
    key, _, scale = METRICS[task]
    return scale * float(metrics.get(key, 0.0))

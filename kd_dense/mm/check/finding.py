"""What a check has found, and what it is about."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from kd_dense.mm.teachers.several import called

__all__ = ['ERROR', 'OK', 'WARNING', 'Finding', 'Progress', 'Subject']

OK = 'ok'
WARNING = 'warning'
ERROR = 'error'
Progress = Callable[[str], None]


class Finding(NamedTuple):
    """What one check has found.

    Attributes:
        check: Its name, as ``'teacher checkpoint'``.
        status: ``'ok'``, ``'warning'``, or ``'error'`` where the training would stop, or its
            result be worth nothing.
        message: What was found.
        remedy: What to do next, if anything.
        figures: What was measured.
    """

    check: str
    status: str
    message: str
    remedy: str = ''
    figures: Mapping[str, Any] = {}


@dataclass
class Subject:
    """A recipe that is checked, and what has been found about it so far.

    What is None is not known yet, or never, because the check that finds it has failed.

    Attributes:
        config: The recipe.
        count: How many batches of training data the terms are weighed on.
        images: How many validation pictures the models are scored on.
        student: A checkpoint of a student trained alone, to score beside the teacher.
        device: Where to compute.
        progress: Is told what is going on.
        check: Name of the check that runs.
        findings: What was found.
        model: The distilled student.
        batches: A list of batches as they are loaded.
        iterations: How many the training has.
        loading: Seconds to load a batch in one process.
        unloaded: What the teachers are called that have not got their weights.
        student_is_trained: Whether the student starts with weights of its own.
        reached: The set of the names of parameters that get a gradient.
        caches: By the name of a teacher its [`kd_dense.mm.teachers.cached.MapCache`][], which is
            not used here.
        has_task: Whether the student's own losses have a gradient.
    """

    config: Config
    count: int = 4
    images: int = 50
    student: str | None = None
    device: str = 'cpu'
    progress: Progress = lambda text: None
    check: str = ''
    findings: list[Finding] = field(default_factory=list)
    model: Any = None
    batches: Any = None
    iterations: int | None = None
    loading: float = 0.0
    unloaded: set[str] = field(default_factory=set)
    student_is_trained: bool = False
    reached: Any = None
    caches: dict[str, Any] = field(default_factory=dict)
    has_task: bool = True

    def say(self, status: str, message: str, remedy: str = '', **figures: Any) -> None:
        """Add a finding of the check that runs."""
        message, remedy = _shortened(message), _shortened(remedy)
        self.findings.append(Finding(self.check, status, message, remedy, figures))

    def tell(self, text: str) -> None:
        """Say how far the check that runs has come."""
        self.progress(f'{self.check}: {text}')

    @property
    def teachers(self) -> dict[str, Any]:
        """Each [`kd_dense.mm.teachers.guest.Teacher`][] of the model, by what to call it."""
        guests = {} if self.model is None else self.model.kd_plan.running
        return {called(name): guest.teacher for name, guest in guests.items()}

    @property
    def teacher_is_loaded(self) -> bool:
        """Whether all teachers have their weights."""
        return not self.unloaded

    def on_device(self) -> Any:
        """The model, moved to where it is computed."""
        return self.model.to(self.device)


def _shortened(text: str) -> str:
    """Name files in the working directory as they would be typed there."""
    here = str(Path.cwd())
    if here == Path.cwd().anchor:
        return text
    return re.sub(rf'(?<![^\s\'"(\[=]){re.escape(here + os.sep)}(?=\S)', '', text)

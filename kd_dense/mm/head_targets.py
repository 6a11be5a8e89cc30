"""Read what the student's dense head computed for its own loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ['check', 'read']


def check(student: Any, teacher: Any) -> None:
    """Raise where the heads cannot be compared."""


def read(student: Any, returned: Any, data_samples: Sequence[Any]) -> Any:
    """From what ``student.bbox_head.get_targets`` returned to ``HeadTargets``."""
    raise NotImplementedError

"""Run a check on little data, and find what it says."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.check.check import check
from tests.miniature import ROOT

QUICKSTART = ROOT / 'configs' / 'quickstart'
TEACHER = QUICKSTART / 'checkpoints' / 'seg_teacher.pth'


def run(config: Any, **options: Any) -> Any:
    return check(config, **{'batches': 1, 'images': 6, **options})


def of(findings: Any, name: str) -> Any:
    """The finding of a check, or a list where it has several."""
    found = [finding for finding in findings if finding.check == name]
    assert found, [finding.check for finding in findings]
    return found if len(found) > 1 else found[0]

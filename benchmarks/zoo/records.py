"""What is tried, and the file with what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kd_dense.mm.presets.choose import METHODS as PRESETS

PLAIN = 'plain'  # training without a method
METHODS = tuple(PRESETS)
# These have a trial each; the others are tried together in one training step of a family.
ALONE = ('cwd', 'skd', 'fgd', 'ld', 'intrakd', 'sad')  # the last has no teacher
NO_MODEL = 'no config with a model'


def load(path: Path) -> list[dict[str, Any]]:
    """The records of an output file; of a trial that was repeated, the last."""
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return list({(r['family'], r['method']): r for r in records}.values())


def described(error: BaseException) -> str:
    """An error in one line."""
    return f'{type(error).__name__}: {" ".join(str(error).split())[:400]}'

"""What the pages of examples show, and a folder in which it runs, cut down."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.miniature import ROOT

FENCE = re.compile(r'^```(\w+)([^\n]*)\n(.*?)^```', re.DOTALL | re.MULTILINE)


def blocks(page: str, language: str) -> list[tuple[str, str]]:
    """Title, or '', and text of each block in a language."""
    found = []
    for kind, more, text in FENCE.findall((ROOT / page).read_text()):
        if kind == language:
            title = re.search(r'title="([^"]+)"', more)
            found.append((title[1] if title else '', text))
    return found


def link_checkout(root: Path) -> Path:
    """A folder that looks like the root of a checkout, without data and trainings."""
    for name in ('configs', 'examples', 'tools'):
        os.symlink(ROOT / name, root / name)
    return root

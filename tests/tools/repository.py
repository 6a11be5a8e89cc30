"""A repository in which nothing is installed: its programs write down how they were called."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.miniature import ROOT

# Answers what is asked of it before an installation, makes environments of itself, runs what comes
# on its standard input; all else it writes down.
PYTHON = f"""#!/bin/sh
case "$*" in
    *print*) echo "$VERSION" ;;
    "-c import sys; sys.exit("*)
        exec {sys.executable} -c \
            "import sys; sys.version_info = *map(int, '$VERSION'.split('.')),; ${{2#*; }}" ;;
    "- "*) exec {sys.executable} "$@" ;;
    "-m venv "*)
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        for name in ruff mypy; do cp "$0" "$3/bin/$name"; done
        echo "PATH=$PWD/$3/bin:\\$PATH" > "$3/bin/activate"
        ;;
    "-m pip download "*) [ -z "${{WHEEL:-}}" ] || truncate -s "${{MIB}}M" "$WHEEL" ;;
esac
printf '%s\\n' "${{0##*/}}" "$@" '' >> "$CALLS"  # at once: two may write
case "${{0##*/}} $*" in
    mypy*) exit "${{MYPY_STATUS:-0}}" ;;
    *pytest*) exit "${{PYTEST_STATUS:-0}}" ;;
esac
"""


class Repository:
    """The scripts, requirements and folders of tests, and a Python that is none.

    Args:
        root: Where to make it.
        version: Of the Python.
    """

    def __init__(self, root: Path, version: str = '3.12') -> None:
        self.root, self.version = root, version
        shutil.copytree(ROOT / 'tools', root / 'tools', ignore=shutil.ignore_patterns('*.py'))
        shutil.copytree(ROOT / 'requirements', root / 'requirements')
        shutil.copy(ROOT / 'setup.py', root)
        (root / 'tests').symlink_to(ROOT / 'tests')
        self.python = root / 'python3'
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)

    def bash(
        self, *words: object, status: int = 0, **environment: object
    ) -> tuple[str, list[list[str]]]:
        """Run bash; return what it said, and how programs were called."""
        called = self.root / 'called'
        called.write_text('')
        kept = {name: value for name, value in os.environ.items() if name != 'PYTHON'}
        done = subprocess.run(
            ['bash', *map(str, words)],
            cwd=self.root,
            env={
                **kept,
                'PATH': f'{self.root}:{os.environ["PATH"]}',
                'VERSION': self.version,
                'CALLS': str(called),
                **{name: str(value) for name, value in environment.items()},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert done.returncode == status, f'{done.returncode}: {done.stdout}'
        calls = [call.split('\n') for call in called.read_text().split('\n\n') if call]
        return done.stdout, calls

    def environments(self) -> list[str]:
        return sorted(path.name for path in self.root.glob('.venv*'))


def installs(calls: Sequence[Sequence[str]]) -> list[str]:
    """What pip was told to install."""
    return [' '.join(call[4:]) for call in calls if call[1:4] == ['-m', 'pip', 'install']]

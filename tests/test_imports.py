"""Which room may import what: functional <- losses <- registry <- mm <- tools."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / 'kd_dense'
TORCH_ONLY = [
    'functional.py',
    'losses',
    'adapters.py',
    'critic.py',
    'measure.py',
    'schedules.py',
    'taps.py',
]
ROOMS = {
    'functional.py': set(),
    'taps.py': set(),
    'adapters.py': set(),
    'critic.py': {'functional'},
    'measure.py': set(),
    'schedules.py': set(),
    'losses': {'functional', 'losses', 'critic'},
    'registry.py': {'losses', 'adapters'},
    'mm': {'functional', 'losses', 'adapters', 'measure', 'taps', 'schedules', 'registry', 'mm'},
}
FILES = sorted(p for p in PACKAGE.rglob('*.py') if p.parent != PACKAGE or p.name in ROOMS)


def imports(path, lazily=True):
    """The modules that a file imports, those inside functions included if asked for."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if lazily else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def room(path):
    return path.relative_to(PACKAGE).parts[0]


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_inward(path):
    inner = {n.split('.')[1] for n in imports(path) if n.startswith('kd_dense.')}
    inner &= {p.stem for p in PACKAGE.iterdir()}
    assert inner <= ROOMS[room(path)]


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_frameworks_stay_in_their_room(path):
    named = {n.split('.')[0] for n in imports(path)}
    assert room(path) == 'mm' or not named & {'mmdet', 'mmseg', 'mmcv'}
    if room(path) in TORCH_ONLY:
        allowed = {'torch', 'kd_dense', '__future__', *sys.stdlib_module_names}
        assert named <= allowed
    if path.name != 'distribution_heads.py':  # which is itself imported lazily: see below
        assert not {n.split('.')[0] for n in imports(path, lazily=False)} & {'mmdet', 'mmseg'}


def test_who_imports_us_imports_no_framework():
    code = 'import sys, kd_dense.mm; assert not {"mmdet", "mmseg"} & {*sys.modules}'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_every_room_is_known():
    assert {room(p) for p in PACKAGE.rglob('*.py')} - {'__init__.py'} == set(ROOMS)


def test_losses_need_torch_and_nothing_else():
    code = (
        'import sys\n'
        'for name in ("mmengine", "mmcv", "mmdet", "mmseg"): sys.modules[name] = None\n'
        'import kd_dense.losses, kd_dense.taps, kd_dense.adapters, kd_dense.schedules\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True)

"""The house: every file lies in a room, and imports point to the rooms before it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'kd_dense'
# From the innermost room to the outermost. A file that is named is a room of its own.
TORCH_ONLY = [
    'functional',
    'shares',
    'taps',
    'adapters',
    'schedules',
    'critic',
    'measure',
    'losses',
]
ROOMS = [
    *TORCH_ONLY,
    'registry',
    'mm.arguments',
    'mm.randomness',
    'mm.finite',
    'mm.wording',
    'mm.configs',
    'mm.files',
    'mm.stack',
    'mm.datasets',
    'mm.batches',
    'mm.models',
    'mm.presets',
    'mm.teachers',
    'mm.distil',
    'mm.hooks',
    'mm.pictures',
    'mm.cost',
    'mm.check',
    'mm.mmrazor',
    'mm.run',
    'cli',
]
# The three that put the package together: they import what they offer.
DOORS = ['__init__', '__main__', 'mm.__init__']
MOST_FILES, MOST_LINES = 14, 450
FRAMEWORKS = {'mmdet', 'mmseg', 'mmcv', 'mmrotate'}
# Import mmdet or mmrotate when they are imported, which is not before the first of their heads is
# built.
AT_ONCE = [
    'mm.models.distribution_heads',
    'mm.models.incremental_heads',
    'mm.models.rotated_heads',
]
# What a file may import where it is needed, beyond torch.
LATE = {'losses.queries.matching': {'scipy'}}
FILES = sorted(PACKAGE.rglob('*.py'))


def dotted(path):
    return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


def room_of(name):
    """The room that a module, as ``mm.files.checkpoint``, lies in; None where there is none."""
    return next((r for r in ROOMS if name == r or name.startswith(f'{r}.')), None)


def imports(path, lazily=True):
    """The modules that a file imports, those inside functions included if asked for."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if lazily else iter(tree.body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f'{node.module}.{alias.name}' for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == 'import_module':
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def rooms_of_imports(path):
    inner = [n.removeprefix('kd_dense.') for n in imports(path) if n.startswith('kd_dense.')]
    return {room for room in map(room_of, inner) if room}


@pytest.mark.parametrize('path', FILES, ids=dotted)
def test_every_file_lies_in_a_room_and_imports_point_inward(path):
    if dotted(path) in DOORS:
        return
    room = room_of(dotted(path))
    assert room, f'{dotted(path)} lies in no room: put it into one, or name a new one in ROOMS'
    outward = {other for other in rooms_of_imports(path) if ROOMS.index(other) > ROOMS.index(room)}
    assert not outward, f'{dotted(path)} in {room} imports from later rooms: {outward}'


def test_rooms_exist():
    found = {room_of(dotted(path)) for path in FILES}
    assert not [room for room in ROOMS if room not in found]


@pytest.mark.parametrize('path', FILES, ids=dotted)
def test_frameworks_stay_in_their_room(path):
    named = {name.split('.')[0] for name in imports(path)}
    name, room = dotted(path), room_of(dotted(path))
    assert name.startswith('mm.') or not named & FRAMEWORKS
    if room in TORCH_ONLY:
        late = LATE.get(name, set())
        assert named <= {'torch', 'kd_dense', '__future__', *sys.stdlib_module_names, *late}
        assert not late & {n.split('.')[0] for n in imports(path, lazily=False)}
    if name not in AT_ONCE:
        at_once = {n.split('.')[0] for n in imports(path, lazily=False)}
        assert not at_once & {'mmdet', 'mmseg', 'mmrotate'}


def test_no_folder_is_crowded_and_no_file_is_long():
    folders = {path.parent for path in FILES}
    counts = {str(f.relative_to(ROOT)): len([*f.glob('*.py')]) for f in folders}
    lines = {dotted(path): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: count for name, count in counts.items() if count > MOST_FILES}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


def test_the_tests_mirror_the_rooms():
    """A folder of tests is called like a folder of the package, of benchmarks or of examples."""
    beside = {'', 'oracle', 'oracle/data', 'configs', 'gpu', 'tools', 'examples', 'benchmarks'}
    for folder in {path.parent for path in (ROOT / 'tests').rglob('*.py')}:
        name = folder.relative_to(ROOT / 'tests').as_posix().removesuffix('.')
        known = name in beside or any((home / name).is_dir() for home in (PACKAGE, ROOT))
        assert known, f'tests/{name} mirrors no folder'


def run(code):
    subprocess.run([sys.executable, '-c', code], check=True)


def test_who_imports_us_imports_no_framework_and_draws_nothing():
    run('import sys, kd_dense.mm; assert not {"mmdet", "mmseg", "matplotlib"} & {*sys.modules}')


def test_the_overview_of_the_command_needs_not_even_torch():
    run('import sys, kd_dense.cli.main as cli; cli.main(None, ["--help"]); '
        'assert "torch" not in sys.modules')  # fmt: skip


def test_losses_need_torch_and_nothing_else():
    run(
        'import sys\n'
        'for name in ("mmengine", "mmcv", "mmdet", "mmseg", "numpy.testing"):\n'
        '    sys.modules[name] = None\n'
        'import kd_dense, kd_dense.losses, kd_dense.taps, kd_dense.adapters, kd_dense.schedules\n'
    )

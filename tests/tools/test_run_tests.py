"""tools/run_tests.sh: what each lane runs, and on what."""

import re
import subprocess
import sys

import pytest

from tests.miniature import ROOT
from tests.tools.repository import Repository, installs

SCRIPT = 'tools/run_tests.sh'
# What gates a commit, too.
CHECKS = [['ruff', 'check', '.'], ['ruff', 'format', '--check', '.'], ['mypy']]


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / 'repository')


def started(calls):
    """All that was run but the installation."""
    setup = [['-m', name] for name in ('venv', 'pip', 'compileall')]
    return [call for call in calls if call[1:3] not in setup and call[1:2] != ['-c']]


def arguments(calls):
    """How pytest was started, the only one that was."""
    [call] = started(calls)
    assert call[:3] == ['python', '-m', 'pytest']
    return call[3:]


def paths(words):
    """The folders and files that pytest was given; they exist."""
    found = [word for word in words if re.match(r'(kd_dense|tests)\b', word)]
    assert all((ROOT / path).exists() for path in found)
    return found


def test_all(repository):
    _, calls = repository.bash(SCRIPT)
    first, second, *others = started(calls)
    assert [first, second] == CHECKS[:2]
    tests = ['python', '-m', 'pytest', '--numprocesses', '2']
    assert sorted(others) == sorted([*CHECKS[2:], tests])  # side by side


@pytest.mark.parametrize(('types', 'tests', 'status'), [(2, 0, 1), (2, 5, 1), (0, 5, 5)])
def test_all_fails_where_types_or_tests_do(repository, types, tests, status):
    ends = dict(MYPY_STATUS=types, PYTEST_STATUS=tests)
    said, calls = repository.bash(SCRIPT, status=status, **ends)
    assert len(started(calls)) == 4
    assert ('the type checker has found errors' in said) == bool(types)


def test_what_is_no_option_of_the_script_is_pytests(repository):
    for words in (['-x', 'tests/losses', '--lf'], ['--', '--lf', '-k', 'a b']):
        _, calls = repository.bash(SCRIPT, *words)
        assert ['python', '-m', 'pytest', '--numprocesses', '2',
                *(word for word in words if word != '--')] in calls  # fmt: skip


def test_core(repository):
    _, calls = repository.bash(SCRIPT, '--core', '-x')
    words = arguments(calls)
    assert {'tests/losses', 'tests/oracle', 'tests/mm/distil/test_promises.py',
            'tests/configs/test_recipes.py', 'tests/test_package.py',
            'tests/test_imports.py'} == {*paths(words)}  # fmt: skip
    assert words[-3:] == ['-k', 'not test_recipes or lane', '-x']


def test_the_lanes_train_one_recipe_of_each_framework():
    """-k takes what has the word in its name or among its marks."""
    from tests.configs.test_recipes import RECIPES, test_trains_and_evaluates

    assert not [path for path in RECIPES if 'lane' in path.stem]
    [parametrized] = test_trains_and_evaluates.pytestmark
    marked = [one.id for one in parametrized.args[1] if [m.name for m in one.marks] == ['lane']]
    students = [name.split('_')[1].partition('-')[0] for name in marked]
    assert sorted(students) == ['pspnet', 'retinanet']


def test_the_other_stack(repository):
    _, calls = repository.bash(SCRIPT, '--stack', 'openmmlab', '-x')
    words = arguments(calls)
    assert repository.environments() == ['.venv-openmmlab']
    assert {'kd_dense', 'tests/mm', 'tests/test_package.py'} <= {*paths(words)}
    assert words[-3:] == ['-k', 'not test_recipes or lane', '-x']


@pytest.mark.parametrize('words', [['--core', '--stack', 'openmmlab'],
                                   ['--stack', 'openmmlab', '--core']])  # fmt: skip
def test_a_lane_on_another_stack_and_another_python(repository, words):
    _, calls = repository.bash(SCRIPT, *words, PYTHON=repository.python)
    assert 'tests/oracle' in paths(arguments(calls))
    assert repository.environments() == ['.venv-openmmlab-3.12']


def test_long(repository):
    _, calls = repository.bash(SCRIPT, '--long', '-k', 'kill')
    assert arguments(calls) == ['--numprocesses', '2', '-m', 'long', 'tests', '-k', 'kill']


def test_gpu(repository):
    _, calls = repository.bash(SCRIPT, '--gpu', '-x')
    words = arguments(calls)
    assert words[:2] == ['-m', 'gpu']
    assert paths(words) == ['tests/gpu']
    assert words[-1] == '-x'


def test_gpu_from_wheels(repository, tmp_path):
    """Nothing is asked of an index, no environment is made; the machine's own Python runs it."""
    wheels = tmp_path / 'wheels'
    wheels.mkdir()
    (wheels / 'one.whl').touch()
    (wheels / 'two.whl').touch()
    _, calls = repository.bash(SCRIPT, '--gpu', '--wheels', wheels, '--', '--gpu-dry-run')
    assert repository.environments() == []
    [install] = installs(calls)
    assert '--no-index --no-deps' in install
    assert install.endswith(f'{wheels}/one.whl {wheels}/two.whl')
    site = re.search(r'--target (\S+)', install)[1]
    assert calls[-1] == ['python3', '-m', 'pytest', '-m', 'gpu', 'tests/gpu', '--gpu-dry-run']
    assert not (repository.root / site).exists()


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--cor'], 'unknown option --cor; options of pytest come behind --'),
        (['--core', '--durations=3'], 'unknown option --durations=3; options of pytest come'),
        (['--core', '--long'], 'one lane at a time: got --core and --long'),
        (['--stack'], '--stack needs a name: onedl or openmmlab'),
        (['--stack', 'nonsense'], "unknown stack 'nonsense': expected onedl or openmmlab"),
        (['--gpu', '--wheels'], '--wheels needs a folder'),
        (['--wheels', 'folder'], '--wheels goes with --gpu'),
    ],
)
def test_errors(repository, words, message):
    said, calls = repository.bash(SCRIPT, *words, status=2)
    assert message in said
    assert not started(calls)


def test_help_has_every_option(repository):
    said, calls = repository.bash(SCRIPT, '--help')
    for option in ('--stack', '--core', '--long', '--gpu', '--wheels', 'PYTHON='):
        assert option in said
    assert 'set -euo' not in said
    assert not calls


@pytest.mark.long
def test_the_gpu_lane_runs_dry():
    """All of its ways but the calls that CUDA alone has."""
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', 'tests/gpu', '--gpu-dry-run'],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert 'a dry run on the CPU, CUDA was not used; Python ' in done.stdout

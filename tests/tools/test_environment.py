"""tools/environment.sh: an environment for each stack and each Python, made once."""

import re

import pytest
from packaging.requirements import Requirement

from tests.miniature import ROOT
from tests.tools.repository import Repository, installs

SOURCE = ('-euc', 'source tools/environment.sh "$@"; command -v python', 'bash')


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / 'repository')


@pytest.mark.parametrize(
    ('stack', 'chosen', 'expected'),
    [
        ('onedl', False, '.venv'),
        ('openmmlab', False, '.venv-openmmlab'),
        ('onedl', True, '.venv-3.12'),
        ('openmmlab', True, '.venv-openmmlab-3.12'),
    ],
)
def test_the_name_says_stack_and_python(repository, stack, chosen, expected):
    python = {'PYTHON': repository.python} if chosen else {}
    said, calls = repository.bash(*SOURCE, stack, **python)
    assert repository.environments() == [expected]
    assert said.splitlines()[-1] == str(repository.root / expected / 'bin' / 'python')
    packages, alone, ours = installs(calls)
    assert alone.endswith('--no-deps --requirement requirements/no-deps.txt')
    assert packages.endswith(f'--requirement requirements/{stack}.txt')
    assert ours.endswith('--no-build-isolation --no-deps --editable .')


def test_the_default_stack_needs_no_name(repository):
    repository.bash('-euc', 'source tools/environment.sh')
    assert repository.environments() == ['.venv']


def test_several_live_side_by_side_and_each_is_made_once(repository):
    for stack in ('onedl', 'openmmlab'):
        for python in ({}, {'PYTHON': repository.python}):
            for times in (3, 0):
                _, calls = repository.bash(*SOURCE, stack, **python)
                assert len(installs(calls)) == times
    assert len(repository.environments()) == 4


def test_one_that_was_left_half_made_is_made_again(repository):
    half = repository.root / '.venv' / 'bin' / 'python'
    half.parent.mkdir(parents=True)
    half.write_text('#!/bin/sh\nexit 1\n')
    half.chmod(0o755)
    _, calls = repository.bash(*SOURCE, 'onedl')
    assert ['python3', '-m', 'venv', '.venv'] in calls
    assert len(installs(calls)) == 3


@pytest.mark.parametrize(
    'file',
    ['requirements/base.txt', 'requirements/no-deps.txt', 'requirements/onedl.txt', 'setup.py'],
)
def test_it_is_installed_anew_when_what_is_wanted_changes(repository, file):
    repository.bash(*SOURCE, 'onedl')
    (repository.root / file).write_text('# another\n')
    _, calls = repository.bash(*SOURCE, 'onedl')
    assert len(installs(calls)) == 3


@pytest.mark.parametrize(
    ('stack', 'version', 'python', 'message'),
    [
        ('onedll', '3.12', None, "unknown stack 'onedll': expected onedl or openmmlab"),
        ('onedl', '3.12', 'no/python', 'PYTHON=no/python does not run: expected the path of'),
        ('onedl', '3.9', None, 'kd_dense needs Python >= 3.10'),
        ('openmmlab', '3.13', None, 'numpy 1.26, which has no wheels from Python 3.13 on'),
    ],
)
def test_errors(tmp_path, stack, version, python, message):
    repository = Repository(tmp_path / 'repository', version)
    chosen = {'PYTHON': python} if python else {}
    said, calls = repository.bash(*SOURCE, stack, status=2, **chosen)
    assert message in said
    assert not installs(calls)
    assert repository.environments() == []


def test_an_error_does_not_close_the_shell_that_sources_it(repository):
    said, _ = repository.bash('-c', 'source tools/environment.sh nonsense; echo still here')
    assert 'still here' in said


@pytest.mark.parametrize('version', ['3.10', '3.11', '3.12', '3.13'])
@pytest.mark.parametrize('stack', ['onedl', 'openmmlab'])
def test_every_python_gets_one_version_of_each_package(stack, version):
    there, anywhere, found = {'python_version': version}, set(), []
    for file in ('base', stack):
        for line in (ROOT / 'requirements' / f'{file}.txt').read_text().splitlines():
            if re.match(r'\w', line):
                pin = Requirement(line)
                assert str(pin.specifier).startswith('=='), line
                anywhere.add(pin.name)
                if pin.marker is None or pin.marker.evaluate(there):
                    found.append(pin.name)
    assert sorted(found) == sorted(anywhere)

"""tools/wheelhouse.sh: what it collects is enough, and no more than is missing."""

import re
import subprocess
import sys

import pytest

from tests.miniature import ROOT
from tests.tools.repository import Repository

SCRIPT = 'tools/wheelhouse.sh'
PINS = ROOT / 'requirements' / 'onedl.txt'
# Imports what the GPU tests import, and all of both frameworks, where nothing else can be had.
IMPORTS = """
import importlib, re, sys
from importlib import metadata
from importlib.machinery import PathFinder

distributions = metadata.packages_distributions()
normal = lambda name: re.sub('[-_.]+', '-', name).lower()
there, todo = set(), {*sys.argv[1].split(), 'kd-dense'}
has = {*sys.argv[2].split()}
while todo:
    name = todo.pop()
    there.add(name)
    if name in has:  # comes with what it needs
        try:
            needs = [r for r in metadata.requires(name) or [] if 'extra ==' not in r]
        except metadata.PackageNotFoundError:
            needs = []
        names = {normal(re.match(r'[\\w.-]+', r)[0]) for r in needs}
        has |= names
        todo |= names - there

class Finder:
    find_distributions = PathFinder.find_distributions

    def find_spec(name, path=None, target=None):
        owners = {normal(owner) for owner in distributions.get(name.partition('.')[0], [])}
        return PathFinder.find_spec(name, path, target) if not owners or owners & there else None

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
import kd_dense.mm, mmdet.datasets, mmdet.evaluation, mmdet.models
import mmseg.datasets, mmseg.evaluation, mmseg.models, pytest
for name in sys.argv[3:]:
    importlib.import_module(name)
"""


def normal(name):
    return re.sub(r'[-_.]+', '-', name).lower()


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / 'repository')


def collected(repository, *words, folder):
    """The packages that it asks for, with their versions, and how the download is called."""
    folder.mkdir()
    _, calls = repository.bash(SCRIPT, *words, folder, WHEEL=folder / 'stub.whl', MIB=1)
    built, fetched = [call[4:] for call in calls if call[3:4] in (['wheel'], ['download'])]
    names = []
    for call in (built, fetched):
        last = max(i for i, word in enumerate(call) if word.startswith('--'))
        names += call[last + 2 :]
    return {normal(name.partition('==')[0]): name for name in names}, fetched


def has_by_default():
    return re.search("^HAS='(.*)'$", (ROOT / SCRIPT).read_text(), re.MULTILINE)[1].split()


@pytest.mark.long
def test_it_is_enough(repository, tmp_path):
    """With what is collected, and what the machine is taken to have, all can be imported."""
    names, _ = collected(repository, '3.12', folder=tmp_path / 'wheels')
    has = has_by_default()
    assert {'torch', 'numpy'} <= {*has}
    assert not {*names} & {*has}
    tests = [f'tests.gpu.{path.stem}' for path in (ROOT / 'tests' / 'gpu').glob('test_*.py')]
    assert tests
    for missing in (None, 'terminaltables'):
        there = ' '.join({*names, *has} - {missing})
        done = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', IMPORTS, there, ' '.join(has), *tests],
            cwd=ROOT, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert (done.returncode == 0) == (missing is None), done.stderr
    assert 'terminaltables' in done.stderr


def test_versions_are_those_that_are_tested(repository, tmp_path):
    names, _ = collected(repository, '3.12', folder=tmp_path / 'wheels')
    pins = dict(re.findall(r'^(onedl-\w+)==(.+)$', PINS.read_text(), re.MULTILINE))
    assert len(pins) == 4
    assert all(names[name] == f'{name}=={version}' for name, version in pins.items())
    older, _ = collected(repository, '3.10', folder=tmp_path / 'older')
    assert older['regex'] != names['regex']
    assert older.keys() - names.keys() == {'exceptiongroup', 'tomli'}  # as its pytest needs


def test_it_is_for_the_python_that_is_asked_for(repository, tmp_path):
    for version in ('3.12', '3.13'):
        _, fetched = collected(repository, version, folder=tmp_path / version)
        assert fetched[fetched.index('--python-version') + 1] == version
        assert {'--only-binary=:all:', '--no-deps'} <= {*fetched}


def test_it_leaves_out_what_is_there(repository, tmp_path):
    (tmp_path / 'has.txt').write_text('PyYAML==6.0\nopencv_python_headless==4.12.0\nrich==14.0\n')
    names, _ = collected(repository, '--has', tmp_path / 'has.txt', '3.12',
                         folder=tmp_path / 'wheels')  # fmt: skip
    left_out = {'pyyaml', 'rich', 'markdown-it-py', 'opencv-python', 'opencv-python-headless',
                'torch', 'numpy'}  # fmt: skip
    assert not left_out & {*names}
    assert {'scipy', 'matplotlib', 'onedl-mmcv', 'pytest'} <= {*names}


def test_it_says_how_large_it_is(repository, tmp_path):
    folder = tmp_path / 'wheels'
    folder.mkdir()
    said, calls = repository.bash(SCRIPT, '3.12', folder, WHEEL=folder / 'stub.whl', MIB=59)
    assert f'{folder}: 1 wheels for Python 3.12, 59 MiB' in said
    assert calls
    (folder / 'stub.whl').unlink()
    said, _ = repository.bash(SCRIPT, '3.12', folder, WHEEL=folder / 'stub.whl', MIB=61, status=1)
    assert 'more than 60 MiB: leave out what that machine has, with --has' in said


@pytest.mark.parametrize(
    ('words', 'status', 'message'),
    [
        (['wheels'], 2, 'usage: bash tools/wheelhouse.sh [--has FILE]'),
        (['3.12', 'tools'], 2, 'tools is not empty: two versions of a package stop'),
        (['--has'], 1, '--has needs a file'),
        (['--has', 'nowhere.txt'], 1, 'nowhere.txt'),
    ],
)
def test_errors(repository, words, status, message):
    said, calls = repository.bash(SCRIPT, *words, status=status)
    assert message in said
    assert not [call for call in calls if call[3:4] in (['wheel'], ['download'])]

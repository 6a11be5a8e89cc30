"""A family of methods is everywhere or nowhere: losses, presets, pictures, page, recipes, test."""

from __future__ import annotations

import re

import pytest

from kd_dense.mm.presets.choose import METHODS
from tests.miniature import ROOT

# Where each family has a file, and what lies there beside them.
PLACES = {
    'kd_dense/losses/{}.py': {
        '__init__',
        'base',
        'features/__init__',
    },
    'kd_dense/mm/presets/methods/{}.py': {'__init__', 'features/__init__'},
    'kd_dense/mm/pictures/methods/{}.py': {'__init__', 'features/__init__'},
    'docs/methods/{}.md': {'README'},
    'configs/{}/README.md': set(),
}
# Where it has one too, among many others.
ALSO = ('tests/losses/test_{}.py',)


def named(place):
    """The families that have a file in a place."""
    beside = {place.split('{}')[0] + name for name in (*PLACES[place], 'features')}
    found = set()
    for form in forms(place):
        before, after = form.split('{}')
        paths = [path.relative_to(ROOT).as_posix() for path in ROOT.glob(form.format('*'))]
        stems = {path.removesuffix(after) for path in paths}
        found |= {stem.removeprefix(before) for stem in stems - beside}
    return found


def forms(place):
    """A family of the package may lie in ``features/``, and its losses may be a folder."""
    found = [place]
    if place.startswith('kd_dense/'):
        found += [place.replace('{}', 'features/{}')]
    if place.startswith('kd_dense/losses/'):
        found += [form.replace('.py', '/__init__.py') for form in found]
    return found


FAMILIES = sorted(set().union(*map(named, PLACES)))


def test_all_places_have_families():
    assert {'cwd', 'fgd', 'intrakd', 'ld', 'skd'} <= {*FAMILIES}
    for place, others in PLACES.items():
        gone = [name for name in others if not (ROOT / place.format(name)).is_file()]
        assert not gone, f'{place} has no {gone} any more: take these out of PLACES'


@pytest.mark.parametrize('family', FAMILIES)
def test_a_family_is_in_all_places(family):
    has, lacks = [], []
    for place in (*PLACES, *ALSO):
        paths = [form.format(family) for form in forms(place)]
        found = [path for path in paths if (ROOT / path).is_file()]
        has += found
        lacks += [] if found else paths[:1]
    assert not lacks, (
        f'the family {family!r} has {", ".join(has)}; it lacks {", ".join(lacks)}. '
        'What is no family is named in PLACES.'
    )


def test_a_family_may_lie_in_features_and_its_losses_may_be_a_folder():
    assert forms('kd_dense/losses/{}.py') == [
        'kd_dense/losses/{}.py',
        'kd_dense/losses/features/{}.py',
        'kd_dense/losses/{}/__init__.py',
        'kd_dense/losses/features/{}/__init__.py',
    ]
    for place in list(PLACES)[:3]:
        assert {'mimic', 'ld', 'cwd'} <= named(place)
    assert forms('docs/methods/{}.md') == ['docs/methods/{}.md']


@pytest.mark.parametrize('page', ['README.md', 'docs/methods/README.md'])
def test_the_tables_of_methods_have_all(page):
    text = (ROOT / page).read_text()
    here = 'docs/methods/' if page == 'README.md' else ''
    missing = [name for name in FAMILIES if f']({here}{name}.md)' not in text]
    assert not missing, f'{page} has no row for {missing}'


def test_each_method_has_its_line_and_costs_what_is_counted():
    lines = (ROOT / 'docs/methods/README.md').read_text().splitlines()
    rows = {line.split('`')[1]: line for line in lines if line.startswith('| [`')}
    assert rows.keys() == METHODS.keys()
    counted = (ROOT / 'docs/performance.md').read_text().split('<!-- launches')[1]
    passes = {line.split('|')[3].strip() for line in counted.splitlines() if line.count('|') > 4}
    for name, row in rows.items():
        _, _, what, _, cost, *_ = (cell.strip() for cell in row.split('|'))
        assert what == METHODS[name].summary
        assert {*re.findall(r'\d+\.\d', cost)} <= passes, name

"""A family of methods is everywhere or nowhere: losses, presets, pictures, page, recipes, test."""

from __future__ import annotations

import pytest

from tests.miniature import ROOT

# Where each family has a file, and what lies there beside them. Its losses may be a folder.
PLACES = {
    'kd_dense/losses/{}.py': {
        '__init__',
        'base',
        'attention',  # a term of IntRA-KD, and no method of its own
    },
    'kd_dense/mm/presets/methods/{}.py': {'__init__'},
    'kd_dense/mm/pictures/methods/{}.py': {'__init__'},
    'docs/methods/{}.md': {'README'},
    'configs/{}/README.md': set(),
}
# Where it has one too, among many others.
ALSO = ('tests/losses/test_{}.py',)


def named(place):
    """The families that have a file in a place; ``losses/ld_regions.py`` is another one of LD."""
    found = set()
    for form in forms(place):
        before, after = form.split('{}')
        paths = [path.relative_to(ROOT).as_posix() for path in ROOT.glob(form.format('*'))]
        found |= {path.removeprefix(before).removesuffix(after) for path in paths}
    found -= PLACES[place]
    return {name for name in found if not any(name.startswith(f'{other}_') for other in found)}


def forms(place):
    folder = place.replace('.py', '/__init__.py')
    return [place, folder] if place.startswith('kd_dense/losses/') else [place]


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


def test_the_losses_of_a_family_may_be_a_folder():
    assert forms('kd_dense/losses/{}.py') == [
        'kd_dense/losses/{}.py',
        'kd_dense/losses/{}/__init__.py',
    ]
    assert forms('docs/methods/{}.md') == ['docs/methods/{}.md']


@pytest.mark.parametrize('page', ['README.md', 'docs/methods/README.md'])
def test_the_tables_of_methods_have_all(page):
    text = (ROOT / page).read_text()
    here = 'docs/methods/' if page == 'README.md' else ''
    missing = [name for name in FAMILIES if f']({here}{name}.md)' not in text]
    assert not missing, f'{page} has no row for {missing}'

"""A method is everywhere or nowhere: loss, presets, pictures, page, recipes and test."""

from __future__ import annotations

import pytest

from tests.miniature import ROOT

# Where each method has a file, and what lies there beside them.
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
    """The methods that have a file in a place; ``losses/ld_regions.py`` is another one of LD."""
    before, after = place.split('{}')
    paths = [path.relative_to(ROOT).as_posix() for path in ROOT.glob(place.format('*'))]
    found = {path.removeprefix(before).removesuffix(after) for path in paths} - PLACES[place]
    return {name for name in found if not any(name.startswith(f'{other}_') for other in found)}


METHODS = sorted(set().union(*map(named, PLACES)))


def test_all_places_have_methods():
    assert {'cwd', 'fgd', 'intrakd', 'ld', 'skd'} <= {*METHODS}
    for place, others in PLACES.items():
        gone = [name for name in others if not (ROOT / place.format(name)).is_file()]
        assert not gone, f'{place} has no {gone} any more: take these out of PLACES'


@pytest.mark.parametrize('method', METHODS)
def test_a_method_is_in_all_places(method):
    paths = [place.format(method) for place in (*PLACES, *ALSO)]
    has = [path for path in paths if (ROOT / path).is_file()]
    lacks = [path for path in paths if path not in has]
    assert not lacks, (
        f'the method {method!r} has {", ".join(has)}; it lacks {", ".join(lacks)}. '
        'What is no method is named in PLACES.'
    )

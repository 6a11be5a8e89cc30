from functools import cache

import pytest
from mmengine.config import utils

from tests.mm.mmrazor import shapes

read_once = cache(utils.load)


@pytest.fixture(autouse=True)
def _indices_are_read_once(monkeypatch):
    """Mmengine reads all metafiles of a package again for each config."""
    monkeypatch.setattr(utils, 'load', read_once)


@pytest.fixture(scope='session')
def razor(tmp_path_factory):
    """A folder with configs in the shape of those that mmrazor and mmyolo ship."""
    folder = tmp_path_factory.mktemp('mmrazor')
    shapes.write_all(folder)
    return folder

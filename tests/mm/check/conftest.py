"""The quickstart's recipes on a few pictures."""

import pytest
from mmengine.config import Config

from examples.quickstart.make_scenes import make_scenes
from tests.miniature import ROOT
from tests.mm.check.checking import QUICKSTART


@pytest.fixture(scope='package')
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    make_scenes(folder, train=8, val=6, test=2)
    return folder


@pytest.fixture
def recipe(scenes, monkeypatch):
    """A recipe of the quickstart, with small batches."""
    monkeypatch.setenv('SCENES', str(scenes))
    monkeypatch.chdir(ROOT)

    def read(name, **options):
        config = Config.fromfile(QUICKSTART / f'{name}.py')
        config.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
        config.train_dataloader.batch_size = 4
        return config

    return read

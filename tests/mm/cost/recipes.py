"""The recipes of the quickstart, side by side."""

from mmengine.config import Config

from kd_dense.mm.cost.side_by_side import SideBySide
from tests.miniature import ROOT

QUICKSTART = ROOT / 'configs' / 'quickstart'


def read(name, **options):
    """A recipe; ``__`` in an option stands for a dot."""
    config = Config.fromfile(QUICKSTART / f'{name}.py')
    config.merge_from_dict({key.replace('__', '.'): value for key, value in options.items()})
    return config


def side_by_side(*names, size=(64, 64), images=2, **options):
    """Recipes with the same options, on small pictures."""
    return SideBySide({name: read(name, **options) for name in names}, size, images)

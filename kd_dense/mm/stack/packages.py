"""How mmengine finds the configs of packages: the cures for ``mmseg::`` and ``kd_dense::``.

mmengine finds ``mmdet::retinanet/retinanet_r50_fpn_1x_coco.py`` in three steps: its table
``MODULE2PACKAGE`` names the distribution, the distribution has a folder, and there are
``.mim/model-index.yml`` and ``.mim/configs``. In the same way

- ``mmengine.hub.get_config('kd_dense::fgd/...')``,
- ``_base_ = 'kd_dense::fgd/...'`` in a config, and
- a teacher called ``kd_dense::fgd/...``

lead to the recipes of kd_dense, once `kd_dense.mm` has been imported: mmengine refuses a package
that its table lacks. The commands of kd_dense import it first of all. Where another program reads
the config, the first of its bases can do it, a file of one line::

    __import__('kd_dense.mm')
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

__all__ = ['find_configs']

_get_cfg_path = Config._get_cfg_path


def find_configs() -> None:
    """Apply the cures; calling it twice does no more than calling it once."""
    _find_mmseg()
    # Not the name of the distribution, but of a module beside ``.mim``: mmengine then looks where
    # Python does. By the distribution, the original line gets a folder that does not exist if it
    # is installed as editable, and both may get another copy than the one that is imported.
    MODULE2PACKAGE['kd_dense'] = 'kd_dense.registry'
    Config._get_cfg_path = staticmethod(_find_base)


def _find_mmseg() -> None:
    """Let ``mmseg::`` resolve where the distribution is not called ``mmsegmentation``."""
    try:
        version(MODULE2PACKAGE['mmseg'])
    except PackageNotFoundError:
        MODULE2PACKAGE['mmseg'] = 'mmseg'


def _find_base(cfg_path: str, filename: str) -> tuple[str, str | None]:
    """What mmengine calls for each of the bases, to get its path and its scope.

    All of a base that is called ``mmdet::...`` is built from mmdet's registries. A recipe of ours
    names things of mmdet or mmseg, by its ``default_scope``, and kd_dense has no such things.
    """
    path, scope = _get_cfg_path(cfg_path, filename)
    return path, None if scope == 'kd_dense' else scope

"""Cures for what keeps the two OpenMMLab stacks from running as they are."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.runner import checkpoint as mmengine_checkpoint

from kd_dense.mm.checkpoint import read_file

__all__ = ['install']


def install() -> None:
    """Apply the cures; calling it twice does no more than calling it once."""
    _find_packages_by_module()
    _read_checkpoints_safely()


def _find_packages_by_module() -> None:
    """Let ``mmseg::`` resolve where the distribution is not called ``mmsegmentation``."""
    for module, package in list(MODULE2PACKAGE.items()):
        if module == 'mmseg' and package != module:
            try:
                version(package)
            except PackageNotFoundError:
                MODULE2PACKAGE[module] = module


def _read_checkpoints_safely() -> None:
    """Read for mmengine what is resumed from, ``load_from``, and weights named in a config.

    The maintained line runs what a file holds once reading it safely has failed, the original
    line refuses its own bookkeeping, and both run what comes from an address.
    """
    loader = mmengine_checkpoint.CheckpointLoader
    loader.register_scheme(('', 'http://', 'https://'), load_from_kd_dense, force=True)
    # By this one it reads other addresses, as ``torchvision://``, which are lists of names.
    mmengine_checkpoint.load_from_http = load_from_kd_dense


def load_from_kd_dense(filename: str, map_location: Any = None) -> Any:
    """What mmengine calls, and names in its log as ``kd_dense``."""
    return read_file(filename, map_location)

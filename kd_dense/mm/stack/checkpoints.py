"""How mmengine reads checkpoints: the cure for files that run what they hold."""

from __future__ import annotations

from typing import Any

from mmengine.runner import checkpoint as mmengine_checkpoint

from kd_dense.mm.files.checkpoint import read_file

__all__ = ['read_safely']


def read_safely() -> None:
    """Read for mmengine what is resumed from, ``load_from``, and weights named in a config.

    The maintained line runs what a file holds once reading it safely has failed, the original
    line refuses its own bookkeeping, and both run what comes from an address. Calling it twice
    does no more than calling it once.
    """
    loader = mmengine_checkpoint.CheckpointLoader
    loader.register_scheme(('', 'http://', 'https://'), load_from_kd_dense, force=True)
    # By this one it reads other addresses, as ``torchvision://``, which are lists of names.
    mmengine_checkpoint.load_from_http = load_from_kd_dense


def load_from_kd_dense(filename: str, map_location: Any = None) -> Any:
    """What mmengine calls, and names in its log as ``kd_dense``."""
    return read_file(filename, map_location)

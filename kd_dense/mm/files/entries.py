"""A folder of tensors by name, each file there completely or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

from torch import Tensor

__all__ = ['Entries']

MISSING, CHANGED, DAMAGED = 'missing', 'changed', 'damaged'
SUM = 16  # bytes
SUFFIX, UNFINISHED = '.maps', '.unfinished'
ABANDONED = 24 * 3600  # seconds after which nobody writes at an unfinished file any more


class Entries:
    """Tensors on a disk, each entry for one state of what it was made of.

    A file is a sum of what it was made of, a sum of all that follows, and then
    [safetensors](https://github.com/huggingface/safetensors): nothing in it is ever run. It is
    written under another name and renamed, so that several processes may write the same entry,
    and one that is killed leaves none.

    Args:
        folder: Where they lie; it is made with the first entry.

    Raises:
        ImportError: If safetensors is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if find_spec('safetensors') is None:
            raise ImportError(
                'kept maps of a teacher are files of safetensors, which is not installed: '
                'pip install safetensors'
            )
        self.folder = folder

    def read(self, name: str, made_of: str) -> dict[str, Tensor] | str:
        """An entry, or why there is none: missing, changed (made of something else) or damaged.

        Args:
            name: Of the entry, with ``/`` between folders.
            made_of: What it must have been made of.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            data = self._path(name).read_bytes()
        except FileNotFoundError:
            return MISSING
        source, total, content = data[:SUM], data[SUM : 2 * SUM], data[2 * SUM :]
        if total != _sum(source, content):
            return DAMAGED
        if source != _sum(made_of.encode()):
            return CHANGED
        try:
            return load(content)
        except SafetensorError:
            return DAMAGED

    def write(self, name: str, made_of: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry, in place of the one that may be there.

        Args:
            name: Of the entry.
            made_of: What it is made of.
            tensors: By name; on the CPU, and contiguous.
        """
        from safetensors.torch import save

        path = self._path(name)
        source, content = _sum(made_of.encode()), save({**tensors})
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f'{path.name}.{uuid4().hex}{UNFINISHED}')
        try:
            with unfinished.open('xb') as file:
                for part in (source, _sum(source, content), content):
                    file.write(part)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def sweep(self) -> int:
        """Remove what killed processes have left, and count the entries."""
        count = 0
        for folder, _, files in os.walk(self.folder):
            for name in files:
                path = Path(folder, name)
                count += name.endswith(SUFFIX)
                if name.endswith(UNFINISHED):
                    try:
                        if time.time() - path.stat().st_mtime > ABANDONED:
                            path.unlink(missing_ok=True)
                    except FileNotFoundError:  # it has just been finished
                        pass
        return count

    def _path(self, name: str) -> Path:
        return self.folder / (name + SUFFIX)


def _sum(*parts: bytes) -> bytes:
    found = blake2b(digest_size=SUM)
    for part in parts:
        found.update(part)
    return found.digest()

"""Checkpoints: read without running what is in them, loaded completely."""

from __future__ import annotations

import os
import pickletools
import re
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZipFile, is_zipfile

import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import print_log
from torch import Tensor, nn

from kd_dense.mm.files.safe_types import RefusedError, trusted_types

__all__ = ['load_weights', 'read_checkpoint', 'read_file', 'weights_of']


def read_file(source: str, map_location: Any = 'cpu') -> Any:
    """Read what ``torch.save`` or safetensors wrote, without executing anything in it.

    Args:
        source: Path, or an ``http(s)`` address, which is downloaded once into torch's cache.
        map_location: Where tensors go, as in ``torch.load``.

    Returns:
        The content: tensors, plain values, and mmengine's bookkeeping. Of a file of safetensors,
        which holds tensors alone, they are the ``state_dict``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no checkpoint, damaged, or holds anything else; the message
            names it.
    """
    source = os.fspath(source)
    is_address = re.match(r'https?://', source)
    path = _download(source) if is_address else Path(source).expanduser()
    if not path.is_file():
        what = 'is a folder' if path.is_dir() else 'does not exist'
        raise FileNotFoundError(f'the checkpoint {source} {what} (looked in {Path.cwd()})')
    if _is_safetensors(path):
        return {'meta': {}, 'state_dict': _read_safetensors(path, source, map_location)}
    try:
        _check_format(path)
        with trusted_types():
            return torch.load(path, map_location=map_location, weights_only=True)
    except RefusedError as error:
        raise _refused(source, str(error)) from error
    except UnpicklingError as error:
        found = re.search(r'GLOBAL (\S+)', str(error))
        names = found[1] if found else ', '.join(_names_in(path))
        raise (_refused(source, names) if names else _damaged(source, error)) from error
    except Exception as error:  # whatever a file can be made to raise, it is not our own
        raise _damaged(source, error) from error


def read_checkpoint(source: str) -> dict[str, Tensor]:
    """Read the weights of a checkpoint; see [`read_file`][].

    Args:
        source: Path or address.

    Returns:
        Names and tensors of the model, without those of a distillation (``kd.``).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, holds code, or holds no weights.
    """
    return weights_of(read_file(source), source)


def weights_of(content: Any, source: str) -> dict[str, Tensor]:
    """Pick a model's weights out of what a checkpoint holds; see [`read_checkpoint`][]."""
    for key in ('state_dict', 'model'):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if (
        not isinstance(content, Mapping)
        or not all(isinstance(key, str) for key in content)
        or not any(isinstance(value, Tensor) for value in content.values())
    ):
        raise ValueError(f'the checkpoint {source} holds no weights (no state_dict)')
    names = {key: key.removeprefix('module.') for key in content}
    return {names[k]: v for k, v in content.items() if not names[k].startswith('kd.')}


def _is_safetensors(path: Path) -> bool:
    """By its content: the length of a header that is a JSON object, and that header."""
    with path.open('rb') as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], 'little')  # enormous in a pickle or a zip file
    return head[8:] == b'{' and length <= path.stat().st_size


def _read_safetensors(path: Path, source: str, map_location: Any) -> Mapping[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(
            f'the checkpoint {source} was written by safetensors, which is not installed: '
            'pip install safetensors'
        ) from error
    try:
        state = load_file(path)
    except Exception as error:  # whatever a file can be made to raise
        raise _damaged(source, error) from error
    if isinstance(map_location, (str, torch.device)):
        state = {name: value.to(map_location) for name, value in state.items()}
    return state


def _check_format(path: Path) -> None:
    """Refuse what is no checkpoint, without a look at its content."""
    with path.open('rb') as file:
        head = file.read(32)
    if not head.startswith((b'PK\x03\x04', b'\x80')):
        if names := _names_in(path):  # a pickle of a protocol that torch never wrote
            raise RefusedError(', '.join(names))
        raise ValueError(f'it begins with {head!r}, as no checkpoint does' if head else 'empty')
    if head.startswith(b'PK'):
        with ZipFile(path) as archive:
            members = archive.infolist()
        if any(member.filename.endswith('/constants.pkl') for member in members):
            raise RefusedError('a TorchScript program')
        # torch does not compress: where content is larger than the file, it is to fill memory.
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError('its content is larger than the file')


def _names_in(path: Path) -> list[str]:
    """What a pickle names, of what torch would not build; nothing is built to find out."""
    with ExitStack() as stack:
        if is_zipfile(path):
            archive = stack.enter_context(ZipFile(path))
            member = next(n for n in archive.namelist() if n.endswith('data.pkl'))
            file = stack.enter_context(archive.open(member))
        else:
            file = stack.enter_context(path.open('rb'))
        names: list[str] = []
        with suppress(Exception):  # up to where it is no pickle any more
            while True:
                found: list[str] = []
                texts: list[str] = []
                memo: list[str] = []
                argument: Any
                for code, argument, _ in pickletools.genops(file):
                    if code.name in ('GLOBAL', 'INST'):
                        found.append(argument.replace(' ', '.'))
                    elif code.name == 'STACK_GLOBAL':
                        found.append('.'.join(texts[-2:]))
                    elif code.name == 'MEMOIZE':
                        memo.append(texts[-1] if texts else '')
                    elif code.name in ('BINGET', 'LONG_BINGET'):
                        texts.append(memo[argument] if argument < len(memo) else '')
                    elif isinstance(argument, str):
                        texts.append(argument)
                names += found
    known = r'torch\._utils\._rebuild_|torch\.\w+Storage$|collections\.OrderedDict$'
    return [name for name in dict.fromkeys(names) if not re.match(known, name)]


def _refused(source: str, names: str) -> ValueError:
    return ValueError(
        f'the checkpoint {source} was refused: loading it would run {names}. If you trust where '
        'it comes from, save its state_dict alone and load that (docs/security.md)'
    )


def _damaged(source: str, error: Exception) -> ValueError:
    text = str(error).partition('WeightsUnpickler error:')[2] or str(error)  # without advice
    reason = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return ValueError(f'the checkpoint {source} cannot be read; is it complete? ({reason})')


def _download(url: str) -> Path:
    """Fetch a file into torch's cache, once per machine, and compare it with its name."""
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / url.rpartition('/')[2].partition('?')[0]
    local_rank = int(os.environ.get('LOCAL_RANK', get_rank()))
    if not path.is_file() and local_rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=True)
        except (OSError, HTTPException) as error:
            raise FileNotFoundError(
                f'cannot download the checkpoint {url} ({error}); fetch it yourself and save it '
                f'as {path}'
            ) from error
    barrier()
    # OpenMMLab ends the names of published weights with the first digits of their hash. Only a
    # warning, because mmengine's own `published_keys` puts the hash of something else there.
    expected = re.search(r'-([0-9a-f]{8})\.pth$', path.name)
    if expected and path.is_file():
        found = sha256()
        with path.open('rb') as file:
            while block := file.read(2**20):
                found.update(block)
        digest = found.hexdigest()
        if not digest.startswith(expected[1]):
            print_log(
                f'{path}, downloaded from {url}, is not the file that its name says: its SHA-256 '
                f'begins with {digest[:8]}, expected {expected[1]}. If it is not what you expect, '
                'delete it to download it again',
                logger='current',
                level=30,
            )
    return path


def load_weights(
    model: nn.Module, state: Mapping[str, Tensor], source: str, strict: bool = True
) -> None:
    """Load weights completely.

    Args:
        model: The model to fill.
        state: Names and tensors.
        source: Where they come from, for the message.
        strict: Whether to raise, rather than to warn, where something does not fit.

    Raises:
        ValueError: If keys are missing, unexpected or misshapen; all are named.
    """
    try:
        model.load_state_dict(state, strict=True)
        return
    except RuntimeError as error:
        problem = str(error).partition('\n')[2] or str(error)
    text = f'{source} does not fit {type(model).__name__}:\n{problem}'
    if strict:
        raise ValueError(
            f'{text}\nIs it the checkpoint of another model? teacher=dict(..., strict=False) '
            'loads what fits.'
        )
    own = model.state_dict()
    fitting = {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and (name not in own or own[name].shape == value.shape)
    }
    model.load_state_dict(fitting, strict=False)
    print_log(f'{text}\nLoaded the rest (strict=False).', logger='current', level=30)

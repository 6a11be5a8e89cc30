"""Checkpoints: read without running what is in them, loaded completely."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import print_log
from torch import Tensor, nn

from kd_dense.mm.compat import safe_types

__all__ = ['load_weights', 'read_checkpoint', 'read_file', 'weights_of']


def read_file(source: str) -> Any:
    """Read what ``torch.save`` wrote, without executing anything in it.

    Args:
        source: Path, or an ``http(s)`` address, which is downloaded once into torch's cache.

    Returns:
        The content: tensors, plain values, and mmengine's bookkeeping.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds code.
    """
    source = os.fspath(source)
    path = _download(source) if re.match(r'https?://', source) else Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'the checkpoint {source} does not exist (looked in {Path.cwd()})')
    try:
        # Not as a context manager: that forbids, on leaving, what was allowed before, and
        # mmengine's own reading takes back what compat.install() has allowed in this way.
        torch.serialization.add_safe_globals(safe_types())
        return torch.load(path, map_location='cpu', weights_only=True)
    except UnpicklingError as error:
        what = re.search(r'GLOBAL ([\w.]+)', str(error))
        if what is None:
            raise _damaged(source, error) from error
        raise ValueError(
            f'the checkpoint {source} was refused: loading it would run {what[1]}. If you '
            'trust where it comes from, save its state_dict alone and load that'
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise _damaged(source, error) from error


def read_checkpoint(source: str) -> dict[str, Tensor]:
    """Read the weights of a checkpoint; see :func:`read_file`.

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
    """Pick a model's weights out of what a checkpoint holds; see :func:`read_checkpoint`."""
    for key in ('state_dict', 'model'):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not any(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise ValueError(f'the checkpoint {source} holds no weights (no state_dict)')
    names = {key: key.removeprefix('module.') for key in content}
    return {names[k]: v for k, v in content.items() if not names[k].startswith('kd.')}


def _damaged(source: str, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ValueError(f'the checkpoint {source} cannot be read; is it complete? ({reason})')


def _download(url: str) -> Path:
    """Fetch a file into torch's cache; once per machine."""
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / url.rpartition('/')[2].partition('?')[0]
    local_rank = int(os.environ.get('LOCAL_RANK', get_rank()))
    if not path.is_file() and local_rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=True)
        except OSError as error:
            raise FileNotFoundError(
                f'cannot download the checkpoint {url} ({error}); fetch it yourself and say '
                "teacher=dict(config=..., checkpoint='PATH')"
            ) from error
    barrier()
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
    fitting = {k: v for k, v in state.items() if k not in own or own[k].shape == v.shape}
    model.load_state_dict(fitting, strict=False)
    print_log(f'{text}\nLoaded the rest (strict=False).', logger='current', level=30)

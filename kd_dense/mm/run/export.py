"""The bare student of a distilled checkpoint, for the frameworks' own tools."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from kd_dense.mm.configs import NotFoundError, RequestError
from kd_dense.mm.files.checkpoint import read_file, weights_of

__all__ = ['export']


def export(checkpoint: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write the bare student of a distilled checkpoint.

    The weights are the student's, under the names that its own config gives them: what
    distillation added (``kd.``) and the state of the training are left out.

    Args:
        checkpoint: Of a distilled training.
        out: The file to write; by default ``student.pth`` beside the checkpoint.

    Returns:
        The file.

    Raises:
        RequestError: If the checkpoint does not exist, is damaged or holds code, or the file
            cannot be written.

    Examples:
        >>> export('work_dirs/no_such_run/epoch_12.pth')  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        kd_dense.mm.configs.NotFoundError: the checkpoint work_dirs/no_such_run/epoch_12.pth ...
    """
    source = os.fspath(checkpoint)
    target = Path(source).with_name('student.pth') if out is None else Path(out)
    try:
        content = read_file(source)
        weights = weights_of(content, source)
    except FileNotFoundError as error:
        raise NotFoundError(str(error)) from error
    except ValueError as error:
        raise RequestError(str(error)) from error
    partial = target.with_name(f'{target.name}.partial')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open('wb') as file:
            torch.save({'meta': content.get('meta', {}), 'state_dict': weights}, file)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RequestError(f'cannot write {target}: {error.strerror}') from error
    return target

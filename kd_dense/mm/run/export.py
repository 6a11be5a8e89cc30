"""The bare student of a distilled checkpoint, for the frameworks' own tools."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from kd_dense.mm.configs import NotFoundError, RequestError, alone, distils
from kd_dense.mm.files.checkpoint import read_file, weights_of

__all__ = ['export']


def export(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    config: str | os.PathLike[str] | None = None,
) -> Path:
    """Write the bare student of a distilled checkpoint.

    The weights are the student's, under the names that its own config gives them: what
    distillation added (``kd.``) and the state of the training are left out. So it is with the
    config that mmengine keeps in a checkpoint, from which its inferencers build a model.

    Args:
        checkpoint: Of a distilled training.
        out: The file to write; by default ``student.pth`` beside the checkpoint.
        config: A file, ``.py``, that the config of the student alone is written to; by default
            nowhere.

    Returns:
        The file with the weights.

    Raises:
        RequestError: If the checkpoint does not exist, is damaged or holds code, if a file
            cannot be written, or if the checkpoint holds no config to write.

    Examples:
        >>> export('work_dirs/no_such_run/epoch_12.pth')  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        kd_dense.mm.configs.NotFoundError: the checkpoint work_dirs/no_such_run/epoch_12.pth ...
    """
    source = os.fspath(checkpoint)
    target = Path(source).with_name('student.pth') if out is None else Path(out)
    settings = None if config is None else Path(config)
    if settings is not None and settings.suffix != '.py':
        raise RequestError(f'expected the name of a config to end in .py, got {settings}')
    if settings is not None and settings.exists():
        raise RequestError(f'{settings} exists already: choose another name, or remove it')
    try:
        content = read_file(source)
        weights = weights_of(content, source)
    except FileNotFoundError as error:
        raise NotFoundError(str(error)) from error
    except ValueError as error:
        raise RequestError(str(error)) from error
    meta = dict(content.get('meta') or {})
    text = _student_config(meta.get('cfg'))
    if text is not None:
        meta['cfg'] = text
    elif settings is not None:
        raise RequestError(
            f'the checkpoint {source} holds no config of a recipe, or none that can be read '
            'without running it'
        )
    partial = target.with_name(f'{target.name}.partial')
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial.open('wb') as file:
            torch.save({'meta': meta, 'state_dict': weights}, file)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RequestError(f'cannot write {target}: {error.strerror}') from error
    if settings is not None and text is not None:
        try:
            settings.parent.mkdir(parents=True, exist_ok=True)
            settings.write_text(text)
        except OSError as error:
            raise RequestError(f'cannot write {settings}: {error.strerror}') from error
    return target


def _student_config(text: Any) -> str | None:
    """The config of the student, of the one that mmengine has kept of a recipe in a checkpoint.

    It is a program, which mmengine runs to read it. Here it comes out of a file that is not
    trusted, and is read as values.

    Returns:
        The text; None where there is no recipe, or it is more than values.
    """
    try:
        statements: Any = _Dicts().visit(ast.parse(text)).body
        config = Config({one.targets[0].id: ast.literal_eval(one.value) for one in statements})
    except Exception:  # whatever a text can be made to raise
        return None
    student: str | None = alone(config).pretty_text if distils(config) else None
    return student


class _Dicts(ast.NodeTransformer):
    """Turn ``dict(a=1)`` into ``{'a': 1}``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not (isinstance(node.func, ast.Name) and node.func.id == 'dict') or node.args:
            return node
        keys: list[ast.expr | None] = [ast.Constant(field.arg) for field in node.keywords]
        return ast.Dict(keys, [field.value for field in node.keywords])

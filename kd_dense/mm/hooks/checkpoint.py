"""Checkpoints that outlast a kill or a full disk, and the newest of them that is complete."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mmengine
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import Runner

from kd_dense.registry import HOOKS

__all__ = ['SafeCheckpointHook', 'is_complete', 'newest_checkpoint', 'what_remains']

NOTE = 'last_checkpoint'
UNFINISHED = '.incomplete'


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, with files that are there completely or not at all.

    mmengine writes a checkpoint, and the note ``last_checkpoint``, into the file of its final
    name, and removes what ``max_keep_ckpts`` or a better score makes superfluous before it
    writes what replaces it. A training that is killed meanwhile has lost both. Here a local file
    is written under another name (``<name>.incomplete``), flushed to the disk and then renamed,
    and nothing is removed before that. What a killed run has left unfinished is removed when the
    next one starts. Other storage is written as mmengine writes it.

    Our ``kd_dense train`` puts this hook where a config has ``CheckpointHook``; for other tools
    say ``default_hooks = dict(checkpoint=dict(type='kd_dense.SafeCheckpointHook', ...))``. The
    arguments are those of CheckpointHook.

    Raises:
        RuntimeError: If a file cannot be written; says which, why, and where to go on.
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if is_main_process():
            for folder in {str(runner.work_dir), str(self.out_dir)}:
                for kind in (f'*.pth{UNFINISHED}', NOTE + UNFINISHED):
                    for path in Path(folder).glob(kind):
                        path.unlink()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        outdated = None
        # After a validation the same step is saved once more.
        if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        with _whole_files(runner.work_dir):
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if is_main_process():
                note = os.path.join(runner.work_dir, NOTE)
                LocalBackend().put(str(self.last_ckpt).encode(), note)
        if outdated is not None:
            self._remove(self.file_backend.join_path(self.out_dir, outdated))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        if not self.save_best:
            return
        # mmengine removes those that it knows of: it learns of them again afterwards.
        before = self._best()
        self._set_best(dict.fromkeys(before))
        with _whole_files(runner.work_dir):
            super()._save_best_checkpoint(runner, metrics)
        after = self._best()
        self._set_best({key: path or before.get(key) for key, path in after.items()})
        for key, path in before.items():
            if path and after[key] not in (None, path):
                self._remove(path)
                runner.logger.info(f'The previous best checkpoint {path} is removed')

    def _publish_model(self, runner: Runner, ckpt_path: str) -> None:
        with _whole_files(runner.work_dir):
            super()._publish_model(runner, ckpt_path)

    def _best(self) -> dict[str, str | None]:
        """Where the best checkpoints lie, by metric; mmengine keeps a single one elsewhere."""
        if hasattr(self, 'best_ckpt_path'):
            return {'': self.best_ckpt_path}
        return dict(self.best_ckpt_path_dict)

    def _set_best(self, paths: dict[str, str | None]) -> None:
        if hasattr(self, 'best_ckpt_path'):
            self.best_ckpt_path = paths['']
        else:
            self.best_ckpt_path_dict = paths

    def _remove(self, path: str) -> None:
        if is_main_process():
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):  # that of a sharded training
                self.file_backend.rmtree(path)


@contextmanager
def _whole_files(work_dir: str) -> Iterator[None]:
    """Let mmengine write local files completely or not at all."""
    # On the class, as mmengine makes a backend of its own wherever it writes, and not all of
    # its runners hand on which.
    put = LocalBackend.put

    def put_whole(self: LocalBackend, data: bytes, path: str | Path) -> None:
        try:
            _write(data, os.fspath(path))
        except OSError as error:
            rest = what_remains(work_dir, 'make room or mend the folder')
            raise RuntimeError(
                f'cannot write {path}: {error.strerror or error}. {rest}'
            ) from error

    LocalBackend.put = put_whole
    try:
        yield
    finally:
        LocalBackend.put = put


def _write(data: bytes, path: str) -> None:
    mmengine.mkdir_or_exist(os.path.dirname(path))
    unfinished = path + UNFINISHED
    try:
        with open(unfinished, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError:
        with suppress(OSError):
            os.unlink(unfinished)
        raise


def what_remains(work_dir: str, remedy: str) -> str:
    """Say where a training that was stopped can go on.

    Args:
        work_dir: Its work directory.
        remedy: What must be done first.
    """
    newest = newest_checkpoint(work_dir)
    if newest is None:
        return f'{work_dir} holds no checkpoint yet: {remedy} and start again'
    return (
        f'Checkpoints saved before are intact: {remedy} and start again with --resume, which '
        f'goes on from {newest}'
    )


def newest_checkpoint(work_dir: str | Path) -> Path | None:
    """Find the checkpoint to go on from.

    That is the newest of those that are complete: of the one that ``last_checkpoint`` names,
    of the numbered ones before it, and of those after it that have been written since. Where it
    names none, the one with the highest number. Files that are passed over are reported.

    Args:
        work_dir: Work directory of the training. Its checkpoints may lie elsewhere
            (CheckpointHook's ``out_dir``).

    Returns:
        Its path, or None where there is none.

    Examples:
        >>> newest_checkpoint('no_such_folder') is None
        True
    """
    folder, note = Path(work_dir), Path(work_dir, NOTE)
    last = Path(note.read_text(errors='replace').strip(' \n\0')) if note.is_file() else Path()
    if not last.name:
        found = [path for kind in ('iter_*.pth', 'epoch_*.pth') for path in folder.glob(kind)]
        kind = _kind(max(found, key=_written)) if found else ''
        found = [path for path in found if _kind(path) == kind]
    else:
        # Unless the work directory was moved or copied, the note says where.
        if not (folder / last.name).exists() and last.parent.is_dir():
            folder = last.parent
        found = [
            path
            for path in folder.iterdir()
            if _kind(path) == _kind(last)
            # A higher number that is older was left by another training.
            and (_number(path) <= _number(last) or _written(path) >= _written(note))
        ]
    for path in sorted(found, key=_number, reverse=True):
        if is_complete(path):
            return path
        print_log(f'{path} is not complete: passed over', 'current', logging.WARNING)
    return None


def _kind(path: Path) -> str:
    """Its name without the number."""
    return re.sub(r'\d+', '{}', path.name)


def _number(path: Path) -> int:
    return int(re.findall(r'\d+', path.name)[-1])


def _written(path: Path) -> float:
    return path.stat().st_mtime


def is_complete(path: str | Path) -> bool:
    """Tell whether all that ``torch.save`` writes is in a file, by its directory and check sums.

    Args:
        path: The file, or the folder of a sharded training, in which every file must be complete
            (one that was never begun is not missed).

    Returns:
        False also where there is no such file.

    Examples:
        >>> is_complete('no_such_file.pth')
        False
    """
    path = Path(path)
    if path.is_dir():
        parts = list(path.rglob('*.pt*'))
        return bool(parts) and all(map(is_complete, parts))
    try:
        with zipfile.ZipFile(path) as content:
            return content.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError):
        return False

"""A copy of the repository in which the commands of the pages run as shown, cut down.

``bash`` runs a command in the copy, with a ``python``, ``torchrun``, ``srun`` and others on its
path that only write down how they were called. What Python was to run is then run, with

- data: the miniatures of :mod:`tests.miniature` and small Scenes;
- configs: cut down to two iterations as they are read;
- downloads: untrained weights of the config that is published with the address.
"""

from __future__ import annotations

import itertools
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from examples.quickstart.make_scenes import make_scenes
from tests.launch import framework
from tests.miniature import (
    CITYSCAPES_SHRINK,
    COCO_SHRINK,
    HAS_MMROTATE,
    ROOT,
    make_data,
    miniature,
)

# By a part of the path of the data: what sizes are divided by. Other data are used as they are.
SHRINK = {'data/coco': COCO_SHRINK, 'data/cityscapes': CITYSCAPES_SHRINK,
          'data/apolloscape': CITYSCAPES_SHRINK}  # fmt: skip
STAND_INS = ('kd_dense', 'python', 'python3', 'torchrun', 'srun', 'pip', 'git', 'tensorboard')
NOT_COPIED = (
    '.git',
    '.venv*',
    '.hypothesis',
    '.*_cache',
    '__pycache__',
    '*.egg-info',
    'data',
    'work_dirs',
    'site',
    'oracle',
)
# Variables of bash, and what launchers are told of machines: there is one process in any case.
NOT_KEPT = ('CALLS', 'PATH', 'PWD', 'OLDPWD', 'SHLVL', '_', 'NNODES', 'NODE_RANK', 'MASTER_ADDR',
            'PORT', 'GPUS', 'GPUS_PER_NODE', 'CPUS_PER_TASK', 'SRUN_ARGS')  # fmt: skip
_read = Config.fromfile
_count = itertools.count()


class Call(NamedTuple):
    """How a stand-in was called: from where, as what, with which variables that matter."""

    folder: Path
    words: list[str]
    environment: dict[str, str]


def make_checkout(root: Path) -> Path:
    """Copy the repository, and add data and stand-ins."""
    shutil.copytree(ROOT, root, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
    make_data(root / 'data')
    make_scenes(root / 'data' / 'scenes', train=32, val=8, test=8)
    bin_ = root / '.bin'
    bin_.mkdir()
    for name in STAND_INS:
        (bin_ / name).write_text(
            '#!/bin/sh\n'
            'call="$CALLS/$(ls "$CALLS" | wc -l)"\n'
            'mkdir "$call"\n'
            'printf "%s\\0" "$PWD" "${0##*/}" "$@" > "$call/words"\n'
            'env -0 > "$call/environment"\n'
        )
        (bin_ / name).chmod(0o755)
    return root


def calls(checkout: Path, line: str) -> list[Call]:
    """Have bash run a line in a checkout, and say what it called."""
    folder = checkout / '.calls'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    done = subprocess.run(
        ['bash', '-euc', line],
        cwd=checkout,
        env={**os.environ, 'CALLS': str(folder),
             'PATH': f'{checkout / ".bin"}{os.pathsep}{os.environ["PATH"]}'},
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, f'{line}\n{done.stdout}{done.stderr}'
    found = []
    for call in sorted(folder.iterdir(), key=lambda path: int(path.name)):
        here, *words = (call / 'words').read_text().split('\0')[:-1]
        changed = dict(
            item.partition('=')[::2]
            for item in (call / 'environment').read_text().split('\0')[:-1]
        )
        kept = {k: v for k, v in changed.items() if os.environ.get(k) != v}
        for name in NOT_KEPT:
            kept.pop(name, None)
        found.append(Call(Path(here), words, kept))
    return found


def program(words: list[str]) -> list[str] | None:
    """The Python program that a call starts, and its arguments, without the launchers.

    Returns:
        The words behind ``python``; None, if no Python is to be run.
    """
    if words[0] == 'srun':
        words = words[words.index('python') :]
    if words[0] == 'kd_dense':
        return ['-m', *words]
    if words[0] not in ('python', 'python3', 'torchrun'):
        return None
    if words[1:3] == ['-m', 'torch.distributed.run']:
        words = ['torchrun', *words[3:]]
    start = 1
    if words[0] == 'torchrun':
        start = next(i for i, word in enumerate(words) if word == '-m' or word.endswith('.py'))
    found = [word for word in words[start:] if word != '-u']
    if '--launcher' in found:  # one process, whatever it was
        at = found.index('--launcher')
        del found[at : at + 2]
    return found


def run(
    checkout: Path,
    words: list[str],
    folder: Path,
    environment: dict[str, str],
    status: int | None = None,
    builds: bool = True,
) -> None:
    """Run a Python program in this process, on miniatures.

    Args:
        checkout: Where :func:`make_checkout` has copied to.
        words: What :func:`program` has found.
        folder: Where it is started.
        environment: Variables on top of this process's.
        status: The exit status that is right beside 0.
        builds: Whether a training may begin. Without that, the program must come as far as to
            the Runner, with all that it has read, and ends there.
    """
    before, path, here = dict(os.environ), [*sys.path], Path.cwd()
    try:
        os.chdir(folder)
        os.environ.update(environment)
        searched = environment.get('PYTHONPATH', '').split(os.pathsep)
        sys.path[:0] = [str(folder / item) for item in searched if item]
        os.environ['TORCH_HOME'] = str(checkout / '.torch')  # what is "downloaded" is no real one
        os.environ.setdefault('LOCAL_RANK', '0')
        with (
            mock.patch.object(sys, 'argv', words),
            cut_down() as lengths,
            nullcontext() if builds else stopped_before_the_runner(),
        ):
            if words[0] == '-m':
                sys.path.insert(0, str(folder))
                sys.argv = words[1:]
                runpy.run_module(words[1], run_name='__main__', alter_sys=True)
            elif words[0] == '-c':
                exec(words[1], {'__name__': '__main__'})
            else:
                sys.path.insert(0, str((folder / words[0]).parent))
                runpy.run_path(words[0], run_name='__main__')
    except SystemExit as error:
        if error.code not in (None, 0, status):
            raise AssertionError(f'{" ".join(words)} ended with {error.code}') from error
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)
        sys.path[:] = path
    _name_as_uncut(checkout, lengths)


@contextmanager
def stopped_before_the_runner() -> Iterator[None]:
    """End a program where it would build models; it must come there."""
    with mock.patch('kd_dense.mm.run.train.build_runner', side_effect=SystemExit) as build:
        try:
            yield
        finally:
            assert build.called, 'it builds no Runner'


@contextmanager
def cut_down() -> Iterator[set[tuple[str, int]]]:
    """Cut configs down as they are read; yields the lengths of trainings that were cut."""
    lengths: set[tuple[str, int]] = set()

    def read(source: Any, *args: Any, **kwargs: Any) -> Config:
        return _cut(_read(source, *args, **kwargs), lengths)

    with (
        mock.patch.object(Config, 'fromfile', staticmethod(read)),
        mock.patch.object(torch.hub, 'download_url_to_file', _download),
        mock.patch('kd_dense.cli.visualize.FIRST', 1),
        # What mmengine does to the text of each config takes a quarter of the time.
        mock.patch('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True)),
    ):
        yield lengths


def _cut(config: Config, lengths: set[tuple[str, int]]) -> Config:
    if 'train_dataloader' not in config or 'model' not in config:
        return config
    data = str(config.train_dataloader)
    shrink = next((by for path, by in SHRINK.items() if path in data), 1)
    for word in ('epoch', 'iter'):
        if f'max_{word}s' in config.train_cfg:
            lengths.add((word, config.train_cfg[f'max_{word}s']))
    work_dir = config.get('work_dir')
    teacher = config.model.get('teacher')
    for missing, value in dict(env_cfg={}, default_hooks={}, visualizer={}).items():
        config.setdefault(missing, value)
    config.env_cfg.setdefault('dist_cfg', {})
    for hook, kind in dict(logger='LoggerHook', checkpoint='CheckpointHook').items():
        config.default_hooks.setdefault(hook, dict(type=kind))
    if not config.visualizer:  # mmengine's own default
        config.visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    config = miniature(config, Path('data'), Path(f'page{next(_count)}'), shrink)
    if isinstance(teacher, dict) and os.path.exists(str(teacher.get('checkpoint'))):
        config.model.teacher = teacher
    config.default_hooks.checkpoint.save_optimizer = False
    if work_dir is None:
        config.pop('work_dir')
    else:
        config.work_dir = work_dir
    return config


def _download(url: str, path: str, progress: bool = True) -> None:
    """Write untrained weights that fit the config which is published with the address."""
    for package in ('mmdet', 'mmseg', *(['mmrotate'] if HAS_MMROTATE else [])):
        home = framework(package)
        for index in (home / 'configs').glob('*/metafile.y*ml'):
            if url in index.read_text():
                models = yaml.safe_load(index.read_text())
                models = models['Models'] if isinstance(models, dict) else models
                [name] = [m['Config'] for m in models if url in str(m)]
                config = _read(home / name)
                with DefaultScope.overwrite_default_scope(package):
                    model = MODELS.build(config.model)
                torch.save({'state_dict': model.state_dict()}, path)
                return
    raise AssertionError(f'a command wants to download {url}')


def _name_as_uncut(checkout: Path, lengths: set[tuple[str, int]]) -> None:
    """Give the last checkpoints the names that they have in a training that is not cut down."""
    for word, length in lengths:
        last = 1 if word == 'epoch' else 2
        for path in checkout.glob(f'work_dirs/**/{word}_{last}.pth'):
            uncut = path.with_name(f'{word}_{length}.pth')
            if not uncut.exists():
                uncut.symlink_to(path.name)


if __name__ == '__main__':  # in a process of its own: the folder, then what to run
    run(Path.cwd(), sys.argv[1:], Path.cwd(), {})

"""Start the commands, and the frameworks' own tools, as a user would."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from kd_dense.cli.main import main
from tests.miniature import ROOT

CONFIGS = ROOT / 'configs' / 'cwd'
# One recipe of each framework, and the stock config that its student comes from.
SEGMENTER = CONFIGS / 'cwd_pspnet-r18_from_pspnet-r101_80k_cityscapes-512x1024.py'
DETECTOR = CONFIGS / 'cwd_retinanet-r50_from_retinanet-r101_1x_coco.py'
STOCK = {
    SEGMENTER: ('mmseg', 'pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'),
    DETECTOR: ('mmdet', 'retinanet/retinanet_r50_fpn_1x_coco.py'),
}
_count = itertools.count()


def framework(name: str) -> Path:
    """Where mmdet or mmseg keeps its configs and tools."""
    [package] = importlib.util.find_spec(name).submodule_search_locations
    return Path(package) / '.mim'


def call(verb: str, *args: object) -> None:
    """Run a verb of the command ``kd_dense`` in this process."""
    main(verb, [*map(str, args)])


def run_here(monkeypatch, program: Path, *args: object, **options: Any) -> None:
    """Run a program in this process, which saves importing everything again.

    Args:
        program: Its file.
        args: Its arguments.
        options: Values of ``--cfg-options``, ``__`` for a dot.
    """
    # mmengine keeps these two by name, and would go on with those of the run before.
    name = f'run{next(_count)}'
    options = {'experiment_name': name, 'visualizer__name': name, **options}
    chosen = [f'{key.replace("__", ".")}={value}' for key, value in options.items()]
    argv = [str(program), *map(str, args), '--cfg-options', *chosen]
    monkeypatch.setattr(sys, 'argv', argv)
    monkeypatch.syspath_prepend(str(program.parent))
    monkeypatch.setenv('LOCAL_RANK', '0')
    runpy.run_path(str(program), run_name='__main__')


def run(*command: object, ok: bool = True, **environment: str) -> str:
    """Run a command and return what it printed.

    Args:
        command: The command.
        ok: Whether it must succeed, or fail.
        environment: Variables on top of this process's.
    """
    here = os.path.dirname(sys.executable)
    path = environment.pop('PATH', here) + os.pathsep + os.environ['PATH']
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, 'PATH': path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode == 0) == ok, f'{done.returncode}: {done.stdout[-4000:]}'
    return done.stdout


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return str(probe.getsockname()[1])


def logged(work_dir: Path) -> list[dict[str, Any]]:
    """What the latest run in a work directory has logged: losses, then metrics."""
    latest = max(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in latest.read_text().splitlines()]


def losses(work_dir: Path) -> list[dict[str, Any]]:
    """Its training steps alone."""
    return [entry for entry in logged(work_dir) if 'loss' in entry]

"""Replays recorded cases of the authors' code through kd_dense.

A folder of cases holds ``manifest.json`` and some ``<file>.npz``, with arrays named
``case<k>/<name>``. Which files a method replays, and how, stands in its ``replay_<method>.py``:
``REPLAYS`` by file, and ``INPUTS``, the arrays that are not compared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
OWN_CASES = Path(__file__).parent / 'data'
VARIABLE = 'KD_DENSE_ORACLE'


def folders() -> list[Path]:
    """The folders to compare with: our own few cases, and the full set where it exists."""
    named = os.environ.get(VARIABLE)
    if named and not Path(named, 'manifest.json').is_file():
        raise FileNotFoundError(f'{VARIABLE}={named} has no manifest.json')
    full = Path(named) if named else ROOT.parent / 'shared' / 'oracle'
    return [OWN_CASES, full] if (full / 'manifest.json').is_file() else [OWN_CASES]


class Case(NamedTuple):
    """One recorded call: its class, its arguments and its arrays."""

    name: str
    cls: str
    arguments: dict[str, Any]
    arrays: dict[str, np.ndarray]
    what: dict[str, Any]  # more about the case

    def tensor(self, name: str, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.from_numpy(self.arrays[name]).to(dtype)


def cases(folder: Path, file: str) -> Iterator[Case]:
    """All cases of a file: those in the manifest and those in the arrays must be the same."""
    entries = json.loads((folder / 'manifest.json').read_text())['files'][file]['cases']
    with np.load(folder / file, allow_pickle=False) as data:
        recorded: dict[str, dict[str, np.ndarray]] = {}
        for key in data.files:
            case, _, name = key.partition('/')
            recorded.setdefault(case, {})[name] = data[key]
    if recorded.keys() != entries.keys():
        raise ValueError(
            f'{folder / file}: the manifest lists {sorted(entries)}, '
            f'the arrays are those of {sorted(recorded)}'
        )
    for name, entry in entries.items():
        what = entry.get('what', {})
        yield Case(name, entry['class'], entry.get('arguments', {}), recorded[name], what)


Replay = Callable[[Case], dict[str, Tensor]]
REPLAYS: dict[str, Replay] = {}
INPUTS: dict[str, Callable[[str], bool]] = {}


def load_replays() -> None:
    """Collect what the methods replay."""
    for path in sorted(Path(__file__).parent.glob('replay_*.py')):
        module = import_module(f'tests.oracle.{path.stem}')
        REPLAYS.update(module.REPLAYS)
        for file, inputs in module.INPUTS.items():
            INPUTS[file] = inputs if callable(inputs) else inputs.__contains__


def compare(file: str, case: Case) -> int:
    """Replay one case and compare every recorded array that is not an input.

    Returns:
        How many arrays were compared.
    """
    replayed = REPLAYS[file](case)
    expected = {name: a for name, a in case.arrays.items() if not INPUTS[file](name)}
    missing = expected.keys() - replayed.keys()
    if missing or not expected:
        raise AssertionError(f'{file} {case.name}: nothing to compare with {sorted(missing)}')
    for name, array in expected.items():
        single = '_f32' in name
        np.testing.assert_allclose(
            replayed[name].detach().numpy(),
            array,
            rtol=1e-4 if single else 1e-9,
            atol=1e-6 if single else 1e-12 * np.abs(array).max() + 1e-14,
            err_msg=f'{file} {case.name}: {name}',
        )
    return len(expected)

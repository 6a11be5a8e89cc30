"""Replays recorded cases of the authors' code through kd_dense.

A folder of cases holds ``manifest.json`` and one ``<method>.npz`` per method, with arrays
named ``case<k>/<name>``. A method is supported once ``REPLAYS`` has an entry for its file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kd_dense.losses import cwd_loss

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
        yield Case(name, entry['class'], entry.get('arguments', {}), recorded[name])


def replay_cwd(case: Case) -> dict[str, Tensor]:
    if case.cls != 'CriterionCWD':
        raise NotImplementedError(f'no replay for class {case.cls}')
    names = {'norm_type': 'norm', 'divergence': 'divergence', 'temperature': 'temperature'}
    arguments = {names[key]: value for key, value in case.arguments.items()}
    # With norm 'none' the authors' code reads the first image alone.
    arguments['first_image_only'] = arguments.get('norm') == 'none'

    student = case.tensor('student').requires_grad_()
    loss = cwd_loss(student, case.tensor('teacher'), **arguments)
    (grad,) = torch.autograd.grad(loss, student)
    loss_f32 = cwd_loss(
        case.tensor('student', torch.float32), case.tensor('teacher', torch.float32), **arguments
    )
    return {
        'loss': loss,
        'grad_student': grad,
        'loss_f32': loss_f32,
        'loss_mmrazor': loss,
        'grad_student_mmrazor': grad,
    }


REPLAYS: dict[str, Callable[[Case], dict[str, Tensor]]] = {'cwd.npz': replay_cwd}
INPUTS = {'cwd.npz': {'student', 'teacher'}}


def compare(file: str, case: Case) -> int:
    """Replay one case and compare every recorded array that is not an input.

    Returns:
        How many arrays were compared.
    """
    replayed = REPLAYS[file](case)
    expected = {name: a for name, a in case.arrays.items() if name not in INPUTS[file]}
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

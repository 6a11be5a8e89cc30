"""Replays recorded cases of the authors' code through kd_dense.

A folder of cases holds ``manifest.json`` and some ``<file>.npz``, with arrays named
``case<k>/<name>``. Which files a method replays, and how, stands in its ``replay_<method>.py``:
``REPLAYS`` by file, or by file and class where methods share a file; and ``INPUTS`` by the same
keys, the arrays that are not compared. What no method replays stands in a table below, by name.
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


Key = str | tuple[str, str]  # a file, or a file and a class

# What will not be built, and why.
LEFT_OUT: dict[tuple[str, str], str] = {
    ('mmrazor_losses.npz', 'ABLoss'): 'made for the layers of classifiers, before their ReLU',
    ('mmrazor_losses.npz', 'OFDLoss'): 'made for the layers of classifiers, before their ReLU',
    ('mmrazor_losses.npz', 'CRDLoss'): 'contrasts the images of a whole data set of classes',
    ('relations.npz', 'Correlation (CC)'): 'its value depends on the order of the images',
    ('aicsd.npz', 'Distiller, term lo'): (
        'written for 21 classes, and no divergence: a softmax over the height, without a logarithm'
    ),
    ('incremental_seg.npz', 'IcarlLoss'): 'no distillation of probabilities that sum to 1',
    ('incremental_seg.npz', 'features_distillation (PLOP, local)'): (
        'tied to the schedule of tasks of incremental training'
    ),
    **dict.fromkeys(
        [
            ('gid.npz', 'DistillGID.gism_method'),
            ('gid.npz', 'distill_loss_feature'),
            ('gid.npz', 'distill_loss_relation'),
            ('gid.npz', 'distill_loss_response'),
        ],
        'GID: four parts, in code whose README says that its accuracy is not the published one',
    ),
    **dict.fromkeys(
        [('icd.npz', 'InstanceConditionalDistillation'), ('icd.npz', 'InstanceEncoder.loss')],
        'ICD: a decoder on the side of the teacher learns a task of its own',
    ),
    **dict.fromkeys(
        [
            ('lgd.npz', 'BaseDistillator.distill'),
            ('lgd.npz', 'DynamicTeacher.interactive_remapping'),
            ('lgd.npz', 'box_descriptor_encode, get_inside_gt_mask'),
        ],
        'LGD: no teacher; labels are made maps by layers that train with the student, whose head '
        'computes its loss twice',
    ),
}
# Methods that are not in the package yet.
NOT_YET: dict[tuple[str, str], str] = {}


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
REPLAYS: dict[Key, Replay] = {}
INPUTS: dict[Key, Callable[[str], bool]] = {}


def load_replays() -> None:
    """Collect what the methods replay."""
    for path in sorted(Path(__file__).parent.glob('replay_*.py')):
        module = import_module(f'tests.oracle.{path.stem}')
        if module.REPLAYS.keys() != module.INPUTS.keys():
            raise ValueError(f'{path.name}: REPLAYS and INPUTS have different keys')
        for key, inputs in module.INPUTS.items():
            if REPLAYS.setdefault(key, module.REPLAYS[key]) is not module.REPLAYS[key]:
                raise ValueError(f'{path.name}: {key} is replayed by another file too')
            INPUTS[key] = inputs if callable(inputs) else inputs.__contains__


def replayed_files(folder: Path) -> list[str]:
    """The files of a folder that some method replays."""
    listed = json.loads((folder / 'manifest.json').read_text())['files']
    files = {key if isinstance(key, str) else key[0] for key in REPLAYS}
    return [file for file in listed if file in files]


def not_compared(file: str, case: Case) -> str | None:
    """What the tables say of a case that is not compared; None, if it is to be."""
    key = file, case.cls
    for table, what in ((LEFT_OUT, 'left out'), (NOT_YET, 'not yet')):
        if key in table:
            if key in REPLAYS:
                raise AssertionError(f'{file}: {case.cls} is replayed: take it out of the table')
            return f'{what}: {case.cls} ({table[key]})'
    return None


def compare(file: str, case: Case) -> int:
    """Replay one case and compare every recorded array that is not an input.

    Returns:
        How many arrays were compared.
    """
    key = next((key for key in ((file, case.cls), file) if key in REPLAYS), None)
    if key is None:
        raise AssertionError(
            f'{file} {case.name}: {case.cls} is neither replayed nor in LEFT_OUT or NOT_YET'
        )
    replayed = REPLAYS[key](case)
    expected = {name: a for name, a in case.arrays.items() if not INPUTS[key](name)}
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

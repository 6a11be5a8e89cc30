"""What a file may make: types of strangers run nothing, genuine ones are read."""

import copyreg
import io
import pickle
import re

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.registry import PARAM_SCHEDULERS

from kd_dense.mm.files.checkpoint import read_file
from kd_dense.mm.files.safe_types import trusted_types
from tests.mm.files.attacks import CALLS, around, refused
from tests.mm.files.pickles import (
    BY_HAND,
    F8,
    GETATTR,
    HISTORY,
    array,
    call,
    history,
    text,
    write_zip,
)

FORMATS = {
    'zip': torch.save,
    'legacy': lambda content, path: torch.save(
        content, path, _use_new_zipfile_serialization=False
    ),
    'new protocol': lambda content, path: torch.save(content, path, pickle_protocol=4),
    **{
        f'pickle {protocol}': lambda content, path, protocol=protocol: path.write_bytes(
            pickle.dumps(content['meta'], protocol)
        )
        for protocol in (0, 2, 5)
    },
}


def test_the_attacks_are_real(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(around(CALLS['eval']), 'evil.pth')
    torch.load('evil.pth', weights_only=False)
    assert (tmp_path / 'executed').exists()


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('name', CALLS)
def test_a_call_is_refused_by_name(path, name, form):
    try:
        FORMATS[form](around(CALLS[name]), path)
    except (pickle.PicklingError, TypeError, AttributeError, copyreg.Error):
        pytest.skip('this form cannot hold it')
    # Pickle writes some modules under the names that they had in Python 2.
    refused(path, rf'evil\.pth was refused: .*\b{re.escape(name.rpartition(".")[2])}\b')


def test_the_more_is_named_the_more_is_said(path):
    path.write_bytes(pickle.dumps([CALLS['eval'], CALLS['posix.system']]))
    refused(path, r'would run builtins\.eval, posix\.system\.')


@pytest.mark.parametrize('case', BY_HAND)
def test_a_crafted_state_is_refused(path, case):
    content, message = BY_HAND[case]
    write_zip(path, content)
    refused(path, rf'evil\.pth .*{message}')


def test_statistics_of_a_history_stay_those_of_mmengine(path):
    numbers = array(F8, np.arange(2.0).tobytes(), 2)
    other = b'}' + text('mean') + call(GETATTR, HISTORY, text('max')) + b's'
    write_zip(path, history(numbers, numbers, other))
    buffer = read_file(str(path))
    assert type(buffer) is HistoryBuffer
    assert buffer.statistics('mean') == 1.0  # weighted by the counts: 1 * 1 / (0 + 1)
    assert HistoryBuffer._statistics_methods['mean'] is HistoryBuffer.mean


def test_what_torch_trusts_is_left_as_it_was(path):
    write_zip(path, b'}')
    torch.serialization.add_safe_globals([np.dtype, (io.BytesIO, 'somewhere.else')])
    before = set(torch.serialization.get_safe_globals())
    assert np.dtype in before
    read_file(str(path))
    with pytest.raises(KeyError, match='inside'), trusted_types():
        raise KeyError('inside' if set(torch.serialization.get_safe_globals()) - before else '')
    assert set(torch.serialization.get_safe_globals()) == before


class TestGenuine:
    @pytest.mark.parametrize('kind', [*sorted(PARAM_SCHEDULERS.module_dict), 'OneCycleLR linear'])
    def test_the_state_of_every_schedule(self, tmp_path, kind):
        kind, _, strategy = kind.partition(' ')
        arguments = {
            'CosineRestart': dict(periods=[2, 2], restart_weights=[1, 0.5], eta_min=0.0),
            'Exponential': dict(gamma=0.5),
            'MultiStep': dict(milestones=[1, 1, 3]),
            'OneCycle': dict(total_steps=9, eta_max=0.1, anneal_strategy=strategy or 'cos'),
            'CosineAnnealing': dict(T_max=4),
            'Step': dict(step_size=2),
            'ReduceOnPlateau': dict(rule='less'),
        }
        chosen = next((a for name, a in arguments.items() if kind.startswith(name)), {})
        if kind.endswith('ParamScheduler'):
            chosen = dict(chosen, param_name='lr')
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
        schedule = PARAM_SCHEDULERS.build(dict(type=kind, optimizer=optimizer, **chosen))
        for _ in range(3):
            optimizer.step()
            schedule.step(*([{'loss': np.float32(1.0)}] if 'Plateau' in kind else []))
        torch.save(schedule.state_dict(), tmp_path / 'schedule.pth')
        assert read_file(str(tmp_path / 'schedule.pth')) == schedule.state_dict()

    @pytest.mark.parametrize('legacy', [False, True])
    def test_numbers_and_arrays_of_numpy(self, tmp_path, legacy):
        values = [np.dtype(code).type(1) for code in '?bBhHiIlLefdFD']
        values += [np.str_('naïve'), np.bytes_(b'x')]
        arrays = [np.full((2, 3), value) for value in values]
        arrays += [arrays[3].T, np.arange(3.0).astype('>f8'), np.zeros((0, 4)), np.array(5)]
        torch.save(
            [values, arrays], tmp_path / 'numpy.pth', _use_new_zipfile_serialization=not legacy
        )
        found_values, found_arrays = read_file(str(tmp_path / 'numpy.pth'))
        for found, value in zip(found_values, values, strict=True):
            assert found == value
            assert type(found) is type(value)
        plain = pickle.loads(pickle.dumps(arrays, 2))
        for found, value in zip(found_arrays, plain, strict=True):
            np.testing.assert_array_equal(found, value, strict=True)
            assert found.flags.f_contiguous == value.flags.f_contiguous
        # Written again they are plain, and can be read without us.
        torch.save(found_arrays, tmp_path / 'again.pth')
        again = torch.load(tmp_path / 'again.pth', weights_only=False)
        assert {type(value) for value in again} == {np.ndarray}

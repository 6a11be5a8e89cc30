"""Every recorded case of every supported method equals what kd_dense computes."""

import json

import numpy as np
import pytest

from tests.oracle import lane

lane.load_replays()
ALL = [
    pytest.param(folder, file, id=f'{folder.parent.name}/{folder.name}/{file}')
    for folder in lane.folders()
    for file in lane.REPLAYS
    if folder != lane.OWN_CASES or (folder / file).is_file()
]


@pytest.mark.parametrize(('folder', 'file'), ALL)
def test_every_case_equals_the_recorded_numbers(folder, file, record_property):
    compared = 0
    for case in lane.cases(folder, file):
        lane.compare(file, case)
        compared += 1
    in_manifest = json.loads((folder / 'manifest.json').read_text())['files'][file]['cases']
    record_property('oracle', f'{folder / file}: {compared} cases compared')
    assert compared == len(in_manifest) > 0


def test_the_full_set_is_there():
    if len(lane.folders()) == 1:
        pytest.skip(
            f'compared with our own few cases only: {lane.VARIABLE} is not set and '
            '../shared/oracle does not exist'
        )


@pytest.fixture
def folder(tmp_path):
    """A folder of the same format with one other case."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 1, 3, 4, 4))
    loss = np.square(student - teacher).sum() / 16
    arrays = {'student': student, 'teacher': teacher, 'loss': np.array(loss)}
    np.savez(tmp_path / 'cwd.npz', **{f'case7/{k}': v for k, v in arrays.items()})
    entry = {
        'class': 'CriterionCWD',
        'arguments': {'norm_type': 'none', 'divergence': 'mse', 'temperature': 2.0},
    }
    manifest = {'files': {'cwd.npz': {'cases': {'case7': entry}}}}
    (tmp_path / 'manifest.json').write_text(json.dumps(manifest))
    return tmp_path


class TestTheLaneItself:
    def test_works_on_another_folder(self, folder, monkeypatch):
        monkeypatch.setenv(lane.VARIABLE, str(folder))
        assert lane.folders()[1] == folder
        (case,) = lane.cases(folder, 'cwd.npz')
        assert lane.compare('cwd.npz', case) == 1

    def test_sees_a_difference_in_the_tenth_digit(self, folder):
        (case,) = lane.cases(folder, 'cwd.npz')
        case.arrays['loss'] *= 1 + 2e-9
        with pytest.raises(AssertionError, match=r'cwd\.npz case7: loss'):
            lane.compare('cwd.npz', case)

    def test_fails_on_a_recorded_array_that_it_does_not_compare(self, folder):
        (case,) = lane.cases(folder, 'cwd.npz')
        case.arrays['loss_of_something_new'] = case.arrays['loss']
        with pytest.raises(AssertionError, match='loss_of_something_new'):
            lane.compare('cwd.npz', case)

    def test_fails_on_a_case_that_the_manifest_does_not_list(self, folder):
        with np.load(folder / 'cwd.npz') as data:
            arrays = dict(data)
        np.savez(folder / 'cwd.npz', **arrays, **{'case8/loss': np.array(0.0)})
        with pytest.raises(ValueError, match=r"lists \['case7'\].*'case8'"):
            list(lane.cases(folder, 'cwd.npz'))

    def test_a_named_folder_that_does_not_exist_is_an_error(self, tmp_path, monkeypatch):
        monkeypatch.setenv(lane.VARIABLE, str(tmp_path / 'nowhere'))
        with pytest.raises(FileNotFoundError, match=r'nowhere has no manifest\.json'):
            lane.folders()

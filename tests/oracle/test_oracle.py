"""Every recorded case of every supported method equals what kd_dense computes."""

import json

import numpy as np
import pytest

from tests.oracle import lane

lane.load_replays()
ALL = [
    pytest.param(folder, file, id=f'{folder.parent.name}/{folder.name}/{file}')
    for folder in lane.folders()
    for file in lane.replayed_files(folder)
]


@pytest.mark.parametrize(('folder', 'file'), ALL)
def test_every_case_equals_the_recorded_numbers(folder, file, record_property):
    compared, others = 0, []
    for case in lane.cases(folder, file):
        reason = lane.not_compared(file, case)
        if reason is None:
            lane.compare(file, case)
            compared += 1
        else:
            others.append(f'{case.name} {reason}')
    in_manifest = json.loads((folder / 'manifest.json').read_text())['files'][file]['cases']
    said = '; '.join([f'{compared} cases compared', *others])
    record_property('oracle', f'{folder / file}: {said}')
    assert compared + len(others) == len(in_manifest) > 0


def test_every_folder_has_files_that_are_replayed():
    for folder in lane.folders():
        assert lane.replayed_files(folder), folder


def test_the_tables_name_what_is_recorded():
    full = lane.ROOT.parent / 'shared' / 'oracle'
    if full not in lane.folders():
        pytest.skip('../shared/oracle does not exist')
    files = json.loads((full / 'manifest.json').read_text())['files']
    recorded = {(f, case['class']) for f in files for case in files[f]['cases'].values()}
    assert not (lane.LEFT_OUT.keys() | lane.NOT_YET.keys()) - recorded
    assert not lane.LEFT_OUT.keys() & lane.NOT_YET.keys()


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

    def test_fails_on_a_class_that_is_neither_replayed_nor_in_a_table(self, folder):
        (case,) = lane.cases(folder, 'cwd.npz')
        case = case._replace(cls='Unheard')
        assert lane.not_compared('mmrazor_losses.npz', case) is None
        with pytest.raises(AssertionError, match='case7: Unheard is neither replayed nor in'):
            lane.compare('mmrazor_losses.npz', case)

    def test_a_class_is_left_out_by_name_with_a_reason(self, folder, monkeypatch):
        (case,) = lane.cases(folder, 'cwd.npz')
        monkeypatch.setitem(lane.NOT_YET, ('cwd.npz', 'CriterionCWD'), 'no time')
        assert lane.not_compared('cwd.npz', case) == 'not yet: CriterionCWD (no time)'
        assert lane.not_compared('fgd.npz', case) is None
        monkeypatch.setitem(lane.REPLAYS, ('cwd.npz', 'CriterionCWD'), print)
        with pytest.raises(AssertionError, match='CriterionCWD is replayed: take it out'):
            lane.not_compared('cwd.npz', case)

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

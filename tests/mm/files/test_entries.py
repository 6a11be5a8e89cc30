"""Tensors on a disk: there completely, made of what is asked for, or not at all."""

import os
import signal
import time

import pytest
import torch

from kd_dense.mm.files.entries import CHANGED, DAMAGED, MISSING, Entries

MAPS = {'a 0': torch.arange(6.0).half().reshape(2, 3), 'a 1': torch.ones(4)}


@pytest.fixture
def entries(tmp_path):
    found = Entries(tmp_path / 'maps')
    found.write('0/7', 'pixels', MAPS)
    return found


def file(entries):
    return entries.folder / '0' / '7.maps'


def test_what_was_written_is_read(entries):
    found = entries.read('0/7', 'pixels')
    assert found.keys() == MAPS.keys()
    assert all(torch.equal(found[name], MAPS[name]) for name in MAPS)
    assert found['a 0'].dtype == torch.float16


def test_what_is_not_there_or_made_of_something_else(entries):
    assert entries.read('1/7', 'pixels') == MISSING
    assert entries.read('0/7', 'other pixels') == CHANGED


def test_every_byte_counts(entries):
    data = file(entries).read_bytes()
    for place in range(len(data)):
        file(entries).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert entries.read('0/7', 'pixels') == DAMAGED, place


@pytest.mark.parametrize('length', [0, 10, 20, 40, -1])
def test_a_file_that_was_cut_off(entries, length):
    data = file(entries).read_bytes()
    file(entries).write_bytes(data[:length])
    assert entries.read('0/7', 'pixels') == DAMAGED


def test_nobody_sees_an_entry_that_is_being_written(entries, monkeypatch):
    """As a kill between two bytes leaves it."""

    def killed(self, target):
        assert entries.read('0/7', 'pixels').keys() == MAPS.keys()
        raise KeyboardInterrupt('before it was named')

    monkeypatch.setattr('pathlib.Path.replace', killed)
    with pytest.raises(KeyboardInterrupt, match='before it was named'):
        entries.write('0/7', 'others', {'a 0': torch.zeros(1)})
    assert entries.read('0/7', 'pixels').keys() == MAPS.keys()
    assert [path.name for path in file(entries).parent.iterdir()] == ['7.maps']


def test_what_killed_processes_left_is_swept_away_once_nobody_can_be_writing_it(entries):
    old, new = (file(entries).with_name(f'{name}.unfinished') for name in ('old', 'new'))
    for path in (old, new):
        path.write_bytes(b'half')
    os.utime(old, (0, 0))
    assert entries.sweep() == 1
    assert new.exists()
    assert not old.exists()


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
def test_a_kill_leaves_whole_entries_alone(tmp_path):
    entries = Entries(tmp_path)
    for seed in range(4):
        child = os.fork()
        if child == 0:  # writes until it is killed
            try:
                for number in range(10**6):
                    maps = {'a': torch.full((20_000,), number)}
                    entries.write(str(number % 5), str(number), maps)
            finally:
                os._exit(1)
        while len(list(tmp_path.glob('*.maps'))) < 5:
            time.sleep(0.01)
        time.sleep(0.01 * seed)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for name in range(5):
            assert entries.read(str(name), 'something else') == CHANGED  # and not damaged

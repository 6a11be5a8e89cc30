from __future__ import annotations

import os
import threading
import time

from benchmarks.zoo import sweep
from benchmarks.zoo.trial import Trial


def trial(monkeypatch, attempt, limit=60.0):
    monkeypatch.setattr(sweep, 'attempt', attempt)
    return sweep.run(Trial('mmdet/any', 'cwd', (), {}), limit)


class TestTrial:
    def test_what_it_returns_is_recorded(self, monkeypatch):
        record = trial(monkeypatch, lambda _: dict(taps={'cwd': 'neck'}))
        assert record['ok']
        assert record['taps'] == {'cwd': 'neck'}
        assert (record['family'], record['method']) == ('mmdet/any', 'cwd')

    def test_an_error_is_recorded(self, monkeypatch):
        def attempt(_):
            raise ValueError('maps of\n  two shapes')

        record = trial(monkeypatch, attempt)
        assert not record['ok']
        assert record['reason'] == 'ValueError: maps of two shapes'

    def test_a_crash_is_recorded(self, monkeypatch):
        record = trial(monkeypatch, lambda _: os._exit(3))
        assert not record['ok']
        assert record['reason'] == 'the process ended with exit status 3'

    def test_a_hang_is_recorded(self, monkeypatch):
        record = trial(monkeypatch, lambda _: time.sleep(600), limit=0.5)
        assert not record['ok']
        assert record['reason'] == 'not finished after 0 s'

    def test_a_hang_after_the_result_does_not_stop_the_sweep(self, monkeypatch):
        def attempt(_):
            threading.Thread(target=time.sleep, args=(600,)).start()  # Python waits for it
            return {}

        assert trial(monkeypatch, attempt)['ok']

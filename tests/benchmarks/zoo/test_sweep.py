from __future__ import annotations

import os
import threading
import time

from benchmarks.zoo import sweep
from benchmarks.zoo.trial import Trial


def trial(monkeypatch, attempt, limit=60.0):
    monkeypatch.setattr(sweep, 'attempt', attempt)
    return sweep.run(Trial('mmdet/any', ['cwd'], (), {}), limit)


class TestTrial:
    def test_what_it_returns_is_recorded(self, monkeypatch):
        record = trial(monkeypatch, lambda _: dict(taps={'cwd': 'neck'}))
        assert record['ok']
        assert record['taps'] == {'cwd': 'neck'}
        assert record['family'] == 'mmdet/any'

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


class TestTogether:
    """Methods beyond the first are tried in one step, and alone only where that fails."""

    METHODS = ('cwd', 'kd', 'dist')

    def sweep(self, monkeypatch, output, fails=(), **options):
        tried = []

        def run(trial, limit):
            tried.append(tuple(trial.methods))
            ok = not {*fails} & {*trial.methods}
            record = dict(family=trial.family, operators=False, ok=ok, reason='no')
            return record | dict(applies=[*self.METHODS]) if not trial.methods else record

        monkeypatch.setattr(sweep, 'run', run)
        records = [*sweep.sweep({'mmseg/any': []}, self.METHODS, output, 60.0, **options)]
        return tried, {r['method']: r['ok'] for r in records}

    def test_all_get_the_record(self, monkeypatch, tmp_path):
        tried, records = self.sweep(monkeypatch, tmp_path / 'zoo.jsonl')
        assert tried == [(), ('kd', 'dist'), ('cwd',)]
        assert records == dict(plain=True, cwd=True, kd=True, dist=True)

    def test_the_one_that_fails_is_found(self, monkeypatch, tmp_path):
        tried, records = self.sweep(monkeypatch, tmp_path / 'zoo.jsonl', fails=['dist'])
        assert tried == [(), ('kd', 'dist'), ('cwd',), ('kd',), ('dist',)]
        assert records == dict(plain=True, cwd=True, kd=True, dist=False)

    def test_each_may_be_tried_apart(self, monkeypatch, tmp_path):
        tried, _ = self.sweep(monkeypatch, tmp_path / 'zoo.jsonl', apart=True)
        assert tried == [(), ('cwd',), ('kd',), ('dist',)]

    def test_what_is_known_is_not_tried_again(self, monkeypatch, tmp_path):
        self.sweep(monkeypatch, tmp_path / 'zoo.jsonl')
        tried, records = self.sweep(monkeypatch, tmp_path / 'zoo.jsonl')
        assert tried == []
        assert len(records) == 4

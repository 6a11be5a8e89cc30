"""Trials in processes of their own, one after the other, and the file with their results."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger

from benchmarks.zoo.records import PLAIN, described, load
from benchmarks.zoo.trial import Trial, attempt


def run(trial: Trial, limit: float) -> dict[str, Any]:
    """Run a trial in a forked process: a crash or a hang is its result, and memory comes back."""
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(trial, sender))
    start = time.monotonic()
    process.start()
    sender.close()
    record: dict[str, Any]
    if receiver.poll(limit):
        try:
            record = receiver.recv()
        except EOFError:
            process.join()
            reason = f'the process ended with exit status {process.exitcode}'
            record = dict(ok=False, reason=reason)
    else:
        record = dict(ok=False, reason=f'not finished after {limit:.0f} s')
    process.kill()  # also one that has its result and does not end
    process.join()
    head = dict(family=trial.family, method=trial.method, operators=has_operators())
    return head | record | dict(seconds=round(time.monotonic() - start, 1))


def has_operators() -> bool:
    """Whether mmcv has its compiled operators."""
    return getattr(sys.modules.get('mmcv._ext'), '__file__', None) is not None


def _child(trial: Trial, sender: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter('ignore')
    MMLogger.get_instance('zoo', log_level='ERROR')
    try:
        record = dict(ok=True) | attempt(trial)
    except Exception as error:  # the result of the trial
        where = ''.join(traceback.format_exception(error)).splitlines()[-12:]
        record = dict(ok=False, reason=described(error), trace=where)
    sender.send(record)


def sweep(
    chosen: Mapping[str, Sequence[Path]],
    methods: Sequence[str],
    output: Path,
    limit: float,
    retry: bool = False,
) -> Iterator[dict[str, Any]]:
    """Try what the output file lacks, add it there, and yield all records of these families."""
    known = {(r['family'], r['method']): r for r in load(output)}

    def result(family: str, method: str, plain: Mapping[str, Any]) -> dict[str, Any]:
        old = known.get((family, method))
        if old is not None and (old['ok'] or not retry):
            return old
        new = run(Trial(family, method, chosen[family], plain), limit)
        with output.open('a') as file:
            file.write(json.dumps(new) + '\n')
        return new

    for family in chosen:
        plain = result(family, PLAIN, {})
        yield plain
        for method in methods:
            if method in plain.get('applies', ()):
                yield result(family, method, plain)

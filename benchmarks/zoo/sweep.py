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

from benchmarks.zoo.records import ALONE, PLAIN, described, load
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
    seconds = round(time.monotonic() - start, 1)
    return dict(family=trial.family, operators=has_operators()) | record | dict(seconds=seconds)


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
    steps: int = 1,
    apart: bool = False,
) -> Iterator[dict[str, Any]]:
    """Try what the output file lacks, add it there, and yield all records of these families."""
    known = {(r['family'], r['method']): r for r in load(output)}
    known = {key: record for key, record in known.items() if record['ok'] or not retry}

    def add(record: Mapping[str, Any], method: str) -> dict[str, Any]:
        new = dict(family=record['family'], method=method) | dict(record)
        with output.open('a') as file:
            file.write(json.dumps(new) + '\n')
        known[new['family'], method] = new
        return new

    for family, files in chosen.items():
        plain = known.get((family, PLAIN)) or add(run(Trial(family, (), files, {}), limit), PLAIN)
        yield plain
        apply = [method for method in methods if method in plain.get('applies', ())]
        together = [m for m in apply if m not in ALONE and (family, m) not in known]
        if len(together) > 1 and not apart:
            record = run(Trial(family, together, files, plain, steps), limit)
            if record['ok']:
                for method in together:
                    add(record, method)
        for method in apply:
            yield known.get((family, method)) or add(
                run(Trial(family, [method], files, plain, steps), limit), method
            )

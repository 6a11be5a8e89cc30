"""The results of sweeps as a page of the documentation."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.zoo.families import ROOT
from benchmarks.zoo.models import BOXES, SEGMENTER_SIZES
from benchmarks.zoo.records import METHODS, NO_MODEL, PLAIN

LOGITS = ('kd', 'dist', 'dkd', 'gdkd', 'nkd', 'wsld')
FEATURES = ('fitnets', 'pkd', 'vkd', 'cosine', 'mgd', 'sp', 'pkt', 'rkd', 'cckd', 'nst')
MASKED = ('frs', 'defeat', 'fgfi', 'reviewkd')
DENSE = ('bckd', 'adl', 'crosskd', 'pgd')
HEADS = ('fbkd', 'roi_dkd', 'roi_dist', 'detrdistill', 'kddetr')
SEGMENTERS = ('af_dcd', 'dsd', 'ickd', 'cross_image', 'at', 'ifvd', 'apd', 'cirkd', 'edge_body',
              'aicsd', 'reviewkd', 'pea', 'sad', 'detrdistill')  # fmt: skip
APPLY = {
    'mmdet': (PLAIN, 'cwd', 'fgd', 'ld', 'dist', *FEATURES, *MASKED, *DENSE, *HEADS),
    'mmseg': (PLAIN, 'cwd', 'skd', 'intrakd', *LOGITS, *FEATURES, *SEGMENTERS),
    'kd_dense': (PLAIN, 'cwd', 'fgd', 'ld', 'dist', *FEATURES, *MASKED, *DENSE),
}

PAGE = """# Which models of the zoos can be distilled

Every family of models that mmdet and mmseg come with, and every method that applies to it: one
step of training on a tiny input, with `preset='METHOD'` and nothing else. Measured by

```bash
python -m benchmarks.zoo --output zoo.jsonl  # hours on two CPU cores; goes on where it stopped
python -m benchmarks.zoo --table docs/zoo.md --results zoo.jsonl other.jsonl
```

at commit {commit}, in an environment with mmcv's compiled operators and in one without them, where
kd_dense runs NMS, soft-NMS, RoIAlign and deformable convolutions in PyTorch.
`python -m benchmarks.zoo mmdet/retinanet` tries one family.

- A **family** is a folder of configs, or one of our heads with box distributions. The **student**
  is its model with the fewest parameters, of detectors with a feature pyramid if there are any;
  where it does not train without a method, the next one, at most the third. The **teacher** is its
  largest model of the same kind: of the same class, with heads of the same classes, and for the
  same classes of objects. Where there is no larger one, a second copy of the student teaches.
- Both are **untrained**. This says that a method runs on a model, not what it gains there.
- A method **works** if all losses are finite, a gradient flows from its own terms into the
  student, a step of the optimizer and a prediction after it run, and the teacher is bit for bit
  what it was. Some models do not predict here without a method either (trackers, whose packages
  are missing); there the prediction is left out.
- CWD, MGD, the methods that mimic features (fitnets, pkd, vkd, cosine) and those that relate
  images or channels (sp, pkt, rkd, cckd, nst) apply to all models; FGD to
  detectors whose neck yields two or more maps of one width; SKD, IntRA-KD and the methods on
  class logits (kd, dist, dkd, gdkd, nkd, wsld) to segmenters that yield a map of logits for each
  class; dist also to dense heads that it has settings for; Af-DCD, ickd, cross_image, at,
  ifvd and apd to segmenters, dsd and aicsd to those with logits, FBKD to detectors with region
  proposals and a neck, DKD and DIST on shared regions (roi_dkd, roi_dist) to those
  whose box heads can be asked about any regions, LD to heads with box distributions; BCKD, ADL,
  CrossKD and PGD to dense heads whose assignment, boxes or towers they can read, DETRDistill to
  decoders with queries, KD-DETR to those of DAB-DETR and DINO.
- FRS, DeFeat and ReviewKD apply to detectors that FGD applies to (FRS where a head of sigmoids has
  the levels of the neck), FGFI to those with anchors; CIRKD and ReviewKD to segmenters, edge_body
  to those with class logits, PEA to mix transformers, SAD, which has no teacher, to backbones of
  four stages.
- The methods that came after the first five are tried together, in one step of training in which
  each term must send its own gradient; where that fails, each by itself.
- To save time, detectors propose, sample and keep at most {boxes} boxes, images have the first
  size from {smallest} pixels up that the model takes, and SAN's frozen text encoder has one layer
  and reads the name of each class once, not in many sentences.

## Counts

{counts}

## Families

`yes`: works in both environments, `ops`: with compiled operators alone, `ops?`: with them, and
not tried without, `without`: without them, and not tried with, `no`: wherever it was tried, `?`:
not tried; empty: does not apply.

{families}

## Reasons

A reason that begins with the name of a config says why the student is a larger one.

{reasons}
"""


def page(records: Sequence[Mapping[str, Any]], methods: Sequence[str] = METHODS) -> str:
    """The results as a page of the documentation; of some methods, if they are named."""
    apply = {
        package: [m for m in columns if m == PLAIN or m in methods]
        for package, columns in APPLY.items()
    }
    found = {(r['family'], r['method'], r['operators']): r for r in records}
    empty = {r['family'] for r in records if NO_MODEL in r.get('reason', '')}
    names = sorted({r['family'] for r in records} - empty)
    return PAGE.format(
        commit=_commit(),
        boxes=BOXES,
        smallest=SEGMENTER_SIZES[0][0],
        counts=_counts(names, found, apply),
        families=_families(names, found, apply),
        reasons=_reasons(names, found),
    )


def _commit() -> str:
    """Of this checkout, where it is one."""
    command = ['git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or 'unknown'


def _counts(
    names: Sequence[str],
    found: Mapping[Any, Mapping[str, Any]],
    apply: Mapping[str, Sequence[str]],
) -> str:
    rows: list[tuple[str, ...]] = []
    for package, methods in apply.items():
        mine = [name for name in names if name.startswith(package + '/')]
        for method in methods:
            cells = []
            for operators in (True, False):
                plain = [found.get((name, PLAIN, operators), {}) for name in mine]
                known = sum(bool(one) for one in plain)
                if method != PLAIN:
                    known = sum(method in one.get('applies', ()) for one in plain)
                tried = [r for n in mine if (r := found.get((n, method, operators)))]
                good = sum(one['ok'] for one in tried)
                cells.append(f'{good} of {known}' if tried else 'not tried')
            what = 'train without a method' if method == PLAIN else method
            rows.append((package, what, *cells))
    return _table(('package', '', 'with compiled operators', 'without'), rows)


def _families(
    names: Sequence[str],
    found: Mapping[Any, Mapping[str, Any]],
    apply: Mapping[str, Sequence[str]],
) -> str:
    tables = []
    for package, methods in apply.items():
        rows = []
        for name in names:
            folder, _, family = name.partition('/')
            if folder != package:
                continue
            plain = [found.get((name, PLAIN, operators), {}) for operators in (True, False)]
            best = max(plain, key=lambda one: len(one))
            models = [best.get(key, '').removesuffix('.py') for key in ('student', 'teacher')]
            cells = [
                _cell(name, method, found)
                if method == PLAIN or any(method in one.get('applies', ()) for one in plain)
                else ''
                for method in methods
            ]
            rows.append((family, *models, 'x'.join(map(str, best.get('size', ()))), *cells))
        head = ('family', 'student', 'teacher', 'input', *methods)
        tables.append(f'### {package}\n\n{_table(head, rows)}')
    return '\n\n'.join(tables)


def _cell(name: str, method: str, found: Mapping[Any, Mapping[str, Any]]) -> str:
    with_ops, without = (found.get((name, method, operators)) for operators in (True, False))
    if with_ops is None:
        return '?' if without is None else 'without' if without['ok'] else 'no'
    if not with_ops['ok']:
        return 'no'
    if without is None:
        return 'ops?' if _trains(name, False, found) else 'ops'
    return 'yes' if without['ok'] else 'ops'


def _trains(name: str, operators: bool, found: Mapping[Any, Mapping[str, Any]]) -> bool:
    return bool(found.get((name, PLAIN, operators), {'ok': True})['ok'])


def _reasons(names: Sequence[str], found: Mapping[Any, Mapping[str, Any]]) -> str:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for (name, method, operators), record in found.items():
        if name not in names:
            continue
        passed_over = record.get('passed_over', {}).items()
        reasons = [f'{config.removesuffix(".py")}: {reason}' for config, reason in passed_over]
        for reason in reasons if record['ok'] else [record['reason']]:
            rows.setdefault((name, method, reason), []).append('with' if operators else 'without')
    order = sorted(rows, key=lambda key: (names.index(key[0]), (PLAIN, *METHODS).index(key[1])))
    lines = [(name, method, ', '.join(rows[name, method, reason]), _short(reason))
             for name, method, reason in order]  # fmt: skip
    return _table(('family', '', 'compiled operators', 'reason'), lines) if lines else 'No misses.'


def _short(reason: str) -> str:
    text = reason if len(reason) < 200 else reason[:200] + ' ...'
    return '`' + text.replace('|', '/').replace('`', "'") + '`'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)

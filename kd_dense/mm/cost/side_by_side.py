"""Recipes for one student, each step timed beside the least that it can cost."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from kd_dense.measure import peak_memory, ratio, spread, time_interleaved
from kd_dense.mm.batches.views import call_them_views
from kd_dense.mm.configs import RequestError
from kd_dense.mm.cost.batch import make_batch
from kd_dense.mm.cost.floor import asked_of_box_heads, largest_layer, minimal_forward, on_rois
from kd_dense.mm.cost.nested import bytes_of
from kd_dense.mm.cost.recipe import Recipe, prepared
from kd_dense.mm.cost.steps import Batch, Trained, build_to_try
from kd_dense.mm.cost.terms import crossing_alone, recorded, term_alone
from kd_dense.mm.distil.crossing import CrossTerm
from kd_dense.mm.distil.distilled import bare
from kd_dense.mm.teachers.cached import MapCache
from kd_dense.mm.teachers.foreign import predicts
from kd_dense.mm.teachers.several import build_one, each_teacher, plain, teachers_of
from kd_dense.taps import Taps

__all__ = ['GOAL', 'Case', 'Guest', 'SideBySide']

GOAL = 1.05
PLAIN = 'plain step'
Progress = Callable[[int, int, str], None]


class Guest(NamedTuple):
    """The teacher of a recipe: the names of its calls, and what counts for the memory's floor."""

    minimal: str
    full: str
    maps: int  # bytes
    layer: int  # bytes


class Case(NamedTuple):
    """A recipe: the names of its calls; without a teacher, if it keeps maps or all weights are 0.

    ``crossings`` are those of the student's features through the rest of the teacher's head.
    """

    name: str
    step: str
    terms: dict[str, str]
    guest: Guest | None
    crossings: list[str]


class SideBySide:
    """All that is timed, by name; what several recipes share is there once.

    Args:
        configs: Recipes by name. They are not changed.
        size: Height and width of the pictures; see [`kd_dense.mm.cost.recipe.prepared`][].
        images: How many pictures are in a batch.
        device: Where to compute.
        pretrained: Fetch and load all published weights; otherwise weights are random.

    Raises:
        RequestError: If a config distils nothing, cannot take pictures of this size, or is for
            another student, or another training of it, than the first; or if the loss of a step
            is not finite.
    """

    def __init__(
        self,
        configs: Mapping[str, Config],
        size: tuple[int, int] | None = None,
        images: int = 2,
        device: str = 'cpu',
        pretrained: bool = False,
    ) -> None:
        recipes = {name: prepared(one, size, pretrained) for name, one in configs.items()}
        _require_one_student(recipes)
        self.images = images
        self.device = device
        self.pretrained = pretrained
        self.calls: dict[str, Callable[[], Any]] = {}
        self.teachers: dict[str, tuple[str, Any]] = {}  # name and model, by config
        self.distilled: dict[str, Trained] = {}
        self._maps = TemporaryDirectory()
        self.cases = [self._case(name, recipe) for name, recipe in recipes.items()]

    def _case(self, name: str, recipe: Recipe) -> Case:
        config = recipe.config
        with DefaultScope.overwrite_default_scope(config.get('default_scope')):
            torch.manual_seed(0)  # all students begin with the same weights
            model = build_to_try(config.model)
            if self.pretrained:
                model.init_weights()
            if PLAIN not in self.calls:
                alone = deepcopy(bare(model))
                self.plain = Trained(alone, config.optim_wrapper, self.device)
                self.batch = make_batch(recipe, alone, self.images)
                self.calls[PLAIN] = lambda: self.plain.step(self.batch)
            kept = model.kd_plan.teacher.cache is not None
            if kept:  # from the second step on the teacher does not run
                model.kd_plan.teacher.cache = MapCache(views=1, folder=self._maps.name)
                call_them_views(self.batch.samples)
            trained = Trained(model, config.optim_wrapper, self.device)
            self.distilled[name] = trained
            arguments = recorded(trained, self.batch)
            step = f'{name}: distilled step'
            self.calls[step] = lambda: trained.step(self.batch)
            terms = {term: f'{name}: {term}' for term in arguments}
            for term, call in terms.items():
                self.calls[call] = term_alone(trained, term, arguments[term])
            crossings = []
            for term in arguments:
                if isinstance(model.kd[term], CrossTerm):
                    crossings.append(f"{name}: {term}, the teacher's head")
                    self.calls[crossings[-1]] = crossing_alone(trained, term, arguments[term])
            guest = self._guests(config, model, terms) if terms and not kept else None
        return Case(name, step, terms, guest, crossings)

    def _guests(self, config: Config, model: Any, terms: Iterable[str]) -> Guest | None:
        """Time the teachers, one after the other."""
        specs = teachers_of(config.model.teacher)
        used = [model.kd[term] for term in terms]
        found = []
        for name, guest in model.kd_plan.running.items():
            learning = [term for term in used if name in term.teachers]
            if learning:
                found.append(self._guest(specs[name], model, guest, learning))
        if len(found) < 2:
            return found[0] if found else None
        minimal = self._one_by_one([one.minimal for one in found])
        full = self._one_by_one([one.full for one in found])
        maps, layer = sum(one.maps for one in found), max(one.layer for one in found)
        return Guest(minimal, full, maps, layer)

    def _one_by_one(self, names: Sequence[str]) -> str:
        """Make one call of several; returns its name."""
        each = [self.calls.pop(name) for name in names]
        self.calls[' and '.join(names)] = lambda: [call() for call in each]
        return ' and '.join(names)

    def _guest(self, spec: Any, model: Any, guest: Any, terms: Sequence[Any]) -> Guest:
        """Time a teacher of its own, without options: up to the taps in use, and as a whole."""
        name, teacher = self._teacher(spec, model)
        batch = Batch(guest.preprocess(*self.batch), self.batch.samples)
        calls = {tap: guest.calls[tap] for tap in chain(*(term.teacher_taps for term in terms))}
        asked = asked_of_box_heads(model, terms, self.batch)
        reached = sorted({*calls, *chain(*(one.taps for one in asked))})
        minimal, full = f'{name} up to {", ".join(reached)}', f'{name} with its task loss'

        def run() -> Taps:
            with self.plain.context():
                found = minimal_forward(teacher, calls, batch)
                on_rois(teacher, asked, found)
            return found

        def run_all() -> None:
            with torch.no_grad(), self.plain.context():
                (teacher.loss if predicts(teacher) else teacher)(*batch)

        self.calls[minimal], self.calls[full] = run, run_all
        found = run()
        maps = bytes_of([found[tap] for tap in calls])
        return Guest(minimal, full, maps, largest_layer(teacher, run))

    def _teacher(self, spec: Any, model: Any) -> tuple[str, Any]:
        """Name and model of a teacher, which recipes with the same config share."""
        spec = each_teacher(spec, plain)
        said = spec.items() if isinstance(spec, Mapping) else [('type', spec)]
        key = str({name: value for name, value in said if name != 'checkpoint'})
        if key not in self.teachers:
            built: Any = build_one(spec, bare(model))
            built.load()
            name = Path(built.name).stem
            if name in (other for other, _ in self.teachers.values()):
                name = f'{name} ({len(self.teachers) + 1})'
            self.teachers[key] = name, built.model.to(self.device)
        return self.teachers[key]

    def measure(self, rounds: int = 5, progress: Progress = lambda *_: None) -> dict[str, Any]:
        """Time everything, then measure its memory.

        Args:
            rounds: How often each call is timed.
            progress: Is told how much is done, of how much, and of what.

        Returns:
            All figures by name: of each of the ``calls``, and of the ``recipes``.
        """
        gc.collect()
        gc.disable()
        try:
            seconds = time_interleaved(
                self.calls,
                rounds,
                device=self.device,
                progress=lambda done, total: progress(done, total, 'rounds'),
            )
            memory = {}
            for index, (name, call) in enumerate(self.calls.items(), 1):
                memory[name] = peak_memory(call, self.device)
                progress(index, len(self.calls), 'memory')
        finally:
            gc.enable()
        calls = {
            name: {
                'seconds': seconds[name],
                **spread(seconds[name])._asdict(),
                'peak_bytes': memory[name],
            }
            for name in self.calls
        }
        first = seconds[self.cases[0].step]
        recipes = {case.name: _summary(case, seconds, memory, first) for case in self.cases}
        return {'calls': calls, 'recipes': recipes}


def _require_one_student(recipes: Mapping[str, Recipe]) -> None:
    names = list(recipes)
    first = recipes[names[0]].config
    for name, (config, _) in recipes.items():
        for key, ours, theirs in (
            ('student', config.model.student, first.model.student),
            ('optim_wrapper', config.optim_wrapper, first.optim_wrapper),
        ):
            if ours != theirs:
                raise RequestError(
                    f'{name} has another {key} than {names[0]}: only recipes for the same '
                    'student, trained in the same way, can be measured against each other'
                )


def _summary(
    case: Case,
    seconds: Mapping[str, Sequence[float]],
    memory: Mapping[str, int],
    first: Sequence[float],
) -> dict[str, Any]:
    """A recipe against its floor; ratios are those of one round each."""
    step, floor, held = seconds[case.step], list(seconds[PLAIN]), memory[PLAIN]
    others = floor
    if case.guest is not None:
        floor = _sums(floor, seconds[case.guest.minimal])
        others = _sums(others, seconds[case.guest.full])
        held += case.guest.maps + case.guest.layer
    for call in case.crossings:
        floor, others = _sums(floor, seconds[call]), _sums(others, seconds[call])
        held += memory[call]
    losses = _sums([0.0] * len(step), *(seconds[call] for call in case.terms.values()))
    time, peak = ratio(step, floor), memory[case.step] / held
    return {
        **case._asdict(),
        'guest': case.guest and case.guest._asdict(),
        'floor_seconds': floor,
        'floor_bytes': held,
        'step_to_floor': time._asdict(),
        'losses_to_step': ratio(losses, step)._asdict(),
        'whole_teacher_to_floor': ratio(others, floor)._asdict(),
        'step_to_first': ratio(step, first)._asdict(),
        'peak_to_floor': peak,
        'goals': {'time': time.median <= GOAL, 'memory': peak <= GOAL},
    }


def _sums(*figures: Sequence[float]) -> list[float]:
    return [sum(row) for row in zip(*figures, strict=True)]

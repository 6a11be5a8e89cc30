"""What a distilled training would do, found out before it starts."""

from __future__ import annotations

import copy
import io
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from inspect import signature
from itertools import islice
from numbers import Real
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import Evaluator
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner, set_random_seed
from torch import Tensor, nn
from torch.utils.data import Subset

from kd_dense.losses import HolisticLoss
from kd_dense.measure import peak_memory, spread, time_interleaved
from kd_dense.mm.checkpoint import load_weights, read_checkpoint
from kd_dense.mm.first_steps import split_losses
from kd_dense.mm.inherit import fitting, inherit_parts
from kd_dense.mm.probe import probe, spelt
from kd_dense.mm.randomness import kept_random_state
from kd_dense.mm.term import Term
from kd_dense.schedules import Schedule

__all__ = ['ERROR', 'OK', 'WARNING', 'Finding', 'check']

OK = 'ok'
WARNING = 'warning'
ERROR = 'error'
# A term drowns the task where its gradient is this many times as long as the task's, or where
# both together have a cosine below this with the task's; it vanishes where its gradient is
# shorter than this share. docs/check.md says what was measured.
DROWNS = 250.0
AGREES = 0.01
VANISHES = 1e-3
# Below this cosine more of a step belongs to the term than to the task.
LEADS = 0.5
# A teacher that is this far behind a trained student on a few pictures is not so by chance.
CLEARLY = 0.9
# What tells most about a model, if there are several scores; the greater the better.
SCORES = ('coco/bbox_mAP', 'mIoU', 'coco/segm_mAP', 'pascal_voc/mAP', 'lvis/bbox_AP')
IMAGENET = torch.tensor([123.675, 116.28, 103.53])  # red, green, blue
Progress = Callable[[str], None]


class Finding(NamedTuple):
    """What one check has found.

    Attributes:
        check: Its name, as ``'teacher checkpoint'``.
        status: ``'ok'``, ``'warning'``, or ``'error'`` where the training would stop, or its
            result be worth nothing.
        message: What was found.
        remedy: What to do next, if anything.
        figures: What was measured.
    """

    check: str
    status: str
    message: str
    remedy: str = ''
    figures: Mapping[str, Any] = {}


def check(
    config: Config,
    batches: int = 4,
    images: int = 50,
    student: str | None = None,
    device: str = 'cpu',
    progress: Progress | None = None,
) -> list[Finding]:
    """Find out what the training of a recipe would do.

    A model of its own is built, its data is read, and nothing is written. Random states are
    left as they were. Each check goes on where another one fails.

    Args:
        config: A recipe: a config whose model is a ``kd_dense.Distilled``. It is not changed.
        batches: How many batches of the training data each term is weighed on.
        images: How many pictures of the validation data the teacher is scored on, evenly spread.
        student: A checkpoint of the student, as of its training alone, to score beside the
            teacher; without it what the config has as ``load_from``, or the untrained student.
        device: Where to compute.
        progress: Is told what is going on.

    Returns:
        What was found, in the order in which a training would meet it.

    Raises:
        ValueError: If there is no batch or no picture to look at.

    Examples:
        >>> check(Config(dict(model=dict(type='mmseg.EncoderDecoder'))))[0].message
        'the config distils nothing: its model is a mmseg.EncoderDecoder'
    """
    if batches < 1 or images < 1:
        raise ValueError(f'check expects batches and images >= 1, got {batches} and {images}')
    scope = DefaultScope.overwrite_default_scope(config.get('default_scope'))
    with kept_random_state(), _unheard(), scope:
        set_random_seed((config.get('randomness') or {}).get('seed') or 0)
        run = _Check(copy.deepcopy(config), device, progress or (lambda text: None))
        run.all(batches, images, student)
    return run.findings


@contextmanager
def _unheard() -> Iterator[None]:
    """Give mmengine a log that nobody reads, and a place of its own for what it remembers."""
    name = 'kd_dense.check'
    MMLogger.get_instance(name, log_level='CRITICAL')
    hub = MessageHub.get_instance(name)
    for key, value in dict(iter=0, max_iters=1, epoch=0, max_epochs=1).items():
        hub.update_info(key, value)
    try:
        yield
    finally:
        for kind in (MMLogger, MessageHub):
            kind._instance_dict.pop(name)


class _Check:
    """A model, its batches, and what has been found about them so far."""

    def __init__(self, config: Config, device: str, progress: Progress) -> None:
        self.config = config
        self.device = device
        self.progress = progress
        self.findings: list[Finding] = []
        self.model: Any = None
        self.loaded = True  # whether the teacher has its weights
        self.trained = False  # whether the student begins with weights of its own
        self.batches: list[Any] = []
        self.iterations: int | None = None
        self.loading = 0.0  # seconds to load a batch

    def all(self, batches: int, images: int, student: str | None) -> None:
        self._try('model', self._build)
        self._try('data', self._load_batches, batches)
        if self.model is None:
            return
        self._try('taps', self._taps)
        self._try('teacher checkpoint', self._teacher_checkpoint)
        self._try('student weights', self._student_weights)
        self._try('inherit', self._inherit)
        self._try('preprocessing', self._preprocessing)
        self._try('hooks', self._hooks)
        self.model.to(self.device)
        self._try('scores', self._scores, images, student)
        if self.batches:
            self._try('terms', self._terms)
            self._try('cost', self._cost)

    def _try(self, name: str, method: Callable[..., None], *args: Any) -> None:
        """Run a check; where it fails, that is what it has found."""
        self.name = name
        self.progress(name)
        try:
            with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
                warnings.simplefilter('ignore')
                method(*args)
        except Exception as error:  # whatever a config, a model or its data can raise
            kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
            text = str(error).strip() or 'without a message'
            remedy = 'put this right, then check again'
            if isinstance(error, FileNotFoundError):
                remedy = f'put it there, or change its path (relative ones start in {Path.cwd()})'
            self._say(ERROR, f'{kind}{text}', remedy)

    def _say(self, status: str, message: str, remedy: str = '', **figures: Any) -> None:
        self.findings.append(Finding(self.name, status, message, remedy, figures))

    def _build(self) -> None:
        config = ConfigDict(self.config.model)
        kind = config.get('type')
        if str(kind).rpartition('.')[2] != 'Distilled':
            self._say(
                ERROR,
                f'the config distils nothing: its model is a {kind}',
                'give a recipe with a model of type kd_dense.Distilled, or --teacher and '
                '--distill beside the config of a student',
            )
            return
        if 'data_preprocessor' in self.config:
            config.setdefault('data_preprocessor', self.config.data_preprocessor)
        config.checks = False  # they are made here
        model = revert_sync_batchnorm(MODELS.build(config))
        for term in model.kd.values():
            term.schedule = Schedule()
        counts = {
            'student': _count(p for n, p in model.named_parameters() if not n.startswith('kd.')),
            'kd': _count(model.kd.parameters()),
            'teacher': _count(model.kd_plan.teacher.model.parameters()),
        }
        self.model = model
        self._say(
            OK,
            '{} from {}: {student:.2f} M parameters in the student, {kd:.2f} M in kd (left out at '
            'export), {teacher:.2f} M in the teacher (frozen)'.format(
                type(model).__mro__[2].__name__,
                model.kd_plan.teacher.name,
                **{name: count / 1e6 for name, count in counts.items()},
            ),
            parameters=counts,
        )

    def _load_batches(self, count: int) -> None:
        loader = Runner.build_dataloader(_in_this_process(self.config.train_dataloader), seed=0)
        loop = self.config.get('train_cfg') or {}
        epochs = loop.get('max_epochs')
        self.iterations = loop.get('max_iters') or (epochs and epochs * len(loader))
        start = time.perf_counter()
        self.batches = list(islice(loader, count))
        if not self.batches:
            raise ValueError('the training data has not one batch')
        self.loading = (time.perf_counter() - start) / len(self.batches)
        self._say(
            OK,
            f'{len(loader.dataset)} training pictures, '
            f'{self.config.train_dataloader.get("batch_size", "?")} in a batch, '
            f'{self.iterations or "?"} iterations; {self.loading:.2f} s to load a batch in one '
            'process',
            pictures=len(loader.dataset),
            iterations=self.iterations,
            seconds=self.loading,
        )

    def _taps(self) -> None:
        model, terms = self.model, self.model.kd.values()
        teacher = model.kd_plan.teacher.model
        taps = [list(dict.fromkeys(t.student_tap for t in terms)),
                list(dict.fromkeys(t.teacher_tap for t in terms))]  # fmt: skip
        found = probe(model, taps[0], teacher, taps[1])
        for name, term in model.kd.items():
            a, b = found.student[term.student_tap], found.teacher[term.teacher_tap]
            adapters = [type(x).__name__ for x in term.adapters if not isinstance(x, nn.Identity)]
            how = 'compared as they are'
            if adapters:
                how = f'{len(adapters)} of {len(a.shapes)} through {adapters[0]}'
            ours = f'{term.student_tap} {spelt(a.shapes)}'
            theirs = f'{term.teacher_tap} {spelt(b.shapes)}'
            where = f'{ours} of the student, {theirs} of the teacher'
            if ours == theirs:
                where = f'{ours} of both'
            self._say(
                OK,
                f'{name}: {where}, {how}',
                term=name,
                student=dict(tap=term.student_tap, shapes=a.shapes),
                teacher=dict(tap=term.teacher_tap, shapes=b.shapes),
                adapters=adapters,
                size=found.size,
            )

    def _teacher_checkpoint(self) -> None:
        teacher = self.model.kd_plan.teacher
        if teacher.checkpoint is None:
            if teacher._loaded:
                self._say(OK, f'{teacher.name} was given as a model, with its weights')
                return
            self.loaded = False
            self._say(
                ERROR,
                f'the teacher {teacher.name} is untrained (checkpoint=None)',
                'say teacher=dict(config=..., checkpoint=PATH); an untrained one is for smoke '
                'runs and benchmarks',
            )
            return
        source = teacher.checkpoint
        try:
            state = read_checkpoint(source)
        except (ValueError, OSError) as error:
            self.loaded, teacher.checkpoint = False, None
            self._say(ERROR, str(error), 'name a file that is there, complete and without code')
            return
        wrong = _misfits(teacher.model, state)
        kinds = [f'{len(names)} {kind}: {_listed(names)}' for kind, names in wrong.items()]
        text = f'{source} does not fit {teacher.name}: {"; ".join(kinds)}'
        try:
            teacher.load(state)
        except ValueError as error:
            self.loaded, teacher.checkpoint = False, None
            remedy = 'give the checkpoint of this config, or the config of this checkpoint'
            self._say(ERROR, text if wrong else str(error), remedy, **wrong)
            return
        if wrong:
            remedy = 'the rest is loaded (strict=False): make sure that no tap depends on these'
            self._say(WARNING, text, remedy, **wrong)
            return
        self._say(
            OK,
            f'all {len(state)} tensors of {teacher.checkpoint} fit {teacher.name}',
            tensors=len(state),
        )

    def _student_weights(self) -> None:
        model, plan = self.model, self.model.kd_plan
        try:
            model.init_weights()
        except Exception:  # reported by _try; the other checks go on with what is there
            inherit_parts(model, plan.teacher.model, plan.inherit)
            raise
        source = self.config.get('load_from')
        if not source:
            self._say(OK, 'the student starts untrained, but for what its init_cfg loads')
            return
        own = {k: v for k, v in model.state_dict().items() if not k.startswith('kd.')}
        state = read_checkpoint(source)
        fit = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
        model.load_state_dict(fit, strict=False)
        missing = [name for name in own if name not in fit]
        self.trained = len(fit) > len(own) / 2
        text = f'{len(fit)} of {len(own)} tensors of the student start from {source}'
        if missing:
            text += f'; not {_listed(missing)}'
        status = OK if self.trained else WARNING
        remedy = '' if self.trained else 'is this the checkpoint of another model?'
        self._say(status, text, remedy, missing=missing)

    def _inherit(self) -> None:
        plan = self.model.kd_plan
        for part in plan.inherit:
            fit, left_out = fitting(self.model, plan.teacher.model, part)
            text = f'{len(fit)} of {len(fit) + len(left_out)} tensors of {part} start from the '
            text += "teacher's" + (f'; not {_listed(left_out)}' if left_out else '')
            self._say(OK, text, part=part, fit=fit, left_out=left_out)

    def _preprocessing(self) -> None:
        ours, theirs = self.model.data_preprocessor, self.model.kd_plan.teacher.model
        sides = {'student': ours, 'teacher': theirs.data_preprocessor}
        told = {whose: _normalisation(side) for whose, side in sides.items()}
        if self.model.kd_plan.preprocess.identical:
            self._say(OK, f'the same on both sides: {told["student"]}')
        else:
            self._say(
                OK,
                f'student: {told["student"]}; teacher: {told["teacher"]}: each batch is converted '
                'for the teacher',
            )
        for whose, side in sides.items():
            problem = _suspicious(side)
            if problem:
                self._say(
                    WARNING,
                    f'{whose}: {problem}',
                    f'compare data_preprocessor with the config that the {whose} was trained with',
                )

    def _hooks(self) -> None:
        critics = [n for n, t in self.model.kd.items() if isinstance(t.loss, HolisticLoss)]
        hooks = [str(hook.get('type')) for hook in self.config.get('custom_hooks') or []]
        if critics and not any(hook.endswith('CriticHook') for hook in hooks):
            self._say(
                WARNING,
                f'no CriticHook trains the critic of {", ".join(critics)}: tools/train.py adds '
                'it, with other tools the training stops in its second iteration',
                "add custom_hooks=[dict(type='kd_dense.CriticHook')]",
            )

    def _scores(self, images: int, source: str | None) -> None:
        if not self.loaded:
            self._say(WARNING, 'the teacher is not scored without its weights')
            return
        if not self.config.get('val_dataloader') or not self.config.get('val_evaluator'):
            self._say(WARNING, 'the config has no validation: the teacher is not scored')
            return
        loader, count, metainfo = self._slice(images)
        student, trained, whose = self.model, self.trained, 'the student as it starts'
        if source is not None:
            student = copy.deepcopy(self.model)
            load_weights(
                _bare(student), read_checkpoint(source), source
            )  # completely: another model's score would tell nothing
            trained, whose = True, f'the student of {source}'
        elif not trained:
            whose = 'the untrained student'
        found = {}
        sides = {'teacher': self.model.kd_plan.teacher.model, 'student': student}
        try:
            for side, model in sides.items():
                found[side] = self._score(side, model.to(self.device), loader, metainfo, count)
            name = self._main_score(found)
        except Exception as error:  # a metric that some pictures alone do not do for
            self._say(
                WARNING,
                f"the config's own metric cannot score {count} pictures: "
                f'{type(error).__name__}: {error}',
                'score the teacher with tools/test.py TEACHER_CONFIG CHECKPOINT',
            )
            return
        teacher, other = (found[side].get(name, 0.0) for side in sides)
        better = teacher > other
        far = not trained or teacher < CLEARLY * other
        status = OK if better else ERROR if far else WARNING
        self._say(
            status,
            f'on {count} validation pictures the teacher has {name} {teacher:.4g}, {whose} '
            f'{other:.4g}' + ('' if better else ': nothing can be learnt from it'),
            ''
            if better
            else 'look at its config, its classes and its preprocessing, and score it '
            'on more pictures (--images)',
            metric=name,
            teacher=found['teacher'],
            student=found['student'],
            images=count,
            student_is_trained=trained,
        )

    def _slice(self, images: int) -> tuple[Any, int, Any]:
        """A loader of some validation pictures, their number, and what is known of the data."""
        config = _in_this_process(self.config.val_dataloader)
        dataset = config.pop('dataset')
        if isinstance(dataset, Mapping):
            dataset = DATASETS.build(dataset)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        count = min(images, len(dataset))
        indices = [index * len(dataset) // count for index in range(count)]
        config.dataset = Subset(dataset, indices)
        config.batch_size = min(config.get('batch_size') or 1, count)
        return Runner.build_dataloader(config, seed=0), count, getattr(dataset, 'metainfo', None)

    @torch.no_grad()
    def _score(
        self, side: str, model: Any, loader: Any, metainfo: Any, count: int
    ) -> dict[str, float]:
        evaluator = Evaluator(copy.deepcopy(self.config.val_evaluator))
        evaluator.dataset_meta = metainfo
        was_training, _ = model.training, model.eval()
        ids, done = [], 0
        try:
            for batch in loader:
                samples = model.val_step(batch)
                ids += [sample.metainfo.get('img_id') for sample in samples]
                evaluator.process(samples, batch)
                done += len(samples)
                self.progress(f'{self.name}: {side}, picture {done} of {count}')
        finally:
            model.train(was_training)
        for metric in evaluator.metrics:
            if hasattr(metric, 'img_ids'):  # COCO's would count all others as missed
                metric.img_ids = ids
        scores = evaluator.evaluate(count)
        return {k: float(v) for k, v in scores.items() if isinstance(v, Real)}

    def _main_score(self, found: Mapping[str, Mapping[str, float]]) -> str:
        known = list(dict.fromkeys(name for scores in found.values() for name in scores))
        hook = (self.config.get('default_hooks') or {}).get('checkpoint') or {}
        for name in (hook.get('save_best'), *SCORES):
            if name in known:
                return str(name)
        if not known:
            raise ValueError('neither teacher nor student has found anything')
        return known[0]

    def _terms(self) -> None:
        model = self.model
        model.train()
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        ours = [p for name, p in named if not name.startswith('kd.')]
        weighed: dict[str, list[_Weight]] = {name: [] for name in model.kd}
        tasks, reached = [], set()
        for index, batch in enumerate(self.batches):
            self.progress(f'{self.name}: batch {index + 1} of {len(self.batches)}')
            task, terms = split_losses(_losses(model, batch))
            tasks.append(float(task))
            _differentiate(task, named)
            reached |= {name for name, p in named if p.grad is not None}
            along = [None if p.grad is None else p.grad.clone() for p in ours]
            for name, value in terms.items():
                if value.requires_grad and model.kd[name].loss.weight > 0:
                    _differentiate(value, named)
                    reached |= {name for name, p in named if p.grad is not None}
                    grads = [p.grad for p in ours]
                    weighed[name].append(_compare(float(value), float(task), grads, along))
        for _, p in named:
            p.grad = None
        for name, weights in weighed.items():
            self._weigh(name, model.kd[name], weights, mean(tasks))
        self.name = 'gradients'
        self._unreached([name for name, _ in named if name not in reached])

    def _weigh(self, name: str, term: Term, weights: Sequence[_Weight], task: float) -> None:
        if not weights:
            self._say(OK, f'{name} is switched off (weight 0)')
            return
        value, ratio, agreement = (median(column) for column in zip(*weights, strict=True))
        text = (
            f'{name}: {value:.3g} beside {task:.3g} of the task, its gradient {ratio:.2g} times '
            f'as long; the two together agree with the task to {agreement:.0%}'
        )
        figures = dict(term=name, value=value, task=task, ratio=ratio, agreement=agreement)
        if not self.loaded:
            self._say(OK, f'{text}; all of a teacher without its weights', **figures)
        elif isinstance(term.loss, HolisticLoss):
            self._say(OK, f'{text}; its critic is still untrained', **figures)
        elif ratio > DROWNS or agreement < AGREES:
            self._rescale(WARNING, f'{text}: it drowns the task', term, figures)
        elif ratio < VANISHES:
            self._rescale(WARNING, f'{text}: it has no effect', term, figures)
        elif agreement < LEADS:
            self._rescale(OK, text, term, figures, 'should the student get worse than alone: ')
        else:
            self._say(OK, text, **figures)

    def _rescale(
        self, status: str, text: str, term: Term, figures: dict[str, Any], when: str = ''
    ) -> None:
        """Say which weight would make the gradients of a term and of the task equally long."""
        factor = 1 / figures['ratio'] if figures['ratio'] else 0.0
        if not factor:
            remedy = 'it has no gradient on these batches: is its tap the right one?'
        elif 'weight' in signature(type(term.loss)).parameters:
            weight = term.loss.weight
            option = f'model.terms.{term.name}.loss.weight={weight * factor:.2g}'
            remedy = f"{when}{option} makes its gradient as long as the task's (now {weight:g})"
            figures |= dict(option=option)
        else:
            remedy = f'{when}multiply its weights by {factor:.2g}, for a gradient as long as the '
            remedy += "task's"
        self._say(status, text, remedy, **figures)

    def _unreached(self, names: Sequence[str]) -> None:
        frozen = _count(  # a critic is trained by its hook
            p
            for name, p in self.model.named_parameters()
            if not p.requires_grad and '.critic.' not in name
        )
        if not names:
            text = 'all trainable parameters get one' + f', {frozen:,} are frozen' * bool(frozen)
            self._say(OK, text, frozen=frozen)
            return
        self._say(
            WARNING,
            f'{len(names)} trainable parameters get none: {_listed(names)}',
            'in a distributed training say find_unused_parameters=True, or freeze them',
            names=list(names),
            frozen=frozen,
        )

    def _cost(self) -> None:
        model, batch = self.model, self.batches[0]
        model.train()
        optimizer: Any = None
        note = ''
        try:
            optimizer = build_optim_wrapper(model, copy.deepcopy(self.config.optim_wrapper))
            for group in optimizer.param_groups:
                group['lr'] = 0.0  # so that all steps compute the same
        except Exception as error:  # mixed precision wants a GPU
            note = f'; measured in float32 without the optimizer ({error})'

        def step(plain: bool = False) -> None:
            with optimizer.optim_context(model) if optimizer else nullcontext():
                task, terms = split_losses(_losses(model, batch, plain))
            total = torch.stack([task, *terms.values()]).sum()
            if optimizer:
                optimizer.update_params(total)
            else:
                total.backward()
                model.zero_grad()

        def say(done: int, total: int) -> None:
            self.progress(f'{self.name}: {done} of {total + 1}')

        calls = {'distilled': step, 'alone': lambda: step(plain=True)}
        seconds = time_interleaved(calls, rounds=2, device=self.device, progress=say)
        ours, alone = (spread(seconds[name]).median for name in calls)
        states = optimizer.optimizer.state.values() if optimizer else ()
        memory = {
            'student and kd': _bytes(model.state_dict().values()),
            'teacher': _bytes(model.kd_plan.teacher.model.state_dict().values()),
            'optimizer': _bytes(x for state in states for x in state.values()),
            'a step': peak_memory(step, self.device),
        }
        text = f'{ours:.2f} s a step on {self.device}, {alone:.2f} s without distillation'
        if self.iterations:
            loader = self.config.train_dataloader
            pace = max(ours, self.loading / max(loader.get('num_workers') or 1, 1))
            text += f': {_duration(pace * self.iterations)} for {self.iterations} iterations, '
            text += 'without validation'
        parts = ', '.join(f'{name} {size / 2**20:.0f}' for name, size in memory.items())
        self._say(
            OK,
            f'{text}; {sum(memory.values()) / 2**20:.0f} MiB of memory ({parts}){note}',
            seconds=ours,
            seconds_alone=alone,
            iterations=self.iterations,
            bytes=memory,
        )


class _Weight(NamedTuple):
    """A term on one batch."""

    value: float
    ratio: float  # length of its gradient over that of the task's
    agreement: float  # cosine of the gradient of both with that of the task


def _losses(model: Any, batch: Any, plain: bool = False) -> dict[str, Any]:
    """The losses of a student on a batch as it is loaded; plainly, those of its own alone."""
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    inputs, samples = data['inputs'], data['data_samples']
    if plain:
        alone: Any = type(model).__mro__[2]
        return dict(alone.loss(model, inputs, samples))
    losses = model(inputs, samples, mode='loss')
    for term in model.kd.values():
        for loss in term.losses:
            if isinstance(loss, HolisticLoss) and loss.critic_is_due:
                loss.critic_backward()  # it insists; no optimizer takes a step
                loss.critic.zero_grad()
    return dict(losses)


def _differentiate(value: Tensor, named: Sequence[tuple[str, nn.Parameter]]) -> None:
    """Fill in the gradients of one loss alone, and keep the graph for another."""
    for _, p in named:
        p.grad = None
    value.backward(retain_graph=True)


def _compare(
    value: float,
    task: float,
    grads: Sequence[Tensor | None],
    along: Sequence[Tensor | None],
) -> _Weight:
    own = torch.stack([x.double().square().sum() for x in grads if x is not None]).sum()
    length = torch.stack([x.double().square().sum() for x in along if x is not None]).sum()
    both = [(x * y).double().sum() for x, y in zip(grads, along, strict=True)
            if x is not None and y is not None]  # fmt: skip
    product = torch.stack(both).sum() if both else own.new_zeros(())
    together = (own + 2 * product + length).clamp(min=1e-60).sqrt()
    agreement = (product + length) / (together * length.sqrt().clamp(min=1e-30))
    ratio = (own / length.clamp(min=1e-60)).sqrt()
    return _Weight(value, float(ratio), float(agreement))


def _normalisation(preprocessor: Any) -> str:
    """In words what a data preprocessor does to the pixels."""
    if not getattr(preprocessor, '_enable_normalize', False):
        text = 'pixels as they are'
    else:
        mean_, std = (
            ' '.join(f'{x:g}' for x in getattr(preprocessor, name).flatten().tolist())
            for name in ('mean', 'std')
        )
        text = f'mean {mean_}, std {std}'
    swaps = getattr(
        preprocessor, '_channel_conversion', getattr(preprocessor, 'channel_conversion', False)
    )
    return f'{text}, channels {"swapped" if swaps else "in the order of the files (BGR)"}'


def _suspicious(preprocessor: Any) -> str:
    """What looks like a mistake in a normalisation, if anything."""
    if not getattr(preprocessor, '_enable_normalize', False):
        return ''
    mean_, std = (getattr(preprocessor, name).flatten().cpu() for name in ('mean', 'std'))
    if (mean_ > 1).all() and (mean_ < 0.75 * std).all():
        return 'mean and std look exchanged'
    swaps = getattr(
        preprocessor, '_channel_conversion', getattr(preprocessor, 'channel_conversion', False)
    )
    expected = IMAGENET if swaps else IMAGENET.flip(0)
    if mean_.shape == IMAGENET.shape and (mean_ - expected.flip(0)).abs().max() < 1:
        order = ('red, green, blue', 'blue, green, red')[:: 1 if swaps else -1]
        return f'the pixels come as {order[0]}, and the mean looks like that of {order[1]}'
    return ''


def _bare(model: Any) -> Any:
    """A distilled student without what distillation has added."""
    model.__class__ = type(model).__mro__[2]
    del model.kd, model.kd_plan
    return model


def _misfits(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """What of a checkpoint and of a model does not find its like in the other."""
    own = model.state_dict()
    shapes = {k: (tuple(v.shape), tuple(own[k].shape)) for k, v in state.items() if k in own}
    found = {
        'missing': [name for name in own if name not in state],
        'unexpected': [name for name in state if name not in own],
        'misshapen': [f'{k} ({a}, expected {b})' for k, (a, b) in shapes.items() if a != b],
    }
    return {kind: names for kind, names in found.items() if names}


def _in_this_process(loader: Any) -> Any:
    """A dataloader's config without worker processes."""
    loader = copy.deepcopy(loader)
    loader.update(num_workers=0, persistent_workers=False)
    loader.pop('prefetch_factor', None)
    return loader


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))


def _listed(names: Sequence[str]) -> str:
    shown = ', '.join(names[:5])
    return f'{shown}, and {len(names) - 5} more' if len(names) > 5 else shown


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f'{hours:.1f} hours' if hours >= 1 else f'{max(seconds / 60, 0.1):.1f} minutes'

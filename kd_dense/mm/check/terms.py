"""Checks of the gradients: what each term weighs beside the task, and whom none reaches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd_dense.losses import HolisticLoss
from kd_dense.mm.check.finding import OK, WARNING, Subject
from kd_dense.mm.cost.steps import differentiate_critics, preprocessed
from kd_dense.mm.distil.first_steps import split_losses
from kd_dense.mm.distil.term import Term
from kd_dense.mm.wording import listed

__all__ = ['check_gradients', 'check_terms']

# A term drowns the task where its gradient is this many times as long as the task's, or where
# both together have a cosine below this with the task's; it vanishes where its gradient is
# shorter than this share. docs/check.md says what was measured.
DROWNS = 250.0
AGREES = 0.01
VANISHES = 1e-3
# Below this cosine more of a step belongs to the term than to the task.
LEADS = 0.5

Named = Sequence[tuple[str, nn.Parameter]]


class _Weight(NamedTuple):
    """A term on one batch."""

    value: float
    ratio: float  # length of its gradient over that of the task's
    agreement: float  # cosine of the gradient of both with that of the task


def check_terms(subject: Subject) -> None:
    """Weigh each term against the task on the batches."""
    model = subject.on_device()
    model.train()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    weights: dict[str, list[_Weight]] = {name: [] for name in model.kd}
    tasks: list[float] = []
    reached: set[str] = set()
    for index, batch in enumerate(subject.batches):
        subject.tell(f'batch {index + 1} of {len(subject.batches)}')
        losses = model(*preprocessed(model, batch), mode='loss')
        differentiate_critics(model.kd.values())
        task, terms = split_losses(losses)
        on = {k: v for k, v in terms.items() if v.requires_grad and model.kd[k].loss.weight > 0}
        tasks.append(float(task))
        for name, weight in _weighed(task, on, named, reached):
            weights[name].append(weight)
    for _, p in named:
        p.grad = None
    for name, found in weights.items():
        _say_weight(subject, name, model.kd[name], found, mean(tasks))
    subject.reached = reached


def _weighed(
    task: Tensor, terms: Mapping[str, Tensor], named: Named, reached: set[str]
) -> Iterator[tuple[str, _Weight]]:
    """Weigh terms on one batch; adds whom a gradient has reached."""
    ours = [p for name, p in named if not name.startswith('kd.')]
    _differentiate(task, named, reached)
    along = [None if p.grad is None else p.grad.clone() for p in ours]
    for name, value in terms.items():
        _differentiate(value, named, reached)
        yield name, _compare(float(value), [p.grad for p in ours], along)


def _differentiate(value: Tensor, named: Named, reached: set[str]) -> None:
    """Fill in the gradients of one loss alone, and keep the graph for another."""
    for _, p in named:
        p.grad = None
    value.backward(retain_graph=True)
    reached |= {name for name, p in named if p.grad is not None}


def _compare(
    value: float, grads: Sequence[Tensor | None], along: Sequence[Tensor | None]
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


def _say_weight(
    subject: Subject, name: str, term: Term, weights: Sequence[_Weight], task: float
) -> None:
    if not weights:
        subject.say(OK, f'{name} is switched off (weight 0)')
        return
    value, ratio, agreement = (median(column) for column in zip(*weights, strict=True))
    text = (
        f'{name}: {value:.3g} beside {task:.3g} of the task, its gradient {ratio:.2g} times '
        f'as long; the two together agree with the task to {agreement:.0%}'
    )
    figures = dict(term=name, value=value, task=task, ratio=ratio, agreement=agreement)
    status, note, remedy = OK, '', ''
    if not subject.teacher_is_loaded:
        note = '; all of a teacher without its weights'
    elif isinstance(term.loss, HolisticLoss):
        note = '; its critic is still untrained'
    elif ratio > DROWNS or agreement < AGREES:
        status, note = WARNING, ': it drowns the task'
        remedy, figures = _rescaled(term, figures)
    elif ratio < VANISHES:
        status, note = WARNING, ': it has no effect'
        remedy, figures = _rescaled(term, figures)
    elif agreement < LEADS:
        remedy, figures = _rescaled(term, figures, 'should the student get worse than alone: ')
    subject.say(status, f'{text}{note}', remedy, **figures)


def _rescaled(
    term: Term, figures: Mapping[str, Any], when: str = ''
) -> tuple[str, dict[str, Any]]:
    """Which weight would make the gradients of a term and of the task equally long.

    Returns:
        What to do, and the figures with the option that does it, if there is one.
    """
    found = dict(figures)
    if not found['ratio']:
        return 'it has no gradient on these batches: is its tap the right one?', found
    factor = 1 / found['ratio']
    if 'weight' not in signature(type(term.loss)).parameters:
        remedy = f"multiply its weights by {factor:.2g}, for a gradient as long as the task's"
        return when + remedy, found
    weight = term.loss.weight
    found['option'] = f'model.terms.{term.name}.loss.weight={weight * factor:.2g}'
    remedy = f"{found['option']} makes its gradient as long as the task's (now {weight:g})"
    return when + remedy, found


def check_gradients(subject: Subject) -> None:
    """Say which parameters are trained, and yet reached by no gradient."""
    named = list(subject.model.named_parameters())
    names = [name for name, p in named if p.requires_grad and name not in subject.reached]
    # A critic is trained by its hook.
    frozen = sum(p.numel() for n, p in named if not p.requires_grad and '.critic.' not in n)
    if not names:
        text = 'all trainable parameters get one' + f', {frozen:,} are frozen' * bool(frozen)
        subject.say(OK, text, frozen=frozen)
        return
    subject.say(
        WARNING,
        f'{len(names)} trainable parameters get none: {listed(names)}',
        'in a distributed training say find_unused_parameters=True, or freeze them',
        names=names,
        frozen=frozen,
    )

"""Checks of the gradients: what each term weighs beside the task, and whom none reaches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from inspect import signature
from math import inf, isfinite
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
    length: float  # of its gradient
    ratio: float  # of that to the length of the task's gradient; infinite if that has none
    agreement: float  # cosine of the gradient of both with that of the task


def check_terms(subject: Subject) -> None:
    """Weigh each term against the task on the batches."""
    model = subject.on_device()
    model.train()
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    weights: dict[str, list[_Weight]] = {name: [] for name in model.kd}
    tasks: list[float] = []
    reached: set[str] = set()
    taught: set[str] = set()
    for index, batch in enumerate(subject.batches):
        subject.tell(f'batch {index + 1} of {len(subject.batches)}')
        losses = model(*preprocessed(model, batch), mode='loss')
        differentiate_critics(model.kd.values())
        task, terms = split_losses(losses)
        on = {k: v for k, v in terms.items() if v.requires_grad and model.kd[k].loss.weight > 0}
        tasks.append(float(task))
        for name, weight in _weighed(task, on, named, reached, taught):
            weights[name].append(weight)
    for _, p in named:
        p.grad = None
    found = [weight for one in weights.values() for weight in one]
    subject.has_task = not found or any(isfinite(weight.ratio) for weight in found)
    if not subject.has_task:
        _say_no_task(subject, [name for name, _ in named if name not in taught])
    for name, one in weights.items():
        if one and not model.kd_plan.leads(model.kd[name]):
            text = f'{name}: learns from the average of the student, which is the student itself '
            subject.say(OK, f'{text}before the training: what it weighs shows in the log of a run')
            continue
        _say_weight(subject, name, model.kd[name], one, mean(tasks))
    subject.reached = reached | taught


def _weighed(
    task: Tensor,
    terms: Mapping[str, Tensor],
    named: Named,
    reached: set[str],
    taught: set[str],
) -> Iterator[tuple[str, _Weight]]:
    """Weigh terms on one batch; adds whom the task's gradient has reached, and whom theirs."""
    ours = [p for name, p in named if not name.startswith('kd.')]
    _differentiate(task, named, reached)
    along = [None if p.grad is None else p.grad.clone() for p in ours]
    for name, value in terms.items():
        _differentiate(value, named, taught)
        yield name, _compare(float(value), [p.grad for p in ours], along)


def _differentiate(value: Tensor, named: Named, reached: set[str]) -> None:
    """Fill in the gradients of one loss alone, and keep the graph for another."""
    for _, p in named:
        p.grad = None
    if value.requires_grad:
        value.backward(retain_graph=True)
    reached |= {name for name, p in named if p.grad is not None}


def _compare(
    value: float, grads: Sequence[Tensor | None], along: Sequence[Tensor | None]
) -> _Weight:
    own, length = (_sum([x.double().square().sum() for x in some if x is not None]) ** 0.5
                   for some in (grads, along))  # fmt: skip
    if not length:
        return _Weight(value, own, inf, 0.0)
    both = [(x * y).double().sum() for x, y in zip(grads, along, strict=True)
            if x is not None and y is not None]  # fmt: skip
    product = _sum(both)
    together = max(own**2 + 2 * product + length**2, 1e-60) ** 0.5
    return _Weight(value, own, own / length, (product + length**2) / (together * length))


def _sum(values: Sequence[Tensor]) -> float:
    return float(torch.stack([*values]).sum()) if values else 0.0


def _say_no_task(subject: Subject, untaught: Sequence[str]) -> None:
    """Say that nothing but the teacher trains, and whom it does not."""
    parts = subject.model.kd_plan.inherit
    untrained = [n for n in untaught if not any(f'{n}.'.startswith(f'{p}.') for p in parts)]
    text = 'the losses of the task have no gradient (their weights are 0, or there are none): the '
    text += 'student learns from the teacher alone'
    if not untrained:
        subject.say(OK, text)
        return
    subject.say(
        WARNING,
        f'{text}, and {len(untrained)} trainable parameters stay as they start: '
        f'{listed(untrained)}',
        'add a term whose tap lies behind them, or let the student inherit them from the teacher',
        untrained=untrained,
    )


def _say_weight(
    subject: Subject, name: str, term: Term, weights: Sequence[_Weight], task: float
) -> None:
    if not weights:
        subject.say(OK, f'{name} is switched off (weight 0)')
        return
    if _has_too_few_images(subject, name, term):
        return
    if term.shares:
        shares: dict[str, Any] = {k: one.share for k, one in term.shares.items()}
        spelt = ', '.join(f'{part} {share:g}' for part, share in shares.items())
        text = f"{name}: pulls at its maps as a share of what the task's losses do ({spelt}); its "
        text += 'weight follows from the second iteration on'
        subject.say(OK, text, term=name, shares=shares)
        return
    judged = [weight for weight in weights if isfinite(weight.ratio)]
    value, length, ratio, agreement = (
        median(column) for column in zip(*(judged or weights), strict=True)
    )
    if not judged:
        text = f'{name}: {value:.3g}, its gradient {length:.3g} long; there is no task to weigh '
        subject.say(OK, f'{text}it against', term=name, value=value, length=length)
        return
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


def _has_too_few_images(subject: Subject, name: str, term: Term) -> bool:
    """Say so of a term that relates images, where a batch has too few of them."""
    least, loss = term.loss.least_images, type(term.loss).__name__
    images = (subject.config.get('train_dataloader') or {}).get('batch_size') or least
    if images >= least:
        return False
    subject.say(
        WARNING,
        f'{name}: {loss} relates images, of which a batch must have {least} in all processes '
        f'together; in a process there {"is 1" if images == 1 else f"are {images}"}',
        f'train_dataloader.batch_size={least} or more, or more processes',
        of_images=name,
        images=images,
        least=least,
    )
    return True


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

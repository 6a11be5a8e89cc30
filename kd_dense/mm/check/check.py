"""What a distilled training would do, found out before it starts."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import set_random_seed

from kd_dense.mm.check.cache import check_kept_maps
from kd_dense.mm.check.cost import check_cost
from kd_dense.mm.check.data import check_data
from kd_dense.mm.check.finding import ERROR, Finding, Progress, Subject
from kd_dense.mm.check.model import check_hooks, check_model, check_taps
from kd_dense.mm.check.preprocessing import check_preprocessing
from kd_dense.mm.check.scores import check_scores
from kd_dense.mm.check.terms import check_gradients, check_terms
from kd_dense.mm.check.verdict import check_verdict
from kd_dense.mm.check.weights import check_inherit, check_student_weights, check_teacher
from kd_dense.mm.randomness import kept_random_state

__all__ = ['CHECKS', 'Check', 'check']


class Check(NamedTuple):
    """A check.

    Attributes:
        name: What its findings are listed under.
        run: Looks at the subject and says what it finds.
        needs: Fields of the subject without which it does not run.
    """

    name: str
    run: Callable[[Subject], None]
    needs: tuple[str, ...] = ('model',)


# In the order in which a training would meet what they find.
CHECKS = [
    Check('model', check_model, needs=()),
    Check('data', check_data, needs=()),
    Check('taps', check_taps),
    Check('teacher checkpoint', check_teacher),
    Check('student weights', check_student_weights),
    Check('inherit', check_inherit),
    Check('preprocessing', check_preprocessing),
    Check('hooks', check_hooks),
    Check('scores', check_scores),
    Check('terms', check_terms, needs=('model', 'batches')),
    Check('gradients', check_gradients, needs=('model', 'reached')),
    Check('cost', check_cost, needs=('model', 'batches')),
    Check('cache', check_kept_maps, needs=('model', 'batches')),
    Check('verdict', check_verdict, needs=('model',)),
]


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
        'the config distils nothing: its model is a EncoderDecoder'
    """
    if batches < 1 or images < 1:
        raise ValueError(f'check expects batches and images >= 1, got {batches} and {images}')
    subject = Subject(copy.deepcopy(config), batches, images, student, device)
    subject.progress = progress or subject.progress
    scope = DefaultScope.overwrite_default_scope(config.get('default_scope'))
    with kept_random_state(), _unheard(), scope:
        set_random_seed((config.get('randomness') or {}).get('seed') or 0)
        for one in CHECKS:
            if all(getattr(subject, need) is not None for need in one.needs):
                _run(one, subject)
    return subject.findings


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


def _run(one: Check, subject: Subject) -> None:
    """Run a check; where it fails, that is what it has found."""
    subject.check = one.name
    subject.progress(one.name)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            one.run(subject)
    except Exception as error:  # whatever a config, a model or its data can raise
        kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
        text = str(error).strip() or 'without a message'
        remedy = 'put this right, then check again'
        if isinstance(error, FileNotFoundError):
            remedy = f'put it there, or change its path (relative ones start in {Path.cwd()})'
        subject.say(ERROR, f'{kind}{text}', remedy)

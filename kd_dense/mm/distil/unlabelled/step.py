"""A step on pictures of which some have no labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import Tensor, distributed, nn

from kd_dense.mm.batches.made_up import IMAGES, add_labels, blank_batch, layout
from kd_dense.mm.batches.targets import Step
from kd_dense.mm.batches.two_views import as_teachers_see
from kd_dense.mm.datasets.unlabelled import hide_labels, is_unlabelled
from kd_dense.mm.distil.rehearsal import alone
from kd_dense.mm.distil.term import Term
from kd_dense.mm.distil.unlabelled.parts import Joined, Rows, shared_features
from kd_dense.mm.distil.unlabelled.pseudo import NEEDS, Pseudo
from kd_dense.mm.models.probe import Probe, forward, needs_features_only, replicate
from kd_dense.taps import Taps

__all__ = ['Pictures', 'Unlabelled', 'skips', 'sort_pictures', 'views']

# What a loss may need of a batch that has no labels.
FREE = frozenset(
    {'batch_shape', 'image_shapes', 'head_outputs', 'head_boxes', 'rpn_outputs', 'anchors'}
)
# Decoders yield layers, whose rows are not pictures.
OF_QUERIES = frozenset({'decoders', 'taught_queries'})


class Pictures(NamedTuple):
    """A batch, those with labels first.

    Attributes:
        inputs: Images ``(N, C, H, W)``.
        samples: A sample for each.
        first: On how many of them, from the first on, the student computes its own loss.
        counts: How many have labels: 1 for what they are worth on average over the processes.
        real: Whether these have labels; one that has none stands in where other processes
            have some, and would wait for this one.
        mixed: Whether there are pictures without labels, in any process.
        skipping: The terms that have nothing to do on these, by their names.
    """

    inputs: Any
    samples: Any
    first: int
    counts: float = 1.0
    real: bool = True
    mixed: bool = False
    skipping: frozenset[str] = frozenset()

    @property
    def with_labels(self) -> tuple[Any, Any]:
        """Inputs and samples of those with labels."""
        if not self.mixed:
            return self.inputs, self.samples
        return self.inputs[: self.first], self.samples[: self.first]

    def weighed(self, term: Term, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of a term, worth what this process adds to those of the whole batch.

        A loss that is a mean over the pictures with labels of this process counts by how many
        these are.
        """
        if not self.mixed or term.name not in self.skipping:
            return losses
        factor = 0.0 if not self.real else self.counts if term.loss.divides_by_images else 1.0
        if factor == 1.0:
            return losses
        return {k: factor * v if k.startswith('loss') else v for k, v in losses.items()}


def skips(term: Term, known: frozenset[str] = FREE) -> bool:
    """Whether a term has nothing to do on a picture of which only so much is known."""
    return term.rois is not None or not known.issuperset(term.needs)


@torch.compiler.disable
def sort_pictures(unlabelled: Unlabelled | None, inputs: Any, samples: Any) -> Pictures:
    """The pictures of a batch, those with labels first.

    Args:
        unlabelled: How those without are taught, if they may come.
        inputs: The images.
        samples: Their samples.

    Raises:
        ValueError: If they come and may not.
    """
    plain = not isinstance(samples, (list, tuple))
    if unlabelled is not None and not plain:
        return unlabelled.sorted(inputs, samples)
    if not plain and any(map(is_unlabelled, samples)):
        raise ValueError(
            'a picture without labels has come, of a kd_dense.Unlabelled data set: say '
            "unlabelled=True in the model, dict(type='kd_dense.Distilled', ...)"
        )
    return Pictures(inputs, samples, 0 if plain else len(samples))


def views(
    unlabelled: Unlabelled | None, step: Step, pictures: Pictures, terms: Mapping[str, Term]
) -> list[tuple[Step, dict[str, Term]]]:
    """What is known of the pictures that terms look at, and these terms.

    Args:
        unlabelled: How pictures without labels are taught, if they may come.
        step: What both models have recorded.
        pictures: The batch.
        terms: Those that are on. One that needs labels is left out where there are none.
    """
    if unlabelled is None or not pictures.mixed:
        return [(step, {**terms})]
    free = {name: term for name, term in terms.items() if name not in pictures.skipping}
    others = {name: term for name, term in terms.items() if name not in free}
    whole, labelled = unlabelled.steps(step, pictures, free.values())
    return [(whole, free), *([(labelled, others)] if pictures.first else [])]


class Unlabelled:
    """How a student is taught on a batch of which some pictures have no labels.

    Its own loss is computed on those that have labels, and on no others. Backbone and neck run
    once, on all pictures together, and so do batch norms in them. The head runs on those
    with labels, in the student's loss, and, where a term looks at what it yields, once more on the
    others. What taps record of both is put together.

    Args:
        student: The student, before it is distilled.
        terms: Its terms.
        found: By the name of each teacher what their taps yield.
        pseudo: Predicts labels for those that have none, for terms that need some.

    Raises:
        ValueError: If the student, or a term, cannot be taught so.
    """

    def __init__(
        self,
        student: Any,
        terms: Sequence[Term],
        found: Mapping[str, Probe],
        pseudo: Pseudo | None = None,
    ) -> None:
        if layout(student) != 'images':
            raise ValueError(
                f'unlabelled=True is for students that are trained on images; '
                f'{type(student).__name__} is trained on {layout(student)}'
            )
        self.pseudo = pseudo
        known = FREE if pseudo is None else FREE | NEEDS
        self.skipping = frozenset(term.name for term in terms if skips(term, known))
        _say_who_skips(terms, known)
        probes = [*found.values()]
        self._calls = {tap: one.calls for probe in probes for tap, one in probe.student.items()}
        self._by_loss = any(probe.student_by_loss for probe in probes)
        others = [term for term in terms if term.name not in self.skipping]
        self._rest = Taps(chain(*(term.student_taps for term in others)))
        self._group: Any = None
        self._zero: Tensor | None = None
        size = max(probe.size for probe in probes)
        _rehearse(student, others, size, self._by_loss, self._rest)

    def __deepcopy__(self, memo: dict[int, Any]) -> Unlabelled:
        other = object.__new__(type(self))
        other.__dict__ = {
            **vars(self),
            '_rest': copy.deepcopy(self._rest),
            '_group': None,
            '_zero': None,
        }
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), '_group': None, '_zero': None}

    def sorted(self, inputs: Any, samples: Sequence[Any]) -> Pictures:
        """The pictures of a batch, those with labels first."""
        labelled = [not is_unlabelled(sample) for sample in samples]
        counts = self._everywhere(sum(labelled), len(labelled))
        if all(with_labels == every for with_labels, every in counts):
            return Pictures(inputs, samples, len(labelled))
        own, first = counts[self._rank()], sum(labelled)
        if not all(labelled[:first]):  # the loaders that keep a ratio have them in order
            order = sorted(range(len(labelled)), key=lambda i: not labelled[i])
            inputs = inputs[torch.tensor(order, device=inputs.device)]
            samples = [samples[i] for i in order]
        mean = sum(one for one, _ in counts) / len(counts)
        stands_in = mean > 0 and first == 0
        return Pictures(
            inputs,
            samples,
            first or int(stands_in),
            own[0] / mean if mean else 0.0,
            real=not stands_in,
            mixed=True,
            skipping=self.skipping,
        )

    def _rank(self) -> int:
        return int(distributed.get_rank()) if self._several() else 0

    def _several(self) -> bool:
        return distributed.is_available() and distributed.is_initialized()

    def _everywhere(self, labelled: int, every: int) -> list[tuple[int, int]]:
        """How many pictures have labels, and how many there are, in each process.

        Host to host, so that no device is waited for.
        """
        if not self._several() or distributed.get_world_size() == 1:
            return [(labelled, every)] * (self._rank() + 1)
        if self._group is None:
            self._group = distributed.new_group(backend='gloo')
        found = [torch.zeros(2, dtype=torch.long) for _ in range(distributed.get_world_size())]
        distributed.all_gather(found, torch.tensor([labelled, every]), group=self._group)
        return [(int(a), int(b)) for a, b in found]

    @torch.compiler.disable(recursive=False)
    def loss(
        self,
        student: Any,
        own_loss: Callable[..., dict[str, Any]],
        pictures: Pictures,
        taps: Taps,
        active: Sequence[Term],
    ) -> dict[str, Any]:
        """The student's own losses, and what taps record on all pictures.

        Args:
            student: The student.
            own_loss: Computes its own loss.
            pictures: The batch.
            taps: They record already.
            active: The terms that are on.
        """
        inputs, samples, first = pictures.inputs, pictures.samples, pictures.first
        losses: dict[str, Any] = {}
        wanted = [
            tap for term in active if term.name not in self.skipping for tap in term.student_taps
        ]
        with shared_features(student, inputs) as features:
            if not active:  # nothing looks at the others
                features.whole = inputs[:first]
            if first:
                losses = own_loss(features.part(0, first), samples[:first])
                features.apart = features.found is None  # it has run in another way
            taps.stop()
            if not pictures.real:
                losses = _in_touch(losses)
            names = [tap for tap in dict.fromkeys(wanted) if not _is_whole(taps, tap, inputs)]
            self._rest.clear()
            # Norms over all processes wait for those that have nothing more to do.
            alone = first == len(samples)
            if names and not (alone and not _synchronised(student)):
                at = 0 if alone else first
                batch, rest = features.part(at, len(samples)), samples[at:]
                if alone:
                    batch, rest = features.part(0, 1), samples[:1]
                self._run(student, own_loss, batch, rest, names)
                if alone:
                    maps = [x for name in names for x in self._rest[name]]
                    self._zero = _zero(maps)
                    self._rest.clear()
        several = self._several() and distributed.get_world_size() > 1
        if not first and (several or not active):
            # DDP waits for the gradient of each parameter, and a loss has to have one.
            self._zero = _zero([p for p in student.parameters() if p.requires_grad])
        return losses

    def in_touch(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of terms, in touch with what has to get a gradient, if one of zeros."""
        zero, self._zero = self._zero, None
        if zero is None:
            return losses
        name = next(name for name in losses if name.startswith('loss'))
        return {**losses, name: losses[name] + zero}

    def _run(
        self,
        student: Any,
        own_loss: Callable[..., Any],
        inputs: Tensor,
        samples: Sequence[Any],
        names: Sequence[str],
    ) -> None:
        """Run the student as far as to the last of some taps."""
        if self._by_loss:
            with self._rest.on(student, names):
                own_loss(inputs, copy.deepcopy(samples))
            return
        calls = {name: self._calls.get(name, 1) for name in names}
        with self._rest.on(student, names, stop_after=calls):
            forward(student, inputs, samples, names)

    def steps(self, step: Step, pictures: Pictures, terms: Iterable[Term]) -> tuple[Step, Step]:
        """What is known of all pictures, and of those with labels.

        Args:
            step: What both models have recorded.
            pictures: The batch.
            terms: Those that look at all pictures.
        """
        total, first = len(pictures.samples), pictures.first
        if self.pseudo is not None and any(not FREE.issuperset(t.needs) for t in terms):
            samples = self._with_predictions(step.student, pictures)
            step = step._replace(data_samples=samples)
        joined = Joined([step.student_taps, self._rest], total)
        labelled = step._replace(
            inputs=step.inputs[:first],
            data_samples=pictures.samples[:first],
            student_taps=Rows(step.student_taps, first, total),
            rows=(first, total),
        )
        return step._replace(student_taps=joined), labelled

    def _with_predictions(self, student: Any, pictures: Pictures) -> list[Any]:
        """The samples, with labels that the teacher predicts where there are none."""
        assert self.pseudo is not None
        samples = [*pictures.samples]
        at = next((i for i, one in enumerate(samples) if is_unlabelled(one)), len(samples))
        if at < len(samples):
            seen = as_teachers_see(student, pictures.inputs[at:], samples[at:])
            samples[at:] = self.pseudo(seen, samples[at:])
        return samples

    def clear(self) -> None:
        """Drop what was recorded."""
        self._rest.clear()


def _is_whole(taps: Taps, name: str, inputs: Tensor) -> bool:
    """Whether a tap has recorded all pictures."""
    return bool(taps.calls(name)) and len(taps[name][0]) == len(inputs)


def _in_touch(losses: Mapping[str, Any]) -> dict[str, Any]:
    """The same losses, worth nothing."""
    return {
        name: [0 * x for x in value] if isinstance(value, (list, tuple)) else 0 * value
        for name, value in losses.items()
    }


def _zero(tensors: Sequence[Tensor]) -> Tensor:
    """Zero, in touch with these."""
    return 0 * torch.stack([x.float().sum() for x in tensors]).sum()


def _synchronised(student: nn.Module) -> bool:
    return any(isinstance(module, nn.SyncBatchNorm) for module in student.modules())


def _say_who_skips(terms: Sequence[Term], known: frozenset[str]) -> None:
    """Log which terms learn nothing on pictures without labels.

    Raises:
        ValueError: If all do, or one compares queries.
    """
    for term in terms:
        if term.loss.of_queries or OF_QUERIES.intersection(term.needs):
            raise ValueError(
                f'unlabelled=True, and term {term.name!r} compares queries of decoders, which '
                'are not taught on pictures without labels: leave it out, or tap backbone or neck'
            )
    off = [term for term in terms if skips(term, known)]
    for term in off:
        why = f'its loss needs {", ".join(n for n in term.needs if n not in known)}'
        if term.rois is not None:
            why = 'it compares regions that are sampled by labels'
        print_log(f'term {term.name!r} skips pictures without labels: {why}', logger='current')
    if len(off) == len(terms):
        raise ValueError(
            f'unlabelled=True, and each term needs labels ({", ".join(t.name for t in off)}): '
            'nothing is learnt from pictures without them; add a term that needs none, as '
            "CWDLoss on the neck or the logits (in short --distill auto, or preset=['...', 'cwd'])"
        )


def _rehearse(
    student: Any, terms: Sequence[Term], size: tuple[int, int], by_loss: bool, taps: Taps
) -> None:
    """Run a copy of the student on blank pictures without labels, in training mode.

    Raises:
        ValueError: If it cannot run so, or its maps cannot be told apart by pictures.
    """
    names = [*taps.names]
    if any(parameter.is_meta for parameter in student.parameters()):
        return
    replica: Any = replicate(student, 'cpu')
    replica.train()
    for module in replica.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()
    inputs, samples = blank_batch(student, size, 'cpu')
    add_labels(student, samples, size)
    for sample in samples:
        hide_labels(sample)
    who = terms[0].name
    try:
        with torch.device('cpu'), alone(), taps.on(replica):
            forward(replica, inputs, samples, names, by_loss)
        maps = {name: taps[name] for name in names}
    except Exception as error:  # whatever a head raises
        raise ValueError(
            f'unlabelled=True: the student {type(student).__name__} does not run on pictures '
            f'without labels as far as term {who!r} needs ({type(error).__name__}: {error}): tap '
            'backbone or neck instead'
        ) from error
    finally:
        taps.clear()
    for name, found_maps in maps.items():
        for x in found_maps:
            if len(x) != IMAGES:
                raise ValueError(
                    f'unlabelled=True: tap {name!r} yields a map of shape {tuple(x.shape)} for '
                    f'{IMAGES} pictures, whose rows cannot be told apart by pictures: tap '
                    'another module'
                )
    if not needs_features_only(names) and not hasattr(student, 'extract_feat'):
        print_log(
            f'{type(student).__name__} has no extract_feat(): it runs twice in a step, on '
            'pictures with labels and on those without',
            logger='current',
        )

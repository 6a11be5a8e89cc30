"""The teacher: a frozen guest beside the student. How it is loaded, and how it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from kd_dense.functional import without_autocast
from kd_dense.mm.batches.made_up import any_tensor
from kd_dense.mm.batches.preprocessing import Repreprocess
from kd_dense.mm.files.checkpoint import load_weights, read_checkpoint
from kd_dense.mm.models.box_heads import BoxHead, run_box_head
from kd_dense.mm.models.probe import forward
from kd_dense.mm.teachers.cached import MapCache
from kd_dense.mm.teachers.cheaper import Trial, can_be_cheaper
from kd_dense.mm.teachers.foreign import ForeignModel, check_fields, is_foreign
from kd_dense.mm.teachers.fuse import fuse_norms
from kd_dense.mm.teachers.openmmlab import build_teacher
from kd_dense.taps import Taps, near_names

__all__ = ['Teacher', 'what_it_is']

PRECISIONS = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
SWITCHES = ('fuse', 'channels_last', 'compile', 'stream')
# Of a map's largest value: what folding a norm into a convolution may change it by.
FUSED_ALIKE = 1e-3
# How a teacher runs, and how seldom.
RUNNING = ('precision', *SWITCHES, 'cache', 'every')
FIELDS = ('config', 'checkpoint', 'strict', *RUNNING)


def what_it_is(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe says of a teacher, without how it runs.

    Examples:
        >>> what_it_is(dict(config='large.py', precision='bf16'))
        {'config': 'large.py'}
    """
    return {name: value for name, value in spec.items() if name not in RUNNING}


class Teacher:
    """A frozen model that is nobody's child.

    It has no place in the student's parameters, state, copies or checkpoints: copies of the
    student share it, a pickled student leaves it out. It is always in eval mode and follows
    the device of the batch.

    Args:
        spec: Name or path of a config (``'mmdet::retinanet/retinanet_r101_fpn_2x_coco.py'``
            also finds its published weights); or ``dict(config=..., checkpoint=...)``, where
            ``config`` may be a config itself, ``checkpoint=None`` is an untrained teacher and
            ``strict=False`` allows a checkpoint that fits in part; or a model.

            From elsewhere: ``'timm::NAME'`` or ``dict(type='timm', model=NAME, ...)``, so
            ``transformers``, and ``torchhub``; ``pretrained=False`` is an untrained one, and what
            else it takes is said of the model of that type, as of
            [`kd_dense.mm.teachers.timm.TimmModel`][]. Or ``dict(module=MODULE, mean=..., std=...,
            ...)``, see [`kd_dense.mm.teachers.foreign.ForeignModel`][].

            The dict may also say how the teacher runs: ``precision='bf16'`` or ``'fp16'``
            for weights and maps (the losses compute in float32 all the same); ``fuse=True``
            folds its batch norms into the convolutions in front of them;
            ``channels_last=True`` for its memory layout; ``compile=True`` for a compiled
            backbone and such other parts as no tap lies within; ``stream=True`` for a CUDA
            stream of its own, beside the student's forward pass (without effect on a CPU).
            Where none of these is said, a GPU tries out what is cheaper: see
            [`kd_dense.mm.teachers.cheaper.Trial`][]. A model that was built elsewhere is used as
            it comes.

            And how seldom: ``cache=dict(views=..., folder=...)`` keeps its maps, see
            [`kd_dense.mm.teachers.cached.MapCache`][]; with ``every=2`` it runs in every second
            iteration, in which the terms then count twice.

    Raises:
        FileNotFoundError: If the config does not exist.
        ValueError: If there is no checkpoint, a field is unknown or has a bad value, or the
            teacher is not of these forms.
    """

    cache: MapCache | None = None
    every = 1

    def __init__(self, spec: str | Mapping[str, Any] | nn.Module) -> None:
        self.model: Any = None
        self.checkpoint: str | None = None
        self.strict = True
        self.precision = 'fp32'
        self.fuse = self.channels_last = self.compile = self.stream = False
        self.by_loss = False  # whether its taps run only while it computes its own loss
        self._loaded = self._prepared = False
        self._trial: Trial | None = None
        self._side: torch.cuda.Stream | None = None
        if isinstance(spec, nn.Module):
            self.model, self.name = spec, type(spec).__name__
            self._loaded = True
        else:
            self._from_config(spec)
        if not isinstance(getattr(self.model, 'data_preprocessor', None), nn.Module):
            raise ValueError(
                f'the teacher {type(self.model).__name__} has no data_preprocessor: expected a '
                "model of mmdet or mmseg, or one derived from mmengine's BaseModel; any other net "
                'is dict(module=NET, mean=(...), std=(...)), which says how its images are '
                'normalised (docs/foreign-teachers.md)'
            )
        self._freeze()

    def _from_config(self, spec: str | Mapping[str, Any]) -> None:
        fields: dict[str, Any] = dict(spec) if isinstance(spec, Mapping) else {'config': spec}
        fields.pop('_scope_', None)
        foreign = is_foreign(fields)
        for name in () if foreign else fields.keys() - set(FIELDS):
            raise ValueError(f'teacher: unknown field {name!r}, {near_names(name, FIELDS)}')
        if not fields.keys() & {'precision', 'cache', *SWITCHES}:
            self._trial = Trial()
        self.precision = fields.pop('precision', 'fp32')
        if not isinstance(self.precision, str) or self.precision not in PRECISIONS:
            raise ValueError(
                f'teacher: there is no precision {self.precision!r}, '
                f'{near_names(str(self.precision), PRECISIONS)}'
            )
        for name in SWITCHES:
            value = fields.pop(name, False)
            if not isinstance(value, bool):
                raise ValueError(f'teacher: {name} expects True or False, got {value!r}')
            setattr(self, name, value)
        cache = fields.pop('cache', None)
        self.cache = None if cache is None else MapCache.of(cache)
        self.every = fields.pop('every', 1)
        if not isinstance(self.every, int) or isinstance(self.every, bool) or self.every < 1:
            raise ValueError(f'teacher: every expects a number >= 1, got {self.every!r}')
        if isinstance(fields.get('module'), nn.Module) and 'checkpoint' not in fields:
            check_fields(fields)
            self.model, self.name = ForeignModel(**fields), type(fields['module']).__name__
            self._loaded, self._trial = True, None  # it is used as it comes
            return
        self.model, self.name, self.checkpoint, self.strict = build_teacher(fields)

    def load(self, state: Mapping[str, Tensor] | None = None) -> None:
        """Load the weights, once; called when training starts.

        Args:
            state: What the checkpoint holds, where it has been read already.
        """
        if self.model is None:
            raise RuntimeError(
                'this student was unpickled, which leaves its teacher behind: build it from '
                'its config to go on training'
            )
        if self._loaded:
            return
        if any(parameter.is_meta for parameter in self.model.parameters()):
            raise RuntimeError(
                'the teacher was built without memory for its weights, as FSDPStrategy does with '
                'skip_init_weights=True: leave that out'
            )
        if self.checkpoint is not None:
            state = self.read() if state is None else state
            load_weights(self.model, state, self.checkpoint, self.strict)
            print_log(
                f'teacher: {self.name}, {len(state)} tensors from {self.checkpoint}',
                logger='current',
            )
        self._freeze()
        self._loaded = True

    def read(self) -> Mapping[str, Tensor]:
        """The weights where they are: in a checkpoint, or where a library has them.

        Raises:
            FileNotFoundError: If they are not there.
            ValueError: If they are damaged, hold code, or are no weights.
        """
        assert self.checkpoint is not None
        if isinstance(self.model, ForeignModel):
            return self.model.read_weights(self.checkpoint)
        return read_checkpoint(self.checkpoint)

    def _freeze(self) -> None:
        self.model.eval()  # in a line of its own: train() of some models returns None
        self.model.requires_grad_(False)

    def check_taps(self, names: Iterable[str]) -> None:
        """Make sure that the teacher can be compiled, if it is to be, with these taps.

        Raises:
            ValueError: If it cannot.
        """
        names = list(names)
        if self.compile and not self.can_compile(names):
            raise ValueError(
                'teacher: compile=True compiles its backbone and other parts as wholes, and taps '
                f"lie within them: {names}; tap whole parts, as 'neck', or leave compile out"
            )

    def can_compile(self, names: Iterable[str]) -> bool:
        """Whether its backbone is a whole that no tap lies within."""
        return bool(self._whole_parts(names))

    @property
    def exact(self) -> Any:
        """The model as it was loaded; None where it has been converted."""
        if self._trial is not None and self._trial.plain is not None:
            return self._trial.plain
        converted = self.precision != 'fp32' or self.compile or self.stream
        return None if converted else self.model

    def only_maps_are_used(self, so: bool) -> None:
        """Say whether the terms use no more than its maps; nothing cheaper is tried otherwise."""
        self._trial = self._trial if so else None

    def _whole_parts(self, names: Iterable[str]) -> list[nn.Module]:
        """The children that no tap lies within; none, if the backbone is not among them."""
        children = dict(self.model.named_children())
        for name in names:
            part, dot, _ = name.partition('.')
            if dot and children.pop(part, None) is not None and part == 'backbone':
                return []
        return list(children.values())

    def follow(self, images: Tensor) -> None:
        """Make ready to run: loaded, in eval mode, and where the images are."""
        self.load()
        parameter = next(self.model.parameters(), None)
        if parameter is not None and parameter.device != images.device:
            self.model.to(images.device)
        if self.model.training:
            self.model.eval()

    @torch.no_grad()
    def run(
        self,
        taps: Taps,
        calls: Mapping[str, int],
        preprocess: Repreprocess,
        inputs: Any,
        data_samples: Any,
    ) -> None:
        """Run the teacher on the student's batch, no further than to its last tap.

        Args:
            taps: Where to record. Call [`wait`][] before the maps are read.
            calls: The taps that are needed this time, and how often each of them runs.
            preprocess: From the student's preprocessing to the teacher's.
            inputs: The student's batch: images ``(N, C, H, W)``, videos ``(N, T, C, H, W)``, or a
                dict of them.
            data_samples: Its samples.
        """
        images = any_tensor(inputs)
        self.follow(images)

        def record(model: nn.Module = self.model) -> None:
            with taps.on(model, calls, stop_after=calls):
                batch = preprocess(inputs, data_samples)
                if isinstance(batch, Mapping):
                    batch = {name: self._cast(one, model) for name, one in batch.items()}
                else:
                    batch = self._cast(batch, model)
                forward(model, batch, data_samples, calls, self.by_loss)

        if self._trial is not None and can_be_cheaper(images):
            if not self._trial.run(self, taps, calls, images, record):
                self._trial = None
            return
        if not self._prepared and self.fuse:
            with without_autocast(images):  # whose rounding is larger than what is looked for
                self._fuse(taps, calls, record)
        if not self._prepared:
            self.prepare(taps.names, images)
        plain = self.precision == 'fp32'
        with self._beside(inputs), nullcontext() if plain else without_autocast(images):
            record()

    def _fuse(self, taps: Taps, calls: Mapping[str, int], record: Callable[[], None]) -> None:
        """Fold its batch norms, and make sure that it yields on a batch what it did before."""
        record()
        before = [x for name in calls for x in taps[name]]
        kept = {path for name in taps.names for path in taps.places(name)}
        count = fuse_norms(self.model, kept.union(name.partition('[')[0] for name in taps.names))
        taps.clear()
        record()
        after = [x for name in calls for x in taps[name]]
        taps.clear()
        for x, y in zip(before, after, strict=True):
            differs = float((x - y).abs().max() / x.abs().max().clamp_min(1e-12))
            if not differs < FUSED_ALIKE:
                raise ValueError(
                    f'teacher: fuse=True changes a map of {self.name} by {differs:.1g} of its '
                    'largest value: its norms do not stand where they seem to; leave fuse out'
                )
        print_log(f'teacher: {count} batch norms folded into convolutions', logger='current')

    @torch.no_grad()
    def run_on_rois(
        self, taps: Taps, head: BoxHead, features: Sequence[Tensor], rois: Tensor
    ) -> None:
        """Run a box head of the teacher on RoIs of the student, no further than to its last tap.

        Args:
            taps: Where to record.
            head: Which box head.
            features: What [`run`][] has recorded of the teacher that RoIs are pooled from.
            rois: Index of the image, x1, y1, x2, y2 in pixels of the batch, ``(R, 5)``.
        """
        precision = PRECISIONS[self.precision]
        plain = precision == torch.float32
        # In half precision the corners of large images would be off by whole pixels.
        maps = features if plain else [x.float() for x in features]
        context = nullcontext() if plain else torch.autocast(rois.device.type, precision)
        with context, taps.on(self.model, stop_after={}):
            run_box_head(self.model.get_submodule(head.roi_head), maps, rois, head.stage)

    def _cast(self, images: Tensor, model: nn.Module) -> Tensor:
        """Give the images the type and the memory layout of a model's weights."""
        parameter = next(model.parameters(), None)
        if parameter is not None:  # FSDP may have cast the student's
            images = images.to(parameter.dtype)
        if self.channels_last and model is self.model and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return images

    def prepare(self, names: Iterable[str], inputs: Tensor) -> None:
        """Convert and compile; not earlier, because a student inherits the weights as loaded."""
        if self.precision != 'fp32':
            self.model.to(PRECISIONS[self.precision])
        if self.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if self.compile:
            for part in self._whole_parts(names):
                part.forward = torch.compile(part.forward)  # taps wrap it from outside
        if self.stream and not _has_streams(inputs):
            print_log(
                f'teacher: stream=True has no effect on {inputs.device.type}',
                logger='current',
                level=30,
            )
        self._prepared = True

    def stay_plain(self, model: nn.Module) -> None:
        """Go on with the model as it was before [`prepare`][]."""
        self.model = model
        self.precision, self.channels_last, self.compile = 'fp32', False, False

    @contextmanager
    def _beside(self, inputs: Any) -> Iterator[None]:
        """Do what follows on the stream of the teacher, if it has one."""
        images = any_tensor(inputs)
        if not (self.stream and _has_streams(images)):
            yield
            return
        if self._side is None:
            self._side = torch.cuda.Stream(images.device)
        self._side.wait_stream(torch.cuda.current_stream(images.device))
        for one in inputs.values() if isinstance(inputs, Mapping) else [inputs]:
            one.record_stream(self._side)
        with torch.cuda.stream(self._side):
            yield

    def wait(self, taps: Taps) -> None:
        """Let what follows wait until the teacher has yielded its maps."""
        if self._side is None:
            return
        current = torch.cuda.current_stream(self._side.device)
        current.wait_stream(self._side)
        for name in taps.names:
            if taps.calls(name):
                for x in taps[name]:
                    x.record_stream(current)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _left_behind, ()


def _has_streams(x: Tensor) -> bool:
    return x.is_cuda


def _left_behind() -> Teacher:
    teacher = object.__new__(Teacher)
    teacher.model, teacher._loaded = None, False
    return teacher

"""The teacher: a frozen guest beside the student, loaded completely and safely."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.hub import get_config
from mmengine.logging import print_log
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from mmengine.utils import get_installed_path
from torch import Tensor, nn

from kd_dense.mm.checkpoint import load_weights, read_checkpoint
from kd_dense.mm.preprocessing import Repreprocess
from kd_dense.mm.probe import forward, needs_features_only
from kd_dense.mm.randomness import kept_random_state
from kd_dense.taps import Taps

__all__ = ['Teacher']

UNTRAINED_SEED = 0


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

    Raises:
        FileNotFoundError: If the config does not exist.
        ValueError: If there is no checkpoint, or the teacher is not of these forms.
    """

    def __init__(self, spec: str | Mapping[str, Any] | nn.Module) -> None:
        self.model: Any = None
        self.checkpoint: str | None = None
        self.strict = True
        self._loaded = False
        if isinstance(spec, nn.Module):
            self.model, self.name = spec, type(spec).__name__
            self._loaded = True
        else:
            self._from_config(spec)
        self.model.eval().requires_grad_(False)

    def _from_config(self, spec: str | Mapping[str, Any]) -> None:
        fields: dict[str, Any] = {'config': spec} if isinstance(spec, str) else dict(spec)
        fields.pop('_scope_', None)
        unknown = fields.keys() - {'config', 'checkpoint', 'strict'}
        if unknown or 'config' not in fields:
            raise ValueError(
                'expected a teacher as a config name, a path, dict(config=..., checkpoint=...) '
                f'or a model, got {dict(spec) if isinstance(spec, Mapping) else spec!r}'
            )
        config = _read_config(fields['config'])
        self.name = fields['config'] if isinstance(fields['config'], str) else config.model.type
        self.checkpoint = fields.get('checkpoint', config.get('model_path'))
        self.strict = fields.get('strict', True)
        if self.checkpoint is None and 'checkpoint' not in fields:
            raise ValueError(
                f'the teacher {self.name} comes without weights: say '
                "teacher=dict(config=..., checkpoint='PATH or URL'), or checkpoint=None for "
                'an untrained one'
            )
        if self.checkpoint is None:
            print_log(
                f'the teacher {self.name} is untrained (checkpoint=None): fine for a smoke '
                'run or a benchmark, useless for anything else',
                logger='current',
                level=30,
            )
        model = config.model
        if model.get('type') == 'kd_dense.Distilled':  # a student that has become a teacher
            model = model.student
        if 'data_preprocessor' in config:
            model.setdefault('data_preprocessor', config.data_preprocessor)
        scope = config.get('default_scope')
        with DefaultScope.overwrite_default_scope(scope), kept_random_state():
            torch.manual_seed(UNTRAINED_SEED)  # the same untrained teacher on every rank
            self.model = ROOT_MODELS.build(model)

    def load(self) -> None:
        """Load the weights, once; called when training starts."""
        if self.model is None:
            raise RuntimeError(
                'this student was unpickled, which leaves its teacher behind: build it from '
                'its config to go on training'
            )
        if self._loaded:
            return
        if self.checkpoint is not None:
            state = read_checkpoint(self.checkpoint)
            load_weights(self.model, state, self.checkpoint, self.strict)
            print_log(
                f'teacher: {self.name}, {len(state)} tensors from {self.checkpoint}',
                logger='current',
            )
        self.model.eval().requires_grad_(False)
        self._loaded = True

    @torch.no_grad()
    def run(
        self,
        taps: Taps,
        calls: Mapping[str, int],
        preprocess: Repreprocess,
        inputs: Tensor,
        data_samples: Sequence[Any],
    ) -> None:
        """Run the teacher on the student's batch, no further than to its last tap.

        Args:
            taps: Where to record.
            calls: The taps that are needed this time, and how often each of them runs.
            preprocess: From the student's preprocessing to the teacher's.
            inputs: The student's batch, ``(N, C, H, W)``.
            data_samples: Its samples.
        """
        self.load()
        parameter = next(self.model.parameters(), None)
        if parameter is not None and parameter.device != inputs.device:
            self.model.to(inputs.device)
        if self.model.training:
            self.model.eval()
        with taps.on(self.model, calls, stop_after=calls):
            forward(
                self.model,
                preprocess(inputs, data_samples),
                data_samples,
                needs_features_only(calls),
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _left_behind, ()


def _left_behind() -> Teacher:
    teacher = object.__new__(Teacher)
    teacher.model, teacher._loaded = None, False
    return teacher


def _read_config(source: Any) -> Any:
    """Read a config by name (``mmdet::...``), path or value; always with a ``model``."""
    if isinstance(source, Mapping):
        config = source if 'model' in source else ConfigDict(model=source)
        return config if isinstance(config, (Config, ConfigDict)) else ConfigDict(config)
    source = os.fspath(source)
    if '::' in source:
        package = source.partition('::')[0]
        if find_spec(package) is None:  # mmengine would go and install it
            raise FileNotFoundError(f'the teacher config {source}: {package} is not installed')
        try:
            return get_config(source, pretrained=True)
        except AssertionError:  # mmengine asserts that weights are published
            return get_config(source)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'the teacher config {source} does not exist{_near_configs(source)}'
            ) from error
    if not Path(source).expanduser().is_file():
        raise FileNotFoundError(
            f'the teacher config {source} does not exist (looked in {Path.cwd()}); configs '
            "that come with a package are named like 'mmdet::retinanet/...'"
        )
    return Config.fromfile(source)


def _near_configs(source: str) -> str:
    """Name the config files of a package that are spelt nearly like the one asked for."""
    package, _, wanted = source.partition('::')
    home = Path(get_installed_path(package)) / '.mim' / 'configs'
    known = [str(path.relative_to(home)) for path in home.glob('*/*.py')]
    near = get_close_matches(wanted, known, 3, cutoff=0.5)
    return f'; did you mean {", ".join(f"{package}::{name}" for name in near)}?' if near else ''

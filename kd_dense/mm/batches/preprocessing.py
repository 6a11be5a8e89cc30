"""Turn a batch that was preprocessed for the student into one for the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['Repreprocess']


class Repreprocess:
    """Map the student's normalised batch to what the teacher's preprocessor would give.

    Both preprocessors scale and shift each channel, perhaps swap red and blue, and pad at
    the right and the bottom. From one result to the other is therefore an affine map per
    channel, after which everything beyond an image's own size gets the teacher's pad value.

    Args:
        student: ``data_preprocessor`` of the student.
        teacher: ``data_preprocessor`` of the teacher.

    Raises:
        ValueError: If one of them does something else, or the teacher needs images padded
            to a multiple that the student's batches do not have.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        s, t = _Normalisation(student, 'student'), _Normalisation(teacher, 'teacher')
        if s.divisor % t.divisor:
            raise ValueError(
                f'the teacher needs images padded to a multiple of {t.divisor}, the student '
                f'pads to a multiple of {s.divisor}: set '
                f'student.data_preprocessor.pad_size_divisor={t.divisor}'
            )
        self.identical = (s.swap, s.pad) == (t.swap, t.pad) and all(
            torch.equal(*torch.broadcast_tensors(a, b))
            for a, b in ((s.mean, t.mean), (s.std, t.std))
        )
        self.swap = s.swap != t.swap
        if self.swap:
            s.mean, s.std = s.mean.flip(0), s.std.flip(0)
        self.scale = s.std / t.std
        self.shift = (s.mean - t.mean) / t.std
        self.pad = t.pad

    def __call__(self, inputs: Any, data_samples: Any) -> Any:
        """Convert a batch.

        Args:
            inputs: The student's batch: images ``(N, C, H, W)``, videos ``(N, T, C, H, W)``, or a
                dict of them. It is not changed.
            data_samples: Samples whose ``img_shape`` says where padding begins. (mmdet's
                ``pad_shape`` is the padded size.)

        Returns:
            The teacher's batch in the same form; ``inputs`` itself where nothing differs.
        """
        if self.identical:
            return inputs
        if isinstance(inputs, Mapping):
            return {name: self(images, data_samples[name]) for name, images in inputs.items()}
        if inputs.dim() == 5:
            frames = [sample.video_data_samples for sample in data_samples]
            return self(inputs.flatten(0, 1), [*chain(*frames)]).view_as(inputs)
        if self.scale.device != inputs.device:
            self.scale, self.shift = self.scale.to(inputs.device), self.shift.to(inputs.device)
        source = inputs.flip(1) if self.swap else inputs
        outputs = torch.addcmul(self.shift.to(inputs.dtype), source, self.scale.to(inputs.dtype))
        for output, sample in zip(outputs, data_samples or (), strict=False):
            height, width = sample.metainfo.get('img_shape', output.shape[-2:])[:2]
            output[:, height:] = self.pad
            output[:, :, width:] = self.pad
        return outputs


class _Normalisation:
    """What a data preprocessor does to the pixels."""

    def __init__(self, preprocessor: Any, whose: str) -> None:
        preprocessor = getattr(preprocessor, 'data_preprocessor', preprocessor)  # of branches

        def read(*names: str) -> Any:  # mmseg and mmdet have different names for one thing
            for name in names:
                if hasattr(preprocessor, name):
                    return getattr(preprocessor, name)
            raise ValueError(
                f'cannot tell how the {type(preprocessor).__name__} of the {whose} normalises '
                'images: expected an mmengine ImgDataPreprocessor or a subclass of it'
            )

        normalises = read('_enable_normalize')
        self.swap = bool(read('_channel_conversion', 'channel_conversion'))
        self.pad = float(read('pad_value', 'pad_val'))
        self.divisor = int(read('pad_size_divisor', 'size_divisor') or 1)
        self.mean = _channels(preprocessor.mean) if normalises else torch.zeros(1, 1, 1)
        self.std = _channels(preprocessor.std) if normalises else torch.ones(1, 1, 1)


def _channels(values: Tensor) -> Tensor:
    return values.detach().cpu().reshape(-1, 1, 1)  # those for videos have a dimension more

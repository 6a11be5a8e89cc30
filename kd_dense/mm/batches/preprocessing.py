"""Turn a batch that was preprocessed for the student into one for the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ['Repreprocess']

GREY, COLOUR = 1, 3
LUMINANCE = (0.114, 0.587, 0.299)  # of blue, green and red


class Repreprocess:
    """Map the student's normalised batch to what the teacher's preprocessor would give.

    Both preprocessors scale and shift each channel, perhaps swap red and blue, and pad at
    the right and the bottom. From one result to the other is therefore an affine map per
    channel, after which everything beyond an image's own size gets the teacher's pad value.

    For grey images of the student a teacher of colour gets three equal channels, and for
    coloured ones a teacher of grey their luminance: what mmcv reads from such files.

    Args:
        student: ``data_preprocessor`` of the student.
        teacher: ``data_preprocessor`` of the teacher.
        channels: How many channels the images of the student have, and those of the teacher.

    Raises:
        ValueError: If one of them does something else, there is no way from so many channels to
            so many, or the teacher needs images padded to a multiple that the student's batches
            do not have.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        channels: tuple[int, int] = (COLOUR, COLOUR),
    ) -> None:
        ours, theirs = channels
        if ours != theirs and {ours, theirs} != {GREY, COLOUR}:
            raise ValueError(
                f'the student has {ours} channels in its images, and the teacher {theirs}: only '
                'grey (1) and colour (3) can be converted into each other; take a teacher for '
                'images like those of the student'
            )
        s, t = _Normalisation(student, 'student', ours), _Normalisation(teacher, 'teacher', theirs)
        _check_padding(s, t)
        self.identical = (ours, s.swap, s.pad) == (theirs, t.swap, t.pad) and all(
            torch.equal(a, b) for a, b in ((s.mean, t.mean), (s.std, t.std))
        )
        self.swap = ours == theirs and s.swap != t.swap
        if self.swap:
            s.mean, s.std = s.mean.flip(0), s.std.flip(0)
        self.mix: Tensor | None = None  # from colour to grey
        if (ours, theirs) == (COLOUR, GREY):
            share = torch.tensor(LUMINANCE[::-1] if s.swap else LUMINANCE).view(-1, 1, 1)
            self.mix = share * s.std
            s.mean, s.std = (share * s.mean).sum(0, keepdim=True), torch.ones(1, 1, 1)
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
            return self(inputs.flatten(0, 1), [*chain(*frames)]).unflatten(0, inputs.shape[:2])
        if self.scale.device != inputs.device:
            self.scale, self.shift = self.scale.to(inputs.device), self.shift.to(inputs.device)
            self.mix = None if self.mix is None else self.mix.to(inputs.device)
        source = inputs.flip(1) if self.swap else inputs
        if self.mix is not None:
            source = (inputs * self.mix.to(inputs.dtype)).sum(1, keepdim=True)
        outputs = torch.addcmul(self.shift.to(inputs.dtype), source, self.scale.to(inputs.dtype))
        for output, sample in zip(outputs, data_samples or (), strict=False):
            height, width = sample.metainfo.get('img_shape', output.shape[-2:])[:2]
            output[:, height:] = self.pad
            output[:, :, width:] = self.pad
        return outputs


class _Normalisation:
    """What a data preprocessor does to the pixels."""

    def __init__(self, preprocessor: Any, whose: str, channels: int) -> None:
        preprocessor = getattr(preprocessor, 'data_preprocessor', preprocessor)  # of branches

        def read(*names: str) -> Any:  # mmseg and mmdet have different names for one thing
            for name in names:
                if hasattr(preprocessor, name):
                    return getattr(preprocessor, name)
            raise ValueError(
                f'cannot tell how the {type(preprocessor).__name__} of the {whose} normalises '
                'images: expected an mmengine ImgDataPreprocessor or a subclass of it'
            )

        def values(name: str, otherwise: float) -> Tensor:  # those for videos: a dimension more
            found = getattr(preprocessor, name) if normalises else torch.tensor(otherwise)
            return found.detach().cpu().float().reshape(-1, 1, 1).expand(channels, 1, 1)

        normalises = read('_enable_normalize')
        # mmseg leaves other numbers of channels in their order, and mmdet does not take them.
        self.swap = bool(read('_channel_conversion', 'channel_conversion')) and channels == COLOUR
        self.pad = float(read('pad_value', 'pad_val'))
        self.size: Sequence[int] | None = getattr(preprocessor, 'size', None)  # mmseg's alone
        self.divisor = int(read('pad_size_divisor', 'size_divisor') or 1)
        self.divisor_name = next(
            name for name in ('size_divisor', 'pad_size_divisor') if hasattr(preprocessor, name)
        )
        self.mean, self.std = values('mean', 0.0), values('std', 1.0)


def _check_padding(student: _Normalisation, teacher: _Normalisation) -> None:
    """Make sure that the student's batches have sides that the teacher can take."""
    needed, size = teacher.divisor, student.size
    if not any(side % needed for side in size or [student.divisor]):
        return
    padded, remedy = f'a multiple of {student.divisor}', f'{student.divisor_name}={needed}'
    if size:
        padded = f'the size {size[0]}x{size[1]}'
        remedy = f'size={tuple(-(-side // needed) * needed for side in size)}'
    raise ValueError(
        f'the teacher needs images padded to a multiple of {needed}, the student pads to '
        f'{padded}: set student.data_preprocessor.{remedy}'
    )

"""Replays recorded cases of FGD."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kd_dense.adapters import Adapter
from kd_dense.losses import FGDLoss, fgd_loss
from kd_dense.losses.fgd import attentions, box_masks, mean_activations

if TYPE_CHECKING:
    from tests.oracle.lane import Case

WEIGHTS = dict(
    alpha_fgd='foreground', beta_fgd='background', gamma_fgd='attention', lambda_fgd='relation'
)
PARTS = dict(foreground='fg', background='bg', attention='mask', relation='rela')
# Theirs: the same blocks out of 1x1 convolutions.
BLOCKS = {
    'conv_mask_{}': '{}_context.attention',
    'channel_add_conv_{}.0': '{}_context.transform.0',
    'channel_add_conv_{}.1': '{}_context.transform.1',
    'channel_add_conv_{}.3': '{}_context.transform.3',
}
NAMES = {
    f'{theirs.format(model[0])}.{kind}': f'{ours.format(model)}.{kind}'
    for model in ('student', 'teacher')
    for theirs, ours in BLOCKS.items()
    for kind in ('weight', 'bias')
}


class _Replay:
    """The loss and the adapter of a case, with the recorded parameters."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.student = case.tensor('student', dtype).requires_grad_()
        self.teacher = case.tensor('teacher', dtype)
        images, channels, *self.size = self.teacher.shape
        arguments = {ours: case.arguments[theirs] for theirs, ours in WEIGHTS.items()}
        temperature = case.arguments['temp']
        loss = FGDLoss(channels, temperature=temperature, box_scale='image', **arguments)
        self.loss = loss.to(dtype)
        self.adapter = Adapter(self.student.shape[1], channels).to(dtype)
        ours = dict(self.loss.named_parameters())
        # Those of ours that are left over are theirs under another shape; a bias of the
        # attention logits has no effect, and we have none.
        self.parameters = {name: ours[NAMES[name]] for name in NAMES if NAMES[name] in ours}
        if isinstance(self.adapter.conv, torch.nn.Conv2d):
            for kind, parameter in self.adapter.conv.named_parameters():
                self.parameters[f'align.{kind}'] = parameter
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(case.tensor(f'param/{name}', dtype).view_as(parameter))
        self.needs = dict(
            boxes=[case.tensor(f'boxes/{i}', dtype) for i in range(images)],
            batch_shape=(1, 1),  # not used with box_scale='image'
            image_shapes=case.arrays['img_shape'].tolist(),
        )

    def adapted(self) -> Tensor:
        return self.adapter(self.student, self.size)


def replay_fgd(case: Case) -> dict[str, Tensor]:
    replay = _Replay(case, torch.float64)
    adapted = replay.adapted()
    loss = sum(replay.loss(adapted, replay.teacher, **replay.needs).values())
    parameters = replay.parameters
    grad, *grads = torch.autograd.grad(
        loss, [replay.student, *parameters.values()], retain_graph=True
    )
    single = _Replay(case, torch.float32)
    loss_f32 = sum(single.loss(single.adapted(), single.teacher, **single.needs).values())
    result = {'loss': loss, 'grad_student': grad, 'loss_f32': loss_f32}
    for name, value in zip(parameters, grads, strict=True):
        result[f'grad_param/{name}'] = value.view(case.arrays[f'param/{name}'].shape)
    for model in 'st':
        result[f'grad_param/conv_mask_{model}.bias'] = torch.zeros(1)

    parts = fgd_loss(
        adapted,
        replay.teacher,
        **replay.needs,
        student_context=replay.loss.student_context,
        teacher_context=replay.loss.teacher_context,
        temperature=replay.loss.temperature,
        box_scale='image',
    )
    for ours, theirs in PARTS.items():
        result[f'loss_{theirs}'] = parts[ours]
        (result[f'grad_student_{theirs}'],) = torch.autograd.grad(
            parts[ours], replay.student, retain_graph=True
        )
    boxes, shapes = replay.needs['boxes'], replay.needs['image_shapes']
    result['mask_fg'], result['mask_bg'] = box_masks(boxes, shapes, replay.size, torch.float64)
    for model, x in (('s', adapted), ('t', replay.teacher)):
        where, which = attentions(*mean_activations(x.flatten(2).abs()), replay.loss.temperature)
        result[f'spatial_attention_{model}'] = where.unflatten(1, replay.size)
        result[f'channel_attention_{model}'] = which
    return result


def _is_input(name: str) -> bool:
    return name in ('student', 'teacher', 'img_shape') or name.startswith(('param/', 'boxes/'))


REPLAYS = {'fgd.npz': replay_fgd}
INPUTS = {'fgd.npz': _is_input}

"""Replays of SKD: ``skd.npz`` and ``skd_adversarial.npz``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd_dense.critic import Critic, critic_loss, gradient_penalty
from kd_dense.losses import skd

if TYPE_CHECKING:
    from tests.oracle.lane import Case

LAYERS = {
    'l1.0.module': 'conv1',
    'l2.0.module': 'conv2',
    'l3.0.module': 'conv3',
    'l4.0.module': 'conv4',
    'last.0': 'last',
    'attn1': 'attention1',
    'attn2': 'attention2',
    'preprocess_additional': 'norm',
}
LEAVES = {'weight_bar': 'weight'}
PREPROCESS = {1: 'batch_norm', 2: 'tanh', 3: 'image'}


def replay_skd(case: Case) -> dict[str, Tensor]:
    if case.cls == 'CriterionPixelWise':

        def loss(student: Tensor, teacher: Tensor, **_: Any) -> Tensor:
            return skd.pixel_wise_loss(student, teacher, published_batch=None)
    else:
        scale = case.arguments['scale']

        def loss(student: Tensor, teacher: Tensor, **options: Any) -> Tensor:
            return skd.pair_wise_loss(student, teacher, scale, **options)

    student, teacher = case.tensor('student').requires_grad_(), case.tensor('teacher')
    found = {'loss': loss(student, teacher)}
    (found['grad_student'],) = torch.autograd.grad(found['loss'], student)
    found['loss_f32'] = loss(*(case.tensor(n, torch.float32) for n in ('student', 'teacher')))
    if case.cls != 'CriterionPixelWise':
        attached = loss(student, teacher, detach_norm=False)
        (found['grad_student_norm_attached'],) = torch.autograd.grad(attached, student)
        for name, maps in (('student', student), ('teacher', teacher)):
            nodes = skd.unit_nodes(maps, scale, detach_norm=True)
            found[f'sim_{name}'] = nodes.mT @ nodes
            window = [int(side * scale) for side in maps.shape[2:]]
            found[f'pooled_{name}'] = F.max_pool2d(maps, window, ceil_mode=True)
    return found


class TinyCritic(nn.Module):
    """The stand-in that the parameter gradients of the penalty are recorded with."""

    def __init__(self, channels: int, height: int, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, 1, (height, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x).tanh()).flatten()


def replay_adversarial(case: Case) -> dict[str, Tensor]:
    if case.cls in ('CriterionAdv', 'CriterionAdvForG'):
        return _replay_scores(case)
    if case.cls == 'CriterionAdditionalGP + TinyD':
        return _replay_tiny(case)
    if case.cls == 'Discriminator':
        return _replay_critic(case)
    if case.cls == 'CriterionAdditionalGP + Discriminator':
        return _replay_penalty(case)
    raise NotImplementedError(f'no replay for class {case.cls}')


def _replay_scores(case: Case) -> dict[str, Tensor]:
    """The two losses on given scores; the student's is that of HolisticLoss."""

    def loss(dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
        scores = {
            name: case.tensor(f'd_out_{name}', dtype).requires_grad_()
            for name in ('student', 'teacher')
            if f'd_out_{name}' in case.arrays
        }
        if case.cls == 'CriterionAdv':
            return critic_loss(**scores, kind=case.arguments['adv_type']), scores
        holistic = skd.HolisticLoss(1, weight=1.0, kind=case.arguments['adv_type'])
        holistic.critic = nn.Flatten(0)
        return holistic(scores['student'], scores['student']), scores

    value, scores = loss(torch.float64)
    grads = torch.autograd.grad(value, list(scores.values()))
    found = {f'grad_d_out_{name}': g for name, g in zip(scores, grads, strict=True)}
    return {**found, 'loss': value, 'loss_f32': loss(torch.float32)[0]}


def _replay_tiny(case: Case) -> dict[str, Tensor]:
    def penalty(dtype: torch.dtype) -> tuple[Tensor, TinyCritic]:
        critic = TinyCritic(**case.arguments['tiny_d']).to(dtype)
        critic.load_state_dict(
            {name: case.tensor(f'param/{name}', dtype) for name in critic.state_dict()}
        )
        maps = (case.tensor(name, dtype) for name in ('student', 'teacher', 'alpha'))
        return case.arguments['lambda_gp'] * gradient_penalty(critic, *maps), critic

    loss, critic = penalty(torch.float64)
    names, parameters = zip(*critic.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, materialize_grads=True)
    found = {f'grad_param/{name}': grad for name, grad in zip(names, grads, strict=True)}
    return {**found, 'loss': loss, 'loss_f32': penalty(torch.float32)[0]}


def _our_name(name: str) -> str:
    layer, leaf = next(
        (ours, name.removeprefix(f'{theirs}.'))
        for theirs, ours in LAYERS.items()
        if name.startswith(f'{theirs}.')
    )
    return f'{layer}.{LEAVES.get(leaf, leaf).replace("_conv", "")}'


def _drawn(entry: dict[str, Any]) -> Tensor:
    """What the manifest gives a recipe for, as such weights are too large to store."""
    values = np.random.RandomState(entry['seed']).standard_normal(entry['shape'])
    values = (values * entry['scale']).astype(np.float32).astype(np.float64)
    if entry['name'].endswith(('weight_u', 'weight_v')):
        values /= np.linalg.norm(values)
    return torch.from_numpy(values)


def _critic(case: Case, dtype: torch.dtype = torch.float64) -> Critic:
    arguments = case.arguments
    critic = Critic(arguments['input_channel'], PREPROCESS[arguments['preprocess_GAN_mode']])
    critic = critic.to(dtype).train(arguments['training'])
    state = {_our_name(entry['name']): _drawn(entry) for entry in case.what['weight_recipe']}
    # Our keys have no bias: it has no effect.
    state = {name: value for name, value in state.items() if not name.endswith('key.bias')}
    statistics = {n: v for n, v in critic.state_dict().items() if n.startswith('norm.running')}
    critic.load_state_dict({**state, **statistics})
    return critic


def _state_and_gradients(case: Case, critic: Critic, loss: Tensor) -> dict[str, Tensor]:
    """The state after the call, and each gradient's norm and its product with a vector."""
    critic.zero_grad()
    loss.backward()
    state = {n: v.clone() for n, v in critic.state_dict().items()}
    parameters = dict(critic.named_parameters())
    found = {}
    for name in case.arrays:
        if name.startswith('after/'):
            found[name] = state[_our_name(name.removeprefix('after/'))]
    for entry in case.what['weight_recipe']:
        name, ours = entry['name'], _our_name(entry['name'])
        if f'grad_norm/{name}' not in case.arrays:
            continue
        if ours.endswith('key.bias'):
            grad = torch.zeros(entry['shape'], dtype=torch.float64)
        else:
            grad = parameters[ours].grad
        vector = np.random.RandomState(entry['seed'] + 50000).standard_normal(grad.numel())
        found[f'grad_norm/{name}'] = grad.norm()
        found[f'grad_dot/{name}'] = grad.flatten() @ torch.from_numpy(vector)
    return found


def _replay_critic(case: Case) -> dict[str, Tensor]:
    critic = _critic(case)
    found: dict[str, Tensor] = {}
    hooks = [
        getattr(critic, name).register_forward_pre_hook(
            lambda module, args, name=name: found.update({name: module.attention(args[0])})
        )
        for name in ('attention1', 'attention2')
    ]
    x = case.tensor('x').requires_grad_()
    out = critic(x)
    for hook in hooks:
        hook.remove()
    found.update(_state_and_gradients(case, critic, out.sum()))
    found['out'] = out.view(-1, 1, 1, 1)
    shape = case.arrays['grad_x'].shape
    found['grad_x'] = x.grad[tuple(slice(n) for n in shape)]
    found['out_second_call'] = critic(x).view(-1, 1, 1, 1)
    single = _critic(case, torch.float32)
    found['out_f32'] = single(case.tensor('x', torch.float32)).view(-1, 1, 1, 1)
    return found


def _replay_penalty(case: Case) -> dict[str, Tensor]:
    critic = _critic(case)
    maps = (case.tensor(name) for name in ('student', 'teacher', 'alpha'))
    loss = case.arguments['lambda_gp'] * gradient_penalty(critic, *maps)
    return {'loss': loss, **_state_and_gradients(case, critic, loss)}


def _is_input(name: str) -> bool:
    return name in ADVERSARIAL_INPUTS or name.startswith('param/')


ADVERSARIAL_INPUTS = {'student', 'teacher', 'alpha', 'x', 'd_out_student', 'd_out_teacher'}
REPLAYS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    'skd.npz': replay_skd,
    'skd_adversarial.npz': replay_adversarial,
}
INPUTS: dict[str, Any] = {'skd.npz': {'student', 'teacher'}, 'skd_adversarial.npz': _is_input}

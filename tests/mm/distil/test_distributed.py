"""Promises 4 and 9: what distillation does in two processes, and what it does not."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.dist import all_reduce_params
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel
from mmengine.optim.optimizer import amp_optimizer_wrapper
from torch.profiler import ProfilerActivity, profile

from kd_dense.losses import HolisticLoss
from kd_dense.measure import peak_memory
from kd_dense.mm.distil.distilled import bare
from tests.mm import fsdp, methods, toy
from tests.mm.distil import kinds
from tests.mm.distil.test_promises import assert_equal_states
from tests.mm.hooks.test_critic import train_a_part
from tests.mm.processes import in_two_processes

BATCH = 4
STEPS = 3


def config(method, schedule=None):
    found = methods.distilled(method)
    for term in found.terms.values():
        term.schedule = schedule or {}
    return found


def build(method, schedule=None):
    model = toy.build(config(method, schedule)).train()
    hub = MessageHub.get_current_instance()
    hub.update_info_dict(dict(iter=0, max_iters=10))
    return model


def total(losses):
    own = [v for k, v in losses.items() if 'loss' in k]
    return sum(x.sum() for v in own for x in (v if isinstance(v, list) else [v]))


def added_gradient(model, inner, inputs, samples):
    """Backpropagate the distillation losses alone; and the critics' own."""
    model.zero_grad()
    losses = model(inputs, samples, mode='loss')
    ours = sum(v for k, v in losses.items() if k.startswith('loss_kd'))
    theirs = {k: v for k, v in losses.items() if not k.startswith('loss_kd')}
    (ours + 0 * total(theirs)).backward()
    critics = [m for m in inner.modules() if isinstance(m, HolisticLoss) and m.critic_is_due]
    for module in critics:
        module.critic_backward()
        all_reduce_params([p.grad for p in module.critic.parameters()], op='mean')
    return {n: p.grad.clone() for n, p in inner.named_parameters()}


def gradients(rank, world_size, method, schedule=None):
    model = build(method, schedule)
    outer = model
    if world_size > 1:
        outer = MMDistributedDataParallel(model, broadcast_buffers=True)
        assert not outer.find_unused_parameters
        assert sum(p.numel() for p in outer.parameters()) == sum(
            p.numel() for p in model.parameters()
        )
    inputs, samples = toy.batch(model, methods.scenes(method), BATCH)
    mine = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    for _ in range(STEPS):  # a critic's spectral norm moves on with each
        found = added_gradient(outer, model, inputs[mine], samples[mine])
    return found


def of_a_kind(rank, world_size, kind, folder):
    """The gradients that teachers of a kind add, where the average has moved away."""
    torch.manual_seed(0)
    model = toy.build(kinds.config(kind, folder, norm=dict(type='GN', num_groups=2))).train()
    for guest in model.kd_plan.running.values():
        if hasattr(guest.teacher, 'average'):
            guest.teacher.start(bare(model))
            for parameter in guest.teacher.model.parameters():
                parameter.mul_(1.125)
    outer = MMDistributedDataParallel(model) if world_size > 1 else model
    inputs, samples = kinds.batch(model, kind, BATCH)
    return added_gradient(
        outer, model, inputs[rank::world_size], samples[rank::world_size]
    )  # labelled and unlabelled pictures for both


def shares(rank, world_size):
    """The gradients of a step with weights that the steps before it have measured."""
    terms = dict(
        features=dict(tap=methods.FEATURES, loss=toy.CWD, share=0.5),
        mimic=dict(tap=methods.FEATURES, loss=dict(type='PKDLoss'), share=1.0),
    )
    config = methods.distilled('cwd')
    config.terms = terms
    model = toy.build(config).double().train()
    outer = MMDistributedDataParallel(model) if world_size > 1 else model
    inputs, samples = toy.batch(model, methods.scenes('cwd'), BATCH)
    mine = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    for _ in range(STEPS):
        model.zero_grad()
        total(outer(inputs[mine].double(), samples[mine], mode='loss')).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters()}
    return found | {n: b.clone() for n, b in model.kd.named_buffers() if 'shares' in n}


def queues(rank, world_size):
    """What a memory holds before and after some steps."""
    model = build('memory')
    outer = MMDistributedDataParallel(model, broadcast_buffers=False)
    inputs, samples = toy.batch(model, methods.scenes('memory'), BATCH)
    mine = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    loss = model.kd.memory.loss
    loss.drawn = 3  # others in each process
    before = loss.pixel_memory.rows.clone()
    for _ in range(STEPS):
        added_gradient(outer, model, inputs[mine], samples[mine])
    return before, {n: b.clone() for n, b in loss.named_buffers()}


def guest(rank):
    """Train with another teacher on each process, and buffers that are broadcast."""
    config = toy.distilled(student=toy.segmenter(dropout=0.0))
    model = toy.build(config).train()
    teacher = model.kd_plan.teacher.model
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1 + rank / 8)
        for name, buffer in teacher.named_buffers():
            if name.endswith('running_mean'):
                buffer.add_(rank)
    before = copy.deepcopy(teacher.state_dict())
    ddp = MMDistributedDataParallel(model, broadcast_buffers=True)
    inputs, samples = toy.batch(model, count=BATCH)
    mine = slice(2 * rank, 2 * rank + 2)
    for _ in range(2):
        total(ddp(inputs[mine], samples[mine], mode='loss')).backward()
    return before, teacher.state_dict(), dict(model.named_buffers())


def communication(rank, name):
    """How many numbers each collective of a step carries, with and without distillation."""
    found = {}
    distilled = methods.distilled(name)
    for kind, config in (('plain', distilled.student), ('kd', distilled)):
        model = toy.build(config).train()
        ddp = MMDistributedDataParallel(model, broadcast_buffers=False)
        batch = toy.batch(model, methods.scenes(name))

        def step(ddp=ddp, model=model, batch=batch):
            total(ddp(*batch, mode='loss')).backward()
            for module in model.modules():
                if isinstance(module, HolisticLoss):
                    module._maps = None

        for _ in range(2):  # DDP settles its buckets in the second
            step()
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            step()
        found[kind] = (
            [
                (event.name, torch.Size(event.input_shapes[0]).numel())
                for event in profiler.events()
                if event.name.startswith('gloo:')
            ],
            sum(p.numel() for p in model.parameters() if p.requires_grad),
        )
    return found


def memory(rank):
    """The peaks of a step, alone and in two processes, plain and distilled."""
    found = {}
    config = toy.distilled(student=toy.segmenter(16), teacher=dict(
        config=toy.segmenter(32), checkpoint=None))  # fmt: skip
    for kind, chosen in (('plain', config.student), ('kd', config)):
        model = toy.build(chosen).train()
        batch = toy.batch(model, toy.SegScenes(size=128))

        def step(model=model, batch=batch):
            total(model(*batch, mode='loss')).backward()

        for _ in range(2):
            step()
        found[kind] = peak_memory(step)
        ddp = MMDistributedDataParallel(model, broadcast_buffers=False)
        for _ in range(2):
            step(ddp)
        found[f'{kind} ddp'] = peak_memory(lambda step=step, ddp=ddp: step(ddp))
    layers = []
    teacher = model.kd_plan.teacher.model
    for module in teacher.modules():
        if not list(module.children()):
            module.register_forward_hook(
                lambda m, args, output: layers.append(args[0].nbytes + output.nbytes)
            )
    with torch.no_grad():
        logits = teacher(*batch, mode='tensor')
    found['floor'] = found['plain ddp'] + logits.nbytes + max(layers)
    return found


class PowerCut(Hook):
    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter == self.at:
            raise KeyboardInterrupt('power cut')


def resume(rank, folder):
    """Stop and resume a training in which each process draws numbers of its own."""
    hooks = [dict(type='kd_dense.RandomStateHook'), dict(type='kd_dense.CriticHook')]
    config = toy.distilled(terms=methods.SEGMENTERS['skd'])
    ddp = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)

    def train(name, cut=None, **others):
        runner = toy.runner(
            config, Path(folder) / name, 5, launcher='pytorch', cfg=dict(model_wrapper_cfg=ddp),
            randomness=dict(seed=0, diff_rank_seed=True),
            custom_hooks=[*hooks, *([PowerCut(cut)] if cut else [])], **others)  # fmt: skip
        runner.train()
        return runner

    with pytest.raises(KeyboardInterrupt, match='power cut'):
        train('stopped', cut=3)
    torch.distributed.barrier()
    resumed = train('stopped', resume=True)
    torch.distributed.barrier()
    drawn = torch.rand(4)
    whole = train('whole')
    assert resumed.iter == whole.iter == 5
    return (
        dict(resumed.model.module.state_dict()),
        dict(whole.model.module.state_dict()),
        drawn,
        torch.rand(4),
    )


def all_at_once(rank, folder):
    """A training with critic, accumulation, mixed precision and an average of the weights."""
    # mmengine asserts that there is a GPU.
    amp_optimizer_wrapper.is_cuda_available = lambda: True
    amp_optimizer_wrapper.GradScaler = partial(torch.amp.GradScaler, device='cpu')
    runner = toy.runner(
        methods.distilled('skd'), f'{folder}/all', 4, launcher='pytorch',
        cfg=dict(model_wrapper_cfg=dict(
            type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)),
        custom_hooks=[dict(type='kd_dense.CriticHook'), dict(type='EMAHook')],
        optim_wrapper=dict(
            type='AmpOptimWrapper', dtype='bfloat16', accumulative_counts=2,
            optimizer=dict(type='SGD', lr=1e-2)),
    )  # fmt: skip
    model = runner.model.module
    teacher = model.kd_plan.teacher.model
    guest = copy.deepcopy(teacher.state_dict())
    before = copy.deepcopy(dict(model.named_parameters()))
    runner.train()
    assert_equal_states(guest, teacher.state_dict())
    return before, dict(model.named_parameters())


def sync_bn(rank, folder):
    """What a student with SyncBN says on CPUs, plain and distilled."""
    said = {}
    for kind, config in (('plain', toy.segmenter()), ('kd', toy.distilled())):
        for sync in ('torch', 'mmcv'):
            ddp = dict(type='MMDistributedDataParallel', device_ids=None)
            try:
                runner = toy.runner(
                    config, f'{folder}/{kind}-{sync}', 2, launcher='pytorch',
                    cfg=dict(model_wrapper_cfg=ddp, sync_bn=sync))  # fmt: skip
                runner.train()
            except Exception as error:
                said[f'{kind} {sync}'] = f'{type(error).__name__}: {error}'
            else:
                said[f'{kind} {sync}'] = 'ran'
    return said


def everything(rank, folder):
    return dict(
        fsdp=fsdp.compared(rank, folder),
        gradients={m: gradients(rank, 2, m) for m in methods.METHODS},
        kinds={k: of_a_kind(rank, 2, k, f'{folder}/maps') for k in kinds.DIFFERENT},
        off=gradients(rank, 2, 'cwd', dict(stop=0)),
        shares=shares(rank, 2),
        queues=queues(rank, 2),
        guest=guest(rank),
        communication={m: communication(rank, m) for m in ('cwd', 'ld')},
        memory=memory(rank),
        resume=resume(rank, folder),
        all_at_once=all_at_once(rank, folder),
        sync_bn=sync_bn(rank, folder),
        critic=train_a_part(rank, 2, f'{folder}/critic'),
    )


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    return in_two_processes(everything, str(tmp_path_factory.mktemp('two')))


def of(ranks, name):
    return [found[name] for found in ranks]


@pytest.mark.parametrize('kind', kinds.DIFFERENT)
def test_gradient_of_a_kind_of_teacher_is_that_of_one_process(ranks, kind, tmp_path):
    first, second = (found[kind] for found in of(ranks, 'kinds'))
    assert_same_gradients(first, second, of_a_kind(0, 1, kind, tmp_path))


@pytest.mark.parametrize('method', methods.METHODS)
def test_gradient_of_two_processes_is_that_of_one(ranks, method):
    first, second = (found[method] for found in of(ranks, 'gradients'))
    assert_same_gradients(first, second, gradients(0, 1, method))


def assert_same_gradients(first, second, expected):
    assert first.keys() == second.keys() == expected.keys()
    assert any(grad.any() for grad in first.values())
    for name, grad in expected.items():
        assert torch.equal(first[name], second[name])
        difference = (first[name] - grad).abs().max()
        # The gradient of a bias in front of a standardisation is rounding errors alone.
        assert difference <= 1e-4 * grad.abs().max() + 1e-7, name


def test_a_memory_is_the_same_in_both_processes(ranks):
    (before, first), (_, second) = of(ranks, 'queues')
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first['pixel_memory.rows'], before)
    assert first['region_memory.next'].max() == STEPS * BATCH


def test_shares_of_two_processes_are_those_of_one(ranks):
    expected = shares(0, 1)
    first, second = of(ranks, 'shares')
    assert first.keys() == second.keys() == expected.keys()
    assert sum('shares' in name for name in first) == 10
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=1e-6, atol=1e-9)
        assert torch.equal(first[name], second[name])


def test_the_critic_is_among_them(ranks):
    first, _ = of(ranks, 'gradients')
    critic = [name for name in first['skd'] if '.critic.' in name]
    layers = [n for n in critic if '.conv' in n or n.endswith('last.weight')]
    assert len(layers) == 9
    assert all(first['skd'][name].any() for name in layers)


def test_two_processes_have_one_critic_that_of_a_single_process(ranks, tmp_path):
    found = of(ranks, 'critic')
    single = train_a_part(0, 1, str(tmp_path / 'one'))
    for kind in ('hinge', 'wgan-gp'):
        (start, ends, _), (_, others, _) = found[0][kind], found[1][kind]
        before, expected, student = single[kind]
        for name in expected:
            assert (start[name] == before[name]).all()
            assert (ends[name] == others[name]).all(), f'{kind}: {name} differs between processes'
            moved = ((expected[name] - before[name]) ** 2).sum() ** 0.5
            apart = ((ends[name] - expected[name]) ** 2).sum() ** 0.5
            assert apart <= 1e-2 * moved + 1e-6, f'{kind}: {name} {apart} of {moved}'
        for name, value in student.items():
            assert abs(found[0][kind][2][name] - value).max() < 1e-4, f'{kind}: {name}'


def test_a_term_that_is_off_does_not_stop_two_processes(ranks):
    for found in of(ranks, 'off'):
        assert all((grad == 0).all() for name, grad in found.items() if name.startswith('kd.'))


def test_the_comparison_can_fail():
    model = build('cwd')
    inputs, samples = toy.batch(model, methods.scenes('cwd'), BATCH)
    whole = added_gradient(model, model, inputs, samples)
    half = added_gradient(model, model, inputs[:2], samples[:2])
    name = 'backbone.layer4.0.conv1.weight'
    assert (whole[name] - half[name]).abs().max() > 1e-3 * whole[name].abs().max()


def test_no_weight_and_no_buffer_of_the_teacher_is_broadcast(ranks):
    (before, after, buffers), (other, other_after, other_buffers) = of(ranks, 'guest')
    assert_equal_states(before, after)
    assert_equal_states(other, other_after)
    weight = 'decode_head.conv_seg.weight'
    assert torch.equal(other_after[weight], after[weight] * 1.125)
    name = 'backbone.stem.1.running_mean'
    assert torch.equal(other_after[name], after[name] + 1)
    assert not torch.equal(buffers[name], other_buffers[name])  # of the second step itself


@pytest.mark.parametrize('method', ['cwd', 'ld'])
def test_only_the_gradients_of_what_is_trained_are_exchanged(ranks, method):
    found, _ = (found[method] for found in of(ranks, 'communication'))
    (plain, plain_size), (kd, size) = found['plain'], found['kd']
    assert {name for name, _ in kd} == {'gloo:all_reduce'}
    assert max(count for _, count in plain) == plain_size
    assert max(count for _, count in kd) == size
    small = [count for _, count in kd if count < size]
    assert all(count <= 32 for count in small)


def test_memory_of_a_process(ranks):
    for found in of(ranks, 'memory'):
        buckets = found['kd ddp'] - found['kd']
        assert buckets <= 1.05 * (found['plain ddp'] - found['plain']) + 2**16
        assert found['kd ddp'] <= 1.05 * found['floor']


def test_a_resumed_training_is_the_one_that_was_not_stopped(ranks):
    (resumed, whole, drawn, later), (other, _, others_drawn, others_later) = of(ranks, 'resume')
    assert_equal_states(resumed, whole)
    name = 'backbone.layer4.0.conv1.weight'
    assert torch.equal(resumed[name], other[name])
    assert torch.equal(drawn, later)
    assert torch.equal(others_drawn, others_later)
    assert not torch.equal(drawn, others_drawn)


def test_processes_stay_together_with_everything_switched_on(ranks):
    (before, after), (_, other) = of(ranks, 'all_at_once')
    for name, value in after.items():
        assert torch.equal(value, other[name]), name
        assert value.isfinite().all()
    for name in ('backbone.layer4.0.conv1.weight', 'kd.holistic.losses.0.critic.conv1.weight'):
        assert not torch.equal(before[name], after[name])


def test_sync_bn_on_cpus_fails_with_and_without_us_alike(ranks):
    for said in of(ranks, 'sync_bn'):
        for sync in ('torch', 'mmcv'):
            assert said[f'plain {sync}'] == said[f'kd {sync}'] != 'ran'


@pytest.mark.parametrize('method', fsdp.BOTH)
def test_fsdp_trains_as_ddp_does(ranks, method):
    for found in of(ranks, 'fsdp'):
        assert len(found[method]['parts'][2]) > 1
        fsdp.assert_same(found[method]['parts'], found[method]['ddp'])

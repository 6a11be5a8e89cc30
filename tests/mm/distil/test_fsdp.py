"""FSDP through mmengine's FlexibleRunner, in two processes on CPUs.

Where it fails, the bare student must fail in the same way.
"""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner.checkpoint import CheckpointLoader, load_from_local

from tests.mm import methods
from tests.mm.fsdp import BOTH, UNITS, assert_same, compared, outcome, ready, train, with_ddp
from tests.mm.hooks.test_critic import HOOK
from tests.mm.processes import in_two_processes

pytestmark = pytest.mark.long
CROSSED = ('parts', 'blocks', 'terms')
CRITIC = 'kd.holistic.losses.0.critic'


class KeepCritic(Hook):
    """Copies the critic's weights at the end."""

    found = None

    def after_train(self, runner):
        model = runner.model.module
        self.found = {n: v.clone() for n, v in model.get_submodule(CRITIC).state_dict().items()}


def crossed():
    """RetinaNet: FSDP refuses the scalars in heads as GFL's, with us or without."""
    config = methods.distilled('fgd')
    loss = dict(type='CrossKDLoss')
    config.terms.crosskd = dict(tap='bbox_head', cross_at=1, loss=loss)
    return config


def everything(rank, folder):
    found = compared(rank, folder, UNITS)
    checkpointed = dict(
        activation_checkpointing=dict(check_fn=lambda m: type(m).__name__ == 'ResLayer')
    )
    fsdp = dict(type='FSDPStrategy', model_wrapper=dict(
        type='MMFullyShardedDataParallel', device_id=torch.device('cpu')))  # fmt: skip
    found['cwd']['checkpointing'] = outcome(
        train, methods.distilled('cwd'), 'cwd', f'{folder}/checkpointing',
        strategy={**fsdp, **checkpointed})  # fmt: skip

    config = methods.distilled('cwd')
    for term in config.terms.values():
        term.share = 0.5
    found['shares'] = {
        'ddp': outcome(with_ddp, ready(config), 'cwd', f'{folder}/shares-ddp'),
        'fsdp': outcome(
            train, ready(config), 'cwd', f'{folder}/shares-fsdp', units=UNITS['parts']),
    }  # fmt: skip
    config = crossed()
    found['crossed'] = {
        'ddp': outcome(with_ddp, ready(config), 'fgd', f'{folder}/crossed-ddp'),
        **{
            name: outcome(
                train, ready(config), 'fgd', f'{folder}/crossed-{name}', units=UNITS[name])
            for name in CROSSED
        },
    }  # fmt: skip
    config = methods.distilled('skd')
    for name, run, others in (
        ('ddp', with_ddp, {}),
        ('whole', train, dict(wrapper=dict(ignored_modules=[CRITIC]))),
        ('sharded', train, {}),
    ):
        keep = KeepCritic()
        said = outcome(
            run, config, 'skd', f'{folder}/skd-{name}', custom_hooks=[HOOK, keep], **others
        )
        found[f'critic {name}'] = (said, keep.found)

    for kind, config in (('bare', methods.distilled('cwd').student),
                         ('kd', methods.distilled('cwd'))):  # fmt: skip
        work_dir = f'{folder}/{kind}'
        found[kind] = {
            'head': outcome(train, config, 'cwd', f'{work_dir}-head', units=('FCNHead',)),
            'first': outcome(train, config, 'cwd', f'{work_dir}-resumed'),
            'read': outcome(
                train, config, 'cwd', f'{work_dir}-read',
                load_from=f'{folder}/bare-resumed/iter_3.pth'),
            'skip_init_weights': outcome(
                train, config, 'cwd', f'{work_dir}-skip',
                strategy={**fsdp, 'skip_init_weights': True}),
            'ema': outcome(
                train, config, 'cwd', f'{work_dir}-ema', custom_hooks=[dict(type='EMAHook')]),
            'bf16': outcome(
                train, config, 'cwd', f'{work_dir}-bf16', wrapper=dict(mixed_precision=dict(
                    param_dtype='bfloat16', reduce_dtype='float32'))),
        }  # fmt: skip
    # As mmengine reads checkpoints without us.
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    for kind, config in (('bare', methods.distilled('cwd').student),
                         ('kd', methods.distilled('cwd'))):  # fmt: skip
        work_dir = f'{folder}/{kind}'
        found[kind]['resume'] = outcome(
            train, config, 'cwd', f'{work_dir}-resumed', resume=True, max_iters=5
        )
        found[kind]['load_from'] = outcome(
            train, config, 'cwd', f'{work_dir}-loaded',
            load_from=f'{work_dir}-resumed/iter_3.pth')  # fmt: skip
    return found


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    return in_two_processes(everything, str(tmp_path_factory.mktemp('fsdp')))


@pytest.mark.parametrize('method', BOTH)
@pytest.mark.parametrize('units', UNITS)
def test_trains_as_ddp_does(ranks, method, units):
    for found in ranks:
        assert_same(found[method][units], found[method]['ddp'])
        assert (len(found[method][units][2]) > 1) == (units != 'whole')


def test_with_activation_checkpointing(ranks):
    for found in ranks:
        values, weights, units = found['cwd']['checkpointing']
        weights = {n.replace('_checkpoint_wrapped_module.', ''): p for n, p in weights.items()}
        assert_same((values, weights, units), found['cwd']['ddp'])


def test_shares_are_measured_as_with_ddp(ranks):
    for found in ranks:
        assert_same(found['shares']['fsdp'], found['shares']['ddp'])


@pytest.mark.parametrize('units', CROSSED)
def test_crosskd_trains_as_with_ddp(ranks, units):
    for found in ranks:
        assert_same(found['crossed'][units], found['crossed']['ddp'])


def test_a_critic_that_is_left_whole_trains_as_with_ddp(ranks):
    for found in ranks:
        (whole, critic), (ddp, expected) = found['critic whole'], found['critic ddp']
        assert_same(whole, ddp, tolerance=1e-3)
        for name, value in expected.items():
            assert torch.allclose(critic[name], value, rtol=1e-3, atol=1e-5), name
    first, second = (found['critic whole'][1] for found in ranks)
    assert all(torch.equal(first[name], second[name]) for name in first if 'norm' not in name)


def test_a_critic_that_is_sharded_is_an_error(ranks):
    for found in ranks:
        said, _ = found['critic sharded']
        assert said == (
            'ValueError: FSDP shards the critic of kd.holistic.losses.0, which is trained '
            'outside of its forward pass: leave it whole, as '
            f"model_wrapper=dict(ignored_modules=['{CRITIC}'])"
        )


@pytest.mark.parametrize('what', ['load_from', 'ema', 'bf16'])
def test_works_as_without_us(ranks, what):
    for found in ranks:
        for kind in ('bare', 'kd'):
            assert not isinstance(found[kind][what], str), found[kind][what]


@pytest.mark.parametrize('what', ['head', 'resume', 'read'])
def test_fails_as_without_us(ranks, what):
    for found in ranks:
        assert isinstance(found['bare'][what], str)
        assert found['bare'][what] == found['kd'][what]


def test_what_a_sharded_checkpoint_names_is_not_trusted(ranks):
    for found in ranks:
        assert 'refused: loading it would run' in found['kd']['read']
        assert 'ShardedTensor' in found['kd']['read']


def test_a_teacher_without_memory_is_an_error(ranks):
    for found in ranks:
        assert not isinstance(found['bare']['skip_init_weights'], str)
        assert 'skip_init_weights=True: leave that out' in found['kd']['skip_init_weights']

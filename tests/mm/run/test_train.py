"""What a training adds to a config, however the config spells its types."""

import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn

from kd_dense.mm import CriticHook, RandomStateHook
from kd_dense.mm.configs import RequestError
from kd_dense.mm.run.processes import _distribute_on_cpu
from kd_dense.mm.run.train import add_hooks, fix_views, use_mixed_precision, use_safe_checkpoints


class Derived(CriticHook):
    pass


class Saving(CheckpointHook):
    pass


def config(**fields):
    made = Config()
    for name, value in fields.items():  # which Config(dict(...)) would deepcopy by their names
        made[name] = value
    return made


@pytest.mark.parametrize(
    'kind',
    ['kd_dense.CriticHook', 'kd_dense.mm.CriticHook', 'kd_dense.mm.hooks.critic.CriticHook',
     CriticHook, Derived, f'{__name__}.Derived'],
)  # fmt: skip
def test_a_critic_gets_one_hook(kind):
    own, average = dict(type=kind, power=0), dict(type='kd_dense.AverageHook')
    made = config(custom_hooks=[own, dict(type=RandomStateHook)])
    add_hooks(made)
    assert made.custom_hooks == [own, dict(type=RandomStateHook), average]
    made = config(custom_hooks=[own])
    add_hooks(made)
    assert made.custom_hooks == [own, dict(type='kd_dense.RandomStateHook'), average]


@pytest.mark.parametrize(
    'kind',
    ['CheckpointHook', 'mmengine.CheckpointHook', 'mmengine.hooks.CheckpointHook',
     'mmengine.hooks.checkpoint_hook.CheckpointHook', CheckpointHook],
)  # fmt: skip
def test_our_checkpoints_take_the_place_of_mmengines(kind):
    made = config(default_hooks=dict(checkpoint=dict(type=kind, interval=3)))
    use_safe_checkpoints(made)
    ours = dict(type='kd_dense.SafeCheckpointHook', interval=3)
    assert made.default_hooks.checkpoint == ours


def test_checkpoints_of_another_hook_stay_its_own():
    made = config(default_hooks=dict(checkpoint=dict(type=Saving)))
    use_safe_checkpoints(made)
    assert made.default_hooks.checkpoint.type is Saving


@pytest.mark.parametrize(
    'kind',
    ['OptimWrapper', 'mmengine.optim.OptimWrapper', OptimWrapper, AmpOptimWrapper,
     'mmengine.optim.optimizer.amp_optimizer_wrapper.AmpOptimWrapper'],
)  # fmt: skip
def test_mixed_precision(kind):
    made = config(optim_wrapper=dict(type=kind))
    use_mixed_precision(made)
    assert made.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic')


def test_mixed_precision_of_a_wrapper_of_another_kind():
    class Mine(OptimWrapper):
        pass

    with pytest.raises(RequestError, match='works with the OptimWrapper, the config has Mine'):
        use_mixed_precision(config(optim_wrapper=dict(type=Mine)))


@pytest.mark.parametrize('kind', ['SyncBN', 'torch.nn.SyncBatchNorm', nn.SyncBatchNorm])
def test_synchronised_statistics_on_cpus(kind, monkeypatch):
    monkeypatch.setattr('torch.distributed.init_process_group', lambda backend: None)
    made = config(model=dict(backbone=[dict(norm_cfg=dict(type=kind, eps=0.1))]))
    made.model_wrapper_cfg = dict(type='Mine', broadcast_buffers=True)
    _distribute_on_cpu(made)
    assert made.model.backbone[0].norm_cfg == dict(type='BN', eps=0.1)
    assert made.model_wrapper_cfg == dict(
        type='Mine', device_ids=None, broadcast_buffers=True, find_unused_parameters=False
    )


class TestFixedViews:
    """The training set of a recipe that keeps its teacher's maps."""

    def recipe(self, dataset, **teacher):
        model = dict(
            type='kd_dense.Distilled', student=dict(), teacher=dict(config='x', **teacher)
        )
        return Config(dict(model=model, train_dataloader=dict(batch_size=2, dataset=dataset)))

    def test_is_wrapped_once(self):
        dataset = dict(type='CocoDataset')
        config = self.recipe(dataset, cache=dict(views=5, folder='maps'))
        for _ in range(2):
            fix_views(config)
        fixed = dict(type='kd_dense.FixedViews', views=5, dataset=dataset)
        assert config.train_dataloader.to_dict() == dict(batch_size=2, dataset=fixed)

    def test_is_left_alone_without_a_cache(self):
        config = self.recipe(dict(type='CocoDataset'))
        before = config.to_dict()
        fix_views(config)
        assert config.to_dict() == before

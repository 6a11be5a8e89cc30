from kd_dense.mm.mmrazor.note import Notes
from kd_dense.mm.mmrazor.settings import kept_settings
from kd_dense.mm.presets.spelling import spelt

BASE = dict(default_scope='mmdet', val_cfg=dict(type='ValLoop'), custom_hooks=[dict(type='A')],
            param_scheduler=[1], default_hooks=dict(visualization=dict(type='V')))  # fmt: skip


def kept(base=BASE, **config):
    notes = Notes()
    found, stop = kept_settings(config, base, notes)
    return found, stop, '\n'.join(notes.lines())


def test_what_is_not_said_is_not_taken_from_the_base():
    found, stop, said = kept()
    assert found == dict(custom_hooks=[], param_scheduler=None)
    assert stop is None
    assert not said


def test_hooks():
    hooks = [
        dict(type='mmrazor.StopDistillHook', stop_epoch=280),
        dict(type='mmrazor.EstimateResourcesHook'),
        dict(type='EMAHook'),
    ]
    found, stop, said = kept(custom_hooks=hooks)
    assert found['custom_hooks'] == [dict(type='EMAHook')]
    assert stop == 280
    assert 'custom_hooks: left out: there is nothing like EstimateResourcesHook here' in said
    assert kept(custom_hooks=[dict(type='DistillationLossDetachHook', detach_epoch=9)])[1] == 9


def test_parts_of_mmrazor():
    found, _, said = kept(
        default_scope='mmrazor',
        val_cfg=dict(type='mmrazor.SelfDistillValLoop'),
        default_hooks=dict(visualization=dict(type='mmrazor.X'), timer=dict(type='T')),
        optim_wrapper=dict(constructor='mmrazor.SeparateOptimWrapperConstructor'),
        train_cfg=[dict(type='mmrazor.Loop')],
    )
    assert found['default_scope'] == 'mmdet'
    assert found['val_cfg'] == dict(type='ValLoop')
    assert found['default_hooks'] == dict(timer=dict(type='T'), visualization=dict(type='V'))
    assert 'optim_wrapper' not in found
    assert 'train_cfg' not in found
    assert said.startswith('Not the same:\n')
    assert 'val_cfg: left out: there is nothing like SelfDistillValLoop' in said
    assert 'optim_wrapper.constructor: left out: mmrazor.SeparateOptim' in said


def test_a_text_is_what_it_says():
    values = [
        dict(a=[1, (2,), dict(b=None)], c='x' * 80, d={'not a name': 1}, e=()),
        [dict(type='A', x=0.1)] * 9,
        ('only ' * 30,),
        2e-5,
        {},
    ]
    for value in values:
        text = spelt(value)
        assert eval(text) == value
        assert all(len(line) < 100 for line in text.splitlines()) or 'only' in text

"""The promises of a distilled training, each with the number it has in the design."""

import copy
import pickle
from functools import partial

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner.checkpoint import get_state_dict
from torch import nn

import kd_dense.mm.distil.distilled as distilled_module
from tests.mm import toy


def train(config, work_dir, **others):
    runner = toy.runner(config, work_dir, **others)
    runner.train()
    return runner


def student_state(model):
    return {k: v for k, v in model.state_dict().items() if not k.startswith('kd.')}


def assert_equal_states(a, b):
    assert a.keys() == b.keys()
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different


def detector_data(**others):
    return dict(
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=True),
            dataset=toy.DetScenes(**others),
        )
    )


class TestPromise1WeightZeroIsPlainTraining:
    @pytest.mark.parametrize('scheduled', [False, True])
    def test_segmenter_bit_for_bit(self, tmp_path, scheduled):
        terms = toy.logits_term(weight=0.0)
        terms['features'] = dict(tap='backbone.layer4', loss=dict(type='CWDLoss', weight=0.0))
        if scheduled:
            for term in terms.values():
                term['loss']['weight'] = 1.0
                term['schedule'] = dict(stop=0)
        plain = train(toy.segmenter(), tmp_path / 'plain').model
        distilled = train(toy.distilled(terms=terms), tmp_path / 'distilled').model
        assert len(distilled.kd.features.adapters) == 1
        assert_equal_states(plain.state_dict(), student_state(distilled))

    def test_detector_bit_for_bit(self, tmp_path):
        config = toy.distilled_detector(
            terms=dict(fpn=dict(tap='neck', loss=dict(type='CWDLoss', weight=0.0)))
        )
        plain = train(toy.detector(), tmp_path / 'plain', **detector_data()).model
        distilled = train(config, tmp_path / 'distilled', **detector_data()).model
        assert_equal_states(plain.state_dict(), student_state(distilled))

    def test_an_init_cfg_of_the_whole_student_passes_over_adapters(self, tmp_path):
        init = dict(init_cfg=dict(type='Normal', layer='Conv2d', std=0.1))
        terms = dict(a=dict(tap='backbone.layer4', loss=dict(type='CWDLoss', weight=0.0)))
        config = toy.distilled(student=toy.segmenter(**init), terms=terms)
        plain = train(toy.segmenter(**init), tmp_path / 'plain').model
        distilled = train(config, tmp_path / 'distilled').model
        assert_equal_states(plain.state_dict(), student_state(distilled))

    def test_another_weight_is_another_training(self, tmp_path):
        plain = train(toy.segmenter(), tmp_path / 'plain').model
        distilled = train(toy.distilled(), tmp_path / 'distilled').model
        assert not torch.equal(
            plain.decode_head.conv_seg.weight, distilled.decode_head.conv_seg.weight
        )

    def test_the_teacher_does_not_run(self):
        model = toy.build(toy.distilled(terms=toy.logits_term(weight=0.0)))
        model.kd_plan.teacher.model.forward = pytest.fail
        model.kd_plan.teacher.model.extract_feat = pytest.fail
        assert toy.losses(model)['loss_kd_logits'] == 0


class TestPromise2NamesAreTheStudents:
    def test_parameters_and_buffers(self):
        config = toy.distilled(
            terms=dict(features=dict(tap='backbone.layer4', loss=toy.CWD), **toy.logits_term())
        )
        plain, distilled = toy.build(toy.segmenter()), toy.build(config)
        for kind in ('named_parameters', 'named_buffers', 'named_modules'):
            ours = [n for n, _ in getattr(distilled, kind)() if not f'{n}.'.startswith('kd.')]
            assert ours == [n for n, _ in getattr(plain, kind)()]
        added = [n for n, _ in distilled.named_parameters() if n.startswith('kd.')]
        assert added == [f'kd.features.adapters.0.conv.{x}' for x in ('weight', 'bias')]

    def test_is_an_instance_of_its_class(self):
        plain, distilled = toy.build(toy.segmenter()), toy.build(toy.distilled())
        assert isinstance(distilled, type(plain))

    def test_layer_wise_learning_rates_have_the_same_groups(self):
        from mmseg.engine.optimizers import LearningRateDecayOptimizerConstructor  # noqa: F401

        def groups(config):
            config = copy.deepcopy(config)
            student = config.get('student', config)
            student.backbone = dict(
                type='BEiT', img_size=32, patch_size=16, embed_dims=16, num_layers=4,
                num_heads=2, mlp_ratio=2, out_indices=(3,), qv_bias=True, attn_drop_rate=0.0,
                drop_path_rate=0.0, norm_cfg=dict(type='LN'), init_values=0.1,
            )  # fmt: skip
            student.decode_head.in_channels = 16
            model = toy.build(config)
            constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(
                dict(
                    type='mmseg.LayerDecayOptimizerConstructor',
                    optim_wrapper_cfg=dict(optimizer=dict(type='AdamW', lr=1.0)),
                    paramwise_cfg=dict(num_layers=4, layer_decay_rate=0.5, decay_rate=0.5),
                )
            )
            names = {id(p): n for n, p in model.named_parameters()}
            return {
                names[id(p)]: (group['lr'], group['weight_decay'])
                for group in constructor(model).optimizer.param_groups
                for p in group['params']
                if not names[id(p)].startswith('kd.')
            }

        terms = dict(features=dict(tap='backbone', loss=toy.CWD))
        teacher = toy.segmenter(16)
        teacher.backbone.strides = (1, 2, 2, 2)
        terms['features']['tap'] = dict(student='backbone', teacher='backbone[3]')
        expected = groups(toy.segmenter())
        assert len(set(expected.values())) > 3
        config = toy.distilled(teacher=dict(config=teacher, checkpoint=None), terms=terms)
        assert groups(config) == expected


class TestPromise3CheckpointsAreTheStudents:
    def test_a_checkpoint_loads_strictly_into_the_bare_student(self, tmp_path):
        config = toy.distilled(terms=dict(features=dict(tap='backbone.layer4', loss=toy.CWD)))
        model = train(config, tmp_path).model
        state = torch.load(tmp_path / 'iter_4.pth', weights_only=False)['state_dict']
        assert any(key.startswith('kd.') for key in state)
        bare = toy.build(toy.segmenter(), seed=1)
        bare.load_state_dict({k: v for k, v in state.items() if not k.startswith('kd.')})
        assert_equal_states(bare.state_dict(), student_state(model))

    def test_a_bare_students_checkpoint_can_be_loaded(self, tmp_path):
        bare = toy.build(toy.segmenter(), seed=1)
        torch.save({'state_dict': bare.state_dict()}, tmp_path / 'bare.pth')
        runner = toy.runner(toy.distilled(), tmp_path, load_from=str(tmp_path / 'bare.pth'))
        runner.load_or_resume()
        assert_equal_states(bare.state_dict(), student_state(runner.model))


class TestPromise4TheTeacherIsAGuest:
    @pytest.fixture
    def teacher(self):
        torch.manual_seed(3)
        return toy.build(toy.segmenter(16, dropout=0.5))

    def test_it_is_unchanged_and_in_eval_mode_after_training(self, teacher, tmp_path):
        before = copy.deepcopy(teacher.state_dict())
        model = train(toy.build(toy.distilled(teacher=teacher)), tmp_path).model
        assert model.training
        assert not any(m.training for m in teacher.modules())
        assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
        assert_equal_states(before, teacher.state_dict())

    def test_its_dropout_is_off(self, teacher):
        model = toy.build(toy.distilled(teacher=teacher, student=toy.segmenter(dropout=0.0)))
        teacher.train()
        values = [toy.losses(model)['loss_kd_logits'] for _ in range(2)]
        assert torch.equal(*values)

    def test_it_is_nobodys_child(self, teacher, tmp_path):
        runner = toy.runner(toy.build(toy.distilled(teacher=teacher)), tmp_path)
        runner.train()
        model = runner.model
        guests = {id(x) for x in (*teacher.parameters(), *teacher.buffers(), *teacher.modules())}
        ours = (*model.parameters(), *model.buffers(), *model.modules())
        assert not guests & {id(x) for x in ours}
        in_optimizer = {
            id(p) for g in runner.optim_wrapper.param_groups for p in g['params']
        }  # fmt: skip
        assert not guests & in_optimizer
        expected = toy.build(toy.segmenter()).state_dict().keys()
        checkpoint = torch.load(tmp_path / 'iter_4.pth', weights_only=False)
        assert checkpoint['state_dict'].keys() == expected
        assert get_state_dict(model).keys() == expected

    def test_copies_share_it_and_pickles_leave_it_out(self, teacher):
        model = toy.build(toy.distilled(teacher=teacher))
        copied = copy.deepcopy(model)
        assert copied.kd_plan.teacher.model is teacher
        assert copied.kd_plan.student_taps is not model.kd_plan.student_taps
        assert_equal_states(copied.state_dict(), model.state_dict())
        pickled = pickle.dumps(model)
        assert len(pickled) < len(pickle.dumps(teacher))
        back = pickle.loads(pickled)
        assert type(back) is type(model)
        inputs, samples = toy.batch(model)
        model.eval()
        a, b = (m.eval()(inputs, samples, mode='tensor') for m in (model, back))
        assert torch.equal(a, b)
        with pytest.raises(RuntimeError, match='unpickled, which leaves its teacher behind'):
            toy.losses(back)

    def test_a_training_copy_distils_by_itself(self, teacher):
        model = toy.build(toy.distilled(teacher=teacher, student=toy.segmenter(dropout=0.0)))
        copied = copy.deepcopy(model)
        a, b = toy.losses(model), toy.losses(copied)
        assert torch.equal(a['loss_kd_logits'], b['loss_kd_logits'])
        b['loss_kd_logits'].backward()
        assert copied.decode_head.conv_seg.weight.grad is not None
        assert model.decode_head.conv_seg.weight.grad is None


class TestPromise5LogsAndValidationAreTheStudents:
    def test_log_keys(self):
        plain, distilled = (
            toy.losses(toy.build(toy.segmenter())),
            toy.losses(toy.build(toy.distilled())),
        )
        assert list(distilled) == [*plain, 'loss_kd_logits']

    def test_the_weighted_value_is_logged(self):
        one, three = (
            toy.losses(
                toy.build(
                    toy.distilled(
                        student=toy.segmenter(dropout=0.0), terms=toy.logits_term(weight=w)
                    )
                )
            )['loss_kd_logits']
            for w in (1.0, 3.0)
        )
        assert torch.allclose(3 * one, three)

    def test_validation_runs_the_student_alone(self):
        model = toy.build(toy.distilled())
        model.kd_plan.teacher.model.forward = pytest.fail
        model.kd_plan.teacher.model.extract_feat = pytest.fail
        plain = toy.build(toy.segmenter())
        plain.load_state_dict(student_state(model))
        inputs, samples = toy.batch(model)
        for mode in ('tensor', 'predict'):
            a, b = (m.eval()(inputs, samples, mode=mode) for m in (model, plain))
            if mode == 'predict':
                a, b = (torch.stack([x.seg_logits.data for x in y]) for y in (a, b))
            assert torch.equal(a, b)


class Interrupt(Hook):
    """Stops a training as a power cut would."""

    def __init__(self, after):
        self.after = after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after:
            raise KeyboardInterrupt('power cut')


HOOKS.register_module(module=Interrupt, force=True)


class TestPromise8ResumeEqualsNotHavingStopped:
    RANDOM = dict(type='kd_dense.RandomStateHook')

    def run(self, config, folder, stop_after, **others):
        stopped = dict(
            others, custom_hooks=[self.RANDOM, dict(type='Interrupt', after=stop_after)]
        )
        with pytest.raises(KeyboardInterrupt, match='power cut'):
            train(config, folder / 'stopped', **stopped)
        others['custom_hooks'] = [self.RANDOM]
        resumed = train(config, folder / 'stopped', resume=True, **others)
        whole = train(config, folder / 'whole', **others)
        return resumed, whole

    @pytest.fixture
    def config(self):
        terms = dict(
            features=dict(
                tap='backbone.layer4',
                loss=toy.CWD,
                schedule=dict(warmup=2, decay='cosine'),
            ),
            memory=dict(
                tap='backbone.layer4',
                loss=dict(type='MemoryLoss', pixel_memory=24, region_memory=4, pixel_contrast=24),
            ),
            **toy.logits_term(),
        )
        return toy.distilled(terms=terms, inherit=['backbone.stem'], student=toy.segmenter(16))

    @pytest.fixture
    def config_small(self, config):
        config.pop('inherit')
        config.student = toy.segmenter()
        return config

    @pytest.mark.parametrize('sampler', ['InfiniteSampler', 'DefaultSampler'])
    def test_by_iteration_with_dropout_and_augmentation(self, config_small, tmp_path, sampler):
        loader = dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type=sampler, shuffle=True),
            dataset=toy.SegScenes(length=16),
        )
        resumed, whole = self.run(
            config_small, tmp_path, stop_after=5, max_iters=7, train_dataloader=loader
        )
        assert resumed.iter == whole.iter == 7
        assert_equal_states(resumed.model.state_dict(), whole.model.state_dict())

    def test_by_epoch_with_validation(self, config_small, tmp_path):
        by_epoch = dict(
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=True),
                dataset=toy.SegScenes(),
            ),
            train_cfg=dict(by_epoch=True, max_epochs=4, val_interval=1),
            val_dataloader=dict(
                batch_size=2,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=toy.SegScenes(length=2),
            ),
            val_cfg=dict(),
            val_evaluator=dict(type='mmseg.IoUMetric'),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        )
        resumed, whole = self.run(config_small, tmp_path, stop_after=10, **by_epoch)
        assert resumed.epoch == whole.epoch == 4
        assert_equal_states(resumed.model.state_dict(), whole.model.state_dict())

    def test_inheriting_does_not_undo_what_was_resumed(self, config, tmp_path):
        resumed, whole = self.run(config, tmp_path, stop_after=3)
        assert_equal_states(resumed.model.state_dict(), whole.model.state_dict())

    def test_without_the_hook_it_would_not(self, config_small, tmp_path):
        self.RANDOM = dict(type='EmptyCacheHook')
        resumed, whole = self.run(config_small, tmp_path, stop_after=3)
        a, b = resumed.model.state_dict(), whole.model.state_dict()
        assert not all(torch.equal(a[key], b[key]) for key in a)


def grad_of_terms(model, inputs, samples, context=None):
    """The gradient that distillation adds, by parameter."""
    model.zero_grad()
    losses = model(inputs, samples, mode='loss')
    sum(v for k, v in losses.items() if k.startswith('loss_kd')).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


class TestPromise10OtherFeaturesDoNotChangeWhatIsDistilled:
    @pytest.fixture
    def model(self):
        terms = dict(features=dict(tap='backbone.layer4', loss=toy.CWD), **toy.logits_term())
        return toy.build(toy.distilled(student=toy.segmenter(dropout=0.0), terms=terms)).train()

    @pytest.fixture
    def expected(self, model):
        return grad_of_terms(copy.deepcopy(model), *toy.batch(model))

    def assert_close(self, grads, expected, rtol=1e-4, atol=1e-9):
        assert grads.keys() == expected.keys()
        for name in expected:
            scale = expected[name].abs().max()
            assert (grads[name] - expected[name]).abs().max() <= rtol * scale + atol, name

    def test_activation_checkpointing(self, model, expected):
        from mmengine.runner import turn_on_activation_checkpointing

        turn_on_activation_checkpointing(model, ['backbone.layer3', 'backbone.layer4'])
        self.assert_close(grad_of_terms(model, *toy.batch(model)), expected)

    def test_sync_bn_conversion(self, model, expected):
        from mmengine.model import convert_sync_batchnorm

        converted = convert_sync_batchnorm(model)
        assert converted is model
        assert any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
        self.assert_close(grad_of_terms(model, *toy.batch(model)), expected)

    def test_autocast(self, model, expected):
        with torch.autocast('cpu', torch.bfloat16):
            losses = model(*toy.batch(model), mode='loss')
        kd = {k: v for k, v in losses.items() if k.startswith('loss_kd')}
        exact = model(*toy.batch(model), mode='loss')
        for name, value in kd.items():
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(exact[name].item(), rel=0.1)
        sum(kd.values()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

    @pytest.mark.parametrize(
        'backend', [pytest.param('eager', marks=pytest.mark.long), 'aot_eager']
    )
    def test_compile(self, model, expected, backend):
        torch._dynamo.reset()
        compiled = torch.compile(model, backend=backend)
        for _ in range(2):
            model.zero_grad()
            losses = compiled(*toy.batch(model), mode='loss')
            sum(v for k, v in losses.items() if k.startswith('loss_kd')).backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        self.assert_close(grads, expected)

    def test_compiled_losses(self, model, expected, monkeypatch):
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=backend))
        torch._dynamo.reset()
        for term in model.kd.values():
            term.compile_losses()
        copied = copy.deepcopy(model)
        pickle.dumps(copied.kd)
        # The bias of logits has no gradient of CWD but by rounding.
        self.assert_close(grad_of_terms(model, *toy.batch(model)), expected, atol=1e-6)
        assert len(graphs) == 2  # a map of each term
        self.assert_close(grad_of_terms(copied, *toy.batch(model)), expected)
        built = toy.build(toy.distilled(compile_losses=True))
        assert all(term.compiled for term in built.kd.values())

    @pytest.mark.long
    def test_compile_in_the_runner(self, tmp_path):
        torch._dynamo.reset()
        plain, compiled = (
            train(toy.distilled(), tmp_path / name, cfg=dict(compile=options)).model
            for name, options in (('plain', False), ('compiled', dict(backend='eager')))
        )
        for key, value in plain.state_dict().items():
            assert torch.allclose(value, compiled.state_dict()[key], atol=1e-5), key

    def test_gradient_accumulation(self, model, tmp_path):
        """Two accumulated half batches give the gradient of the whole (no batch norm)."""
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()
        model.train = lambda mode=True: model
        runner = toy.runner(
            model, tmp_path, max_iters=2,
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=2),
            param_scheduler=None, train_dataloader=dict(
                batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=toy.SegScenes(length=4, augment=False)),
        )  # fmt: skip
        weight = model.kd.features.adapters[0].conv.weight
        before = weight.detach().clone()
        inputs, samples = toy.batch(model, count=4)
        expected = grad_of_terms(copy.deepcopy(model), inputs, samples)
        model.init_weights = lambda: None
        runner.train()
        step = (before - weight.detach()) / 0.1
        key = 'kd.features.adapters.0.conv.weight'
        assert torch.allclose(step, expected[key], rtol=1e-3, atol=1e-6)

    def test_ema(self, tmp_path):
        runner = train(toy.distilled(), tmp_path, custom_hooks=[dict(type='EMAHook')])
        ema = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook').ema_model.module
        assert ema.kd_plan.teacher is runner.model.kd_plan.teacher
        assert ema.state_dict().keys() == runner.model.state_dict().keys()
        assert not torch.equal(
            ema.decode_head.conv_seg.weight, runner.model.decode_head.conv_seg.weight
        )
        without = train(toy.distilled(), tmp_path / 'without').model
        assert_equal_states(without.state_dict(), runner.model.state_dict())


def test_the_class_of_a_distilled_student_is_made_once():
    a, b = toy.build(toy.distilled()), toy.build(toy.distilled())
    assert type(a) is type(b) is distilled_module.distilled(type(a).__mro__[2])

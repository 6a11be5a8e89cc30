"""Teacher, inheritance, schedules and mixed precision in a training of mmengine's Runner."""

import copy
import json
import math

import pytest
import torch
from mmengine.optim.optimizer import amp_optimizer_wrapper

from kd_dense.mm.teachers.guest import Teacher
from tests.mm import methods, toy


def scalars(work_dir):
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in log.read_text().splitlines()]


def save_teacher(path, config, seed=5, **others):
    model = toy.build(config, seed)
    torch.save({'state_dict': model.state_dict(), **others}, path)
    return model.state_dict()


class TestTeacher:
    def test_is_loaded_when_training_starts_and_not_before(self, tmp_path):
        path = tmp_path / 'teacher.pth'
        state = save_teacher(path, toy.segmenter(16))
        config = toy.distilled(teacher=dict(config=toy.segmenter(16), checkpoint=str(path)))
        model = toy.build(config)
        teacher = model.kd_plan.teacher.model
        key = 'decode_head.conv_seg.weight'
        assert not torch.equal(teacher.state_dict()[key], state[key])
        model.init_weights()
        assert all(torch.equal(v, state[k]) for k, v in teacher.state_dict().items())

    def test_testing_a_student_needs_no_teacher_weights(self, tmp_path):
        config = toy.distilled(teacher=dict(config=toy.segmenter(16), checkpoint='nowhere.pth'))
        model = toy.build(config).eval()
        assert len(model(*toy.batch(model), mode='predict')) == 2

    def test_training_without_the_runner_loads_it_too(self, tmp_path):
        path = tmp_path / 'teacher.pth'
        state = save_teacher(path, toy.segmenter(16))
        config = toy.distilled(teacher=dict(config=toy.segmenter(16), checkpoint=str(path)))
        model = toy.build(config)
        toy.losses(model)
        teacher = model.kd_plan.teacher.model
        assert all(torch.equal(v, state[k]) for k, v in teacher.state_dict().items())

    def test_comes_from_a_config_file(self, tmp_path):
        (tmp_path / 'teacher.py').write_text(
            f"default_scope = 'mmseg'\nmodel = {toy.segmenter(16).to_dict()!r}\n"
        )
        save_teacher(tmp_path / 'teacher.pth', toy.segmenter(16))
        teacher = Teacher(
            dict(config=str(tmp_path / 'teacher.py'), checkpoint=str(tmp_path / 'teacher.pth'))
        )
        teacher.load()
        assert teacher.model.backbone.base_channels == 16

    @pytest.mark.parametrize(
        'name',
        [
            'mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
            'mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        ],
    )
    def test_a_name_brings_its_published_weights(self, name):
        teacher = Teacher(name)
        assert teacher.checkpoint.startswith('https://')
        assert teacher.checkpoint.endswith('.pth')

    def test_may_have_been_a_distilled_student(self, tmp_path):
        runner = toy.runner(toy.distilled(student=toy.segmenter(16)), tmp_path)
        runner.train()
        config = toy.distilled(student=toy.segmenter(16))
        teacher = Teacher(dict(config=config, checkpoint=str(tmp_path / 'iter_4.pth')))
        teacher.load()
        assert not hasattr(teacher.model, 'kd')
        expected = runner.model.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in teacher.model.state_dict().items())

    def test_an_untrained_one_warns_and_is_the_same_every_time(self, log):
        a, b = (Teacher(dict(config=toy.segmenter(), checkpoint=None)) for _ in range(2))
        assert 'untrained (checkpoint=None)' in log()
        pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
        assert all(torch.equal(x, y) for x, y in pairs)

    @pytest.mark.parametrize('tap', ['backbone.layer2', 'decode_head.conv_seg'])
    def test_runs_no_further_than_to_its_last_tap(self, tap):
        model = toy.build(toy.distilled(terms=dict(a=dict(tap=tap, loss=toy.CWD))))
        teacher = model.kd_plan.teacher.model
        ran = []
        for name in ('backbone.layer2', 'backbone.layer3', 'decode_head.conv_seg'):
            teacher.get_submodule(name).register_forward_pre_hook(
                lambda *_, name=name: ran.append(name)
            )
        toy.losses(model)
        expected = ['backbone.layer2']
        if tap.startswith('decode_head'):
            expected += ['backbone.layer3', 'decode_head.conv_seg']
        assert ran == expected

    def test_gets_its_own_preprocessing(self):
        teacher = toy.segmenter(16)
        teacher.data_preprocessor.update(mean=[0.0] * 3, std=[1.0] * 3, bgr_to_rgb=False)
        model = toy.build(toy.distilled(teacher=dict(config=teacher, checkpoint=None)))
        guest, seen = model.kd_plan.teacher.model, []
        guest.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        toy.losses(model)
        expected, _ = toy.batch(guest)
        assert (seen[0] - expected).abs().max() < 1e-4


class TestInherit:
    def test_copies_what_fits_and_reports_what_does_not(self, log):
        config = toy.distilled_detector(inherit=['neck', 'bbox_head.retina_reg'])
        config.student.neck.out_channels = config.student.bbox_head.in_channels = 32
        config.student.bbox_head.feat_channels = 32
        model = toy.build(config)
        model.init_weights()
        ours, theirs = model.state_dict(), model.kd_plan.teacher.model.state_dict()
        assert torch.equal(
            ours['bbox_head.retina_reg.weight'], theirs['bbox_head.retina_reg.weight']
        )
        assert torch.equal(
            ours['neck.fpn_convs.0.conv.weight'], theirs['neck.fpn_convs.0.conv.weight']
        )
        assert 'inherited 2 of 2 tensors of bbox_head.retina_reg' in log()
        assert 'inherited 12 of 16 tensors of neck; not inherited: ' in log()
        assert (
            'neck.lateral_convs.0.conv.weight ((32, 16, 1, 1) here, (32, 32, 1, 1) in the teacher)'
            in log()
        )

    def test_outlasts_the_initialisation_of_the_student(self, tmp_path):
        config = toy.distilled_detector(
            inherit=['bbox_head'], student=toy.detector(16), terms=dict(
                fpn=dict(tap='neck', loss=dict(type='CWDLoss', weight=0.0)))
        )  # fmt: skip
        runner = toy.runner(
            config, tmp_path, optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
            param_scheduler=None, train_dataloader=dict(
                batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler'),
                dataset=toy.DetScenes()),
        )  # fmt: skip
        runner.train()
        teacher = runner.model.kd_plan.teacher.model
        assert torch.equal(
            runner.model.bbox_head.retina_cls.weight, teacher.bbox_head.retina_cls.weight
        )


class TestSchedule:
    def test_scales_the_logged_loss_and_stops_the_teacher(self, tmp_path):
        still = dict(optimizer=dict(type='SGD', lr=0.0))
        terms = toy.logits_term()
        terms['logits']['schedule'] = dict(warmup=2, stop=4)
        dataset = toy.SegScenes(length=2, augment=False)
        config = toy.distilled(student=toy.segmenter(dropout=0.0), terms=terms)
        runner = toy.runner(
            config, tmp_path, max_iters=6, optim_wrapper=still, param_scheduler=None,
            default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
            log_processor=dict(window_size=1, by_epoch=False), train_dataloader=dict(
                batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dataset),
        )  # fmt: skip
        ran = []
        runner.model.kd_plan.teacher.model.backbone.register_forward_hook(
            lambda *_: ran.append(runner.iter)
        )
        runner.train()
        values = [entry['loss_kd_logits'] for entry in scalars(tmp_path)]
        assert values[0] == 0
        assert values[1] == pytest.approx(values[2] / 2, rel=0.05)
        assert values[3] == pytest.approx(values[2], rel=0.05)
        assert values[4:] == [0, 0]
        assert ran == [1, 2, 3]

    def test_by_epoch(self, tmp_path):
        terms = toy.logits_term()
        terms['logits']['schedule'] = dict(stop=1, by_epoch=True)
        runner = toy.runner(
            toy.distilled(terms=terms), tmp_path,
            train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=99),
            train_dataloader=dict(
                batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
                dataset=toy.SegScenes(length=4)),
            log_processor=dict(window_size=1),
        )  # fmt: skip
        runner.train()
        values = [entry['loss_kd_logits'] for entry in scalars(tmp_path)]
        assert [v > 0 for v in values] == [True, True, False, False]

    def test_epochs_in_a_training_without_them_are_an_error(self, tmp_path):
        terms = toy.logits_term()
        terms['logits']['schedule'] = dict(stop=1, by_epoch=True)
        with pytest.raises(ValueError, match='does not count epochs; give iterations'):
            toy.runner(toy.distilled(terms=terms), tmp_path).train()

    def test_without_a_runner_it_is_an_error(self):
        from mmengine.logging import MessageHub

        MessageHub.get_instance('without-a-runner')
        terms = toy.logits_term()
        terms['logits']['schedule'] = dict(warmup=2)
        model = toy.build(toy.distilled(terms=terms))
        with pytest.raises(RuntimeError, match=r"'logits' has a schedule.*'max_iters'"):
            toy.losses(model)


def test_several_terms_are_logged_each_for_itself(tmp_path):
    terms = dict(features=dict(tap='backbone.layer4', loss=toy.CWD), **toy.logits_term())
    runner = toy.runner(toy.distilled(terms=terms), tmp_path)
    runner.train()
    entry = scalars(tmp_path)[-1]
    kd = [entry[f'loss_kd_{name}'] for name in terms]
    assert all(value > 0 for value in kd)
    assert entry['loss'] == pytest.approx(sum(kd) + entry['decode.loss_ce'], rel=1e-4)


def test_an_adapter_learns(tmp_path):
    config = toy.distilled(terms=dict(features=dict(tap='backbone.layer4', loss=toy.CWD)))
    runner = toy.runner(config, tmp_path)
    before = copy.deepcopy(runner.model.kd.state_dict())
    runner.train()
    after = runner.model.kd.state_dict()
    assert not torch.equal(before['features.adapters.0.conv.weight'],
                           after['features.adapters.0.conv.weight'])  # fmt: skip


def test_an_adapter_of_ones_own(tmp_path):
    from kd_dense.registry import MODELS

    @MODELS.register_module(force=True)
    class Scaled(torch.nn.Conv2d):
        def __init__(self, in_channels, out_channels, groups):
            super().__init__(in_channels, out_channels, 1, groups=groups)

        def forward(self, x, size):
            return super().forward(x)

    term = dict(tap='backbone.layer4', loss=toy.CWD, adapter=dict(type='Scaled', groups=2))
    model = toy.build(toy.distilled(terms=dict(features=term)))
    assert model.kd.features.adapters[0].groups == 2
    assert toy.losses(model)['loss_kd_features'] > 0


@pytest.mark.usefixtures('without_onednn')
@pytest.mark.parametrize('method', methods.METHODS)
def test_mixed_precision_in_the_runner(method, tmp_path, monkeypatch):
    # mmengine asserts that there is a GPU; autocast to bfloat16 works without one.
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    config = methods.distilled(method)
    runner = toy.runner(
        config, tmp_path,
        train_dataloader=dict(
            batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
            dataset=methods.scenes(method)),
        optim_wrapper=dict(
            type='AmpOptimWrapper', dtype='bfloat16', optimizer=dict(type='SGD', lr=0.001)),
        custom_hooks=[dict(type='kd_dense.CriticHook')],
    )  # fmt: skip
    runner.train()
    last = scalars(tmp_path)[-1]
    for term in config.terms:
        parts = [v for name, v in last.items() if name.startswith(f'loss_kd_{term}')]
        assert parts
        assert math.isfinite(sum(parts))
        assert sum(parts) != 0

"""Whatever does not fit is one clear error before the first iteration."""

import os
import pickle

import pytest
import torch

from kd_dense.mm import Distilled
from kd_dense.mm.files.checkpoint import read_checkpoint
from kd_dense.taps import TapError
from tests.mm import toy


def with_tap(tap, **fields):
    return toy.distilled(terms=dict(term=dict(tap=tap, loss=toy.CWD, **fields)))


class TestTaps:
    def test_unknown_in_the_student(self):
        config = with_tap(dict(student='backbone.layr4', teacher='backbone.layer4'))
        with pytest.raises(TapError, match=r"student: there is no tap .*'backbone\.layer4'"):
            toy.build(config)

    def test_unknown_in_the_teacher(self):
        config = with_tap(dict(student='backbone.layer4', teacher='backbone.layr4'))
        with pytest.raises(TapError, match=r"teacher: there is no tap .*'backbone\.layer4'"):
            toy.build(config)

    def test_never_run(self):
        student = toy.build(toy.segmenter())
        student.spare = torch.nn.Conv2d(1, 1, 1)
        config = with_tap(dict(student='spare', teacher='backbone.layer4'))
        config.student = student
        message = r"student: tap 'spare' never runs in the forward pass .*, nor in its loss"
        with pytest.raises(TapError, match=message):
            toy.build(config)

    def test_a_list_of_modules(self):
        tap = dict(student='neck.fpn_convs', teacher='neck')
        config = toy.distilled_detector(terms=dict(term=dict(tap=tap, loss=toy.CWD)))
        message = r"student: tap 'neck\.fpn_convs' .* a ModuleList .* 'neck\.fpn_convs\.\*'"
        with pytest.raises(TapError, match=message):
            toy.build(config)

    def test_behind_region_proposals(self):
        model = toy.build(toy.detector())
        model.roi_head = torch.nn.Identity()
        config = toy.distilled_detector(
            student=model, terms=dict(term=dict(tap='roi_head', loss=toy.CWD))
        )
        with pytest.raises(TapError, match=r'behind region proposals.*rpn_head instead'):
            toy.build(config)

    def test_overwritten_in_place(self):
        with pytest.raises(TapError, match='overwrites this map in place'):
            toy.build(with_tap('backbone.layer4.1.bn1'))


class TestTerms:
    @pytest.mark.parametrize('terms', [{}, dict(_scope_='mmseg')])
    def test_none(self, terms):
        with pytest.raises(ValueError, match='terms is empty'):
            toy.build(toy.distilled(terms=terms))

    @pytest.mark.parametrize(
        ('fields', 'message'),
        [
            (dict(loss=toy.CWD), "'term' has no tap: say tap="),
            (dict(tap='backbone'), "'term' has no loss: say loss="),
            (dict(tap='backbone', loss=dict(weight=1)), "'term': the loss has no type"),
            (dict(tap='backbone', los=toy.CWD), "unknown field 'los', did you mean 'loss'"),
            (dict(tap='backbone', loss=dict(type='CDWLoss')), "no loss 'CDWLoss', did .*'CWDL"),
            (dict(tap='backbone', loss=dict(type='CWDLoss', tau=4)), r"'term': .*'tau'"),
            (dict(tap='backbone', loss=dict(type='CWDLoss', weight=-1)), 'weight >= 0, got .*-1'),
            (dict(tap='backbone', loss=dict(type='CWDLoss', temperature=0)), 'temperature > 0'),
            (dict(tap='backbone', loss=dict(type='Adapter', in_channels=1, out_channels=1)),
             'expected a subclass of kd_dense.losses.DistillLoss, got Adapter'),
            (dict(tap=dict(student='backbone'), loss=toy.CWD), r"tap=dict\(student='NAME', teach"),
            (dict(tap='backbone', loss=toy.CWD, schedule=dict(decay='exp')), "schedule .*'exp'"),
            (dict(tap='backbone', loss=toy.CWD, schedule=dict(warm=1)), "schedule .*'warm'"),
        ],
    )  # fmt: skip
    def test_incomplete_or_misspelt(self, fields, message):
        with pytest.raises(ValueError, match=message):
            toy.build(toy.distilled(terms=dict(term=fields)))

    @pytest.mark.parametrize('name', ['a.b', 'keys', 'two words', ''])
    def test_a_name_that_cannot_be_one(self, name):
        fields = dict(tap='backbone', loss=toy.CWD)
        with pytest.raises(ValueError, match='cannot be the name of a term'):
            toy.build(toy.distilled(terms={name: fields}))

    def test_a_term_that_is_no_dict(self):
        with pytest.raises(ValueError, match=r"'term': expected dict\(tap=..., loss=...\)"):
            toy.build(toy.distilled(terms=dict(term='backbone')))


class Tokens(torch.nn.Module):
    def forward(self, maps):
        return maps[-1].flatten(2)


class TestShapes:
    def test_different_class_counts(self):
        teacher = dict(config=toy.segmenter(16, classes=7), checkpoint=None)
        for tap in ('decode_head.conv_seg', 'decode_head'):
            config = toy.distilled(teacher=teacher, terms=dict(a=dict(tap=tap, loss=toy.CWD)))
            with pytest.raises(ValueError, match=r'5 classes in the student .* 7 classes in'):
                toy.build(config)

    def test_different_class_counts_per_anchor(self):
        config = toy.distilled_detector(
            teacher=dict(config=toy.detector(16, classes=4), checkpoint=None),
            terms=dict(a=dict(tap='bbox_head.retina_cls', loss=toy.CWD)),
        )
        with pytest.raises(ValueError, match='logits of different classes cannot be compared'):
            toy.build(config)

    def test_feature_maps_of_such_models_may_be_compared(self):
        teacher = dict(config=toy.segmenter(16, classes=7), checkpoint=None)
        terms = dict(a=dict(tap='backbone.layer4', loss=toy.CWD))
        model = toy.build(toy.distilled(teacher=teacher, terms=terms))
        assert toy.losses(model)['loss_kd_a'] > 0

    def test_no_adapter_wanted(self):
        with pytest.raises(ValueError, match=r'\(2, 64, 8, 8\), the .*\(2, 128, 8, 8\).*False'):
            toy.build(with_tap('backbone.layer4', adapter=False))

    def test_no_adapter_possible(self):
        teacher = toy.build(toy.segmenter(16))
        teacher.neck = Tokens()
        tap = dict(student='backbone.layer4', teacher='neck')
        config = toy.distilled(teacher=teacher, terms=dict(a=dict(tap=tap, loss=toy.CWD)))
        with pytest.raises(ValueError, match=r'an adapter for maps \(N, C, H, W\) only'):
            toy.build(config)

    def test_different_numbers_of_maps(self):
        tap = dict(student='neck', teacher='backbone')
        config = toy.distilled_detector(terms=dict(a=dict(tap=tap, loss=toy.CWD)))
        with pytest.raises(
            ValueError, match=r"yields 5 maps .* 4 maps .*index, as in 'neck\[:4\]'"
        ):
            toy.build(config)


class TestModels:
    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (dict(pretrained=None, train_cfg=None), "'pretrained', for inference .*dense export"),
            (dict(tearms={}), "no argument 'tearms', did you mean 'terms'"),
        ],
    )
    def test_an_argument_that_there_is_not(self, arguments, message):
        """The first two are what init_model of mmseg adds."""
        with pytest.raises(ValueError, match=message):
            toy.build({**toy.distilled(), **arguments})

    def test_student_and_teacher_are_one(self):
        model = toy.build(toy.segmenter())
        with pytest.raises(
            ValueError, match='the same object; within one model a teacher of None compares'
        ):
            toy.build(toy.distilled(student=model, teacher=model))

    def test_a_student_without_loss(self):
        with pytest.raises(ValueError, match=r'Linear has no loss\(inputs, data_samples\)'):
            toy.build(toy.distilled(student=torch.nn.Linear(1, 1)))

    def test_a_student_that_is_distilled_already(self):
        model = toy.build(toy.distilled())
        with pytest.raises(ValueError, match='an attribute `kd` already'):
            toy.build(toy.distilled(student=model))

    def test_a_teacher_that_needs_other_padding(self):
        teacher = toy.detector(16)
        teacher.data_preprocessor.pad_size_divisor = 128
        config = toy.distilled_detector(teacher=dict(config=teacher, checkpoint=None))
        with pytest.raises(ValueError, match=r'multiple of 128.*pad_size_divisor=128'):
            toy.build(config)

    def test_a_teacher_whose_preprocessing_is_unknown(self):
        teacher = toy.build(toy.segmenter(16))
        teacher.data_preprocessor = torch.nn.Identity()
        with pytest.raises(ValueError, match='how the Identity of the teacher normalises'):
            toy.build(toy.distilled(teacher=teacher))


class TestTeacherConfig:
    @pytest.mark.parametrize(
        ('teacher', 'message'),
        [
            ('nowhere::a/b.py', r'nowhere::a/b\.py: nowhere is not installed'),
            ('configs/nowhere.py', r'the config configs/nowhere\.py does not exist'),
            ('mmdet::retinanet/retinanet_r101_fpn_2x_cco.py',
             r'did you mean mmdet::retinanet/retinanet_r101_fpn_2x_coco\.py'),
            ('mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscape-512x1024.py',
             r'did you mean .*mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024\.py'),
        ],
    )  # fmt: skip
    def test_not_found(self, teacher, message):
        with pytest.raises(FileNotFoundError, match=message):
            toy.build(toy.distilled(teacher=teacher))

    def test_without_weights(self):
        with pytest.raises(ValueError, match='comes without weights: say teacher=dict'):
            toy.build(toy.distilled(teacher=dict(config=toy.segmenter())))

    @pytest.mark.parametrize(
        ('teacher', 'message'),
        [
            (dict(checkpoint=None), 'expected a teacher as a config name, a path, dict'),
            (dict(config='x', checkpoint=3), 'checkpoint expects a path, .* or None, got 3'),
            (dict(config='x', strict='no'), "strict expects True or False, got 'no'"),
            (dict(config='x', chekpoint='y'), "unknown field 'chekpoint', did you .*'checkpoint'"),
            (dict(config=dict(model=None), checkpoint=None), 'teacher has no model with a type'),
            (dict(config=dict(type='mmseg.Nothing'), checkpoint=None),
             'the teacher Nothing cannot be built from its config: KeyError'),
            (torch.nn.Conv2d(1, 1, 1), 'the teacher Conv2d has no data_preprocessor'),
        ],
    )  # fmt: skip
    def test_of_another_form(self, teacher, message):
        with pytest.raises(ValueError, match=message):
            Distilled(toy.segmenter(), teacher, toy.logits_term())


class Malicious:
    def __reduce__(self):
        return os.system, ('touch executed',)


class TestTeacherCheckpoint:
    """Each is found when training starts, before the first iteration."""

    @pytest.fixture
    def start(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        def start(**teacher):
            config = toy.distilled(teacher=dict(config=toy.segmenter(16), **teacher))
            runner = toy.runner(config, tmp_path / 'run')
            runner.model.forward = pytest.fail
            runner.train()

        return start

    @pytest.fixture
    def state(self):
        return toy.build(toy.segmenter(16)).state_dict()

    def test_missing(self, start):
        with pytest.raises(FileNotFoundError, match=r'checkpoint nowhere\.pth does not exist'):
            start(checkpoint='nowhere.pth')

    def test_truncated(self, start, state, tmp_path):
        torch.save({'state_dict': state}, 'whole.pth')
        whole = (tmp_path / 'whole.pth').read_bytes()
        for size in (len(whole) // 2, 10, 0):
            (tmp_path / 'half.pth').write_bytes(whole[:size])
            with pytest.raises(ValueError, match=r'half\.pth cannot be read; is it complete'):
                start(checkpoint='half.pth')

    def test_of_another_architecture(self, start):
        torch.save({'state_dict': toy.build(toy.segmenter(8)).state_dict()}, 'other.pth')
        with pytest.raises(
            ValueError, match=r'(?s)other\.pth does not fit.*size mismatch for back'
        ):
            start(checkpoint='other.pth')

    def test_every_key_that_does_not_fit_is_named(self, start, state):
        del state['decode_head.conv_seg.bias'], state['backbone.stem.0.weight']
        state['extra.weight'] = torch.zeros(1)
        torch.save(state, 'partial.pth')
        for name in ('decode_head.conv_seg.bias', 'backbone.stem.0.weight', 'extra.weight'):
            with pytest.raises(ValueError, match=rf'(?s)partial\.pth does not fit.*"{name}"'):
                start(checkpoint='partial.pth')

    @pytest.mark.parametrize('legacy', [False, True])
    def test_holding_code(self, start, state, tmp_path, legacy):
        torch.save(
            {'state_dict': state, 'meta': Malicious()},
            'evil.pth',
            _use_new_zipfile_serialization=not legacy,
        )
        with pytest.raises(
            ValueError, match=r'evil\.pth was refused: loading it would run \w+\.sys'
        ):
            start(checkpoint='evil.pth')
        (tmp_path / 'evil.pkl').write_bytes(pickle.dumps(Malicious()))
        with pytest.raises(ValueError, match=r'evil\.pkl'):
            start(checkpoint='evil.pkl')
        assert not (tmp_path / 'executed').exists()

    def test_getattr_is_no_way_in(self, start, state):
        class Attribute:
            def __reduce__(self):
                return getattr, (torch.nn.Module, 'load_state_dict')

        torch.save({'state_dict': state, 'meta': Attribute()}, 'evil.pth')
        with pytest.raises(ValueError, match=r'evil\.pth was refused'):
            start(checkpoint='evil.pth')

    def test_without_weights_in_it(self, start):
        torch.save({'epoch': 3}, 'empty.pth')
        with pytest.raises(ValueError, match=r'empty\.pth holds no weights'):
            start(checkpoint='empty.pth')

    @pytest.mark.parametrize(
        'scheduler',
        [
            dict(type='OneCycleLR', eta_max=0.1, total_steps=9),
            dict(type='OneCycleLR', eta_max=0.1, total_steps=9, anneal_strategy='linear'),
            dict(type='PolyLR', eta_min=0.0, power=0.9),
            dict(type='MultiStepLR', milestones=[1]),
            dict(type='CosineAnnealingLR', T_max=4),
        ],
        ids=lambda s: f'{s["type"]}-{len(s)}',
    )
    def test_of_a_run_of_mmengine_is_read(self, tmp_path, scheduler):
        schedule = dict(by_epoch=False, **scheduler)
        runner = toy.runner(toy.segmenter(16), tmp_path, param_scheduler=[schedule])
        runner.train()
        weights = read_checkpoint(str(tmp_path / 'iter_4.pth'))
        assert all(torch.equal(weights[k], v) for k, v in runner.model.state_dict().items())

    def test_not_strict_loads_what_fits(self, state, tmp_path):
        del state['decode_head.conv_seg.bias']
        state['backbone.stem.0.weight'] = torch.zeros(3, 3)
        torch.save(state, tmp_path / 'partial.pth')
        teacher = dict(
            config=toy.segmenter(16), checkpoint=str(tmp_path / 'partial.pth'), strict=False
        )
        model = toy.build(toy.distilled(teacher=teacher), seed=1)
        toy.losses(model)
        loaded = model.kd_plan.teacher.model.state_dict()
        assert torch.equal(
            loaded['decode_head.conv_seg.weight'], state['decode_head.conv_seg.weight']
        )


class TestInherit:
    @pytest.mark.parametrize(
        ('inherit', 'message'),
        [
            (['nekc'], "the student RetinaNet has no part 'nekc', did you mean 'neck'"),
            (['neck.fpn_convs.9'], r"no part 'neck\.fpn_convs\.9'"),
            (['backbone'], "nothing of 'backbone' fits"),
            ('neck', "expected inherit as a list of parts, got the text 'neck'"),
        ],
    )
    def test_rejects_what_cannot_be(self, inherit, message):
        teacher = dict(config=toy.detector(12), checkpoint=None)
        teacher['config'].backbone.norm_cfg = dict(type='GN', num_groups=1)
        with pytest.raises(ValueError, match=message):
            toy.build(toy.distilled_detector(inherit=inherit, teacher=teacher))


class TestRunTime:
    def test_a_batch_without_ground_truth_trains_on(self):
        model = toy.build(toy.distilled_detector())
        scenes = toy.DetScenes()
        scenes.boxes = [torch.zeros(0, 4)] * 8
        losses = toy.losses(model, scenes)
        total, _ = model.parse_losses(losses)
        total.backward()
        assert total.isfinite()
        assert losses['loss_kd_fpn'] > 0
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)

    def test_an_all_ignored_label_map_trains_on(self):
        model = toy.build(toy.distilled())
        scenes = toy.SegScenes(augment=False)
        scenes.labels[:] = 255
        losses = toy.losses(model, scenes)
        assert losses['loss_kd_logits'].isfinite()

    @pytest.mark.parametrize('value', [float('nan'), float('inf')])
    def test_a_teacher_map_that_is_not_finite_names_its_tap(self, value):
        model = toy.build(toy.distilled())
        model.kd_plan.teacher.model.decode_head.conv_seg.bias.data[2] = value
        message = r"the teacher map of tap 'decode_head\.conv_seg' is not finite"
        with pytest.raises(FloatingPointError, match=message):
            toy.losses(model)

    @pytest.mark.parametrize('value', [float('nan'), float('inf')])
    def test_a_student_map_that_is_not_finite_is_named_before_the_term(self, value):
        model = toy.build(toy.distilled())
        model.decode_head.conv_seg.bias.data[2] = value
        message = r"the student map of tap 'decode_head\.conv_seg' is not finite, before any term"
        with pytest.raises(FloatingPointError, match=message):
            toy.losses(model)

    def test_a_loss_that_is_not_finite_names_its_term(self):
        model = toy.build(toy.distilled(terms=toy.logits_term(weight=1e45)))
        with pytest.raises(FloatingPointError, match="the loss of term 'logits' is not finite"):
            toy.losses(model)

    def test_a_frozen_student_map_is_an_error(self):
        config = with_tap('backbone.stem')
        config.student.backbone.frozen_stages = 1
        with pytest.raises(TapError, match=r"no gradient flows back from tap 'backbone\.stem'"):
            toy.build(config)

    def test_a_student_map_that_is_frozen_later_is_an_error(self):
        model = toy.build(with_tap('backbone.stem'))
        model.backbone.stem.requires_grad_(False)
        with pytest.raises(TapError, match=r"no gradient flows back from tap 'backbone\.stem'"):
            toy.losses(model)

    def test_a_map_inside_a_checkpointed_block_is_an_error(self):
        from torch.utils.checkpoint import checkpoint

        model = toy.build(with_tap('backbone.layer4.0'))
        layer = model.backbone.layer4
        own = layer.forward
        layer.forward = lambda x: checkpoint(own, x, use_reentrant=True)
        with pytest.raises(TapError, match='activation checkpointing'):
            toy.losses(model)

    def test_another_number_of_maps_than_at_first_is_an_error(self):
        model = toy.build(toy.distilled_detector())
        neck = model.kd_plan.teacher.model.neck
        own = neck.forward
        neck.forward = lambda x: own(x)[:3]
        with pytest.raises(TapError, match="'fpn': expected 5 maps, got 5 of the student and 3"):
            toy.losses(model, toy.DetScenes())

    def test_the_student_is_as_before_after_an_error(self):
        model = toy.build(toy.distilled())
        good = model.decode_head.conv_seg.bias.data.clone()
        model.decode_head.conv_seg.bias.data[2] = float('nan')
        with pytest.raises(FloatingPointError, match='is not finite'):
            toy.losses(model)
        assert 'forward' not in vars(model.decode_head.conv_seg)
        model.decode_head.conv_seg.bias.data.copy_(good)
        assert toy.losses(model)['loss_kd_logits'].isfinite()

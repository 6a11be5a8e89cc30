import copy
import inspect
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub

import kd_dense.losses
from kd_dense.mm.presets import choose, methods
from kd_dense.mm.presets.choose import METHODS
from tests.mm import toy, toy_heads
from tests.mm.presets.building import build, untrained

PAGE = Path(__file__).resolve().parents[3] / 'docs' / 'presets.md'


def published(model):
    """A toy with a pyramid as wide as the published ones."""
    model.neck.out_channels = model.bbox_head.in_channels = 256
    return model


def binary(width):
    """A segmenter of two classes with one channel of logits."""
    config = toy.segmenter(width, classes=2)
    loss = dict(type='CrossEntropyLoss', use_sigmoid=True)
    config.decode_head.update(out_channels=1, threshold=0.5, loss_decode=loss)
    return config


def with_auxiliary(model, count=1, classes=5):
    """A segmenter with an auxiliary head, or with a list of them."""
    heads = [
        dict(model.decode_head, in_channels=model.decode_head.in_channels // 2, in_index=2,
             num_classes=classes)
        for _ in range(count)
    ]  # fmt: skip
    model.auxiliary_head = heads[0] if count == 1 else heads
    return model


@pytest.fixture
def hub():
    """What a Runner would tell of the iteration."""
    hub = MessageHub.get_instance('choose')
    yield hub
    MessageHub._instance_dict.pop(hub.instance_name)


class TestFamilies:
    def test_a_segmenter_is_distilled_on_its_logits(self, log):
        model = build(preset='cwd')
        term = model.kd.cwd
        assert (term.student_tap, term.loss.weight, term.loss.temperature) == (
            'decode_head.conv_seg',
            3.0,
            4.0,
        )
        said = log()
        assert "preset 'cwd' for EncoderDecoder from EncoderDecoder" in said
        assert 'cwd: CWDLoss(weight=3.0, temperature=4.0) on decode_head.conv_seg' in said
        assert 'cwd: authors, exp_cwd.sh' in said
        assert '--dump-config' in said
        assert toy.losses(model)['loss_kd_cwd'] > 0

    def test_a_detector_is_distilled_on_its_pyramid(self):
        model = build(preset='cwd', student=toy.detector())
        assert (model.kd.cwd.student_tap, model.kd.cwd.loss.weight) == ('neck', 10.0)
        assert toy.losses(model, toy.DetScenes())['loss_kd_cwd'] > 0

    def test_stages_of_a_student_that_has_no_teacher(self, hub):
        config = toy.distilled(preset='sad')
        config.pop('terms')
        config.teacher = None
        model = toy.build(config)
        taps = [(term.student_tap, term.teacher_tap) for term in model.kd.values()]
        assert taps == [(f'backbone[-{i + 1}]', f'backbone[-{i}]') for i in (3, 2, 1)]
        for now, late in ((1, False), (2, True)):  # of three iterations
            hub.update_info_dict(dict(iter=now, max_iters=3))
            losses = toy.losses(model)
            assert all((losses[f'loss_kd_sad{stage}'] > 0) == late for stage in (1, 2, 3))
        with pytest.raises(ValueError, match='with four stages, without a teacher, and none'):
            build(preset='sad')

    def test_patch_embeddings_are_tokens(self):
        config = toy.segmenter()
        config.backbone = ConfigDict(
            type='mmseg.MixVisionTransformer', embed_dims=8, num_layers=[1] * 4, num_heads=[1] * 4
        )
        config.decode_head.update(in_channels=8, in_index=3)
        model = build(preset='pea', student=config, teacher=untrained(copy.deepcopy(config)))
        taps = [term.student_tap for term in model.kd.values()]
        assert taps == [f'backbone.layers.{stage}.0' for stage in range(4)]
        losses = toy.losses(model, toy.SegScenes())
        assert all(losses[f'loss_kd_embed{stage}'] > 0 for stage in range(4))

    def test_the_last_maps_are_compared_where_they_are_of_one_size(self):
        found = []
        for strides in ((1, 2, 1, 1), (1, 2, 2, 2)):
            config = toy.segmenter()
            config.backbone.strides = strides
            model = toy.build(config)
            found.append([*choose.choose_preset('dsd', model, model).terms])
        assert found == [['dsd', 'psd'], ['dsd']]

    @pytest.mark.parametrize('head', toy_heads.HEADS)
    def test_every_head_with_distributions_has_a_preset_of_ld(self, head):
        teacher = untrained(toy_heads.detector(head, 16))
        model = build(
            preset='ld', student=toy_heads.detector(head), teacher=teacher, weights='published'
        )
        assert toy.losses(model, toy.DetScenes(), count=4)['loss_kd_ld.main'] > 0
        assert model.kd.ld.loss.settings['kd_weight'] == 10 * 3 / 80  # 10 belongs to 80 classes

    @pytest.mark.parametrize('preset', ['skd', 'intrakd'])
    def test_segmenters_have_presets_of_several_terms(self, preset):
        model = build(preset=preset)
        losses = toy.losses(model)
        assert len(model.kd) == 3
        assert all(losses[f'loss_kd_{name}'] != 0 for name in model.kd)
        assert {term.student_tap for term in model.kd.values()} == {
            'backbone[-1]',
            'decode_head.conv_seg',
        }

    @pytest.mark.parametrize('preset', ['cwd', 'skd', 'intrakd'])
    def test_binary_segmenters_of_one_channel_learn_by_every_term(self, preset):
        model = build(preset=preset, student=binary(8), teacher=untrained(binary(16)))
        pictures = toy.SegScenes(augment=False)
        pictures.labels %= 2
        losses = toy.losses(model, pictures)
        assert len(model.kd) == (1 if preset == 'cwd' else 3)
        for name, term in model.kd.items():
            assert losses[f'loss_kd_{name}'] != 0
            at = model.decode_head.conv_seg if 'conv_seg' in term.student_tap else model.backbone
            (grad,) = torch.autograd.grad(
                losses[f'loss_kd_{name}'], [*at.parameters()][:1], retain_graph=True
            )
            assert grad.abs().sum() > 0

    @pytest.mark.parametrize('preset', ['cwd', 'skd', 'intrakd'])
    def test_one_channel_does_not_learn_from_two(self, preset):
        with pytest.raises(ValueError, match=r'logits of 1 channel in the student and .* of 2 in'):
            build(preset=preset, student=binary(8), teacher=untrained(toy.segmenter(16, 2)))

    @pytest.mark.parametrize('head', toy_heads.HEADS)
    def test_ld_of_a_single_class_is_ld_of_its_boxes(self, head, log):
        student, teacher = (toy_heads.detector(head, x, num_classes=1) for x in (8, 16))
        model = build(preset='ld', student=student, teacher=untrained(teacher))
        assert model.kd.ld.loss.settings['kd_weight'] == 0
        assert 'kd_weight=0.0' in log()
        pictures = toy.DetScenes()
        pictures.boxes = [boxes[:1] for boxes in pictures.boxes]
        losses = toy.losses(model, pictures, count=4)
        assert losses['loss_kd_ld.main'] > 0
        assert losses['loss_kd_ld.kd'] == 0
        terms = dict(mine=dict(tap='bbox_head', loss=toy_heads.LD[head]))
        with pytest.raises(ValueError, match=r"term 'mine': .*a single class.*kd_weight=10.*to 0"):
            toy.build(toy.distilled(student, untrained(teacher), terms))

    def test_fgd_inherits_what_fits(self, log):
        teacher = toy.detector(16)
        teacher.neck.out_channels = teacher.bbox_head.in_channels = 16
        model = build(preset='fgd', student=toy.detector(), teacher=untrained(teacher))
        model.init_weights()
        assert 'inherited 12 of 16 tensors of neck' in log()
        assert toy.losses(model, toy.DetScenes())['loss_kd_fgd.foreground'] > 0

    def test_settings_of_fgd_follow_the_kind_of_head(self):
        loss = {}
        for name, student in (
            ('plain', toy.detector()),
            ('fcos', toy_heads.detector('fcos')),
        ):
            student = published(student)
            model = build(preset='fgd', student=student, teacher=untrained(student))
            loss[name] = model.kd.fgd.loss
        assert (loss['plain'].temperature, loss['fcos'].temperature) == (0.5, 0.8)
        assert loss['plain'].weights['foreground'] == 1e-3
        assert loss['fcos'].weights['foreground'] == 1.6e-3


class TestSeveral:
    def test_terms_and_inheritance_are_joined(self):
        config = toy_heads.detector('gfl')
        model = build(preset=['fgd', 'ld'], student=config, teacher=untrained(config))
        assert [*model.kd] == ['fgd', 'ld']
        assert model.kd_plan.inherit == ('neck', 'bbox_head')
        losses = toy.losses(model, toy.DetScenes(), count=4)
        assert losses['loss_kd_fgd.foreground'] > 0
        assert losses['loss_kd_ld.main'] > 0

    def test_shares_take_the_place_of_weights(self):
        model = build(preset=['cwd', 'skd'], weights='shares')
        shares = {name: term.shares.whole.share for name, term in model.kd.items()}
        assert len(shares) == 4
        assert set(shares.values()) == {0.25}

    def test_a_share_has_settings_of_its_own(self):
        for weights, temperature, relative in (('published', 0.5, False), ('shares', 2.0, True)):
            model = build(preset='fgd', student=toy.detector(), weights=weights)
            loss = model.kd.fgd.loss
            first = loss[0] if isinstance(loss, torch.nn.ModuleList) else loss
            assert (first.temperature, first.relative_temperature) == (temperature, relative)
        assert choose.BY_SHARE.keys() <= choose.SUMS.keys()

    @pytest.mark.parametrize('weights', ['auto', 'published', 'shares'])
    def test_relations_pull_weakly_and_by_share_unless_asked_for_their_weights(self, weights):
        model = build(preset=['sp', 'nst'], weights=weights)
        shares = {n: t.shares['whole'].share for n, t in model.kd.items() if 'whole' in t.shares}
        assert shares == ({} if weights == 'published' else dict(sp=0.05, nst=0.5))

    def test_losses_whose_pull_is_weak_exist(self):
        assert all(0 < share < 1 for share in choose.SHARES.values())
        assert all(hasattr(kd_dense.losses, loss) for loss in choose.SHARES)

    def test_by_share_ld_leaves_the_classes_out(self):
        pair = dict(
            student=toy_heads.detector('gfl'), teacher=untrained(toy_heads.detector('gfl', 16))
        )
        for weights, compared in (('published', True), ('shares', False)):
            model = build(preset='ld', weights=weights, **pair)
            assert (model.kd.ld.loss.settings['kd_weight'] > 0) == compared

    def test_weights_for_other_maps_set_themselves_unless_published_ones_are_asked_for(self):
        narrow, wide = toy.detector(), published(toy.detector())
        for student, weights, shares in (
            (narrow, {}, 1),
            (wide, {}, 0),
            (narrow, dict(weights='published'), 0),
            (wide, dict(weights='shares'), 1),
        ):
            model = build(preset='fgd', student=student, teacher=untrained(student), **weights)
            assert len(model.kd.fgd.shares) == shares

    def test_a_name_that_is_taken_gets_its_method_in_front(self, monkeypatch):
        monkeypatch.setitem(METHODS, 'other', METHODS['cwd'])
        model = build(preset=['cwd', 'other'])
        assert [*model.kd] == ['cwd', 'other_cwd']


class TestOptionalTerms:
    """A term that a preset can do without."""

    def optional(self, monkeypatch):
        loss = dict(type='CWDLoss', weight=0.4)
        terms = dict(
            cwd=dict(tap='logits', loss=loss),
            aux=dict(tap='aux_logits', loss=loss, optional=True, schedule=dict(stop=10)),
        )
        row = METHODS['cwd'].presets[0]._replace(terms=terms)
        monkeypatch.setitem(METHODS, 'cwd', METHODS['cwd']._replace(presets=(row,)))

    def test_is_left_out_where_a_model_lacks_its_place(self, monkeypatch):
        self.optional(monkeypatch)
        assert [*build(preset='cwd').kd] == ['cwd']
        one_side = with_auxiliary(toy.segmenter())
        assert [
            *build(preset='cwd', student=one_side, teacher=untrained(toy.segmenter(16))).kd
        ] == ['cwd']

    def test_is_there_where_both_have_it_with_all_that_it_says(self, monkeypatch, log):
        self.optional(monkeypatch)
        both = [with_auxiliary(toy.segmenter(width)) for width in (8, 16)]
        model = build(preset='cwd', student=both[0], teacher=untrained(both[1]))
        assert [*model.kd] == ['cwd', 'aux']
        assert model.kd.aux.student_tap == 'auxiliary_head.conv_seg'
        assert model.kd.aux.schedule.stop == 10
        assert "on auxiliary_head.conv_seg, schedule={'stop': 10}" in log()

    def test_is_left_out_where_classes_differ(self):
        teacher = untrained(toy.segmenter(16, classes=3))
        terms = [*build(preset='auto', teacher=teacher).kd]
        assert [*build(preset='auto').kd] == ['pkd', 'cwd']
        assert terms == ['pkd']

    def test_is_left_out_where_a_need_is_not_met(self, monkeypatch):
        row = METHODS['cwd'].presets[0]
        labelled = dict(tap='neck', loss=dict(type='KDLoss'), optional=True)  # needs label maps
        features = dict(tap='neck', loss=dict(type='CWDLoss'))
        row = row._replace(terms=dict(kd=labelled, cwd=features), layout=None)
        monkeypatch.setitem(METHODS, 'cwd', METHODS['cwd']._replace(presets=(row,)))
        assert [*build(preset='cwd', student=toy.detector()).kd] == ['cwd']


class TestListed:
    def test_every_method_has_a_line_in_the_group_of_what_it_needs(self):
        lines = choose.listed_methods().splitlines()
        groups, group = {}, None
        for line in lines:
            if line.startswith('    '):
                groups[line.split()[0]] = group
                assert METHODS[line.split()[0]].summary in line
                assert len(line) <= 99
            else:
                group = line
        assert groups.keys() == METHODS.keys()
        assert groups['auto'] == '  nothing but a backbone:'
        assert groups['cwd'] == '  features:'
        assert 'label maps' in groups['intrakd']
        assert 'boxes' in groups['fgd']
        assert 'boxes' in groups['ld']

    def test_logits_alone(self, monkeypatch):
        row = METHODS['cwd'].presets[0]
        method = METHODS['cwd']._replace(presets=(row,))
        monkeypatch.setitem(METHODS, 'cwd', method)
        first, line, *_ = choose.listed_methods().splitlines()[2:]  # behind auto
        assert first == '  class logits of a segmenter:'
        assert line.split()[0] == 'cwd'

    def test_an_error_proposes_near_names_and_lists_all(self):
        with pytest.raises(ValueError, match=r"no method 'fdg', did you mean .*'fgd'") as error:
            choose.check_methods(['cwd', 'fdg'])
        assert choose.listed_methods() in str(error.value)
        with pytest.raises(ValueError, match=r"no method 'qqqqq'; by what they need"):
            choose.check_methods(['qqqqq'])


class TestFiles:
    def test_a_new_file_is_a_new_family_behind_the_others(self, tmp_path, monkeypatch):
        (tmp_path / 'zzz.py').write_text('METHODS, SUMS = {}, {}')
        known = [*choose._files()]
        monkeypatch.setattr(methods, '__path__', [*methods.__path__, str(tmp_path)])
        found = choose._files()
        del sys.modules[found['zzz'].__name__]
        assert [*found] == [*known, 'zzz']
        assert [*METHODS][:6] == ['auto', 'cwd', 'skd', 'fgd', 'ld', 'intrakd']

    def test_a_name_belongs_to_one_file(self):
        named = [name for file in choose._files().values() for name in file.METHODS]
        assert ['auto', *named] == [*METHODS]

    def test_one_file_has_the_rule_of_a_loss(self):
        named = [loss for file in choose._files().values() for loss in file.SUMS]
        assert sorted(named) == sorted(choose.SUMS)


@pytest.mark.parametrize(
    ('others', 'message'),
    [
        (dict(preset='cdw'), "no method 'cdw', did you mean 'cwd'"),
        (dict(preset=['cwd', 'cdw']), "no method 'cdw', did you mean 'cwd'"),
        (dict(preset=['cwd', 'cwd']), 'comes twice'),
        (dict(preset=[]), 'no method was named'),
        (dict(preset=5), 'expected preset as a name or a list of names'),
        (dict(preset='cwd', inherit=['backbone']), 'either preset, or terms and inherit'),
        (dict(preset='cwd', weights='share'), "weights to be one of .*'shares'.*got 'share'"),
        (dict(terms=toy.logits_term(), weights='shares'), 'a term says it itself, as share=1.0'),
        (dict(preset='cwd', teacher=untrained(toy.detector())),
         'none of these fits a student EncoderDecoder with a teacher RetinaNet'),
        (dict(preset='fgfi'), 'has settings for detectors with anchors and a neck, detectors'),
        (dict(preset='ld', student=toy.detector()), 'has settings for GFL, ATSS with'),
        ({}, 'terms is empty'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(others, message):
    with pytest.raises(ValueError, match=message):
        build(**others)


def table(method):
    """The table of a method as docs/presets.md has it."""
    lines = ['| student | tap | loss | inherits | source |', '|-|-|-|-|-|']
    for preset in METHODS[method].presets:
        groups = {}
        for name, fields in preset.terms.items():
            arguments = {k: v for k, v in fields['loss'].items() if k != 'type'}
            said = ', '.join(f'{k}={v!r}' for k, v in arguments.items())
            rest = ''.join(f', `{k}={v!r}`' for k, v in fields.items() if k not in ('tap', 'loss'))
            tap = fields['tap']
            if not isinstance(tap, str):
                tap = f'{tap["student"]}, {tap["teacher"]}'
            groups.setdefault(tap, []).append(f'{name}: `{fields["loss"]["type"]}({said})`{rest}')
        taps = '<br>'.join(f'`{tap}`' for tap in groups)
        losses = '<br>'.join('; '.join(said) for said in groups.values())
        inherits = ', '.join(f'`{part}`' for part in preset.inherit)
        cells = [preset.models, taps, losses, inherits, preset.source]
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


@pytest.mark.parametrize('method', METHODS)
def test_the_page_has_the_table(method):
    assert table(method) in PAGE.read_text(), f'docs/presets.md lacks:\n\n{table(method)}'


def test_every_weight_in_the_table_is_one_of_its_loss():
    for method in METHODS.values():
        for preset in method.presets:
            for fields in preset.terms.values():
                loss = dict(fields['loss'])
                takes = inspect.signature(getattr(kd_dense.losses, loss.pop('type'))).parameters
                assert loss.keys() <= takes.keys()

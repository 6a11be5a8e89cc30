"""Terms behind region proposals: the teacher looks at the student's RoIs."""

import pytest
import torch
from mmengine.config import ConfigDict

from kd_dense.mm.batches.rois import read_rois
from kd_dense.mm.batches.targets import Step
from kd_dense.mm.distil.shared_rois import with_teacher_on_rois
from kd_dense.mm.models.probe import probe
from kd_dense.taps import TapError, Taps
from tests.mm import toy, toy_rois
from tests.mm.toy_rois import FC_CLS, FC_REG, detector, term


def build(terms, student=None, teacher=None, **others):
    config = toy_rois.distilled(
        student=student or detector(),
        teacher=dict(config=teacher or detector(16), checkpoint=None, **others),
        terms=terms,
        checks=False,
    )
    return toy.build(config).train()


def ours(losses):
    return {k.removeprefix('loss_kd_'): v for k, v in losses.items() if k.startswith('loss_kd_')}


def recorded(model, scenes=None, *taps):
    """A step, and what was recorded in the student alone."""
    batch = toy.batch(model, scenes or toy.DetScenes(), 4)
    names = [FC_CLS, 'roi_head.bbox_head.get_targets', *taps]
    torch.manual_seed(1)
    with Taps(names).on(model) as found:
        losses = model(*batch, mode='loss')
    return batch, losses, found


class TestStep:
    @pytest.fixture(scope='class')
    def model(self):
        return build(toy_rois.terms())

    def test_the_teacher_sees_the_regions_that_the_student_was_trained_on(self, model):
        batch, losses, found = recorded(model, None, FC_REG)
        rois = read_rois(found, 'roi_head.bbox_head.get_targets')
        teacher = model.kd_plan.teacher.model
        with torch.no_grad(), Taps(['neck']).on(teacher) as neck:
            teacher.extract_feat(model.kd_plan.guest.preprocess(*batch))
        with torch.no_grad():
            theirs = teacher.roi_head._bbox_forward(tuple(neck['neck']), rois.boxes)
        assert rois.boxes.shape == (len(rois.labels), 5)
        assert set(rois.boxes[:, 0].tolist()) == {0, 1, 2, 3}
        assert 0 < (rois.labels < 3).sum() < len(rois.labels)
        expected = dict(
            dkd=model.kd.dkd.loss(found[FC_CLS][0], theirs['cls_score'], rois.labels),
            dist=model.kd.dist.loss(found[FC_CLS][0], theirs['cls_score']),
            boxes=model.kd.boxes.loss(found[FC_REG][0], theirs['bbox_pred'], rois.labels),
        )
        for name, value in ours(losses).items():
            assert torch.allclose(value, expected[name], rtol=1e-5), name

    def test_the_box_head_of_the_student_runs_once(self, model):
        for head, runs in ((model, 1), (model.kd_plan.teacher.model, 1)):
            calls = []
            hook = head.roi_head.bbox_head.shared_fcs[0].register_forward_hook(
                lambda *_, calls=calls: calls.append(1)
            )
            recorded(model)
            hook.remove()
            assert len(calls) == runs  # of the teacher too: three terms share it

    def test_the_teacher_proposes_nothing_and_goes_no_further_than_its_taps(self, model):
        teacher = model.kd_plan.teacher.model
        ran = []
        hooks = [
            part.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
            for name, part in teacher.named_modules()
            if name in ('rpn_head', 'roi_head.bbox_head', 'roi_head.bbox_head.fc_reg')
        ]
        recorded(model)
        assert 'rpn_head' not in ran
        assert 'roi_head.bbox_head.fc_reg' in ran
        ran.clear()
        only = build(dict(dkd=term()))
        teacher = only.kd_plan.teacher.model
        teacher.roi_head.bbox_head.fc_reg.register_forward_pre_hook(lambda *_: ran.append('reg'))
        recorded(only)
        assert ran == []
        for hook in hooks:
            hook.remove()

    def test_gradients_reach_the_student_and_the_teacher_stays(self, model):
        teacher = model.kd_plan.teacher.model
        before = {k: v.clone() for k, v in teacher.state_dict().items()}
        _, losses, _ = recorded(model)
        for name, value in ours(losses).items():
            layer = model.roi_head.bbox_head.get_submodule(
                'fc_reg' if name == 'boxes' else 'fc_cls'
            )
            wanted = [layer.weight, model.neck.fpn_convs[0].conv.weight]
            for grad in torch.autograd.grad(value, wanted, retain_graph=True):
                assert grad.any(), name
        assert all(p.grad is None for p in teacher.parameters())
        assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())

    def test_weights_of_0_change_nothing(self):
        zero = {
            k: {**v, 'loss': {**v['loss'], 'weight': 0.0}} for k, v in toy_rois.terms().items()
        }
        alone, model = toy.build(detector()).train(), build(zero)
        found = []
        for one in (alone, model):
            torch.manual_seed(0)
            losses = one(*toy.batch(one, toy.DetScenes(), 4), mode='loss')
            found.append({k: v for k, v in losses.items() if not k.startswith('loss_kd')})
        assert str(found[0]) == str(found[1])

    @pytest.mark.parametrize('precision', ['bf16', 'fp16'])
    def test_a_teacher_of_half_precision_pools_where_a_whole_one_does(self, precision):
        expected = ours(recorded(build(toy_rois.terms()))[1])
        found = ours(recorded(build(toy_rois.terms(), precision=precision))[1])
        for name, value in found.items():
            assert torch.allclose(value, expected[name], rtol=0.2), name

    def test_shares_are_measured_at_the_rows(self):
        config = toy_rois.distilled(terms={}, preset=['roi_dkd', 'roi_dist'], weights='shares')
        model = toy.build(config).train()
        for _ in range(3):
            total, logged = model.parse_losses(
                model(*toy.batch(model, toy.DetScenes(), 4), mode='loss')
            )
            total.backward()
        for name in ('dkd', 'dist'):
            assert logged[f'kd_share_{name}'] == pytest.approx(0.5, rel=0.3)

    def test_autocast_is_that_of_the_step(self, model):
        with torch.autocast('cpu', torch.bfloat16):
            losses = ours(recorded(model)[1])
        assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())

    @pytest.mark.parametrize('count', [0, 1, 1000])
    def test_any_number_of_boxes(self, model, count):
        scenes = toy.DetScenes()
        corners = 40 * torch.rand(count, 2, generator=torch.Generator().manual_seed(0))
        scenes.boxes = [torch.cat([corners, corners + 8], 1)] * len(scenes)
        losses = ours(recorded(model, scenes)[1])
        assert all(v.isfinite() for v in losses.values())
        assert (losses['boxes'] > 0) == (count > 0)

    def test_without_a_region_nothing_is_compared(self, model, monkeypatch):
        """Both a batch of none, and a cascade that has ended early."""
        loss = model.roi_head.loss

        def none_left(x, results, samples):
            results = [one[:0] for one in results]
            samples = [one.clone() for one in samples]
            for one in samples:
                one.gt_instances = one.gt_instances[:0]
            return loss(x, results, samples)

        monkeypatch.setitem(model.roi_head.__dict__, 'loss', none_left)
        losses = ours(recorded(model)[1])
        assert all(v == 0 and v.requires_grad for v in losses.values())
        monkeypatch.setitem(model.roi_head.__dict__, 'loss', lambda *_: {})
        losses = ours(model(*toy.batch(model, toy.DetScenes()), mode='loss'))
        assert all(v == 0 for v in losses.values())


STAGES = [f'roi_head.bbox_head.{stage}.fc_cls' for stage in range(2)]
PAIRS = {
    'mask': (detector(masks=True), detector(16, masks=True), [FC_CLS], [FC_CLS]),
    'cascade': (detector(stages=2), detector(16, stages=2), STAGES, STAGES),
    'faster from cascade': (detector(), detector(16, stages=2), [FC_CLS], STAGES[:1]),
    'cascade from faster': (detector(stages=2), detector(16), STAGES, [FC_CLS] * 2),
}


class TestDetectors:
    @pytest.mark.parametrize('pair', PAIRS)
    @pytest.mark.parametrize('method', ['roi_dkd', 'roi_dist'])
    def test_presets_know_the_stages(self, pair, method):
        student, teacher, ours_at, theirs_at = PAIRS[pair]
        config = toy_rois.distilled(
            student=student, teacher=dict(config=teacher, checkpoint=None), terms={}, preset=method
        )
        model = toy.build(config)
        assert [one.student_tap for one in model.kd.values()] == ours_at
        assert [one.teacher_tap for one in model.kd.values()] == theirs_at
        assert all(one.rois for one in model.kd.values())

    @pytest.mark.parametrize('pair', [p for p in PAIRS if p != 'mask'])
    def test_each_stage_is_compared_on_its_own_regions(self, pair):
        student, teacher, ours_at, theirs_at = PAIRS[pair]
        terms = {
            f'stage{i}': term(dict(student=a, teacher=b))
            for i, (a, b) in enumerate(zip(ours_at, theirs_at, strict=True))
        }
        model = build(terms, student, teacher)
        batch = toy.batch(model, toy.DetScenes(), 4)
        guest = model.kd_plan.teacher.model
        heads = [tap.rpartition('.')[0] for tap in ours_at]
        with Taps([*ours_at, *(f'{head}.get_targets' for head in heads)]).on(model) as found:
            losses = ours(model(*batch, mode='loss'))
        with torch.no_grad(), Taps(['neck']).on(guest) as neck:
            guest.extract_feat(model.kd_plan.guest.preprocess(*batch))
        for index, (value, tap, head) in enumerate(
            zip(losses.values(), ours_at, heads, strict=True)
        ):
            rois = read_rois(found, f'{head}.get_targets')
            stage = () if theirs_at[index] == FC_CLS else (index,)
            with torch.no_grad():
                theirs = guest.roi_head._bbox_forward(*stage, tuple(neck['neck']), rois.boxes)
            expected = model.kd[f'stage{index}'].loss(
                found[tap][0], theirs['cls_score'], rois.labels
            )
            assert torch.allclose(value, expected, rtol=1e-5)

    def test_a_sampler_that_runs_the_box_head_is_passed_over(self):
        student = detector()
        rcnn = student.train_cfg.rcnn
        rcnn.sampler = dict(rcnn.sampler, type='OHEMSampler')
        model = build(dict(dkd=term()), student)
        _, losses, found = recorded(model)
        assert found.calls(FC_CLS) > 1
        assert ours(losses)['dkd'] > 0

    def test_branches_of_a_student_are_those_of_the_images(self):
        """As TridentNet's, which has each image once more in each branch."""
        model = build(dict(dkd=term()))
        found = recorded(model)[2]
        shared = model.kd.dkd.rois
        seen = []

        class Guest:
            model = None

            def run_on_rois(self, taps, head, features, rois):
                seen.append(rois)
                raise StopIteration('seen enough')

        features = [torch.zeros(2, 1, 8, 8)]
        step = Step(model, None, None, found, {'neck': features}, None)
        guest = Guest()
        guest.model = model.kd_plan.teacher.model
        with pytest.raises(StopIteration, match='seen enough'):
            with_teacher_on_rois(guest, [shared], step)
        boxes = read_rois(found, shared.targets).boxes
        assert set(boxes[:, 0].tolist()) == {0, 1, 2, 3}
        assert torch.equal(seen[0][:, 0], boxes[:, 0] % 2)
        assert torch.equal(seen[0][:, 1:], boxes[:, 1:])

    def test_features_of_regions_get_an_adapter(self):
        pooled = term('roi_head.bbox_roi_extractor', dict(type='FitNetsLoss'))
        model = build(dict(pooled=pooled))
        assert type(model.kd.pooled.adapters[0]).__name__ == 'Adapter'
        assert ours(recorded(model)[1])['pooled'] > 0


class TestRefusals:
    @pytest.mark.parametrize(
        'tap',
        ['neck', 'roi_head', 'roi_head.bbox_head.*.fc_cls', 'roi_head.mask_head', 'fc_cls[0]'],
    )
    def test_other_places(self, tap):
        with pytest.raises(TapError, match=r'one term for each stage.*got'):
            build(dict(one=term(tap)))

    def test_an_ordinary_tap_names_the_way_out(self):
        with pytest.raises(TapError, match='say shared_rois=True in the term'):
            build(dict(one=dict(tap=FC_CLS, loss=toy.CWD)))
        with pytest.raises(TapError, match='behind region proposals'):
            probe(toy.build(detector()), [FC_CLS], toy.build(detector()), [])

    @pytest.mark.parametrize(
        ('fields', 'message'),
        [
            (term('roi_head.bbox_head.fc_clss'), 'student: there is no tap.*bbox_head.fc_cls'),
            (term(dict(student=FC_CLS, teacher=STAGES[0])), 'teacher: there is no tap'),
            (term(loss=dict(type='FGDLoss')), "the loss needs 'boxes'.*take DKDLoss"),
            (term(loss=toy.CWD), 'expects two maps of one shape'),
            (term(shared_rois='yes'), 'expected shared_rois=True or False'),
        ],
    )  # fmt: skip
    def test_what_does_not_fit(self, fields, message):
        with pytest.raises(ValueError, match=message):
            build(dict(one=fields))

    def test_other_classes(self):
        with pytest.raises(ValueError, match=r'\(2, 4\), the teacher map \(2, 6\)'):
            build(dict(one=term()), teacher=detector(classes=5))

    def test_offsets_that_are_measured_differently(self):
        terms = dict(boxes=term(dict(student=FC_REG, teacher='roi_head.bbox_head.1.fc_reg'),
                                dict(type='RoIBoxLoss')))  # fmt: skip
        with pytest.raises(
            ValueError, match=r'stds \(0\.1, 0\.1.*with \(0\.05.*cannot be compared'
        ):
            build(terms, teacher=detector(16, stages=2))

    def test_logits_that_are_no_softmax(self):
        student = detector()
        student.roi_head.bbox_head.loss_cls = dict(type='SeesawLoss', num_classes=3)
        with pytest.raises(ValueError, match='SeesawLoss has channels of its own: tap'):
            build(dict(one=term(loss=dict(type='DISTLoss'))), student, ConfigDict(student))

    def test_a_box_head_that_finds_several_objects_in_a_region(self):
        from kd_dense.mm.models.box_heads import check_box_heads

        model = toy.build(detector())
        head = model.roi_head.bbox_head
        head.fc_cls = torch.nn.ModuleList([head.fc_cls, torch.nn.Linear(8, 5)])
        with pytest.raises(ValueError, match=r'finds several objects in a region.*features'):
            check_box_heads(model, FC_CLS, model, FC_CLS)

    def test_box_heads_that_take_queries(self):
        from kd_dense.mm.models.box_heads import check_box_heads

        model = toy.build(detector(stages=2))

        def forward(stage, x, rois, object_feats, batch_img_metas):
            raise AssertionError

        model.roi_head._bbox_forward = forward
        with pytest.raises(
            ValueError, match=r'takes more than regions .*\(object_feats, batch_img'
        ):
            check_box_heads(model, STAGES[0], model, STAGES[0])

"""A detector that learns new classes: its head, what it inherits, and what the term keeps."""

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from tests.mm import methods, toy, toy_heads

OLD, NEW = 2, 3
ERD = dict(erd=dict(tap='bbox_head', loss=dict(type='ERDLoss')))


def build(student=None, terms=None, **others):
    config = toy.distilled(
        student or toy_heads.incremental(OLD),
        dict(config=toy_heads.detector('gfl', num_classes=OLD), checkpoint=None),
        terms or {},
        **({} if terms else dict(preset='erd')),
        **others,
    )
    model = toy.build(config)
    model.init_weights()
    return model.train()


def head(**options):
    config = {**toy_heads.incremental(OLD).bbox_head, **options}
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(dict(config, train_cfg=toy_heads.detector('gfl').train_cfg))


class TestHead:
    def test_its_loss_is_that_of_a_head_of_the_new_classes(self):
        incremental, alone = (
            toy.build(toy_heads.incremental(OLD)),
            toy.build(toy_heads.detector('gfl')),
        )
        state = incremental.state_dict()
        for name, value in alone.state_dict().items():
            value.copy_(state[name][OLD:] if 'gfl_cls' in name else state[name])
        found, expected = (toy.losses(m, toy.DetScenes(), 4) for m in (incremental, alone))
        for name, value in expected.items():
            assert torch.equal(torch.stack(found[name]), torch.stack(value)), name
        assert incremental.bbox_head.num_classes == OLD + NEW

    def test_it_learns_nothing_of_the_old_classes_and_predicts_all(self):
        config = toy_heads.incremental(OLD)
        config.test_cfg.max_per_img = 10
        model = toy.build(config)
        losses = toy.losses(model, toy.DetScenes(), 4)
        sum(sum(v) for v in losses.values()).backward()
        grad = model.bbox_head.gfl_cls.weight.grad
        assert not grad[:OLD].any()
        assert grad[OLD:].flatten(1).any(1).all()
        with torch.no_grad():
            model.bbox_head.gfl_cls.bias.copy_(torch.tensor([9.0, -9, -9, -9, -9]))
        batch = toy.batch(model, toy.DetScenes())
        (first, *_) = model.eval()(*batch, mode='predict')
        assert set(first.pred_instances.labels.tolist()) == {0}

    @pytest.mark.parametrize('count', [0, 5, 6])
    def test_some_classes_are_old_and_some_new(self, count):
        with pytest.raises(ValueError, match=f'0 < old_classes < num_classes = 5.*={count}'):
            head(old_classes=count)


class TestTerm:
    def test_the_student_starts_as_its_teacher(self):
        model = build()
        teacher = model.kd_plan.teacher.model
        for name, value in teacher.state_dict().items():
            ours = model.state_dict()[name]
            assert torch.equal(ours[:OLD] if 'gfl_cls' in name else ours, value), name

    def test_it_keeps_the_old_classes_and_not_the_new(self):
        model = toy.build(methods.distilled('erd')).train()
        losses = toy.losses(model, toy.DetScenes(), 4)
        value = sum(v for k, v in losses.items() if k.startswith('loss_kd_erd'))
        assert value > 0
        grad = torch.autograd.grad(value, model.bbox_head.gfl_cls.weight)[0]
        assert grad[:OLD].any()
        assert not grad[OLD:].any()

    def test_other_heads_inherit_equal_shapes_alone(self):
        student = toy_heads.detector('gfl', num_classes=OLD + NEW)
        model = build(student, ERD, inherit=('bbox_head',))
        teacher = model.kd_plan.teacher.model
        assert not torch.equal(
            model.bbox_head.gfl_cls.weight[:OLD], teacher.bbox_head.gfl_cls.weight
        )
        assert torch.equal(model.bbox_head.gfl_reg.weight, teacher.bbox_head.gfl_reg.weight)

    def test_a_teacher_with_more_classes_is_refused(self):
        with pytest.raises(ValueError, match=r'of 5 classes in the student.*of 7 classes'):
            toy.build(toy.distilled(
                toy_heads.incremental(OLD),
                dict(config=toy_heads.detector('gfl', num_classes=7), checkpoint=None),
                ERD,
            ))  # fmt: skip

    def test_labels_of_new_classes_say_nothing_of_the_teacher(self, caplog):
        model = build()
        toy.losses(model, toy.DetScenes())
        assert 'little to teach' not in caplog.text

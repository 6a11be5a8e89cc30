"""Distillation is removed as it was added."""

import copy

import torch

from kd_dense.mm.distil.distilled import bare, distilled, own_class
from tests.mm import toy


def test_its_own_class():
    cls = type(toy.build(toy.segmenter()))
    assert own_class(distilled(cls)) is cls


class TestTheBareStudent:
    def test_is_the_student_as_it_was_before(self):
        student = toy.build(toy.segmenter())
        cls, attributes = type(student), set(vars(student))
        names, parts = [*student.state_dict()], [*student.named_modules()]
        model = toy.build(toy.distilled(student=student))
        found = bare(model)
        assert type(found) is cls
        assert set(vars(found)) == attributes
        assert [*found.state_dict()] == names
        assert [name for name, _ in found.named_modules()] == [name for name, _ in parts]
        assert found.backbone is model.backbone
        assert not any('kd' in name for name in toy.losses(found))

    def test_leaves_the_distilled_one_as_it_is(self):
        model = toy.build(toy.distilled())
        bare(model)
        assert 'loss_kd_logits' in toy.losses(model)

    def test_can_be_copied_without_the_teacher(self):
        model = toy.build(toy.distilled())
        found = copy.deepcopy(bare(model))
        shared = {id(p) for p in found.parameters()} & {id(p) for p in model.parameters()}
        assert not shared
        state = model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in found.state_dict().items())

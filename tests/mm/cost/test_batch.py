"""Made-up batches have in them what a step is made for."""

import pytest
import torch
from mmdet.models import GFL
from mmengine.registry import MODELS, DefaultScope
from mmseg.models import EncoderDecoder

from kd_dense.mm.configs import RequestError
from kd_dense.mm.cost.batch import make_batch
from kd_dense.mm.cost.recipe import prepared
from tests.mm.cost.recipes import read, side_by_side


@pytest.mark.parametrize('recipe', ['det_fgd', 'det_ld'])
def test_detectors(recipe):
    benchmark = side_by_side(recipe, images=3)
    images, samples = benchmark.batch
    assert images.shape == (3, 3, 64, 64)
    for sample in samples:
        boxes = sample.gt_instances.bboxes
        assert len(boxes) == len(sample.gt_instances.labels) > 1
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes[:, 2:] <= 64).all()
    [case] = benchmark.cases
    for call in (*case.terms.values(), case.guest.full, case.step):
        benchmark.calls[call]()


def test_label_maps_have_all_classes():
    benchmark = side_by_side('seg_cwd', size=(96, 128))
    labels = torch.stack([sample.gt_sem_seg.data for sample in benchmark.batch.samples])
    assert labels.shape == (2, 1, 96, 128)
    assert labels.unique().tolist() == [*range(11)]


@pytest.mark.parametrize(
    ('name', 'kind', 'field'),
    [('seg_cwd', EncoderDecoder, 'gt_sem_seg'), ('det_cwd', GFL, 'gt_instances')],
)
def test_types_that_are_classes_without_a_scope(name, kind, field):
    """As mmengine's pure Python configs have them."""
    recipe = prepared(read(name), (64, 64))
    with DefaultScope.overwrite_default_scope(recipe.config.default_scope):
        model = MODELS.build(recipe.config.model.student)
    recipe.config.model.student.type = kind
    recipe.config.pop('default_scope')
    assert field in make_batch(recipe, model, 1).samples[0]


def test_without_a_number_of_classes():
    recipe = prepared(read('seg_cwd'))
    recipe.config.model.student.decode_head.pop('num_classes')
    with pytest.raises(RequestError, match='the student has no num_classes: expected it in its'):
        make_batch(recipe, torch.nn.Module(), 2)

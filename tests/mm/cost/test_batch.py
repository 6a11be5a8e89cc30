"""Made-up batches have in them what a step is made for."""

import pytest
import torch

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


def test_without_a_number_of_classes():
    recipe = prepared(read('seg_cwd'))
    recipe.config.model.student.decode_head.pop('num_classes')
    with pytest.raises(RequestError, match='the student has no num_classes: expected it in its'):
        make_batch(recipe, torch.nn.Module(), 2)

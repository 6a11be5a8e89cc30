"""Made-up batches: their layout, their labels, and what of them is the same each time."""

from __future__ import annotations

import pytest
import torch
from mmdet.models.data_preprocessors import (
    DetDataPreprocessor,
    MultiBranchDataPreprocessor,
    TrackDataPreprocessor,
)
from mmdet.structures import DetDataSample
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from mmseg.models import SegDataPreProcessor
from mmseg.structures import SegDataSample
from torch import nn

from kd_dense.mm.batches.made_up import (
    BRANCHES,
    Labels,
    add_labels,
    blank_batch,
    every_sample,
    labelled_samples,
    layout,
    metainfo,
    random_batch,
)

SIZE = (48, 64)
NORM = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0])
EVERYTHING = Labels(boxes=3, classes=5, masks=True, label_maps=True, edges=True, proposals=True)


def model(preprocessor=None):
    found = nn.Identity()
    if preprocessor is not None:
        found.data_preprocessor = preprocessor
    return found


def tracker(**settings):
    return model(TrackDataPreprocessor(**NORM, **settings))


def semi_supervised():
    with DefaultScope.overwrite_default_scope('mmdet'):
        return model(MultiBranchDataPreprocessor(dict(type='DetDataPreprocessor', **NORM)))


LAYOUTS = {
    'none': (model, 'images', 'images'),
    'detector': (lambda: model(DetDataPreprocessor(**NORM)), 'images', 'images'),
    'tracker': (tracker, 'videos', 'videos'),
    'tracker of a detector': (lambda: tracker(use_det_processor=True), 'images', 'videos'),
    'semi-supervised': (semi_supervised, 'branches', 'images'),
}


COUNTS = dict(images=2, videos=4, branches=6)  # samples


def shapes(inputs):
    if isinstance(inputs, dict):
        return {branch: shapes(images) for branch, images in inputs.items()}
    return [image.shape for image in inputs]


class TestLayout:
    @pytest.mark.parametrize(('make', 'training', 'test'), LAYOUTS.values(), ids=LAYOUTS)
    def test_is_that_of_the_preprocessor(self, make, training, test):
        assert layout(make()) == training
        assert layout(make(), training=False) == test

    @pytest.mark.parametrize('name', [name for name in LAYOUTS if name != 'none'])
    @pytest.mark.parametrize('training', [True, False])
    def test_the_preprocessor_takes_a_random_batch(self, name, training):
        made = LAYOUTS[name][0]()
        batch = random_batch(made, SIZE, EVERYTHING, sample=DetDataSample, training=training)
        assert len([*every_sample(batch['data_samples'])]) == COUNTS[layout(made, training)]
        inputs = made.data_preprocessor(batch, training)['inputs']
        for images in inputs.values() if isinstance(inputs, dict) else [inputs]:
            assert images.is_floating_point()
            assert images.shape[-3:] == (3, *SIZE)

    @pytest.mark.parametrize('name', LAYOUTS)
    def test_blank_and_random_batches_are_laid_out_alike(self, name):
        made = LAYOUTS[name][0]()
        blank, samples = blank_batch(made, SIZE, 'cpu')
        batch = random_batch(made, SIZE, EVERYTHING)
        assert shapes(blank) == shapes(batch['inputs'])
        one, two = ([*every_sample(x)] for x in (samples, batch['data_samples']))
        assert len(one) == len(two) == COUNTS[layout(made)]
        assert [s.metainfo['img_id'] for s in one] == [s.metainfo['img_id'] for s in two]


class TestBlank:
    def test_images_have_the_channels_of_the_model(self):
        gray = model(SegDataPreProcessor(mean=[100.0], std=[50.0]))
        assert blank_batch(gray, SIZE, 'cpu')[0].shape == (2, 1, *SIZE)
        assert blank_batch(model(), SIZE, 'cpu')[0].shape == (2, 3, *SIZE)

    @pytest.mark.parametrize('make', [model, tracker])
    def test_images_are_blank_and_on_the_device(self, make):
        assert not blank_batch(make(), SIZE, 'cpu')[0].any()
        assert blank_batch(make(), SIZE, 'meta')[0].is_meta

    def test_samples_say_their_size(self):
        _, samples = blank_batch(model(), SIZE, 'cpu')
        assert [sample.metainfo['img_id'] for sample in samples] == [0, 1]
        for name in ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape'):
            assert metainfo(SIZE)[name] == samples[1].metainfo[name] == SIZE

    def test_frames_are_numbered(self):
        _, samples = blank_batch(tracker(), SIZE, 'cpu')
        assert [[frame.frame_id for frame in video] for video in samples] == [[0, 1]] * 2
        assert [sample.frame_id for sample in labelled_samples(samples)] == [0, 0]

    def test_labels_of_a_blank_batch_are_of_one_class(self):
        found = model()
        found.mask_head = nn.Identity()
        _, samples = blank_batch(found, SIZE, 'cpu')
        add_labels(found, samples, SIZE)
        assert [len(sample.gt_instances) for sample in samples] == [1, 2]
        for sample in samples:
            assert not sample.gt_instances.labels.any()
            assert not sample.gt_sem_seg.data.any()
            assert not sample.gt_edge_map.data.any()
            assert len(sample.proposals) == len(sample.gt_instances.masks)

    def test_no_masks_without_a_part_for_them(self):
        _, samples = blank_batch(model(), SIZE, 'cpu')
        add_labels(model(), samples, SIZE)
        assert 'masks' not in samples[0].gt_instances


class TestRandom:
    def test_is_the_same_each_time_whatever_the_random_state(self):
        first, second = (random_batch(model(), SIZE, EVERYTHING) for _ in range(2))
        torch.manual_seed(1)
        third = random_batch(model(), SIZE, EVERYTHING)
        for other in (second, third):
            assert all(map(torch.equal, first['inputs'], other['inputs']))
            for one, two in zip(first['data_samples'], other['data_samples'], strict=True):
                assert torch.equal(one.gt_instances.bboxes, two.gt_instances.bboxes)
                assert torch.equal(one.gt_sem_seg.data, two.gt_sem_seg.data)

    def test_leaves_the_random_state(self):
        before = torch.get_rng_state()
        random_batch(model(), SIZE, EVERYTHING)
        assert torch.equal(torch.get_rng_state(), before)

    def test_images_are_bytes_and_differ(self):
        one, two, three = random_batch(model(), SIZE, Labels(), images=3)['inputs']
        assert one.dtype == torch.uint8
        assert one.shape == (3, *SIZE)
        assert one.max() > 250
        assert one.float().std() > 50
        assert not torch.equal(one, two)
        assert not torch.equal(two, three)

    @pytest.mark.parametrize('kind', [DetDataSample, SegDataSample, BaseDataElement])
    def test_samples_are_of_the_kind_asked_for(self, kind):
        samples = random_batch(model(), SIZE, EVERYTHING, sample=kind)['data_samples']
        assert {type(sample) for sample in samples} == {kind}

    def test_branches_have_images_of_their_own(self):
        batch = random_batch(semi_supervised(), SIZE, EVERYTHING, sample=DetDataSample)
        assert batch['inputs'].keys() == batch['data_samples'].keys() == {*BRANCHES}
        images = [image for branch in batch['inputs'].values() for image in branch]
        assert len({image.sum().item() for image in images}) == 6
        assert all('gt_instances' in sample for sample in every_sample(batch['data_samples']))


class TestLabels:
    @staticmethod
    def sample(size=SIZE, **labels):
        return random_batch(model(), size, Labels(**labels), images=1)['data_samples'][0]

    def test_nothing_that_was_not_asked_for(self):
        assert {*self.sample(boxes=0).keys()} == set()
        assert {*self.sample().keys()} == {'gt_instances', 'ignored_instances'}
        assert 'masks' not in self.sample().gt_instances

    @pytest.mark.parametrize('smallest', [0.5, 1 / 30])
    def test_sides_of_boxes(self, smallest):
        boxes = self.sample(boxes=500, smallest=smallest).gt_instances.bboxes
        height, width = SIZE
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height] * 2)).all()
        sides = (boxes[:, 2:] - boxes[:, :2]) / torch.tensor([width, height])
        assert sides.min() >= smallest - 1e-5
        assert sides.max() <= 0.5 + 1e-5
        # As many below as above the geometric mean: evenly on a logarithmic scale.
        middle = (0.5 * smallest) ** 0.5
        assert torch.allclose(sides.log().mean().exp(), torch.tensor(middle), rtol=0.05)
        assert sides.min() < 1.05 * smallest
        assert sides.max() > 0.95 * 0.5

    def test_classes_of_boxes_are_the_first_and_the_last_and_between(self):
        assert self.sample(boxes=2, classes=80).gt_instances.labels.tolist() == [0, 79]
        assert self.sample(boxes=3, classes=5).gt_instances.labels.tolist() == [0, 2, 4]
        assert self.sample(boxes=1, classes=80).gt_instances.labels.tolist() == [0]

    def test_masks_fill_boxes(self):
        things = self.sample(boxes=4, masks=True).gt_instances
        for (x1, y1, x2, y2), mask in zip(things.bboxes.tolist(), things.masks, strict=True):
            rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
            assert 0 <= rows[0] - y1 < 1
            assert 0 <= columns[0] - x1 < 1
            assert 0 < y2 - rows[-1] <= 1
            assert 0 < x2 - columns[-1] <= 1
            assert mask.sum() == len(rows) * len(columns)

    def test_proposals_are_near_boxes(self):
        found = self.sample(boxes=50, proposals=True)
        boxes, proposals = found.gt_instances.bboxes, found.proposals.bboxes
        assert (proposals >= 0).all()
        corners = torch.minimum(boxes, proposals)[:, 2:] - torch.maximum(boxes, proposals)[:, :2]
        areas = [(x[:, 2:] - x[:, :2]).prod(1) for x in (boxes, proposals)]
        overlap = corners.clamp(min=0).prod(1)
        ious = overlap / (sum(areas) - overlap)
        assert (ious > 0.7).all()
        assert (ious < 1).all()

    @pytest.mark.parametrize(('size', 'classes'), [(SIZE, 19), ((64, 64), 150), ((33, 70), 200)])
    def test_label_maps_hold_all_classes_in_blocks(self, size, classes):
        labels = self.sample(size, classes=classes, label_maps=True).gt_sem_seg
        assert labels.data.shape == (1, *size)
        assert torch.equal(labels.data, labels.sem_seg)
        counts = labels.data.flatten().bincount()
        assert len(counts) == classes
        assert counts.min() > 0
        side = min(size) // 16
        block = labels.data[0, :side, :side]
        assert (block == block[0, 0]).all()

    def test_edges_are_between_blocks(self):
        found = self.sample((64, 64), classes=19, label_maps=True, edges=True)
        edges = found.gt_edge_map.data[0]
        assert edges[:, 4::4].float().mean() > 0.8
        for column in (1, 2, 3):
            assert not edges[:, column::4].any()

    def test_who_is_who_in_another_frame(self):
        video = random_batch(tracker(), SIZE, Labels())['data_samples'][0]
        assert [frame.gt_instances.instances_ids.tolist() for frame in video] == [[0, 1]] * 2

from __future__ import annotations

import pytest
from mmdet.models.data_preprocessors import TrackDataPreprocessor
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmseg.structures import SegDataSample
from torch import nn

from benchmarks.zoo.data import Data, data_of, make_batch
from kd_dense.mm.batches.made_up import Labels

SIZE = (64, 96)


def config(*steps, classes=(80, 3)):
    heads = [dict(num_classes=count) for count in classes]
    pipeline = [dict(type=step) if isinstance(step, str) else step for step in steps]
    loader = dict(dataset=dict(dataset=dict(pipeline=pipeline)))
    return Config(dict(model=dict(type='M', heads=heads), train_dataloader=loader))


class TestDataOf:
    def test_a_detector_has_boxes_of_the_classes_that_all_heads_know(self):
        data = data_of(config('LoadAnnotations'), False)
        assert data == Data(False, Labels(boxes=2, classes=3), False)

    def test_a_segmenter_has_label_maps_alone(self):
        data = data_of(config('LoadAnnotations', classes=[19]), True)
        assert data == Data(True, Labels(boxes=0, classes=19, label_maps=True), False)

    @pytest.mark.parametrize(('step', 'found'), [
        (dict(type='LoadAnnotations', with_mask=True), dict(masks=True)),
        (dict(type='LoadAnnotations', with_seg=True), dict(label_maps=True)),
        ('LoadPanopticAnnotations', dict(masks=True, label_maps=True)),
        ('LoadProposals', dict(proposals=True)),
        ('GenerateEdge', dict(edges=True)),
    ])  # fmt: skip
    def test_labels_are_those_that_the_pipeline_loads(self, step, found):
        assert data_of(config(step), False).labels == Labels(classes=3, **found)

    def test_lanes(self):
        data = data_of(config('PackLineDetectionInputs'), False)
        assert data.lanes
        assert data.labels.label_maps


class TestBatch:
    @pytest.mark.parametrize(('segments', 'kind'), [(True, SegDataSample), (False, DetDataSample)])
    def test_samples_are_those_of_the_framework(self, segments, kind):
        batch = make_batch(nn.Identity(), Data(segments, Labels(), False), SIZE, True)
        assert [type(sample) for sample in batch['data_samples']] == [kind] * 2
        assert 'lines_array' not in batch['data_samples'][0]

    def test_trackers_are_tested_on_one_video(self):
        model = nn.Identity()
        model.data_preprocessor = TrackDataPreprocessor()
        data = Data(False, Labels(), False)
        sizes = [len(make_batch(model, data, SIZE, training)['inputs']) for training in (1, 0)]
        assert sizes == [2, 1]

    def test_a_lane_crosses_the_image(self):
        batch = make_batch(nn.Identity(), Data(False, Labels(), True), SIZE, True)
        for sample in batch['data_samples']:
            assert sample.lines_array[:, 1].tolist() == [1, 0, 0, 0]
            xs = sample.lines_array[0, 6:]
            assert xs.min() > 0
            assert xs.max() < 96
            assert (sample.org_height, sample.org_width) == SIZE

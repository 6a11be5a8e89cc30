"""Pictures as every pipeline packs them: with boxes, label maps, both, or nothing at all."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.datasets.transforms import PackDetInputs
from mmdet.structures import DetDataSample
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from mmseg.datasets.transforms import PackSegInputs
from mmseg.structures import SegDataSample

from kd_dense.mm.pictures.observe import Prediction, _complete, compare, predict
from kd_dense.mm.pictures.predictions import draw_predictions
from kd_dense.mm.pictures.views import View, class_names, label_map, load, look
from tests.mm import methods, toy
from tests.mm.pictures.looking import drawn, texts

SIZE = (48, 64)
KNOWN = ('img_id', 'img_shape', 'ori_shape', 'scale_factor')
PICTURE = dict(img_id=0, img_shape=SIZE, ori_shape=SIZE, scale_factor=(1.0, 1.0))
BOXES = np.float32([[4, 4, 20, 30], [30, 8, 50, 40]])
LABELS = np.array([0, 2])
AREAS = np.zeros(SIZE, np.uint8)
AREAS[:, 32:] = 1


class Entries:
    """A data set of one picture, packed as mmdet does it."""

    metainfo = dict(classes=('a', 'b', 'c'))

    def __init__(self, **annotations):
        pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        self.entry = PackDetInputs(meta_keys=KNOWN)({**PICTURE, 'img': pixels, **annotations})

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.entry


ANNOTATIONS = {
    'nothing': {},
    'boxes without classes': dict(gt_bboxes=BOXES),
    'classes without boxes': dict(gt_bboxes_labels=LABELS),
    'boxes': dict(gt_bboxes=BOXES, gt_bboxes_labels=LABELS),
    'label map': dict(gt_seg_map=AREAS),
    'both': dict(gt_bboxes=BOXES, gt_bboxes_labels=LABELS, gt_seg_map=AREAS),
    'both, of another size': dict(
        gt_bboxes=BOXES, gt_bboxes_labels=LABELS, gt_seg_map=AREAS.repeat(2, 0).repeat(2, 1)
    ),
}


@pytest.fixture(scope='module')
def detector():
    config = methods.distilled('fgd')
    config.student.test_cfg.max_per_img = config.teacher.config.test_cfg.max_per_img = 10
    return toy.build(config).eval()


@pytest.mark.parametrize('kind', ANNOTATIONS)
def test_a_detector_and_whatever_is_known(detector, kind):
    given = ANNOTATIONS[kind]
    data = load(Entries(**given), 0)
    view = look(detector, data, ('a', 'b', 'c'))
    assert (view.boxes is not None) == ('gt_bboxes' in given)
    assert (view.labels is not None) == ({'gt_bboxes', 'gt_bboxes_labels'} <= given.keys())
    assert (view.segmentation is not None) == ('gt_seg_map' in given)
    if 'gt_seg_map' in given:
        assert np.array_equal(view.segmentation, AREAS)
    compared, left_out = compare(detector, data, view)
    assert ('fgd' in compared) == ('gt_bboxes' in given)
    if 'fgd' not in compared:
        assert left_out == {'fgd': 'needs boxes: the picture has no ground truth'}
    found = predict(detector, data, view)
    figure = draw_predictions(view, {'teacher': found, 'student': found})
    judged = 'right' in texts(figure).split('teacher')[-1]
    assert judged == (view.labels is not None)
    drawn(figure)


def test_targets_of_the_head_need_classes():
    model = toy.build(methods.distilled('ld')).eval()
    data = load(Entries(gt_bboxes=BOXES), 0)
    compared, left_out = compare(model, data, look(model, data, ()))
    assert not compared.keys() & left_out.keys()
    assert 'needs head_targets: the picture has no ground truth' in left_out.values()


def test_label_maps_of_both_frameworks_are_padded_alike():
    """Where a loss is given them, they are as large as the batch."""
    labels = torch.from_numpy(AREAS)[None]
    for sample in (Entries(gt_seg_map=AREAS)[0]['data_samples'], SegDataSample()):
        if isinstance(sample, SegDataSample):
            sample = PackSegInputs(meta_keys=())({'gt_seg_map': AREAS})['data_samples']
        view = View(np.zeros((*SIZE, 3), np.uint8), (64, 96), (), segmentation=AREAS)
        _complete([sample], view, torch.zeros(1, 3, 64, 96))
        found = label_map(sample)
        assert found.shape == (1, 64, 96)
        assert torch.equal(found[:, :48, :64], labels)
        assert (found[:, 48:] == 255).all()


class Unlabelled(toy.SegScenes):
    """Pictures alone: no sample comes with them."""

    def __getitem__(self, index):
        return {'inputs': super().__getitem__(index)['inputs']}


def test_a_data_set_without_samples():
    model = toy.build(methods.distilled('cwd')).eval()
    scenes = Unlabelled(augment=False)
    data = load(scenes, 1)
    view = look(model, data, class_names(scenes))
    assert view.boxes is view.labels is view.segmentation is None
    assert compare(model, data, view)[0].keys() == {*model.kd}
    assert predict(model, data, view).segmentation.shape == view.size


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 6])
def test_pictures_of_any_number_of_channels(channels):
    model = SimpleNamespace(
        data_preprocessor=lambda data, training: {'inputs': torch.stack(data['inputs'])}
    )
    image = torch.randint(256, (channels, *SIZE), dtype=torch.uint8)
    view = look(model, {'inputs': [image]}, ())
    assert view.image.shape == (*SIZE, 3)
    blue, green, red = image[:3] if channels >= 3 else [image[0]] * 3
    assert np.array_equal(view.image, torch.stack([red, green, blue], 2).numpy())


class Grey(toy.SegScenes):
    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {**item, 'inputs': item['inputs'][:1]}


def test_a_grey_student_of_a_coloured_teacher():
    config = methods.distilled('cwd')
    config.student.backbone.in_channels = 1
    config.student.data_preprocessor.update(mean=[120.0], std=[60.0], bgr_to_rgb=False)
    scenes = Grey(augment=False)
    model = toy.build(config).eval()
    data = load(scenes, 1)
    view = look(model, data, class_names(scenes))
    assert compare(model, data, view)[0].keys() == {*model.kd}
    figure = draw_predictions(view, {'student': predict(model, data, view)})
    drawn(figure)


@pytest.mark.parametrize(
    'fields', [{}, {'keypoints': torch.zeros(1, 17, 2), 'scores': torch.ones(1)}]
)
def test_what_is_found_need_not_be_boxes(fields):
    sample = DetDataSample(pred_instances=InstanceData(**fields))
    model = torch.nn.Module()
    model.test_step = lambda data: [sample]
    view = View(np.zeros((16, 32, 3), np.uint8), (16, 32), ())
    assert predict(model, {}, view) == Prediction()


@pytest.mark.parametrize(
    ('metainfo', 'names'),
    [
        (dict(classes=['a', 1]), ('a', '1')),
        (dict(), ()),
        (None, ()),
        ([dict(classes=('a', 'b')), dict(classes=('a', 'b'))], ('a', 'b')),
        ([dict(classes=('a', 'b')), dict(classes=('c',))], ()),
    ],
)
def test_names_of_the_classes(metainfo, names):
    """Concatenated data sets have a description each."""
    assert class_names(SimpleNamespace(metainfo=metainfo)) == names
    assert class_names(object()) == ()


def test_the_pixels_are_left_as_they_are():
    entries = Entries(**ANNOTATIONS['both'])
    before = entries[0]['inputs'].clone()
    data = pseudo_collate([entries[0]])
    look(toy.build(toy.detector()), data, ())
    assert torch.equal(data['inputs'][0], before)

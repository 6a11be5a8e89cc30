"""Whatever a batch holds: every method is finite, or says which map is not."""

import pytest
import torch
from mmengine.structures import InstanceData

from tests.mm import methods, toy

SIZES = [(64, 64), (40, 64), (64, 33)]


def built(method, sizes=(32, 32)):
    config = methods.distilled(method)
    if method in methods.SEGMENTERS:
        config.student.data_preprocessor.size = sizes
    return toy.build(config)


def batch(model, method, sizes):
    """Preprocessed pictures of these sizes, with their ordinary boxes or labels."""
    if method in methods.SEGMENTERS:
        scenes = toy.SegScenes(len(sizes), 64, augment=False)
        items = [scenes[i] for i in range(len(sizes))]
        for item, (height, width) in zip(items, sizes, strict=True):
            item['inputs'] = item['inputs'][:, :height, :width]
            label = item['data_samples'].gt_sem_seg
            shape = dict(img_shape=(height, width), ori_shape=(height, width))
            item['data_samples'].set_metainfo(shape)
            item['data_samples'].gt_sem_seg = type(label)(data=label.data[:, :height, :width])
    else:
        scenes = toy.DetScenes(len(sizes) + 1)
        scenes.sizes = [(64, 64), *sizes]
        scenes.images = [
            image[:, :height, : min(width, image.shape[2])]
            for image, (height, width) in zip(scenes.images, scenes.sizes, strict=True)
        ]
        scenes.sizes = [image.shape[1:] for image in scenes.images]
        items = [scenes[i + 1] for i in range(len(sizes))]  # the first has no boxes
    data = {key: [item[key] for item in items] for key in items[0]}
    data = model.data_preprocessor(data, training=True)
    return data['inputs'], data['data_samples']


def check(model, inputs, samples):
    """One step forward and backward, of our losses: of the student's own none are asked."""
    losses = model.train()(inputs, samples, mode='loss')
    ours = {name: value for name, value in losses.items() if name.startswith('loss_kd_')}
    assert ours
    for name, value in ours.items():
        assert value.isfinite(), name
    sum(ours.values()).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert any(name.startswith('backbone.') for name in grads)
    for name, grad in grads.items():
        assert grad.isfinite().all(), name


@pytest.mark.parametrize('method', methods.METHODS)
class TestBatches:
    def test_of_pictures_of_different_size(self, method):
        model = built(method, (64, 64))
        check(model, *batch(model, method, SIZES))

    def test_of_one_picture(self, method):
        model = built(method)
        check(model, *batch(model, method, [(32, 32)]))

    @pytest.mark.usefixtures('without_onednn')
    @pytest.mark.parametrize('precision', [torch.bfloat16, torch.float16])
    def test_in_half_precision(self, method, precision):
        model = built(method, (64, 64))
        with torch.autocast('cpu', precision):
            check(model, *batch(model, method, SIZES[:2]))


@pytest.mark.parametrize('method', methods.DETECTORS)
class TestBoxes:
    def run(self, method, *boxes):
        model = built(method)
        inputs, samples = batch(model, method, SIZES[:2])
        for sample, some in zip(samples, boxes, strict=True):
            some = torch.tensor(some).view(-1, 4)
            labels = torch.zeros(len(some), dtype=torch.long)
            sample.gt_instances = InstanceData(bboxes=some, labels=labels)
        check(model, inputs, samples)

    def test_none(self, method):
        self.run(method, [], [])

    def test_a_thousand(self, method):
        corners = torch.rand(1000, 2, generator=torch.Generator().manual_seed(0)) * 30
        self.run(method, torch.cat([corners, corners + 20], 1).tolist(), [])

    def test_outside_and_without_area(self, method):
        outside = [[-50.0, -50.0, -10.0, -10.0], [200.0, 200.0, 300.0, 300.0]]
        self.run(method, outside, [[10.0, 10.0, 10.0, 10.0], [-9.0, -9.0, 99.0, 99.0]])


@pytest.mark.parametrize('method', methods.SEGMENTERS)
@pytest.mark.parametrize('label', [255, 0])
def test_one_label_everywhere(method, label):
    model = built(method)
    inputs, samples = batch(model, method, [(32, 32)] * 2)
    for sample in samples:
        sample.gt_sem_seg.data.fill_(label)
    check(model, inputs, samples)


@pytest.mark.parametrize('method', methods.METHODS)
class TestATeacherThatIsNoNumber:
    """A loss must not turn into garbage silently: the tap is named."""

    MESSAGE = r"the teacher map of tap '[\w.]+' is not finite"

    def test_its_weights(self, method):
        model = built(method)
        with torch.no_grad():
            for parameter in model.kd_plan.teacher.model.parameters():
                parameter.fill_(float('inf'))
        with pytest.raises(FloatingPointError, match=self.MESSAGE):
            check(model, *batch(model, method, [(32, 32)] * 2))

    def test_its_maps_overflow_in_half_precision(self, method):
        model = built(method)
        with torch.no_grad():
            for name, parameter in model.kd_plan.teacher.model.named_parameters():
                if 'norm' in name or 'bn' in name or name.endswith('bias'):
                    parameter.fill_(6e4)
        with (
            torch.autocast('cpu', torch.float16),
            pytest.raises(FloatingPointError, match=self.MESSAGE),
        ):
            check(model, *batch(model, method, [(32, 32)] * 2))

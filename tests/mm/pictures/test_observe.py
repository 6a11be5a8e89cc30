"""Looking at a model leaves it as it was, and puts everything in pixels of the picture."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import MMDistributedDataParallel
from mmengine.structures import InstanceData, PixelData
from torch import distributed

from kd_dense.mm.pictures.observe import compare, predict
from kd_dense.mm.pictures.views import View, class_names, load, look
from kd_dense.mm.randomness import get_random_state
from tests.mm import methods, toy
from tests.mm.processes import in_two_processes


def equal(a, b):
    return all(torch.equal(x, b[name]) for name, x in a.items())


@pytest.mark.parametrize('method', ['skd', 'ld'])
def test_nothing_is_left_behind(method):
    """Weights, statistics of BN and critic, modes, gradients, random states."""
    config = methods.distilled(method)
    config.student.backbone.norm_cfg = dict(type='BN')
    config.student.test_cfg.max_per_img = 10
    model = toy.build(config).train()
    model.backbone.layer1.eval()
    scenes = methods.scenes(method)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    random = get_random_state()
    data = load(scenes, 1)
    view = look(model, data, class_names(scenes))
    before = copy.deepcopy(data)
    predict(model, data, view)
    compared, left_out = compare(model, data, view)
    assert compared.keys() == {*model.kd}
    assert not left_out
    assert equal(state, model.state_dict())
    assert modes == [module.training for module in model.modules()]
    assert all((p.grad == 1).all() for p in model.parameters() if p.requires_grad)
    assert torch.equal(random['torch'], get_random_state()['torch'])
    assert torch.equal(before['inputs'][0], data['inputs'][0])
    assert before['data_samples'][0].keys() == data['data_samples'][0].keys()
    for one in compared.values():
        assert all(not x.requires_grad for x in (*one.student, *one.teacher))


def test_maps_are_those_of_a_training_step():
    """With layers that behave alike in both modes, the loss is that of training."""
    model = toy.build(methods.distilled('fgd'))
    scenes = methods.scenes('fgd')
    data = load(scenes, 2)
    view = look(model, data, class_names(scenes))
    one = compare(model, data, view)[0]['fgd']
    logged = model.train()(*toy.batch(model, [scenes[2]], 1), mode='loss')
    expected = sum(float(v) for k, v in logged.items() if k.startswith('loss_kd_fgd'))
    assert one.value == pytest.approx(expected, rel=1e-4)


def pointrend(width=8):
    """A segmenter that runs as a whole only in its loss, its first head twice."""
    norm = dict(type='GN', num_groups=2)
    head = dict(num_classes=5, loss_decode=dict(type='CrossEntropyLoss'), channels=width)
    first = dict(
        type='FPNHead', in_channels=[width] * 4, in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 8, 8], dropout_ratio=0.0, norm_cfg=norm,
    )  # fmt: skip
    second = dict(type='PointHead', in_channels=[width], in_index=[0], num_fcs=1, dropout_ratio=-1)
    config = ConfigDict({**toy.segmenter(width), 'type': 'CascadeEncoderDecoder'}, num_stages=2)
    config.backbone.norm_cfg = norm
    config.neck = dict(
        type='FPN', in_channels=[width * 2**i for i in range(4)], out_channels=width, num_outs=4
    )
    config.decode_head = [{**first, **head}, {**second, **head}]
    config.train_cfg = dict(num_points=16, oversample_ratio=3, importance_sample_ratio=0.75)
    return config


def test_a_model_that_runs_only_in_its_loss():
    """What its first head yields counts once; without ground truth there is nothing to see."""
    config = toy.distilled(pointrend(), dict(config=pointrend(16), checkpoint=None))
    del config['terms']
    model = toy.build(ConfigDict(config, preset='cwd'))
    scenes = toy.SegScenes(augment=False)
    data = load(scenes, 1)
    one = compare(model, data, look(model, data, ()))[0]['cwd']
    logged = model.train()(*toy.batch(model, [scenes[1]], 1), mode='loss')
    assert one.value == pytest.approx(float(logged['loss_kd_cwd']), rel=1e-4)
    loss = model.kd['cwd'].loss
    assert one.value == pytest.approx(float(loss(one.student[0], one.teacher[0])), rel=1e-4)
    del data['data_samples'][0].gt_sem_seg
    compared, left_out = compare(model, data, look(model, data, ()))
    assert not compared
    assert left_out == {'cwd': 'needs the losses of the models: the picture has no ground truth'}


class Resized:
    """A picture at half its size, with boxes as mmdet reads them: in pixels of the file."""

    metainfo = dict(classes=('a', 'b', 'c'))

    def __len__(self):
        return 1

    def __getitem__(self, index):
        item = toy.DetScenes()[1]
        item['data_samples'].set_metainfo(dict(scale_factor=(0.5, 0.25)))
        return item


def test_boxes_come_in_pixels_of_the_picture():
    raw = toy.DetScenes()[1]['data_samples'].gt_instances.bboxes
    model = toy.build(methods.distilled('fgd'))
    view = look(model, load(Resized(), 0), ('a', 'b', 'c'))
    assert torch.equal(view.boxes, raw * torch.tensor([0.5, 0.25, 0.5, 0.25]))


def test_boxes_that_were_resized_with_the_picture_stay():
    class LoadAnnotations:
        pass

    class Resize:
        pass

    inner, wrapped = Resized(), Resized()
    inner.pipeline = SimpleNamespace(transforms=[LoadAnnotations(), Resize()])
    wrapped.dataset = inner
    raw = toy.DetScenes()[1]['data_samples'].gt_instances.bboxes
    assert torch.equal(load(wrapped, 0)['data_samples'][0].gt_instances.bboxes, raw)
    inner.pipeline.transforms.reverse()
    assert not torch.equal(load(wrapped, 0)['data_samples'][0].gt_instances.bboxes, raw)


def test_what_is_found_comes_in_pixels_of_the_picture():
    """mmdet's boxes and masks are those of the file."""
    sample = toy.DetScenes()[1]['data_samples']
    sample.set_metainfo(dict(scale_factor=(0.5, 0.25)))
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[:, :32] = True
    boxes = torch.tensor([[8.0, 8.0, 16.0, 16.0]])
    sample.pred_instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([1]), scores=torch.tensor([0.5]), masks=masks.numpy()
    )
    model = torch.nn.Module()
    model.test_step = lambda data: [sample]
    found = predict(model, {}, View(np.zeros((16, 32, 3), np.uint8), (16, 32), ()))
    assert found.boxes.tolist() == [[4.0, 2.0, 8.0, 4.0]]
    assert found.masks.dtype == bool
    assert found.masks.shape == (1, 16, 32)
    assert found.masks[0, :8].all()
    assert not found.masks[0, 8:].any()


def test_padding_of_a_picture_has_no_label():
    config = methods.distilled('intrakd')
    config.student.data_preprocessor.test_cfg = dict(size=(48, 48))
    model = toy.build(config)
    data = load(methods.scenes('intrakd'), 0)
    view = look(model, data, ())
    labels = compare(model, data, view)[0]['affinity'].needs['segmentation'][0]
    assert view.batch_shape == tuple(labels.shape[-2:]) == (48, 48)
    inside = labels.reshape(48, 48)[:32, :32]
    assert torch.equal(inside, torch.from_numpy(view.segmentation))
    assert (labels == 255).sum() == 48 * 48 - 32 * 32


def test_label_maps_come_at_the_size_of_the_picture():
    scenes = toy.SegScenes(augment=False)
    item = scenes[0]
    small = item['data_samples'].gt_sem_seg.data[:, ::2, ::2]

    class Small:
        metainfo = scenes.metainfo

        def __len__(self):
            return 1

        def __getitem__(self, index):
            item['data_samples'].gt_sem_seg = PixelData(data=small)
            return item

    data = load(Small(), 0)
    found = data['data_samples'][0].gt_sem_seg.data
    assert torch.equal(found, small.repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_a_picture_without_ground_truth_leaves_out_what_needs_it():
    model = toy.build(methods.distilled('intrakd'))
    data = load(methods.scenes('intrakd'), 0)
    del data['data_samples'][0].gt_sem_seg
    view = look(model, data, ())
    compared, left_out = compare(model, data, view)
    assert compared.keys() == {'attention'}
    assert left_out == {'affinity': 'needs segmentation: the picture has no ground truth'}


def test_colours_and_names():
    """Files are BGR; the channels of features are no classes, however many there are."""
    model = toy.build(methods.distilled('cwd'))
    scenes = methods.scenes('cwd')
    data = load(scenes, 1)
    view = look(model, data, tuple(map(str, range(128))))
    assert np.array_equal(view.image[..., ::-1], scenes.images[1].transpose(1, 2, 0))
    compared, _ = compare(model, data, view)
    assert compared['features'].student[0].shape[1] == 128
    assert compared['features'].channels is None
    compared, _ = compare(model, data, look(model, data, tuple('abcde')))
    assert compared['logits'].channels == tuple('abcde')


def test_there_is_no_such_entry():
    with pytest.raises(
        IndexError, match='no entry 8 in the data set, which has 8: expected 0 to 7'
    ):
        load(toy.SegScenes(), 8)


def seen_by_the_first(rank):
    """The first process looks, the second waits for it."""
    found = {}
    torch.manual_seed(0)
    model = MMDistributedDataParallel(toy.build(methods.distilled('ld')).train())
    if rank == 0:
        data = load(methods.scenes('ld'), 1)
        view = look(model.module, data, ())
        found = {name: one.value for name, one in compare(model.module, data, view)[0].items()}
    distributed.barrier()
    return found


@pytest.mark.long
def test_one_process_looks_while_the_other_waits():
    """Losses and heads that average over the processes do not wait for the other one."""
    found, nothing = in_two_processes(seen_by_the_first, timeout=120)
    assert not nothing
    torch.manual_seed(0)
    model = toy.build(methods.distilled('ld')).train()
    data = load(methods.scenes('ld'), 1)
    compared, _ = compare(model, data, look(model, data, ()))
    assert found == {name: one.value for name, one in compared.items()}


def test_a_teacher_whose_maps_are_kept_runs(tmp_path):
    maps = dict(views=2, folder=str(tmp_path / 'maps'))
    teacher = dict(config=toy.segmenter(16), checkpoint=None, cache=maps)
    model, scenes = toy.build(toy.distilled(teacher=teacher)).eval(), toy.SegScenes(augment=False)
    data = load(scenes, 0)
    found, left_out = compare(model, data, look(model, data, class_names(scenes)))
    assert found.keys() == {'logits'}
    assert not left_out
    assert model.kd_plan.teacher.cache.views == 2
    assert not (tmp_path / 'maps').exists()

"""Looking at a model leaves it as it was, and puts everything in pixels of the picture."""

import copy

import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.structures import PixelData
from torch import distributed

from kd_dense.mm.observe import class_names, compare, load, look, predict
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

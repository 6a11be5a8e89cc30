"""A teacher whose maps are kept: the same training, and the teacher does not run."""

import copy
import random
from pathlib import Path

import pytest
import torch

from kd_dense.mm.batches.views import FixedViews
from kd_dense.mm.distil.cacheable import check_cache
from kd_dense.mm.teachers.cached import MapCache, fingerprint
from tests.mm import toy
from tests.mm.processes import in_two_processes


def recipe(folder, views=2, teacher=None, **others):
    fields = dict(config=toy.segmenter(16), checkpoint=None, **(teacher or {}))
    fields['cache'] = dict(views=views, folder=str(folder), **others)
    return toy.distilled(teacher=fields)


def data(views=2, workers=0, **others):
    return dict(
        train_dataloader=dict(
            batch_size=2,
            num_workers=workers,
            sampler=dict(type='InfiniteSampler', shuffle=True),
            dataset=FixedViews(toy.SegScenes(**others), views=views),
        ),
        custom_hooks=[dict(type='kd_dense.RandomStateHook')],
    )


def train(config, work_dir, views=2, workers=0, **others):
    runner = toy.runner(config, work_dir, **{**data(views, workers), **others})
    runner.train()
    return runner.model


def assert_equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


def batch(model, views=2, scenes=None):
    random.seed(0)  # the same views
    return toy.batch(model, FixedViews(scenes or toy.SegScenes(augment=False), views))


def cache(model):
    return model.kd_plan.teacher.cache


def maps(model, *given):
    """What terms are given of the teacher."""
    plan = model.kd_plan
    found = given or batch(model)
    cache(model).run(
        plan.teacher, plan.guest.taps, plan.guest.calls, plan.guest.preprocess, *found
    )
    return plan.guest.taps['decode_head.conv_seg']


class TestMaps:
    def test_are_those_of_the_teacher_in_float16(self, tmp_path):
        model = toy.build(recipe(tmp_path))
        plan = model.kd_plan
        inputs, samples = batch(model)
        first, again = maps(model, inputs, samples), maps(model, inputs, samples)
        plan.teacher.run(plan.guest.taps, plan.guest.calls, plan.guest.preprocess, inputs, samples)
        live = plan.guest.taps['decode_head.conv_seg']
        assert len(first) == len(live) == 1
        assert torch.equal(first[0], again[0])
        assert first[0].dtype == torch.float32
        torch.testing.assert_close(first[0], live[0], rtol=1e-3, atol=1e-3)
        assert (cache(model).computed, cache(model).read) == (2, 2)

    def test_are_read_where_the_teacher_cannot_run(self, tmp_path):
        before = maps(toy.build(recipe(tmp_path)))
        model = toy.build(recipe(tmp_path))
        model.kd_plan.teacher.model.forward = pytest.fail
        assert torch.equal(maps(model)[0], before[0])
        losses = model.train()(*batch(model), mode='loss')
        assert float(losses['loss_kd_logits']) > 0

    def test_are_the_same_whatever_was_there(self, tmp_path):
        ours, theirs = (toy.build(recipe(tmp_path / name)) for name in 'ab')
        inputs, samples = batch(ours)
        maps(ours, inputs[1:], samples[1:])
        assert torch.equal(maps(ours, inputs, samples)[0], maps(theirs, inputs, samples)[0])
        assert cache(ours).read == 1

    def test_of_several_taps_and_levels(self, tmp_path):
        config = recipe(tmp_path)
        config.terms = dict(
            a=dict(tap='backbone[1:3]', loss=toy.CWD), b=dict(tap='backbone.layer4', loss=toy.CWD)
        )
        for _ in range(2):
            model = toy.build(config)
            inputs, samples = batch(model)
            plan = model.kd_plan
            arguments = plan.guest.calls, plan.guest.preprocess, inputs, samples
            cache(model).run(plan.teacher, plan.guest.taps, *arguments)
            held = {name: plan.guest.taps[name] for name in plan.guest.calls}
            plan.teacher.run(plan.guest.taps, *arguments)
            for name, found in held.items():
                for x, y in zip(found, plan.guest.taps[name], strict=True):
                    torch.testing.assert_close(x, y, rtol=1e-2, atol=1e-2)

    @pytest.mark.parametrize('how', ['pixels', 'weights', 'setting', 'tap', 'mean', 'nothing'])
    def test_are_computed_anew_where_anything_has_changed(self, tmp_path, how):
        maps(toy.build(recipe(tmp_path)))
        config = recipe(tmp_path)
        if how == 'tap':
            config.terms.logits.tap = 'decode_head.conv_seg[0]'
        if how == 'mean':
            config.teacher.config.data_preprocessor.mean = [0.0, 110.0, 100.0]
        model = toy.build(config)
        teacher = model.kd_plan.teacher.model
        if how == 'weights':
            teacher.decode_head.conv_seg.bias.data[0] += 1e-3
        if how == 'setting':
            teacher.decode_head.align_corners = not teacher.decode_head.align_corners
        scenes = toy.SegScenes(augment=False)
        if how == 'pixels':
            scenes.images ^= 1
        plan = model.kd_plan
        run = plan.teacher, plan.guest.taps, plan.guest.calls, plan.guest.preprocess
        cache(model).run(*run, *batch(model, scenes=scenes))
        assert cache(model).computed == (0 if how == 'nothing' else 2)

    def test_a_damaged_entry_is_computed_anew(self, tmp_path):
        before = maps(toy.build(recipe(tmp_path)))
        files = [*tmp_path.rglob('*.maps')]
        content = files[0].read_bytes()
        files[0].write_bytes(content[:-1])
        model = toy.build(recipe(tmp_path))
        assert torch.equal(maps(model)[0], before[0])
        assert (cache(model).computed, cache(model).read) == (1, 1)
        assert files[0].read_bytes() == content

    def test_a_pipeline_with_a_memory_is_found_out(self, tmp_path, log):
        model = toy.build(recipe(tmp_path, views=1))
        scenes = FixedViews(toy.SegScenes(augment=False), 1)
        for _ in range(2):
            maps(model, *toy.batch(model, scenes))
            scenes.images ^= 1
        assert 'come out differently twice' in log()

    def test_are_kept_in_float16_under_autocast_too(self, tmp_path):
        model = toy.build(recipe(tmp_path)).train()
        for _ in range(2):
            with torch.autocast('cpu', torch.bfloat16):
                losses = model(*batch(model), mode='loss')
            assert losses['loss_kd_logits'].dtype == torch.float32
            assert losses['loss_kd_logits'].isfinite()
        assert cache(model).read == 2


class TestTraining:
    def test_resumes_as_if_it_had_not_stopped(self, tmp_path):
        whole = train(recipe(tmp_path / 'a'), tmp_path / 'whole', max_iters=6)
        config = recipe(tmp_path / 'b')
        train(config, tmp_path / 'cut', max_iters=4)
        rest = train(
            config, tmp_path / 'rest', max_iters=6, resume=True,
            load_from=str(tmp_path / 'cut' / 'iter_2.pth'),
        )  # fmt: skip
        assert cache(rest).read > 0
        assert_equal(whole, rest)

    def test_is_the_same_with_a_full_cache(self, tmp_path):
        config = recipe(tmp_path / 'maps')
        first = train(config, tmp_path / 'a')
        again = train(config, tmp_path / 'b')
        assert cache(first).computed > 0 == cache(again).computed
        assert_equal(first, again)

    def test_workers_hand_on_the_views(self, tmp_path):
        model = train(recipe(tmp_path / 'maps'), tmp_path / 'work', workers=2)
        assert cache(model).computed + cache(model).read == 8

    def test_the_teacher_is_in_no_copy_and_no_checkpoint(self, tmp_path):
        model = train(recipe(tmp_path / 'maps'), tmp_path / 'work')
        assert cache(copy.deepcopy(model)) is cache(model)
        saved = torch.load(tmp_path / 'work' / 'iter_4.pth', weights_only=False)
        assert not [name for name in saved['state_dict'] if name.startswith('kd')]

    def test_two_processes_share_the_maps(self, tmp_path):
        together = in_two_processes(in_a_process, str(tmp_path))
        alone = maps_in_a_process(0, str(tmp_path / 'maps'))
        assert [counts for _, counts, *_ in together] == [(2, 4), (2, 4)]
        assert alone[1] == (0, 6)
        assert all(torch.equal(found, alone[0]) for found, *_ in together)
        # and a training in both is that of one, whose teacher does not run at all
        (*_, first, ones), (*_, second, twos) = together
        assert ones[0] + twos[0] == ones[1] + twos[1] == 8
        single, counts = training_in_a_process(tmp_path, 'single')
        assert counts == (0, 16)
        for name, value in single.items():
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6, msg=name)


def in_a_process(rank, folder):
    found, counts = maps_in_a_process(rank, f'{folder}/maps')
    torch.distributed.barrier()
    return found, counts, *training_in_a_process(folder, 'both', launcher='pytorch')


def training_in_a_process(folder, name, **others):
    """What four iterations of four pictures make, in one process or in two."""
    config = recipe(Path(folder, 'trained'), views=1)
    config.student = toy.segmenter(dropout=0.0)
    config.student.backbone.norm_cfg = config.student.decode_head.norm_cfg = dict(
        type='GN', num_groups=2
    )
    loader = data(views=1, augment=False)['train_dataloader']
    loader['batch_size'] = 2 if others else 4
    ddp = dict(type='MMDistributedDataParallel', device_ids=None)
    model = train(
        config, Path(folder, name), train_dataloader=loader, param_scheduler=None,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        cfg=dict(model_wrapper_cfg=ddp) if others else {}, **others,
    )  # fmt: skip
    model = getattr(model, 'module', model)
    return dict(model.state_dict()), (cache(model).computed, cache(model).read)


def maps_in_a_process(rank, folder):
    """Half of the maps, and then all of them."""
    model = toy.build(recipe(folder))
    data = FixedViews(toy.SegScenes(), views=2)
    inputs, samples = toy.batch(model, [data.view(index, 0) for index in range(4)], 4)
    mine = slice(2 * rank, 2 * rank + 2)
    maps(model, inputs[mine], samples[mine])
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    (found,) = maps(model, inputs, samples)
    return found, (cache(model).computed, cache(model).read)


class TestRefuses:
    def test_samples_of_any_number_of_views(self, tmp_path):
        model = toy.build(recipe(tmp_path))
        with pytest.raises(ValueError, match=r"type='kd_dense\.FixedViews', views=2"):
            maps(model, *toy.batch(model))
        with pytest.raises(ValueError, match='got one with 3 views'):
            maps(model, *batch(model, views=3))

    def test_maps_that_need_too_much_room_before_anything_is_written(self, tmp_path):
        model = toy.build(recipe(tmp_path / 'maps', gigabytes=1e-6))
        sum_ = r'0.00016 MB .*8 pictures x 2 views are 2.56e-06 GB, more than gigabytes=1e-06'
        with pytest.raises(ValueError, match=sum_):
            maps(model)
        assert not (tmp_path / 'maps').exists()

    def test_maps_for_which_the_disk_has_no_room(self, tmp_path, monkeypatch):
        model = toy.build(recipe(tmp_path / 'maps'))
        full = type('Usage', (), {'free': 10})
        monkeypatch.setattr('shutil.disk_usage', lambda path: full)
        with pytest.raises(ValueError, match='GB left'):
            maps(model)

    def test_values_that_float16_does_not_hold(self, tmp_path):
        model = toy.build(recipe(tmp_path))
        model.kd_plan.teacher.model.decode_head.conv_seg.bias.data += 1e5
        with pytest.raises(ValueError, match='float16 ends at 65504'):
            maps(model)

    def test_terms_that_need_more_than_maps(self, tmp_path):
        model = toy.build(toy.distilled())
        model.data_preprocessor.batch_augments = [1]
        with pytest.raises(ValueError, match='batch_augments'):
            check_cache(model, model.kd, by_loss=False)
        model.data_preprocessor.batch_augments = None
        check_cache(model, model.kd, by_loss=False)
        with pytest.raises(ValueError, match='depends on the labels'):
            check_cache(model, model.kd, by_loss=True)

    @pytest.mark.parametrize(
        ('fields', 'says'),
        [
            (dict(folder='maps'), 'views expects a number >= 1, got None'),
            (dict(views=2), 'folder expects a path, got None'),
            (dict(views=2, foldr='maps'), "did you mean 'folder'"),
            (dict(views=2, folder='maps', gigabytes=0), 'gigabytes expects a number > 0'),
            ('maps', r'expects dict\(views=8'),
        ],
    )
    def test_fields_that_do_not_fit(self, fields, says):
        with pytest.raises(ValueError, match=says):
            MapCache.of(fields)


def test_a_fingerprint_is_of_weights_layers_and_settings():
    def mark(change=lambda model: None):
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
        torch.nn.init.ones_(model[0].weight)
        torch.nn.init.ones_(model[0].bias)
        change(model)
        return fingerprint(model, ['fp32'])

    def other(model):
        model[1] = torch.nn.SiLU()

    assert mark() == mark(lambda model: model.train())
    marks = {
        mark(),
        mark(other),
        mark(lambda model: setattr(model[0], 'padding', (1, 1))),
        mark(lambda model: model[0].bias.data.add_(1)),
    }
    assert len(marks) == 4

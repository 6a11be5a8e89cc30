"""Teachers from timm, transformers, torch.hub, and any module."""

import json
import sys
import types

import pytest
import safetensors.torch
import torch
from mmengine.model import ImgDataPreprocessor
from torch import nn

from kd_dense.mm.batches.preprocessing import Repreprocess
from kd_dense.mm.check.survey import survey
from kd_dense.mm.configs import RequestError, build_model, read_config
from kd_dense.mm.stack import torchvision
from kd_dense.mm.teachers.foreign import ForeignModel, predicts
from kd_dense.mm.teachers.guest import Teacher, what_it_is
from kd_dense.mm.teachers.openmmlab import config_of_teacher
from tests.mm import toy, toy_foreign
from tests.mm.toy_foreign import MEAN, STD

PYRAMID = [(16, 24), (8, 12), (4, 6), (2, 3)]
KINDS = {
    'vit': (toy_foreign.vit(), [(4, 6)]),
    'convnext': (toy_foreign.convnext(), PYRAMID),
    'dinov2': (toy_foreign.of_transformers('dinov2'), [(5, 7)]),
    'dinov3': (toy_foreign.of_transformers('dinov3_vit'), [(4, 6)]),
    'clip': (toy_foreign.of_transformers('clip'), [(4, 6)]),
    'swin': (toy_foreign.of_transformers('swin'), PYRAMID),
    'segformer': (toy_foreign.of_transformers('segformer'), PYRAMID),
    'sam': (toy_foreign.of_transformers('sam'), [(3, 4)]),
    'mask2former': (toy_foreign.of_transformers('mask2former'), PYRAMID),
    'module': (toy_foreign.module(), [(4, 6)]),
}


def model(spec, load=False):
    teacher = Teacher(spec)
    if load:
        teacher.load()
    return teacher.model


def maps(spec, size=(64, 96), **others):
    torch.manual_seed(0)
    return model({**spec, **others}).extract_feat(torch.randn(2, 3, *size))


@pytest.mark.parametrize('kind', KINDS)
def test_yields_maps_of_the_image(kind):
    spec, sizes = KINDS[kind]
    found = maps(spec)
    assert [tuple(x.shape[2:]) for x in found] == sizes
    assert all(len(x) == 2 and x.isfinite().all() for x in found)


@pytest.mark.parametrize('kind', KINDS)
def test_any_image_is_made_to_fit(kind):
    for x in maps(KINDS[kind][0], (70, 83)):
        assert x.shape[2] <= x.shape[3]


class TestTokens:
    def test_of_timm_are_in_their_places_without_class_and_registers(self):
        net = model(toy_foreign.vit())
        images = torch.randn(2, 3, 64, 96)
        tokens = net.backbone.net.forward_features(images)
        assert tokens.shape == (2, 1 + 4 + 24, 16)
        [found] = net.extract_feat(images)
        assert torch.allclose(found.flatten(2).mT, tokens[:, 5:], atol=1e-6)

    def test_of_transformers_are_those_behind_the_last_norm(self):
        net = model(toy_foreign.of_transformers('dinov3_vit'))
        images = torch.randn(2, 3, 64, 96)
        tokens = net.backbone.net(images).last_hidden_state
        [found] = net.extract_feat(images)
        assert torch.equal(found.flatten(2).mT, tokens[:, 5:])

    @pytest.mark.parametrize('spec', [toy_foreign.vit(), toy_foreign.of_transformers('dinov2')])
    def test_of_layers_that_are_chosen(self, spec):
        found = maps(spec, out_indices=(0, 1, -1))
        assert len(found) == 3
        assert len({tuple(x.shape) for x in found}) == 1
        assert not torch.equal(found[0], found[1])

    def test_of_a_method_of_a_module(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.patches = nn.Conv2d(3, 8, 14, stride=14)

            def features(self, images, times):
                tokens = times * self.patches(images).flatten(2).mT
                first = tokens.new_zeros(len(tokens), 1, 8)
                return dict(one=tokens[:, 0], all=torch.cat([first, tokens], 1))

        net = Net()
        spec = toy_foreign.module(net, size_divisor=14, method='features', arguments=dict(times=2))
        images = torch.randn(2, 3, 28, 42)
        [found] = model(spec).extract_feat(images)
        assert torch.allclose(found, 2 * net.patches(images), atol=1e-6)


class TestSizes:
    def test_a_patch_divides_what_images_are_resized_to(self):
        seen = []
        net = nn.Conv2d(3, 8, 14, stride=14)
        net.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-2:]))
        model(toy_foreign.module(net, size_divisor=14)).extract_feat(torch.zeros(1, 3, 64, 98))
        assert [tuple(x) for x in seen] == [(70, 98)]

    def test_images_that_fit_are_given_as_they_are(self):
        seen = []
        net = nn.Conv2d(3, 8, 16, stride=16)
        net.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        images = torch.zeros(1, 3, 64, 96)
        model(toy_foreign.module(net)).extract_feat(images)
        assert seen[0] is images

    def test_of_a_net_of_one_size_the_padding_is_cut_off(self):
        net = nn.Conv2d(3, 3, 16, stride=16, bias=False)
        nn.init.dirac_(net.weight)
        net.weight.data[:, :, 0, 0] += torch.eye(3)
        spec = toy_foreign.module(net, input_size=(128, 128))
        [found] = model(spec).extract_feat(torch.ones(1, 3, 64, 32))
        assert found.shape == (1, 3, 8, 4)
        assert (found > 0.5).all()  # zeros are beyond

    def test_a_patch_that_was_not_named_is(self):
        class Strict(nn.Conv2d):
            def forward(self, x):
                if x.shape[-1] % 14:
                    raise ValueError('width is no multiple of 14')
                return super().forward(x)

        spec = toy_foreign.module(Strict(3, 8, 14, stride=14), size_divisor=1)
        with pytest.raises(RuntimeError, match=r'no multiple of 14\); .* say size_divisor=PATCH'):
            toy.build(toy.distilled(teacher=spec, terms=terms()))

    def test_no_maps_at_all(self):
        spec = toy_foreign.module(nn.Sequential(nn.Conv2d(3, 8, 16), nn.Flatten()), size_divisor=1)
        with pytest.raises(
            RuntimeError, match=r'Sequential.forward yields no maps .*\(2, 19208\)'
        ):
            maps(spec, (64, 64))


def terms(tap='backbone[-1]', loss=toy.CWD):
    return dict(a=dict(tap=dict(student='backbone[-1]', teacher=tap), loss=loss))


class TestNormalisation:
    def test_is_that_of_the_library(self):
        def seen(preprocessor):
            return preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist()

        found = model(toy_foreign.vit()).data_preprocessor
        assert seen(found) == ([127.5] * 3, [127.5] * 3)  # timm says 0.5
        assert found._channel_conversion

    def test_is_that_of_the_image_processor(self, tmp_path):
        folder = saved(tmp_path, image_mean=[0.1, 0.2, 0.3], image_std=[0.5] * 3,
                       rescale_factor=1 / 128)  # fmt: skip
        found = model(dict(type='transformers', model=folder, pretrained=False)).data_preprocessor
        assert torch.allclose(found.mean.flatten(), 128 * torch.tensor([0.1, 0.2, 0.3]))
        assert torch.allclose(found.std.flatten(), torch.tensor(64.0))

    def test_pixels_reach_the_net_as_its_own_preprocessing_would_give_them(self):
        pixels = torch.randint(256, (2, 3, 32, 32)).float()  # BGR, as mmcv reads
        student = ImgDataPreprocessor([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
        spec = toy_foreign.module(mean=MEAN, std=STD, scale=255, channel_order='rgb')
        batch = student(dict(inputs=[*pixels]))['inputs']
        given = Repreprocess(student, model(spec).data_preprocessor)(batch, None)
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
        assert torch.allclose(given, (pixels.flip(1) / 255 - mean) / std, atol=1e-5)

    @pytest.mark.parametrize(
        ('fields', 'message'),
        [
            (dict(mean=(0.5,) * 4), 'a value for each channel, 1 or 3, got 4 and 3'),
            (dict(channel_order='gbr'), "one of .'rgb', 'bgr'., got 'gbr'"),
            (dict(size_divisor=0), 'positive integer, got 0'),
            (dict(method='features'), "Conv2d has no method 'features'"),
        ],
    )
    def test_bad_values_are_named(self, fields, message):
        with pytest.raises(ValueError, match=message):
            Teacher(toy_foreign.module(**fields))

    def test_a_module_must_say_how_its_images_are_normalised(self):
        for spec in (nn.Conv2d(3, 8, 1), dict(module=nn.Conv2d(3, 8, 1))):
            with pytest.raises(ValueError, match=r'mean=.*std='):
                Teacher(spec)


def saved(folder, **processor):
    """A model of transformers in a folder, as its `save_pretrained` leaves it."""
    import transformers

    config = transformers.AutoConfig.for_model('dinov2', **toy_foreign.CONFIGS['dinov2'])
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    if processor:
        (folder / 'preprocessor_config.json').write_text(json.dumps(processor))
    return str(folder)


class TestWeights:
    def test_of_transformers_come_from_its_folder(self, tmp_path, log):
        folder = saved(tmp_path, image_mean=MEAN, image_std=STD)
        found = model(dict(type='transformers', model=folder), load=True).state_dict()
        import transformers

        expected = transformers.AutoModel.from_pretrained(folder).state_dict()
        assert len(found) == len(expected) > 10
        assert all(torch.equal(found[f'backbone.net.{k}'], v) for k, v in expected.items())
        assert f'{len(found)} tensors from transformers::{folder}' in log()

    def test_that_lack_something_are_refused(self, tmp_path):
        folder = saved(tmp_path, image_mean=MEAN, image_std=STD)
        state = safetensors.torch.load_file(tmp_path / 'model.safetensors')
        state.pop('layernorm.weight')
        safetensors.torch.save_file(state, tmp_path / 'model.safetensors', {'format': 'pt'})
        spec = dict(type='transformers', model=folder)
        with pytest.raises(ValueError, match=r'Missing key.*backbone\.net\.layernorm\.weight'):
            model(spec, load=True)
        model({**spec, 'strict': False}, load=True)

    def test_of_transformers_may_be_a_file_as_it_saves_them(self, tmp_path):
        saved(tmp_path)
        file = str(tmp_path / 'model.safetensors')
        spec = toy_foreign.of_transformers('dinov2', checkpoint=file)
        found = model(spec, load=True).state_dict()
        expected = safetensors.torch.load_file(file)
        sums = (sorted(float(x.sum()) for x in one.values()) for one in (found, expected))
        assert len({*map(tuple, sums)}) == 1

    @pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
    def test_of_timm_may_be_a_file(self, tmp_path, suffix):
        import timm

        options = {k: v for k, v in toy_foreign.vit().items() if k not in ('type', 'pretrained')}
        net = timm.create_model(options.pop('model'), **options)  # with its classifier
        file = tmp_path / f'vit.{suffix}'
        if suffix == 'pth':
            torch.save(net.state_dict(), file)
        else:
            safetensors.torch.save_file(net.state_dict(), file)
        found = model(toy_foreign.vit(checkpoint=str(file)), load=True).state_dict()
        expected = {k: v for k, v in net.state_dict().items() if not k.startswith('head.')}
        assert all(torch.equal(found[f'backbone.net.{k}'], v) for k, v in expected.items())
        assert len(found) == len(expected)

    @pytest.mark.parametrize('change', ['missing', 'unexpected', 'misshapen'])
    def test_of_a_file_must_all_fit(self, tmp_path, change):
        spec = toy_foreign.convnext()
        state = {k.removeprefix('backbone.net.'): v for k, v in model(spec).state_dict().items()}
        if change == 'missing':
            state.pop('stem.0.bias')
        elif change == 'unexpected':
            state['another'] = torch.zeros(1)
        else:
            state['stem.0.bias'] = torch.zeros(5)
        torch.save(state, tmp_path / 'net.pth')
        with pytest.raises(ValueError, match=r'does not fit[\s\S]*(stem\.0\.bias|another)'):
            model({**spec, 'checkpoint': str(tmp_path / 'net.pth')}, load=True)

    def test_that_a_file_would_run_code_for_are_refused(self, tmp_path):
        torch.save(toy_foreign.module, tmp_path / 'code.pth')
        with pytest.raises(ValueError, match='was refused: loading it would run'):
            model(toy_foreign.vit(checkpoint=str(tmp_path / 'code.pth')), load=True)

    def test_that_cannot_be_fetched(self, monkeypatch):
        import timm

        def offline(*args, pretrained=False, **kwargs):
            if pretrained:
                raise OSError('We could not connect to the hub')
            return create(*args, **kwargs)

        create = timm.create_model
        monkeypatch.setattr(timm, 'create_model', offline)
        teacher = Teacher('timm::resnet10t')
        with pytest.raises(FileNotFoundError, match=r'timm::resnet10t cannot be .*is there a net'):
            teacher.load()

    def test_of_a_module_are_its_own(self, log):
        net = nn.Conv2d(3, 8, 16, stride=16)
        before = net.weight.clone()
        assert torch.equal(model(toy_foreign.module(net), load=True).backbone.net.weight, before)
        assert 'untrained' not in log()


class TestNames:
    def test_of_a_model_that_is_not_there(self):
        with pytest.raises(RequestError, match=r"no model 'vit_tinny.* did you mean 'vit_tiny"):
            Teacher(dict(type='timm', model='vit_tinny_patch16_224', pretrained=False))
        with pytest.raises(RequestError, match=r"no model_type 'dinov22', did you mean 'dinov2"):
            Teacher(dict(type='transformers', config=dict(model_type='dinov22'), checkpoint=None))

    def test_of_a_type_that_is_not_there(self):
        with pytest.raises(ValueError, match=r"no type 'tim', did you mean 'timm'\?"):
            Teacher(dict(type='tim', model='resnet18'))

    def test_of_a_part_that_is_not_there(self):
        with pytest.raises(RequestError, match=r"no part 'vision', did you mean 'vision_model"):
            Teacher(toy_foreign.of_transformers('clip', part='vision'))

    def test_of_an_option_that_is_not_there(self):
        with pytest.raises(RequestError, match=r"cannot make 'vit_tiny.*'deph'"):
            Teacher(toy_foreign.vit(deph=3))

    def test_stand_for_a_config(self):
        config = read_config('timm::resnet18', pretrained=True)
        assert config.model.type == 'kd_dense.TimmModel'
        assert config.model_path == 'timm::resnet18'
        assert Teacher('timm::resnet10t').checkpoint == 'timm::resnet10t'

    def test_of_a_package_that_is_not_there(self, monkeypatch):
        find = torchvision.importlib.util.find_spec
        monkeypatch.setattr('importlib.util.find_spec', lambda n: None if n == 'timm' else find(n))
        monkeypatch.delitem(sys.modules, 'timm', raising=False)
        with pytest.raises(RequestError, match='pip install timm'):
            Teacher('timm::resnet18')
        monkeypatch.setattr('kd_dense.mm.teachers.transformers.find_spec', lambda n: None)
        with pytest.raises(RequestError, match='pip install transformers'):
            Teacher(toy_foreign.of_transformers('dinov2'))


class TestTorchHub:
    CODE = """
import torch
def net(width, pretrained=True):
    made = torch.nn.Conv2d(3, width, 16, stride=16)
    if pretrained:
        torch.nn.init.ones_(made.weight)
    return made
"""

    @pytest.fixture
    def spec(self, tmp_path):
        (tmp_path / 'hubconf.py').write_text(self.CODE)
        return dict(
            type='torchhub', repo=str(tmp_path), source='local', model='net', width=8, mean=MEAN,
            std=STD, size_divisor=16,
        )  # fmt: skip

    def test_is_built_and_then_loaded(self, spec):
        teacher = Teacher(spec)
        assert not (teacher.model.backbone.net.weight == 1).all()
        teacher.load()
        assert (teacher.model.backbone.net.weight == 1).all()
        assert [tuple(x.shape) for x in teacher.model.extract_feat(torch.zeros(2, 3, 64, 48))] == [
            (2, 8, 4, 3)
        ]

    def test_an_entry_that_is_not_there(self, spec):
        with pytest.raises(RequestError, match=r"has no entry 'nett' in its hubconf"):
            Teacher({**spec, 'model': 'nett'})


class TestWithoutTorchvision:
    def test_what_is_used_of_it_says_that_it_is_not_there(self):
        with torchvision._stand_in():
            from torchvision.ops.misc import FrozenBatchNorm2d
            from torchvision.transforms import InterpolationMode

            assert not isinstance(nn.BatchNorm2d(3), FrozenBatchNorm2d)
            assert InterpolationMode.BILINEAR is not None
            with pytest.raises(NotImplementedError, match=r'misc\.FrozenBatchNorm2d is not avail'):
                FrozenBatchNorm2d(3)
        assert 'torchvision' not in sys.modules

    def test_one_that_works_is_left_alone(self, monkeypatch):
        own = types.ModuleType('torchvision')
        monkeypatch.setitem(sys.modules, 'torchvision', own)
        assert torchvision._problem() is None
        assert sys.modules['torchvision'] is own

    def test_one_that_is_broken_counts_as_missing(self, monkeypatch, tmp_path):
        package = tmp_path / 'torchvision'
        package.mkdir()
        (package / '__init__.py').write_text('raise RuntimeError("operator nms does not exist")')
        monkeypatch.syspath_prepend(tmp_path)
        assert torchvision._problem() == 'RuntimeError: operator nms does not exist'
        assert 'torchvision' not in sys.modules


def test_is_registered_so_that_a_config_can_name_it():
    teacher = Teacher(
        dict(
            config=dict(type='kd_dense.ForeignModel', module=dict(type='kd_dense.Adapter',
                        in_channels=3, out_channels=8), mean=MEAN, std=STD,
                        arguments=dict(size=(8, 8))),
            checkpoint=None,
        )
    )  # fmt: skip
    assert isinstance(teacher.model, ForeignModel)
    assert teacher.model.extract_feat(torch.zeros(1, 3, 16, 16))[0].shape == (1, 8, 8, 8)


class TestPresets:
    @pytest.mark.parametrize(
        ('student', 'teacher', 'taps'),
        [
            (toy.segmenter(), toy_foreign.vit(), ('backbone[3]', 'backbone')),  # of stride 8
            (toy.segmenter(), toy_foreign.convnext(), ('backbone[3]', 'backbone[3]')),
            (toy.detector(), toy_foreign.vit(), ('backbone[2]', 'backbone')),  # of stride 16
            (toy.detector(), toy_foreign.convnext(), ('backbone[3]', 'backbone[3]')),
        ],
    )
    def test_take_the_last_map_and_the_nearest(self, student, teacher, taps):
        config = dict(type='kd_dense.Distilled', student=student, teacher=teacher)
        model = toy.build({**config, 'preset': ['auto', 'cosine', 'vkd']})
        found = {name: (term.student_tap, term.teacher_tap) for name, term in model.kd.items()}
        assert found == dict.fromkeys(('pkd', 'cosine', 'vkd'), taps)
        assert all(term.shares for term in model.kd.values())

    def test_have_no_such_map_where_the_teacher_has_a_head(self):
        model = toy.build(
            dict(
                type='kd_dense.Distilled', student=toy.segmenter(), preset='pkd',
                teacher=dict(config=toy.segmenter(16), checkpoint=None),
            )
        )  # fmt: skip
        assert model.kd.pkd.teacher_tap == 'backbone[-1]'


def test_what_a_recipe_says_is_a_config_for_taps():
    spec = toy_foreign.vit(precision='bf16')
    found = survey(build_model(config_of_teacher(what_it_is(spec))), (64, 96))
    assert [place.found.shapes for place in found if place.tap == 'backbone'] == [[(2, 16, 4, 6)]]


def test_is_not_scored_nor_are_its_predictions_drawn():
    assert not predicts(model(toy_foreign.vit()))
    assert predicts(toy.build(toy.segmenter()))

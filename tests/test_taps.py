import copy
import gc
import io
import re
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from kd_dense.taps import TapError, Taps


class Head(nn.Module):
    """A head whose layers run once per map, called by ``forward`` rather than by call."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 1)

    def forward(self, maps):
        return [self.conv(x) for x in maps]

    def assign(self, maps):
        return {'targets': [x.mean() for x in maps], 'count': len(maps)}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = Head()
        self.ran = []

    def forward(self, x):
        x = self.backbone(x)
        self.ran.append('backbone')
        maps = [x, F.avg_pool2d(x, 2), F.avg_pool2d(x, 4)]
        out = self.head.forward(maps)
        self.ran.append('head')
        self.head.assign(out)
        return out


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def image():
    return torch.randn(2, 3, 8, 8)


def test_records_a_module_although_its_forward_is_called_directly(model, image):
    taps = Taps(['head'])
    with taps.on(model):
        out = model(image)
    assert all(a is b for a, b in zip(taps['head'], out, strict=True))
    assert len(out) == 3


def test_records_every_call_of_a_shared_layer_in_order(model, image):
    taps = Taps(['head.conv'])
    with taps.on(model):
        out = model(image)
    assert taps.calls('head.conv') == 3
    assert [x.shape[-1] for x in taps['head.conv']] == [8, 4, 2]
    assert taps['head.conv'][1] is out[1]


def test_records_a_method_and_leaves_out_what_is_no_tensor(model, image):
    taps = Taps(['head.assign'])
    with taps.on(model):
        model(image)
    assert [x.shape for x in taps['head.assign']] == [(), (), ()]


@pytest.mark.parametrize(
    ('index', 'sizes'), [('[0]', [8]), ('[-1]', [2]), ('[:2]', [8, 4]), ('[1:]', [4, 2])]
)
def test_an_index_chooses_among_the_maps(model, image, index, sizes):
    taps = Taps([f'head{index}', 'head'])
    with taps.on(model):
        model(image)
    assert [x.shape[-1] for x in taps[f'head{index}']] == sizes
    assert len(taps['head']) == 3


def test_changes_nothing_and_leaves_nothing_behind(model, image):
    before = {name: dict(vars(m)) for name, m in model.named_modules()}
    expected = model.eval()(image)
    taps = Taps(['head', 'backbone.0'])
    with taps.on(model):
        recorded = model(image)
    assert all(torch.equal(a, b) for a, b in zip(expected, recorded, strict=True))
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert 'forward' not in vars(module)


@pytest.mark.parametrize(('tap', 'remedy'), [('blocks', 'blocks.*'), ('named[0]', 'named.*')])
def test_what_has_no_forward_of_its_own_proposes_what_it_holds(model, image, tap, remedy):
    model.blocks = nn.ModuleList([model.backbone])
    model.named = nn.ModuleDict({'a': model.backbone})
    taps = Taps([tap, remedy])
    with taps.on(model):
        model(image)
    kind = 'ModuleList' if tap == 'blocks' else 'ModuleDict'
    message = rf"'{re.escape(tap)}' can never run: a {kind} .* '{re.escape(remedy)}'"
    with pytest.raises(TapError, match=message):
        taps[tap]
    assert len(taps[remedy]) == 1


def test_a_forward_of_the_instance_may_run(model, image):
    model.blocks = nn.ModuleList([model.backbone])
    model.blocks.forward = model.backbone.forward
    taps = Taps(['blocks'])
    with taps.on(model):
        model(image)
    with pytest.raises(TapError, match="'blocks' did not run"):
        taps['blocks']
    with taps.on(model):
        model.blocks(image)
    assert len(taps['blocks']) == 1


def test_is_taken_off_when_the_model_fails(model):
    taps = Taps(['backbone', 'head'])
    with pytest.raises(RuntimeError, match='channels'), taps.on(model):
        model(torch.zeros(1, 7, 8, 8))
    assert 'forward' not in vars(model.backbone)


def test_keeps_a_forward_that_the_instance_had_already(model, image):
    own = model.head.forward
    model.head.forward = lambda maps: own([2 * x for x in maps])
    replaced = model.head.forward
    taps = Taps(['head'])
    with taps.on(model):
        out = model(image)
    assert model.head.forward is replaced
    assert torch.equal(taps['head'][0], out[0])


def test_finds_modules_by_name_each_time(model, image):
    taps = Taps(['backbone.1'])
    with taps.on(model):
        model(image)
    model.backbone[1] = nn.InstanceNorm2d(4)  # as a conversion to SyncBN does
    with taps.on(model):
        model(image)
    assert taps['backbone.1'][0].mean((2, 3)).abs().max() < 1e-5


def test_stops_behind_the_last_call_of_the_last_tap(model, image):
    taps = Taps(['backbone.0', 'head.conv'])
    with taps.on(model, stop_after={'backbone.0': 1, 'head.conv': 2}):
        model(image)
        raise AssertionError('ran on')
    assert model.ran == ['backbone']
    assert len(taps['head.conv']) == 2
    assert 'forward' not in vars(model.head.conv)


def test_records_some_of_its_taps_if_told_so(model, image):
    taps = Taps(['backbone', 'head'])
    with taps.on(model, only=['backbone']):
        model(image)
    assert taps.calls('head') == 0
    assert len(taps['backbone']) == 1


def test_notices_a_map_that_is_overwritten_in_place(model, image):
    model.backbone[2] = nn.ReLU(inplace=True)
    taps = Taps(['backbone.1', 'backbone.2'])
    with taps.on(model.eval()):
        model(image)
    assert len(taps['backbone.2']) == 1
    with pytest.raises(TapError, match=r"'backbone\.1'.*overwrites this map in place"):
        taps['backbone.1']


def test_gradient_flows_through_a_recorded_map(model, image):
    taps = Taps(['backbone'])
    with taps.on(model):
        model(image)
    taps['backbone'][0].sum().backward()
    assert model.backbone[0].weight.grad is not None


def test_clear_lets_go_of_the_graph(model, image):
    taps = Taps(['backbone'])
    with taps.on(model):
        model(image)
    alive = weakref.ref(taps['backbone'][0])
    taps.clear()
    gc.collect()
    assert alive() is None


def test_a_copy_records_for_itself(model, image):
    taps = Taps(['backbone'])
    with taps.on(model):
        model(image)
        other = copy.deepcopy(taps)
    buffer = io.BytesIO()
    torch.save(taps, buffer)
    buffer.seek(0)
    for copied in (other, torch.load(buffer, weights_only=False)):
        assert copied.names == taps.names
        with copied.on(model):
            model(image)
        assert len(copied['backbone']) == len(taps['backbone']) == 1
        assert copied['backbone'][0] is not taps['backbone'][0]


def test_two_names_of_one_method_leave_nothing_behind(model, image):
    taps = Taps(['backbone', 'backbone.forward'])
    for only in (['backbone.forward'], ['backbone', 'backbone.forward']):
        with taps.on(model, only=only):
            model(image)
        assert 'forward' not in vars(model.backbone)
    assert taps['backbone'][0] is taps['backbone.forward'][0]


def test_stops_although_two_taps_share_a_place(model, image):
    taps = Taps(['backbone.*', 'backbone.2', 'backbone.2[0]'])
    with taps.on(model, stop_after={'backbone.*': 3}):
        model(image)
        raise AssertionError('ran on')
    assert [taps.calls(name) for name in taps.names] == [3, 1, 1]


def test_the_same_wrapper_is_put_on_each_time(model):
    taps = Taps(['backbone'])
    with taps.on(model):
        first = model.backbone.forward
    with taps.on(model):
        assert model.backbone.forward is first


@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_compiled_modules_are_recorded_and_not_compiled_anew_each_step(model, image, backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    run = torch.compile(model.eval(), backend=counter)
    taps, plain = Taps(['backbone', 'head.conv']), Taps(['backbone', 'head.conv'])
    frames = []
    for _ in range(4):
        model.ran.clear()
        with taps.on(model):
            run(image)
        frames.append(counter.frame_count)
    assert frames[0] > 0
    assert frames[1:] == frames[:1] * 3
    with plain.on(model):
        model(image)
    for name in taps.names:
        for a, b in zip(taps[name], plain[name], strict=True):
            assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('bakbone', "no tap 'bakbone' in Model: did you mean 'backbone'"),
        ('head.cnv', r"did you mean 'head\.conv'"),
        ('head.asign', r"did you mean 'head\.assign'"),
        ('backbone.7', r"'backbone\.[012]'"),
        ('zzzzzz', "known are 'backbone'"),
    ],
)
def test_an_unknown_name_is_an_error_that_names_near_ones(model, name, message):
    with pytest.raises(TapError, match=message), Taps([name]).on(model):
        raise AssertionError('ran')


@pytest.mark.parametrize('name', ['', 'neck[', 'neck[a]', 'neck[0][1]', 'a b'])
def test_a_malformed_name_is_an_error(name):
    with pytest.raises(TapError, match="expected a tap like 'neck'"):
        Taps([name])


def test_reading_what_was_not_recorded_is_an_error(model, image):
    taps = Taps(['backbone', 'head[5]', 'head.assign'])
    with pytest.raises(TapError, match="'backbone' did not run"):
        taps['backbone']
    with taps.on(model):
        model(image)
    with pytest.raises(TapError, match=r"'head\[5\]' asks for a map that is not there.*yields 3"):
        taps['head[5]']
    model.head.assign = lambda maps: None
    with taps.on(model):
        model(image)
    with pytest.raises(TapError, match='returned no tensor'):
        taps['head.assign']


class Pyramid(nn.Module):
    """Convolutions in wrappers, as mmcv's ConvModule holds them."""

    def __init__(self):
        super().__init__()
        wrapped = [nn.ModuleDict({'conv': nn.Conv2d(2, width, 1)}) for width in (3, 4)]
        self.convs = nn.ModuleList([*wrapped, nn.Identity()])

    def forward(self, x):
        return {'second': self.convs[1]['conv'](x), 'first': self.convs[0]['conv'](x)}


class TestWildcard:
    def test_finds_every_child_in_its_order(self):
        model, taps = Pyramid(), Taps(['convs.*.conv', 'convs.*.conv[1]'])
        with taps.on(model):
            model(torch.zeros(1, 2, 5, 5))
        assert [m.shape[1] for m in taps['convs.*.conv']] == [3, 4]
        assert [m.shape[1] for m in taps['convs.*.conv[1]']] == [4]
        assert taps.calls('convs.*.conv') == 2

    def test_several_names(self):
        model, taps = Pyramid(), Taps(['convs.1|0|7.conv', 'convs|others.0.conv'])
        with taps.on(model):
            model(torch.zeros(1, 2, 5, 5))
        assert [m.shape[1] for m in taps['convs.1|0|7.conv']] == [4, 3]
        assert [m.shape[1] for m in taps['convs|others.0.conv']] == [3]
        with (
            pytest.raises(TapError, match=r"nothing matches 'convs.7\|8'"),
            Taps(['convs.7|8.conv']).on(model),
        ):
            pass

    def test_the_model_stops_after_the_last_of_them(self):
        model, taps = Pyramid(), Taps(['convs.*.conv'])
        with taps.on(model, stop_after={'convs.*.conv': 2}):
            model(torch.zeros(1, 2, 5, 5))
            raise AssertionError('went on')
        assert len(taps['convs.*.conv']) == 2

    def test_is_found_anew_in_another_model(self):
        taps = Taps(['convs.*.conv'])
        for model in (Pyramid(), Pyramid()):
            with taps.on(model):
                model(torch.zeros(1, 2, 5, 5))
            assert len(taps['convs.*.conv']) == 2

    def test_names_what_matches_nothing(self):
        with (
            pytest.raises(TapError, match=r"'convs\.\*\.norm' in Pyramid: nothing matches"),
            Taps(['convs.*.norm']).on(Pyramid()),
        ):
            pass


def test_returned_is_whatever_the_place_returned():
    model, taps = Pyramid(), Taps(['convs.2'])
    with taps.on(model):
        result = model.convs[2](('text', torch.zeros(1)))
    assert taps.returned('convs.2') == [result]

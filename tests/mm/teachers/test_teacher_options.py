"""How a teacher runs: precision, memory layout, compiled, on a stream of its own."""

import copy
import pickle
from contextlib import contextmanager

import pytest
import torch

from kd_dense.mm.teachers.guest import Teacher
from tests.mm import toy

LOGITS, BACKBONE = 'decode_head.conv_seg', 'backbone'
CHEAPER = [
    pytest.param(dict(precision='bf16'), id='bf16'),
    pytest.param(dict(precision='fp16'), id='fp16'),
    pytest.param(dict(fuse=True), id='fuse'),
    pytest.param(dict(channels_last=True), id='channels_last'),
    pytest.param(dict(compile=True), id='compile'),
    pytest.param(dict(precision='bf16', fuse=True, channels_last=True, compile=True), id='all'),
]
SEGMENTATION = dict(
    logits=dict(tap=LOGITS, loss=toy.CWD),
    pixel=dict(tap=LOGITS, loss=dict(type='PixelWiseLoss')),
    pair=dict(tap='backbone[2:]', loss=dict(type='PairWiseLoss')),
    holistic=dict(tap=LOGITS, loss=dict(type='HolisticLoss', width=8)),
    affinity=dict(tap=LOGITS, loss=dict(type='IntRALoss', kernel=3)),
    attention=dict(tap=LOGITS, loss=dict(type='AttentionMapLoss')),
)


@pytest.fixture(autouse=True)
def without_code_generation(monkeypatch):
    """Compile as always, but run what was captured as it is: C++ would take minutes."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda forward: compile_(forward, backend='eager'))


def teacher(**options):
    return dict(config=toy.segmenter(16), checkpoint=None, **options)


def build(terms=SEGMENTATION, **options):
    return toy.build(toy.distilled(teacher=teacher(**options), terms=terms)).train()


def maps(model):
    """What the teacher yields for a batch, by tap."""
    guest = model.kd_plan.guest
    guest.run(guest.calls, *toy.batch(model))
    guest.wait()
    return {tap: guest.taps[tap] for tap in guest.calls}


@pytest.mark.parametrize('options', CHEAPER)
def test_maps_are_those_of_the_plain_teacher(options):
    dtype = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(options.get('precision'))
    tolerance = {None: 1e-5, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    found = maps(build(**options))
    for tap, expected in maps(build()).items():
        for x, y in zip(found[tap], expected, strict=True):
            assert x.dtype == (dtype or torch.float32)
            torch.testing.assert_close(x.float(), y, rtol=0, atol=tolerance * float(y.abs().max()))


def test_fuse_leaves_no_norm_but_behind_a_tap():
    model = build(terms=dict(cwd=dict(tap='backbone.layer4.0.conv2', loss=toy.CWD)), fuse=True)
    maps(model)
    backbone = model.kd_plan.teacher.model.backbone
    left = {n for n, m in backbone.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert left == {'layer4.0.bn2'}


def test_fuse_is_not_taken_in_by_the_rounding_of_autocast():
    model = build(fuse=True)
    with torch.autocast('cpu', torch.bfloat16):
        maps(model)
    assert model.kd_plan.teacher._prepared


def test_fuse_refuses_a_model_whose_norms_stand_elsewhere():
    model = build(fuse=True)
    block = model.kd_plan.teacher.model.backbone.layer4[0]
    unused = torch.nn.BatchNorm2d(block.conv2.out_channels)
    unused.running_mean.fill_(5.0)
    # right behind conv2 by its place alone
    children = {'conv2': block._modules.pop('conv2'), 'unused': unused}
    block._modules = {**block._modules, **children}
    with pytest.raises(ValueError, match=r'fuse=True changes a map of .* leave fuse out'):
        maps(model)


def test_layout_is_that_which_was_asked_for():
    model = build(channels_last=True)
    [x] = maps(model)['backbone[2:]'][-1:]
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert not x.is_contiguous()


@pytest.mark.parametrize('options', CHEAPER)
def test_all_losses_train(options):
    """In float32 and finite, whatever the maps come in; the weights of the teacher rest."""
    plain, model = build(), build(**options)
    torch.manual_seed(0)
    expected = toy.losses(plain)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = None
    for _ in range(2):
        torch.manual_seed(0)
        losses = toy.losses(model)
        if before is None:
            before = copy.deepcopy(model.kd_plan.teacher.model.state_dict())
            for name, value in expected.items():
                if name.startswith('loss_kd') and 'holistic' not in name:
                    torch.testing.assert_close(losses[name], value, rtol=0.1, atol=1e-4)
        found = {name: value for name, value in losses.items() if 'loss' in name}
        assert all(value.dtype == torch.float32 for value in found.values())
        optimizer.zero_grad()
        sum(found.values()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        model.kd.holistic.loss.critic_backward()
    after = model.kd_plan.teacher.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize(
    ('student', 'terms'),
    [
        (toy.detector(), dict(fgd=dict(tap='neck', loss=dict(type='FGDLoss')))),
        (toy.detector(), dict(cwd=dict(tap='bbox_head', loss=toy.CWD))),
    ],
    ids=['fgd', 'head'],
)
def test_detectors(student, terms):
    options = dict(precision='bf16', channels_last=True, compile=True)
    guest = dict(config=toy.detector(16), checkpoint=None, **options)
    model = toy.build(toy.distilled_detector(student=student, teacher=guest, terms=terms))
    losses = toy.losses(model, toy.DetScenes())
    added = [value for name, value in losses.items() if name.startswith('loss_kd')]
    assert added
    assert all(value.isfinite() and value.dtype == torch.float32 for value in added)


def test_weights_are_loaded_and_inherited_in_full_precision(tmp_path):
    weights = toy.build(toy.segmenter()).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'teacher.pth')
    guest = dict(config=toy.segmenter(), checkpoint=str(tmp_path / 'teacher.pth'))
    model = toy.build(
        toy.distilled(teacher={**guest, 'precision': 'bf16'}, inherit=['decode_head']), seed=1
    )
    model.init_weights()
    theirs = model.kd_plan.teacher.model.state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in weights.items())
    inherited = model.decode_head.state_dict()
    assert all(torch.equal(weights[f'decode_head.{k}'], v) for k, v in inherited.items())
    toy.losses(model)
    theirs = model.kd_plan.teacher.model.state_dict()
    for name, value in weights.items():
        rounded = value.bfloat16() if value.is_floating_point() else value
        assert torch.equal(theirs[name], rounded)


def test_autocast_of_the_student_does_not_reach_a_teacher_with_a_precision():
    model = build(precision='bf16')
    with torch.autocast('cpu', torch.float16):
        found = maps(model)
    assert all(x.dtype == torch.bfloat16 for recorded in found.values() for x in recorded)


def test_overflow_in_half_precision_is_found():
    model = build(terms=toy.logits_term(), precision='fp16')
    plan = model.kd_plan
    plan.teacher.load()
    with torch.no_grad():
        plan.teacher.model.decode_head.conv_seg.bias[0] = 60000.0  # the largest is 65504
        plan.teacher.model.decode_head.conv_seg.weight.mul_(1e7)
    with pytest.raises(FloatingPointError, match=r"tap 'decode_head\.conv_seg' is not finite"):
        toy.losses(model)


def test_copies_share_the_teacher_and_pickles_leave_it_out():
    model = build(precision='bf16', channels_last=True, compile=True, stream=True)
    toy.losses(model)
    model.kd.holistic.loss.critic_backward()
    other = copy.deepcopy(model)
    assert other.kd_plan.teacher is model.kd_plan.teacher
    toy.losses(other)
    bare = pickle.loads(pickle.dumps(model))
    assert bare.kd_plan.teacher.model is None
    assert not any('teacher' in name for name in model.state_dict())


class TestCompiled:
    def test_parts_without_taps_and_only_once(self, monkeypatch):
        compiled = []
        monkeypatch.setattr(torch, 'compile', lambda f: compiled.append(f.__self__) or f)
        model = build(terms=toy.logits_term(), compile=True)
        assert compiled == []
        for _ in range(2):
            maps(model)
        guest = model.kd_plan.teacher.model
        assert guest.backbone in compiled
        assert guest.decode_head not in compiled
        assert len(compiled) == len(set(compiled))

    def test_what_was_captured_runs(self):
        from torch._dynamo.utils import counters

        torch._dynamo.reset()  # else it may remember the backbone of another test
        counters.clear()
        model = build(compile=True)
        maps(model)
        graphs = counters['stats']['unique_graphs']
        assert graphs > 0
        maps(model)
        assert counters['stats']['unique_graphs'] == graphs

    def test_a_tap_within_the_backbone(self):
        inside = dict(cwd=dict(tap='backbone.layer3', loss=toy.CWD))
        with pytest.raises(ValueError, match=r'compile=True .* taps lie .*backbone\.layer3'):
            build(terms=inside, compile=True)


class TestBadValues:
    @pytest.mark.parametrize(
        ('options', 'message'),
        [
            (dict(precision='bf61'), "no precision 'bf61', did you mean 'bf16'"),
            (dict(precision=16), "no precision 16, did you mean 'fp16', 'bf16'"),
            (dict(channels_last='yes'), "channels_last expects True or False, got 'yes'"),
            (dict(compile=1), 'compile expects True or False, got 1'),
            (dict(stream=None), 'stream expects True or False, got None'),
            (
                dict(chanels_last=True),
                "unknown field 'chanels_last', did you mean 'channels_last'",
            ),
        ],
    )
    def test_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            Teacher(teacher(**options))


class FakeStream:
    def __init__(self, log, name):
        self.log, self.name, self.device = log, name, 'cuda'

    def wait_stream(self, other):
        self.log.append(f'{self.name} waits for {other.name}')


@pytest.fixture
def streams(monkeypatch):
    """A GPU that is none: it writes down what is asked of its streams."""
    log = []
    main, side = FakeStream(log, 'main'), FakeStream(log, 'side')

    @contextmanager
    def stream(chosen):
        log.append(f'{chosen.name} begins')
        yield
        log.append(f'{chosen.name} ends')

    monkeypatch.setattr(torch.cuda, 'Stream', lambda device: side)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: main)
    monkeypatch.setattr(torch.cuda, 'stream', stream)
    monkeypatch.setattr('kd_dense.mm.teachers.guest._has_streams', lambda x: True)
    monkeypatch.setattr(
        torch.Tensor, 'record_stream', lambda x, s: log.append(f'{len(x.shape)}d for {s.name}')
    )
    return log


class TestStream:
    def test_order(self, streams, monkeypatch):
        model = build(terms=toy.logits_term(), stream=True)
        run = type(model).__mro__[2].loss
        monkeypatch.setattr(
            type(model).__mro__[2], 'loss',
            lambda *args: (streams.append('student'), run(*args))[1],
        )  # fmt: skip
        term = model.kd.logits
        term.register_forward_pre_hook(lambda *_: streams.append('loss'))
        teach = model.kd_plan.teacher.model
        teach.backbone.register_forward_pre_hook(lambda *_: streams.append('teacher'))
        for _ in range(2):
            streams.clear()
            toy.losses(model)
            assert streams == [
                'side waits for main',  # the batch must be there
                '4d for side',  # and must not be overwritten
                'side begins',
                'teacher',
                'side ends',
                'student',
                'main waits for side',
                '4d for main',
                'loss',
            ]

    def test_every_map_is_kept_for_the_losses(self, streams):
        model = build(stream=True)
        found = maps(model)
        count = sum(len(recorded) for recorded in found.values())
        assert streams.count('4d for main') == count > 2

    def test_without_it_there_is_none(self, streams):
        toy.losses(build(terms=toy.logits_term()))
        assert streams == []

    def test_on_a_cpu_it_has_no_effect_and_says_so_once(self, log):
        model = build(terms=toy.logits_term(), stream=True)
        for _ in range(2):
            toy.losses(model)
        assert log().count('stream=True has no effect on cpu') == 1

"""How a teacher runs on a GPU: in half precision, compiled, on a stream of its own."""

import pytest
import torch

from kd_dense.taps import tensors_in
from tests.mm import toy
from tests.mm.teachers.test_teacher_options import CHEAPER, SEGMENTATION, maps

pytestmark = pytest.mark.gpu
# Larger than toys, so that the teacher takes its time beside the student.
SIZE, WIDTH, BATCHES = 256, 64, 8


@pytest.fixture(autouse=True)
def compiled(dry, monkeypatch):
    """The dry run runs what was captured as it is: C++ would take minutes."""
    torch._dynamo.reset()
    if dry:
        compile_ = torch.compile
        monkeypatch.setattr(torch, 'compile', lambda f: compile_(f, backend='eager'))


def build(device, terms=SEGMENTATION, width=16, **options):
    guest = dict(config=toy.segmenter(width), checkpoint=None, **options)
    return toy.build(toy.distilled(teacher=guest, terms=terms)).to(device).train()


@pytest.mark.parametrize('options', CHEAPER)
def test_maps_are_those_of_the_plain_teacher(options, device, exact):
    if options.get('compile') and device == 'cuda':
        pytest.importorskip('triton', reason='torch.compile needs triton on a GPU')
    dtype = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(options.get('precision'))
    tolerance = {None: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    found = maps(build(device, **options))
    for tap, expected in maps(build(device)).items():
        for x, y in zip(found[tap], expected, strict=True):
            assert (x.dtype, x.device.type) == (dtype or torch.float32, device)
            torch.testing.assert_close(x.float(), y, rtol=0, atol=tolerance * float(y.abs().max()))


@pytest.mark.parametrize('options', [o for o in CHEAPER if 'compile' not in o.values[0]])
def test_all_losses_train(options, device):
    """In float32 and finite, whatever the maps come in."""
    model = build(device, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        losses = {k: v for k, v in toy.losses(model).items() if 'loss' in k}
        assert all(value.dtype == torch.float32 for value in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        model.kd.holistic.loss.critic_backward()


def test_a_stream_of_its_own_changes_nothing(device, dry, exact):
    """Over several batches, with memory that is freed and used again beside it."""
    size, width, batches = (32, 16, 2) if dry else (SIZE, WIDTH, BATCHES)
    terms = dict(
        features=dict(tap='backbone.layer4', loss=toy.CWD),
        pixel=dict(tap='decode_head.conv_seg', loss=dict(type='PixelWiseLoss')),
    )
    config = toy.segmenter(dropout=0.0)
    config.data_preprocessor.size = (size, size)
    scenes = toy.SegScenes(length=4 * batches, size=size, augment=False)
    found = {}
    for stream in (False, True):
        guest = dict(config=toy.segmenter(width), checkpoint=None, stream=stream)
        model = toy.build(toy.distilled(config, guest, terms)).to(device).train()
        teacher, seen = model.kd_plan.teacher, []

        def see(term, given, seen=seen):
            seen.extend(x.detach().clone() for x in tensors_in(given))

        for term in model.kd.values():
            term.register_forward_pre_hook(see)
        for index in range(batches):
            data = [scenes[4 * index + i] for i in range(4)]
            data = {key: [item[key] for item in data] for key in data[0]}
            data = model.data_preprocessor(data, training=True)
            losses = model(data['inputs'], data['data_samples'], mode='loss')
            seen.extend(v.detach() for k, v in losses.items() if 'loss_kd' in k)
            sum(v for k, v in losses.items() if 'loss' in k).backward()
        assert (teacher._side is not None) == (stream and not dry)
        found[stream] = seen
    assert len(found[False]) == 6 * batches
    torch.testing.assert_close(found[True], found[False], rtol=1e-4, atol=1e-5)

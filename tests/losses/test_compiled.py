"""Each loss compiles whole, and says what it says without a compiler."""

import shutil
import sys
from unittest import mock

import pytest
import torch

from kd_dense.losses import CWDLoss, FGDLoss, IntRALoss, KDLoss, PairWiseLoss, PKDLoss
from tests.losses.test_no_sync import CASES, prepare

# One that the suite compiles for each kind of code; with `--long` all are.
FEW = ('CWDLoss-channel-kl', 'PixelWise', 'PairWiseLoss-True', 'FGDLoss-4-batch', 'PKD', 'DKDLoss')
SEEN = set()


def chosen():
    for case in CASES:
        kind = next((name for name in FEW if case.id.startswith(name)), None)
        few = kind is not None and kind not in SEEN
        SEEN.add(kind)
        yield pytest.param(*case.values, id=case.id, marks=() if few else pytest.mark.long)


@pytest.fixture(autouse=True)
def anew():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(kind, options, dtype, forward=None):
    torch.manual_seed(0)
    call = prepare(kind, options, 'cpu', dtype)
    torch.manual_seed(1)
    with mock.patch.object(kind, 'forward', forward or kind.forward):
        result, student = call()
    maps = [student] if isinstance(student, torch.Tensor) else student
    values = result.values() if isinstance(result, dict) else [result]
    return [x.detach() for x in values] + [x.grad for x in maps if x.grad is not None]


@pytest.mark.parametrize(('kind', 'options'), chosen())
def test_compiles_whole(kind, options):
    forward = torch.compile(kind.forward, fullgraph=True, backend='aot_eager')
    expected = run(kind, options, torch.float64)
    for x, y in zip(run(kind, options, torch.float64, forward), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.long
@pytest.mark.skipif(
    sys.platform != 'linux' or not shutil.which('g++'), reason='inductor needs a C++ compiler'
)
@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        (CWDLoss, dict(temperature=4.0)),
        (FGDLoss, dict(channels=4)),
        (PairWiseLoss, {}),
        (KDLoss, {}),
        (PKDLoss, {}),
        (IntRALoss, dict(num_classes=3, kernel=3)),
    ],
)
def test_inductor(kind, options):
    forward = torch.compile(kind.forward, fullgraph=True)
    expected = run(kind, options, torch.float64)
    for x, y in zip(run(kind, options, torch.float64, forward), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('kind', [CWDLoss, pytest.param(FGDLoss, marks=pytest.mark.long)])
def test_new_sizes_are_not_compiled_anew(kind):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    loss = kind(channels=4) if kind is FGDLoss else kind(temperature=2.0)
    loss.compile(fullgraph=True, backend=backend)
    for step, (height, width) in enumerate([(5, 6), (7, 9), (8, 6), (12, 20), (6, 13)]):
        maps = torch.randn(2, 2, 4, height, width)
        needs = {}
        if kind is FGDLoss:
            boxes = [torch.rand(2 + step, 4) * 20, torch.rand(3, 4) * 20]
            shape = (8 * height, 8 * width)
            needs = dict(boxes=boxes, batch_shape=shape, image_shapes=[shape] * 2)
        loss(maps[0].requires_grad_(), maps[1], **needs)
        if step == 2:
            known = len(graphs)
    assert len(graphs) == known

"""A package of somebody else's, with a model, data, metric and training script of its own."""

from __future__ import annotations

import runpy
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from kd_dense.mm import Distilled
from tests.checkout import cut_down, run
from tests.examples.pages import blocks, link_checkout
from tests.launch import losses
from tests.miniature import ROOT

PAGE = 'docs/plug-in.md'
HOME = 'examples/plug_in'
SMALL, LARGE = f'{HOME}/configs/small.py', f'{HOME}/configs/large.py'


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / HOME))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The page, as far as the export."""
    root = link_checkout(tmp_path_factory.mktemp('plug_in'))
    train = f'{HOME}/train.py'
    for name in ('large', 'small', 'distilled', 'own_loss'):
        words = [train, f'{HOME}/configs/{name}.py', '--work-dir', f'work_dirs/{name}']
        run(root, words, root, {})
    out = root / 'work_dirs/distilled'
    run(root, ['tools/export.py', str(out / 'iter_300.pth'), str(out / 'student.pth')], root, {})
    return root


def build(name):
    return MODELS.build(Config.fromfile(ROOT / HOME / 'configs' / f'{name}.py').model)


@pytest.mark.parametrize(
    ('path', 'text'), [pytest.param(*b, id=b[0]) for b in blocks(PAGE, 'python') if b[0]]
)
def test_the_page_shows_the_files(path, text):
    assert (ROOT / path).read_text() == text


def test_the_package_knows_nothing_of_us():
    for file in [*(ROOT / HOME / 'cellseg').glob('*.py'), ROOT / HOME / 'train.py']:
        text = file.read_text().replace('knows nothing of kd_dense', '')
        for word in ('kd_dense', 'mmdet', 'mmseg'):
            assert word not in text, file


def test_nothing_but_the_model_changes():
    plain, ours = (Config.fromfile(ROOT / HOME / 'configs' / f).to_dict()
                   for f in ('small.py', 'distilled.py'))  # fmt: skip
    assert ours.pop('model')['student'] == plain.pop('model')
    assert ours == plain


def test_its_script_trains_and_evaluates(trained):
    step = losses(trained / 'work_dirs/distilled')[-1]
    assert {'loss_ce', 'loss_kd_logits', 'loss_kd_features'} <= step.keys()
    assert {'loss_kd_logits', 'loss_kd_features'}.isdisjoint(
        losses(trained / 'work_dirs/small')[-1]
    )
    assert step['loss_kd_logits'] > 0
    assert losses(trained / 'work_dirs/own_loss')[-1]['loss_kd_borders'] > 0
    logs = [*(trained / 'work_dirs/distilled').glob('*/*.log')]
    assert 'mIoU' in logs[0].read_text()


def test_the_student_gets_out(trained, monkeypatch):
    ((_, code),) = [b for b in blocks(PAGE, 'python') if not b[0]]
    monkeypatch.chdir(trained)
    names = {}
    exec(code, names)
    checkpoint = torch.load(trained / 'work_dirs/distilled/iter_2.pth', weights_only=False)
    state = checkpoint['state_dict']
    assert any(key.startswith('kd.') for key in state)
    bare = {key: value for key, value in state.items() if not key.startswith('kd.')}
    got = names['model'].state_dict()
    assert got.keys() == bare.keys()
    assert all(torch.equal(got[key], bare[key]) for key in bare)


def test_in_python_the_student_is_wrapped(trained, monkeypatch):
    monkeypatch.chdir(trained)
    before = [name for name, _ in build('small').named_parameters()]
    with cut_down():
        names = runpy.run_path(f'{HOME}/train_in_python.py')
    model, student, teacher = names['model'], names['student'], names['teacher']
    assert model is student
    assert isinstance(model, sys.modules['cellseg.model'].CellNet)
    names = [name for name, _ in model.named_parameters() if not name.startswith('kd.')]
    assert names == before
    loaded = torch.load(trained / 'work_dirs/large/iter_2.pth', weights_only=False)['state_dict']
    assert all(torch.equal(v, loaded[key]) for key, v in teacher.state_dict().items())
    assert {'loss_ce', 'loss_kd_logits', 'loss_kd_features'} <= losses(
        trained / 'work_dirs/in_python'
    )[-1].keys()


def test_config_and_python_distil_alike(trained, monkeypatch):
    monkeypatch.chdir(trained)
    checkpoint = 'work_dirs/large/iter_300.pth'
    config = Config.fromfile(f'{HOME}/configs/distilled.py').model
    torch.manual_seed(0)
    by_config = MODELS.build(config)
    by_config.kd_plan.teacher.load()
    torch.manual_seed(0)
    teacher = build('large')
    teacher.load_state_dict(torch.load(checkpoint, weights_only=False)['state_dict'])
    in_python = Distilled(student=build('small'), teacher=teacher, terms=config.terms)
    in_python.load_state_dict(by_config.state_dict())
    samples = [sys.modules['cellseg'].Cells(2)[i] for i in range(2)]
    found = []
    for model in (by_config, in_python):
        data = {key: [sample[key] for sample in samples] for key in samples[0]}
        data = model.data_preprocessor(data, training=True)
        found.append(model(**data, mode='loss'))
    assert found[0].keys() == found[1].keys() == {'loss_ce', 'loss_kd_logits', 'loss_kd_features'}
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


class TestBorderLoss:
    """The loss of the page."""

    @pytest.fixture
    def loss(self):
        return runpy.run_path(str(ROOT / HOME / 'border_loss.py'))['BorderLoss'](weight=2.0)

    @pytest.fixture(autouse=True)
    def apart(self, monkeypatch):
        from kd_dense.registry import MODELS as OURS

        monkeypatch.setattr(OURS, '_module_dict', dict(OURS._module_dict))
        OURS._module_dict.pop('BorderLoss', None)

    def test_by_hand(self, loss):
        student = torch.zeros(1, 2, 2, 2)  # a probability of 1/2 everywhere: no borders
        teacher = torch.zeros(1, 2, 2, 2)
        teacher[:, 0, :, 1] = 100.0  # 1 and 0 in the right column, 1/2 in the left one
        assert loss(student, teacher).item() == pytest.approx(2 * 0.5)

    def test_gradient_flows_into_the_student_alone(self, loss):
        maps = [nn.Parameter(torch.randn(1, 3, 4, 4)) for _ in range(2)]
        loss(*maps).backward()
        assert maps[0].grad.abs().sum() > 0
        assert maps[1].grad is None

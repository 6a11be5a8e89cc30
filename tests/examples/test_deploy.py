"""What docs/deploy.md shows: a trained student in stock tools, in ONNX, and in eight bits."""

import importlib

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch.ao.quantization import FakeQuantize

from kd_dense.mm.configs import build_model
from kd_dense.mm.run.export import export as export_student
from tests.launch import call
from tests.miniature import ROOT
from tests.mm import toy

QUICKSTART = ROOT / 'configs' / 'quickstart'
QUANTISED = ROOT / 'examples' / 'deploy' / 'seg_quantised.py'
SIZE = 64


@pytest.fixture(scope='module')
def deploy():
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    return importlib.import_module('examples.deploy.to_onnx')


def quickstart(task):
    return QUICKSTART / f'{task}_teacher.py', QUICKSTART / 'checkpoints' / f'{task}_teacher.pth'


def picture():
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


class TestStockTools:
    """With what `kd_dense export --config` writes of a distilled training."""

    @pytest.fixture(scope='class')
    def student(self, tmp_path_factory):
        """As after a training without an iteration."""
        folder = tmp_path_factory.mktemp('student')
        config = Config.fromfile(QUICKSTART / 'det_cwd.py')
        model = build_model(config)
        saved = dict(state_dict=model.state_dict(), meta=dict(cfg=config.pretty_text))
        torch.save(saved, folder / 'run.pth')
        paths = folder / 'student.py', folder / 'student.pth'
        call('export', folder / 'run.pth', paths[1], '--config', paths[0])
        return [str(path) for path in paths]

    def test_a_detector(self, student):
        from mmdet.apis import inference_detector, init_detector

        model = init_detector(*student, device='cpu')
        assert type(model).__name__ == 'GFL'
        assert not [name for name in model.state_dict() if name.startswith('kd')]
        found = inference_detector(model, picture())
        assert found.pred_instances.bboxes.shape[1] == 4

    def test_a_segmenter(self):
        from mmseg.apis import inference_model, init_model

        config, checkpoint = quickstart('seg')
        model = init_model(str(config), str(checkpoint), device='cpu')
        found = inference_model(model, picture())
        assert found.pred_sem_seg.data.shape == (1, SIZE, SIZE)


class TestExport:
    @pytest.mark.parametrize('task', ['seg', 'det'])
    def test_onnx_yields_what_the_model_does(self, deploy, task, tmp_path, capsys):
        file = tmp_path / 'student.onnx'
        paths = map(str, (*quickstart(task), file))
        deploy.main([*paths, '--size', str(SIZE), str(SIZE)])
        assert float(capsys.readouterr().out.split()[-4]) < 1e-4

    def test_torch_export_yields_what_the_model_does(self, deploy):
        model = deploy.load(*map(str, quickstart('seg')))
        pictures = torch.randn(1, 3, SIZE, SIZE)
        program = torch.export.export(deploy.Maps(model), (pictures,))
        with torch.no_grad():
            (found,), (expected,) = program.module()(pictures), deploy.Maps(model)(pictures)
        torch.testing.assert_close(found, expected)


class TestQuantised:
    def model(self, **options):
        importlib.import_module('examples.deploy.quantised')
        return dict(type='Quantised', model=toy.segmenter(), **options)

    def test_it_distils_like_any_student(self, tmp_path):
        runner = toy.runner(toy.distilled(student=self.model()), tmp_path, max_iters=2)
        runner.train()
        fakes = [m for m in runner.model.modules() if isinstance(m, FakeQuantize)]
        assert len(fakes) > 20
        assert float(runner.message_hub.get_scalar('train/loss_kd_logits').current()) > 0
        assert all(fake.observer_enabled[0] for fake in fakes)
        export_student(tmp_path / 'iter_2.pth', tmp_path / 'student.pth')
        plain = MODELS.build(self.model())
        state = torch.load(tmp_path / 'student.pth')
        plain.load_state_dict(state.get('state_dict', state))

    def test_it_starts_from_the_weights_of_a_plain_student(self, tmp_path):
        plain = toy.build(toy.segmenter())
        torch.save(plain.state_dict(), tmp_path / 'plain.pth')
        model = MODELS.build(self.model(checkpoint=str(tmp_path / 'plain.pth')))
        model.init_weights()
        ours, theirs = (one.backbone.layer1[0].conv1.weight for one in (model, plain))
        assert torch.equal(ours, theirs)
        for part in (plain, model):
            part.eval()
        pictures = torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            model.train()(pictures, mode='tensor')  # learns ranges
            found, expected = (one.eval()(pictures, mode='tensor') for one in (model, plain))
        assert 0 < float((found - expected).norm() / expected.norm()) < 0.5

    def test_onnx_has_what_eight_bits_need(self, deploy, tmp_path):
        import onnx

        model = MODELS.build(self.model())
        pictures = torch.randn(2, 3, 32, 32)
        model.train()(pictures, mode='tensor')
        file = str(tmp_path / 'quantised.onnx')
        deploy.export(model, pictures, file)
        kinds = [node.op_type for node in onnx.load(file).graph.node]
        assert kinds.count('QuantizeLinear') == kinds.count('DequantizeLinear') > 20
        assert deploy.difference(model, pictures, file) < 0.05

    def test_the_recipe_of_the_page(self, monkeypatch):
        monkeypatch.chdir(ROOT)
        config = Config.fromfile(QUANTISED)
        model = build_model(config)
        assert [m for m in model.modules() if isinstance(m, FakeQuantize)]

"""From a distilled run to the student alone, in our tools and in the frameworks' own."""

import json
import pickle
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner.checkpoint import CheckpointLoader

from tests.launch import CONFIGS, DETECTOR, SEGMENTER, STOCK, call, framework, run_here
from tests.miniature import ROOT, make_data, write_miniature

TOOLS = ROOT / 'tools'
# Small ones; the segmenter's is wider than its student, which takes an adapter.
TEACHERS = {
    SEGMENTER: 'mmseg::pspnet/pspnet_r50-d8_4xb2-80k_cityscapes-512x1024.py',
    DETECTOR: 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
}
GFL = 'cwd_gfl-r50_from_gfl-r101_1x_coco.py'  # of the recipes without --tta


def metrics(work_dir):
    latest = max(work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    scores = json.loads(latest.read_text())
    return {k: v for k, v in scores.items() if 'mAP' in k or k in ('mIoU', 'mAcc', 'aAcc')}


def predicted(package, config, checkpoint, picture):
    """The models of the framework's functions and classes for inference, after one picture."""
    if package == 'mmdet':
        from mmdet.apis import DetInferencer, inference_detector, init_detector

        model = init_detector(config, str(checkpoint), device='cpu')
        assert len(inference_detector(model, str(picture)).pred_instances)
        inferencer = DetInferencer(weights=str(checkpoint), device='cpu')  # its config is inside
        assert inferencer(str(picture))['predictions'][0]['labels']
        return model, inferencer.model
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    model = init_model(config, str(checkpoint), device='cpu')
    assert inference_model(model, str(picture)).pred_sem_seg.data.ndim == 3
    inferencer = MMSegInferencer(str(config), str(checkpoint), device='cpu')
    assert inferencer(str(picture))['predictions'].ndim == 2
    return model, inferencer.model


@pytest.mark.parametrize(
    ('recipe', 'options'),
    [
        # a feature, so that an adapter has to be left out
        (SEGMENTER, dict(model__terms__cwd__tap='decode_head.bottleneck')),
        pytest.param(DETECTOR, {}, marks=pytest.mark.long),
    ],
    ids=['mmseg', 'mmdet'],
)
def test_the_student_gets_out(recipe, options, tmp_path, monkeypatch, capsys):
    data = make_data(tmp_path / 'data')
    work_dir = tmp_path / 'run'
    teacher = dict(config=TEACHERS[recipe], checkpoint=None)
    config = write_miniature(recipe, data, work_dir, model__teacher=teacher)
    run_here(monkeypatch, TOOLS / 'train.py', config, **options)
    [checkpoint] = [*work_dir.glob('iter_2.pth'), *work_dir.glob('epoch_1.pth')]

    # tools/test.py needs neither the teacher's files nor the export
    gone = Config.fromfile(config)
    gone.model.teacher = dict(config='gone.py', checkpoint='gone.pth')
    config.write_text(gone.pretty_text)
    pictures, out = tmp_path / 'pictures', tmp_path / 'out.pkl'
    run_here(monkeypatch, TOOLS / 'test.py', config, checkpoint, '--work-dir', tmp_path / 'tested',
             '--out', out, '--show-dir', pictures, **options)  # fmt: skip
    tested = metrics(tmp_path / 'tested')
    assert tested
    assert len(pickle.loads(out.read_bytes())) == 2
    assert len([p for p in pictures.rglob('*') if p.suffix in ('.png', '.jpg')]) == 2

    run_here(monkeypatch, TOOLS / 'test.py', config, checkpoint, '--work-dir', tmp_path / 'tta',
             '--tta', **options)  # fmt: skip
    assert metrics(tmp_path / 'tta').keys() == tested.keys()

    capsys.readouterr()
    student = tmp_path / 'exported' / 'student.pth'
    call('export', checkpoint, student, '--config', tmp_path / 'student.py')
    # mmengine reads like this
    trained = CheckpointLoader.load_checkpoint(str(checkpoint))['state_dict']
    exported = torch.load(student, weights_only=True)['state_dict']
    assert f'Wrote {student}: {len(exported)} tensors' in capsys.readouterr().out
    assert exported.keys() == {name for name in trained if not name.startswith('kd.')}
    assert all(torch.equal(value, trained[name]) for name, value in exported.items())
    assert any(name.startswith('kd.') for name in trained) == bool(options)

    # the stock config of the student, and the stock tool
    package, name = STOCK[recipe]
    stock = write_miniature(framework(package) / 'configs' / name, data, tmp_path / 'stock')
    with DefaultScope.overwrite_default_scope(package):
        bare = MODELS.build(Config.fromfile(stock).model)
    bare.load_state_dict(exported, strict=True)
    run_here(monkeypatch, framework(package) / 'tools' / 'test.py', stock, student)
    assert metrics(tmp_path / 'stock') == tested

    # the config that was exported, for what takes no recipe
    mine = tmp_path / 'student.py'
    run_here(monkeypatch, framework(package) / 'tools' / 'test.py', mine, student, '--work-dir',
             tmp_path / 'mine')  # fmt: skip
    assert metrics(tmp_path / 'mine') == tested
    assert 'kd_dense' not in mine.read_text()
    picture = next((data / ('cityscapes' if package == 'mmseg' else 'coco')).rglob('*0001*.[jp]*'))
    for shown in predicted(package, mine, student, picture):
        assert type(shown) is type(bare)

    shutil.rmtree(tmp_path)


def test_the_export_lies_beside_the_checkpoint(tmp_path, capsys):
    state = {'backbone.w': torch.ones(2), 'kd.cwd.w': torch.zeros(2)}
    torch.save({'state_dict': state, 'meta': {'iter': 4}}, tmp_path / 'iter_4.pth')
    call('export', tmp_path / 'iter_4.pth')
    found = torch.load(tmp_path / 'student.pth')
    assert found['state_dict'].keys() == {'backbone.w'}
    assert found['meta'] == {'iter': 4}
    assert 'student.pth: 1 tensors' in capsys.readouterr().out


class TestConfig:
    """The config of the student, which comes out of a file that is not trusted."""

    RECIPE = """
custom_hooks = [dict(type='kd_dense.CriticHook'), dict(type='EMAHook')]
default_scope = 'mmdet'
model = dict(type='kd_dense.Distilled', student=dict(type='FCOS', a=[(1, -2.5), {'b c': None}]),
             teacher='gone.py', terms=dict())
"""

    @pytest.fixture
    def export_of(self, tmp_path):
        def export_of(text, *options):
            meta = dict(cfg=text, iter=4)
            torch.save({'state_dict': {'a': torch.zeros(1)}, 'meta': meta}, tmp_path / 'x.pth')
            call('export', tmp_path / 'x.pth', *options)
            return torch.load(tmp_path / 'student.pth')['meta']

        return export_of

    def test_is_that_of_the_student(self, export_of, tmp_path):
        meta = export_of(self.RECIPE)
        config = Config.fromstring(meta['cfg'], '.py')
        assert config.to_dict() == dict(
            custom_hooks=[dict(type='EMAHook')],
            default_scope='mmdet',
            model=dict(type='FCOS', a=[(1, -2.5), {'b c': None}]),
        )
        assert meta['iter'] == 4

    @pytest.mark.parametrize(
        'text',
        [
            "__import__('os').mkdir('{0}')\n{1}",
            "x = __import__('os').mkdir('{0}')\n{1}",
            "x = dict(a=__import__('os').mkdir('{0}'))\n{1}",
            "import os\nx = dict(**os.mkdir('{0}'))\n{1}",
            "(x := __import__('os').mkdir('{0}'))\n{1}",
            '(' * 100_000,
            '-' * 100_000 + '1',
            "model = dict(type='FCOS')",  # what is no recipe is left as it is
        ],
    )
    def test_what_is_more_than_values_is_left_as_it_is(self, text, export_of, tmp_path):
        text = text.format(tmp_path / 'executed', self.RECIPE)
        assert export_of(text)['cfg'] == text
        with pytest.raises(SystemExit, match='holds no config of a recipe, or none that can be'):
            export_of(text, '--config', tmp_path / 'student.py')
        assert sorted(path.name for path in tmp_path.iterdir()) == ['student.pth', 'x.pth']

    def test_its_hooks_import_nothing(self, export_of, tmp_path, monkeypatch):
        (tmp_path / 'mine_to_run.py').write_text('raise SystemError')
        monkeypatch.syspath_prepend(str(tmp_path))
        text = self.RECIPE.replace('EMAHook', 'mine_to_run.Hook')
        assert 'mine_to_run.Hook' in export_of(text)['cfg']

    def test_where_it_is_written(self, export_of, tmp_path):
        export_of(self.RECIPE, '--config', tmp_path / 'new' / 'student.py')
        assert Config.fromfile(tmp_path / 'new' / 'student.py').model.type == 'FCOS'
        with pytest.raises(SystemExit, match=r'student\.py exists already'):
            export_of(self.RECIPE, '--config', tmp_path / 'new' / 'student.py')
        with pytest.raises(SystemExit, match=r'end in \.py, got .*student\.txt'):
            export_of(self.RECIPE, '--config', tmp_path / 'student.txt')
        with pytest.raises(SystemExit, match=r'cannot write .*x\.pth/student\.py'):
            export_of(self.RECIPE, '--config', tmp_path / 'x.pth' / 'student.py')


def test_what_cannot_be_read_or_written(tmp_path):
    with pytest.raises(SystemExit, match=r'the checkpoint .*x\.pth does not exist'):
        call('export', tmp_path / 'x.pth')
    torch.save({'state_dict': {}}, tmp_path / 'empty.pth')
    with pytest.raises(SystemExit, match='holds no weights'):
        call('export', tmp_path / 'empty.pth')
    torch.save({'state_dict': {'a': torch.zeros(1)}}, tmp_path / 'x.pth')
    (tmp_path / 'out').mkdir()
    with pytest.raises(SystemExit, match=r'cannot write .*out: Is a directory'):
        call('export', tmp_path / 'x.pth', tmp_path / 'out')


class TestOptions:
    """What tools/test.py refuses."""

    def test_a_dump_that_is_no_pickle(self, monkeypatch):
        with pytest.raises(SystemExit, match=r'--out expects a \.pkl file, got x\.json'):
            run_here(monkeypatch, TOOLS / 'test.py', DETECTOR, 'x.pth', '--out', 'x.json')

    def test_pictures_without_a_hook(self, monkeypatch):
        with pytest.raises(SystemExit, match=r'need default_hooks\.visualization'):
            run_here(monkeypatch, TOOLS / 'test.py', DETECTOR, 'x.pth', '--show-dir', 'x',
                     default_hooks__visualization=None)  # fmt: skip

    def test_augmentation_without_a_pipeline(self, monkeypatch):
        with pytest.raises(SystemExit, match='--tta needs tta_model and tta_pipeline'):
            run_here(monkeypatch, TOOLS / 'test.py', CONFIGS / GFL, 'x.pth', '--tta')


def test_a_full_disk_leaves_neither_a_part_nor_a_lost_student(tmp_path, monkeypatch):
    torch.save({'state_dict': {'a': torch.zeros(1)}}, tmp_path / 'x.pth')
    (tmp_path / 'student.pth').write_text('of an earlier export')

    def save(content, file):
        file.write(b'begun')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', save)
    with pytest.raises(SystemExit, match=r'cannot write .*student\.pth: No space left on device'):
        call('export', tmp_path / 'x.pth')
    assert {path.name for path in tmp_path.iterdir()} == {'x.pth', 'student.pth'}
    assert (tmp_path / 'student.pth').read_text() == 'of an earlier export'

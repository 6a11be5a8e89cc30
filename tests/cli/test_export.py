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
GFL = 'cwd_gfl-r50_from_gfl-r101_1x_coco.py'  # of the recipes without --tta


def metrics(work_dir):
    latest = max(work_dir.glob('*/*.json'), key=lambda path: path.stat().st_mtime)
    scores = json.loads(latest.read_text())
    return {k: v for k, v in scores.items() if 'mAP' in k or k in ('mIoU', 'mAcc', 'aAcc')}


@pytest.mark.parametrize(
    ('recipe', 'options'),
    [
        # a feature, so that an adapter has to be left out
        (SEGMENTER, dict(model__terms__cwd__tap='decode_head.bottleneck')),
        (DETECTOR, {}),
    ],
    ids=['mmseg', 'mmdet'],
)
def test_the_student_gets_out(recipe, options, tmp_path, monkeypatch, capsys):
    data = make_data(tmp_path / 'data')
    work_dir = tmp_path / 'run'
    config = write_miniature(recipe, data, work_dir)
    run_here(monkeypatch, TOOLS / 'train.py', config, **options)
    [checkpoint] = [*work_dir.glob('iter_2.pth'), *work_dir.glob('epoch_1.pth')]

    # tools/test.py needs neither the teacher's weights nor the export
    def teacher_weights(*_):
        raise AssertionError('the teacher was loaded')

    monkeypatch.setattr('kd_dense.mm.teachers.openmmlab.Teacher.load', teacher_weights)
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
    call('export', checkpoint, student)
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

    shutil.rmtree(tmp_path)


def test_the_export_lies_beside_the_checkpoint(tmp_path, capsys):
    state = {'backbone.w': torch.ones(2), 'kd.cwd.w': torch.zeros(2)}
    torch.save({'state_dict': state, 'meta': {'iter': 4}}, tmp_path / 'iter_4.pth')
    call('export', tmp_path / 'iter_4.pth')
    found = torch.load(tmp_path / 'student.pth')
    assert found['state_dict'].keys() == {'backbone.w'}
    assert found['meta'] == {'iter': 4}
    assert 'student.pth: 1 tensors' in capsys.readouterr().out


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

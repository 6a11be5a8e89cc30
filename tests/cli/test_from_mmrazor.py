import re

import pytest

from kd_dense.mm.mmrazor import text
from tests.launch import call
from tests.miniature import ROOT
from tests.mm.mmrazor.shapes import pkd, small


def test_a_recipe_is_written(tmp_path, capsys):
    config, file = small(tmp_path, pkd()), tmp_path / 'new' / 'recipe.py'
    call('from-mmrazor', config, '--output', file)
    shown = capsys.readouterr()
    assert shown.out == f'Wrote {file}. Before you train it: kd_dense check {file}\n'
    assert 'To know:\nmodel.distiller.distill_losses.loss_pkd: with several' in shown.err
    text = file.read_text()
    assert text.startswith(
        '"""small.py of mmrazor, as kd_dense from-mmrazor has translated it."""'
    )
    assert '# - model.distiller.distill_losses.loss_pkd: with several processes' in text
    assert "terms=dict(pkd=dict(tap='neck', loss=dict(type='PKDLoss', weight=1.0))))" in text
    with pytest.raises(SystemExit, match='exists already'):
        call('from-mmrazor', config, '--output', file)


def test_it_is_printed_and_says_by_its_status_what_is_not_the_same(tmp_path, capsys):
    losses = dict(loss_pkd=dict(type='PKDLoss'), loss_ofd=dict(type='OFDLoss'))
    mappings = dict.fromkeys(losses, pkd()['loss_forward_mappings']['loss_pkd'])
    distiller = {**pkd(), 'distill_losses': losses, 'loss_forward_mappings': mappings}
    with pytest.raises(SystemExit) as ended:
        call('from-mmrazor', small(tmp_path, distiller))
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert "type='kd_dense.Distilled'" in shown.out
    assert (
        '# Not the same:\n# - model.distiller.distill_losses.loss_ofd: left out: ove' in shown.out
    )
    assert 'loss_ofd: left out: overhaul feature distillation (OFD)' in shown.err


def test_what_cannot_be_done(tmp_path):
    with pytest.raises(SystemExit, match=r'kd_dense from-mmrazor: the config gone\.py does not'):
        call('from-mmrazor', 'gone.py')
    with pytest.raises(SystemExit, match=r'recipe\.txt does not end in \.py'):
        call('from-mmrazor', small(tmp_path, pkd()), '--output', 'recipe.txt')
    (tmp_path / 'file').touch()
    with pytest.raises(SystemExit, match='cannot write'):
        call('from-mmrazor', small(tmp_path, pkd()), '--output', tmp_path / 'file' / 'recipe.py')


def test_the_page(tmp_path, monkeypatch):
    """It shows a config, and of that the recipe that is written."""
    page = (ROOT / 'docs' / 'from-mmrazor.md').read_text()
    config, recipe = re.findall(r'```python title="mine/\w+.py"\n(.*?)```', page, re.DOTALL)
    for file in (tmp_path / 'configs/_base_/kd_dense.py', tmp_path / 'mine/pkd_retinanet.py'):
        file.parent.mkdir(parents=True)
        file.write_text(config)
    monkeypatch.setattr(text, 'BASE', tmp_path / 'configs' / '_base_' / 'kd_dense.py')
    monkeypatch.chdir(tmp_path)
    call('from-mmrazor', 'mine/pkd_retinanet.py', '--output', 'mine/recipe.py')
    assert (tmp_path / 'mine' / 'recipe.py').read_text() == recipe

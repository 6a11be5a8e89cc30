"""What the README shows runs."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()


def blocks(language):
    return re.findall(rf'```{language}\n(.*?)```', README, re.DOTALL)


def test_plain_pytorch_learns_in_20_lines():
    _, code = README.split('<!-- run by tests/test_readme.py -->')
    code = re.search(r'```python\n(.*?)```', code, re.DOTALL)[1]
    body = [line for line in code.splitlines() if line and not re.match('import|from', line)]
    assert len(body) <= 20
    names = {}
    exec(code.replace('    optimizer.step()', '    optimizer.step()\n    log.append(loss.item())'),
         names | {'log': (log := [])})  # fmt: skip
    assert len(log) == 10
    assert log[-1] < log[0]


def test_the_recipe_is_the_one_in_the_repository(tmp_path):
    from mmengine.config import Config

    import kd_dense.mm  # noqa: F401

    (recipe,) = (b for b in blocks('python') if '_base_' in b)
    assert len(recipe.strip().splitlines()) <= 10
    folder = ROOT / 'configs' / 'cwd'
    (tmp_path / 'cwd').mkdir()
    (tmp_path / '_base_').symlink_to(ROOT / 'configs' / '_base_')
    (tmp_path / 'cwd' / 'recipe.py').write_text(recipe)
    shown = Config.fromfile(tmp_path / 'cwd' / 'recipe.py').model
    kept = Config.fromfile(
        folder / 'cwd_pspnet-r18_from_pspnet-r101_80k_cityscapes-512x1024.py'
    ).model
    assert shown == kept


@pytest.mark.parametrize('line', [line for b in blocks('shell') for line in b.splitlines()])
def test_every_command_names_files_that_exist(line):
    for word in shlex.split(line):
        if word.startswith(('tools/', 'configs/')):
            assert (ROOT / word).is_file()

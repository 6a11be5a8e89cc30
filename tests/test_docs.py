"""What the pages say of files, arguments and defaults is so."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import DefaultScope
from torch import device

import kd_dense.losses
import kd_dense.mm
from kd_dense.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]
METHODS = sorted((ROOT / 'docs' / 'methods').glob('*.md'))
PAGES = [
    *(ROOT / f'{name}.md' for name in ('README', 'CHANGELOG', 'CONTRIBUTING', 'SECURITY')),
    *sorted((ROOT / 'docs').rglob('*.md')),
    *sorted((ROOT / 'configs').glob('*/README.md')),
]
FENCE = re.compile(r'^```(\w*)[^\n]*\n(.*?)^```', re.DOTALL | re.MULTILINE)
DEFINED = {
    name for page in PAGES for name in re.findall(r'^class (\w+)', page.read_text(), re.MULTILINE)
}
CLASSES = {**vars(kd_dense.losses), **vars(kd_dense.mm)}


def name(path):
    return str(path.relative_to(ROOT))


def anchors(page):
    titles = re.findall(r'^#+ (.*)$', FENCE.sub('', page.read_text()), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_links_and_pictures_lead_somewhere(page):
    links = re.findall(r'\]\(([^)\s]+)\)', FENCE.sub('', page.read_text()))
    assert links or page.parent.name in ('api', 'results') or page.stem == 'zoo'
    for link in links:
        if re.match('https?://', link):
            continue
        file, _, anchor = link.partition('#')
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize('page', PAGES, ids=name)
def test_commands_name_files_that_exist(page):
    written = re.findall(r'^ *```\w+ title="(.+)"$', page.read_text(), re.MULTILINE)
    for language, code in FENCE.findall(page.read_text()):
        if language != 'python':
            for path in re.findall(r'(?<![\w/])(?:tools|configs)/[\w./-]+', code):
                assert path in written or (ROOT / path).is_file(), path


def blocks():
    for page in PAGES:
        for language, code in FENCE.findall(page.read_text()):
            if language == 'python':
                yield pytest.param(textwrap.dedent(code), id=f'{name(page)}:{code.split()[0]}')


def loss_configs(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.keyword) and node.arg == 'loss':
            yield eval(ast.unparse(node.value), {'__builtins__': {}, 'dict': dict})


@pytest.mark.parametrize('code', blocks())
def test_code_compiles_and_its_losses_build(code):
    configs = list(loss_configs(code))
    assert configs or not re.search(r'terms=dict\(\s*\w', code)
    for config in configs:
        if config['type'] in DEFINED:  # by another block of the page
            continue
        cls = getattr(kd_dense.losses, config['type'])
        takes = inspect.signature(cls).parameters
        widths = ('student_channels', 'teacher_channels')
        fitted = {k: [8] if cls.all_maps else 8 for k in widths if k in takes}
        fitted |= {k: 8 for k in ('channels', 'num_classes') if k in takes}
        MODELS.build({'_scope_': 'kd_dense', **fitted, **config})


@pytest.mark.parametrize('page', METHODS, ids=name)
def test_configs_on_the_pages_build(page, tmp_path):
    (tmp_path / '_base_').symlink_to(ROOT / 'configs' / '_base_')
    (tmp_path / 'method').mkdir()
    for language, code in FENCE.findall(page.read_text()):
        if language == 'python' and '_base_ =' in code:
            (tmp_path / 'method' / 'config.py').write_text(code)
            config = Config.fromfile(tmp_path / 'method' / 'config.py')
            with DefaultScope.overwrite_default_scope(config.default_scope), device('meta'):
                ROOT_MODELS.build(config.model)


def said_defaults(text):
    """Yield class, or None, argument and value of each `argument=value` in an argument's cell."""
    column, owner = None, None
    for line in FENCE.sub('', text).splitlines():
        cells = [cell.strip() for cell in line.split('|')] if line.startswith('|') else []
        if not cells:
            column = None
        elif column is None:  # the head of a table
            heads = [re.fullmatch(r'argument(?: of `(\w+)`)?', cell) for cell in cells]
            column = next((i for i, head in enumerate(heads) if head), len(cells))
            owner = heads[column][1] if column < len(cells) else None
        elif column < len(cells):
            for cls, argument, value in re.findall(r'`(?:(\w+)\.)?(\w+)=([^`]+)`', cells[column]):
                yield cls or owner, argument, value


@pytest.mark.parametrize('page', METHODS, ids=name)
def test_arguments_and_defaults_are_those_of_the_classes(page):
    text = page.read_text()
    said = list(said_defaults(text))
    assert said or page.stem == 'README'
    named = [n for n in re.findall(r'\b\w+(?:Loss|Hook)\b', text) if n in CLASSES]
    for owner, argument, value in said:
        expected = eval(value, {'__builtins__': {}, 'dict': dict})
        found = [
            inspect.signature(CLASSES[cls]).parameters[argument].default
            for cls in ([owner] if owner else dict.fromkeys(named))
            if argument in inspect.signature(CLASSES[cls]).parameters
        ]
        assert expected in found, f'{owner or "no class on the page"}: {argument}={value}'

"""The site builds without warnings and without a network, and shows what it should."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urljoin, urlparse

import pytest
from mkdocs.exceptions import PluginError
from mkdocs.utils.yaml import get_yaml_loader, yaml_load

from tests.miniature import ROOT

# The command's own files are read with --help.
MODULES = [
    path
    for path in sorted((ROOT / 'kd_dense').rglob('*.py'))
    if path.parent.name != 'cli' and path.name != '__main__.py'
]
NAVIGATION = ('canonical', 'next', 'prev', 'alternate')  # links that a browser does not load
TEXTS = ('p', 'td', 'th')


class Page(HTMLParser):
    """Of a page its ids, its links, what it loads, and the text of its paragraphs and cells."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.texts: list[str] = []
        self.formulas = self.math = 0
        self._in_text = False
        self._open: list[str] = []  # within code or a formula
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids.add(found.get('id') or '')
        if tag == 'a' and 'href' in found:
            self.links.append(found['href'])
        if tag != 'a' and not (tag == 'link' and found.get('rel') in NAVIGATION):
            self.loaded += [
                found[key] for key in ('src', 'href', 'srcset', 'data') if key in found
            ]
        self.math += tag == 'math'
        if tag in TEXTS:
            self.texts.append('')
            self._in_text = True
        if 'arithmatex' in (found.get('class') or ''):
            self.formulas += 1
            self._open.append(tag)
        elif tag in ('code', 'pre', 'script', 'style') or (self._open and tag == self._open[-1]):
            self._open.append(tag)

    def handle_endtag(self, tag):
        if self._open and tag == self._open[-1]:
            self._open.pop()
        if tag in TEXTS:
            self._in_text = False

    def handle_data(self, data):
        if self._in_text and not self._open:
            self.texts[-1] += data


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp('site')
    nowhere = 'http://127.0.0.1:9'  # no network
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(folder)],
        cwd=ROOT,
        env={
            **os.environ,
            'NO_MKDOCS_2_WARNING': '1',
            'http_proxy': nowhere,
            'https_proxy': nowhere,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'WARNING' not in done.stdout + done.stderr
    return folder


@pytest.fixture(scope='module')
def pages(site):
    found = {str(p.relative_to(site)): Page(p) for p in sorted(site.rglob('*.html'))}
    assert len(found) > 40
    return found


@pytest.mark.long
def test_every_public_name_is_in_the_reference(site, pages):
    ids = set().union(*(page.ids for name, page in pages.items() if name.startswith('api/')))
    for path in MODULES:
        module = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
        tree = ast.parse(path.read_text())
        public = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, (ast.Assign, ast.AnnAssign))
            and '__all__' in ast.unparse(node).partition('=')[0]
        ]
        assert public or path.name in ('__init__.py', 'registry.py'), f'{module} has no __all__'
        for name in public[0] if public else ():
            if path.name == '__init__.py':  # exported from another module
                assert any(i.startswith('kd_dense.') and i.endswith(f'.{name}') for i in ids), name
            else:
                missing = f'add `::: {module}` to a page in docs/api/, and a docstring to {name}'
                assert f'{module}.{name}' in ids, missing


@pytest.mark.long
def test_links_lead_somewhere_within_the_site(site, pages):
    for name, page in pages.items():
        if name == '404.html':  # whose links begin at the root
            continue
        for link in page.links:
            target = urlparse(urljoin(f'site:///{name}'.replace('site:', 'http://site'), link))
            if target.netloc != 'site' or urlparse(link).scheme:
                continue
            path = unquote(target.path).lstrip('/')
            path = f'{path}index.html' if path.endswith('/') or not path else path
            assert (site / path).is_file(), f'{name}: {link}'
            assert not target.fragment or unquote(target.fragment) in pages[path].ids, (
                f'{name}: {link}'
            )


@pytest.mark.long
def test_nothing_is_loaded_from_elsewhere(site, pages):
    for name, page in pages.items():
        assert page.loaded, name
        assert [link for link in page.loaded if urlparse(link).netloc] == [], name
    for path in site.rglob('*.css'):
        text = path.read_text()
        assert not re.search(r'url\(["\']?(https?:)?//|@import', text), path.name


@pytest.mark.long
def test_formulas_need_no_script(pages):
    for name, page in pages.items():
        assert page.math == page.formulas, name
    for name in ('methods/fgd/index.html', 'api/losses/index.html'):
        assert pages[name].math > 10, name


@pytest.mark.long
def test_markup_is_not_left_in_the_text(pages):
    """What a code host renders and the site does not, or the other way round."""
    for name, page in pages.items():
        for text in page.texts:
            shown = f'{name}: {text}'
            assert not re.search(r':(func|class|meth|math|mod):|^\.\. |^>>> ', text), shown
            assert not re.search(r'^\s*(-|\d+\.|\*) \S', text, re.MULTILINE), shown  # a list
            assert '```' not in text, shown
            assert not re.search(r'^\|.*\|$', text, re.MULTILINE), shown  # a table
            assert '$' not in text, shown  # a formula
            assert not re.search(r'\]\(|\]\[', text), shown  # a link


@pytest.fixture(scope='module')
def on_page_content():
    spec = importlib.util.spec_from_file_location('hooks', ROOT / 'docs' / 'hooks.py')
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = SimpleNamespace(file=SimpleNamespace(src_uri='page.md'))
    return lambda html: hooks.on_page_content(html, page)


@pytest.mark.parametrize('formula', [r'\unheard x', r'\begin{aligned}a &amp;= b\end{aligned}'])
def test_a_formula_that_cannot_be_rendered_stops_the_build(on_page_content, formula):
    with pytest.raises(PluginError, match=r'page\.md: no MathML for'):
        on_page_content(f'<div class="arithmatex">\\[{formula}\\]</div>')


def test_a_picture_leads_to_itself_in_full_size(on_page_content):
    image = '<img alt="a &gt; b" src="fgd.png" />'
    assert on_page_content(image) == f'<a href="fgd.png">{image}</a>'


@pytest.mark.parametrize(
    ('html', 'expected'),
    [
        ('<td>decode_head.conv_seg</td>', '<td>decode_<wbr>head.<wbr>conv_seg</td>'),
        ('<td>50.0 ± 1.1</td>', '<td>50.0&nbsp;±&nbsp;1.1</td>'),
        ('<p>decode_head 1 ± 2</p>', '<p>decode_head 1 ± 2</p>'),
        ('<td><a href="decode_head.html">a</a></td>', '<td><a href="decode_head.html">a</a></td>'),
        (
            '<code>a.py --work-dir b</code>',
            '<code>a.py <span class="option">--work-dir</span> b</code>',
        ),
        ('<p title="a --help">b -- c</p>', '<p title="a --help">b -- c</p>'),
    ],
)
def test_where_lines_may_break(on_page_content, html, expected):
    assert on_page_content(html) == expected


def test_navigation_has_all_pages():
    config = yaml_load((ROOT / 'mkdocs.yml').read_text(), get_yaml_loader())

    def names(value):
        if isinstance(value, str):
            yield value
        else:
            for item in value.values() if isinstance(value, dict) else value:
                yield from names(item)

    shown = [*names(config['nav'])]
    written = [str(p.relative_to(ROOT / 'docs')) for p in (ROOT / 'docs').rglob('*.md')]
    outside = [str(p.relative_to(ROOT)) for p in (ROOT / 'configs').glob('*/README.md')]
    assert sorted(shown) == sorted([*written, *outside, 'README.md'])

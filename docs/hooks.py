"""Lets the site have pages and links that lie outside of docs/.

Pages are written for a code host: a link is relative to the file that it stands in, and may name
any file of the repository. On the site README.md and those of configs/ are pages too, and a
linked file that is no page becomes one that shows it. Formulas become MathML, which browsers show
without scripts.
"""

from __future__ import annotations

import os
import posixpath
import re
from html import unescape
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r'(^ *```.*?^ *```$)', re.DOTALL | re.MULTILINE)
LINK = re.compile(r'\]\((?!\w+:|#)([^)#\s]+)')
FORMULA = re.compile(r'(<(span|div) class="arithmatex">)\\[(\[](.*?)\\[)\]](?=</\2>)', re.DOTALL)
CELL = re.compile(r'<td.*?</td>', re.DOTALL)
TEXT = r'(?=[^<>]*<)'  # not within a tag
NAME_PART = re.compile(rf'((?<=\w{{5}})_+|\.(?=[a-z_]{{4}}|&)){TEXT}')
OPTION = re.compile(rf'(?<=[\s>])--[a-z][\w-]*{TEXT}')
IMAGE = re.compile(r'<img [^>]*src="([^"]+)"[^>]*>')


def links(text: str) -> list[str]:
    """The files that a page links to."""
    return LINK.findall(FENCE.sub('', text))


def repository_path(page: str, link: str = '') -> str:
    """Where a page of the site, or a file that it links to, lies in the repository."""
    source = page if page == 'README.md' or page.startswith('configs/') else f'docs/{page}'
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link)) if link else source


def site_path(path: str) -> str:
    """The place in the site of a file of the repository."""
    if path.startswith('docs/'):
        return path.removeprefix('docs/')
    return path if path.endswith('.md') else f'{path}.md'


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside of docs/, and the files that pages link to."""
    outside = [ROOT / 'README.md', *sorted((ROOT / 'configs').glob('*/README.md'))]
    for path in outside:
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, content=path.read_text()))
    for page in [*files.documentation_pages()]:
        for link in links(page.content_string):
            name = repository_path(page.src_uri, link)
            if (ROOT / name).is_file() and site_path(name) not in files.src_uris:
                language = {'.py': 'python', '.sh': 'shell'}.get(Path(name).suffix, 'text')
                text = f'# {name}\n\n~~~{language}\n{(ROOT / name).read_text()}~~~\n'
                files.append(File.generated(config, site_path(name), content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to where the files lie in the site."""
    here = page.file.src_uri

    def pointed(match: re.Match[str]) -> str:
        target = site_path(repository_path(here, match[1]))
        return f']({os.path.relpath(target, posixpath.dirname(here) or ".")}'

    if page.file.generated_by and not here.endswith('README.md'):  # a file that is shown
        return markdown
    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(pointed, part) for part in parts[::2]]
    return ''.join(parts)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Render formulas, link pictures to themselves for their full size, say where lines may break.

    In a cell a long name may break after its parts; an option never breaks after its dashes.
    """

    def rendered(match: re.Match[str]) -> str:
        formula = unescape(match[3])
        mathml = convert(formula, display='block' if match[2] == 'div' else 'inline')
        if re.search(r'\\|>&<', mathml):  # what latex2mathml does not know it passes on
            raise PluginError(f'{page.file.src_uri}: no MathML for {formula}')
        return match[1] + mathml

    def narrow(match: re.Match[str]) -> str:
        text = match[0].replace(' ± ', '&nbsp;±&nbsp;')
        return NAME_PART.sub(r'\1<wbr>', text)

    html = CELL.sub(narrow, FORMULA.sub(rendered, html))
    html = OPTION.sub(r'<span class="option">\g<0></span>', html)
    return IMAGE.sub(r'<a href="\1">\g<0></a>', html)


class OwnAttributes(griffe.Extension):
    """Leaves out of the reference what an instance keeps and nobody has described."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        for name, member in [*cls.members.items()]:
            if 'instance-attribute' in member.labels and not member.has_docstring:
                cls.del_member(name)

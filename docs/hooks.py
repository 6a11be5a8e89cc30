"""Lets the site have pages and links that lie outside of docs/.

Pages are written for a code host: a link is relative to the file that it stands in, and may name
any file of the repository. On the site README.md and those of configs/ are pages too, and a
linked file that is no page becomes one that shows it.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r'(^ *```.*?^ *```$)', re.DOTALL | re.MULTILINE)
LINK = re.compile(r'\]\((?!\w+:|#)([^)#\s]+)')


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


class OwnAttributes(griffe.Extension):
    """Leaves out of the reference what an instance keeps and nobody has described."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        for name, member in [*cls.members.items()]:
            if 'instance-attribute' in member.labels and not member.has_docstring:
                cls.del_member(name)

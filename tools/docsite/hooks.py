"""Hooks of mkdocs (``mkdocs.yml``): pages made from the code, and what GitHub shows by itself.

GitHub plays linked videos, sets formulas and opens files of code; here that is done at build time,
so that the site needs no network, no fonts and no scripts of others.
"""

from __future__ import annotations

import html
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))  # mkdocs does not know the repository

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

from tools.docsite import api, options, places

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_VIDEO = re.compile(r'<a href="([^"]+\.mp4)">(.*?)</a>')
_ROLE = re.compile(r":(?:class|meth|func|mod|data|attr):(?=<code>)")
_CODE = re.compile(r"(<pre.*?</pre>|<a .*?</a>)|<code>([\w./-]+)</code>", re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the parts of the navigation that are made from the code."""
    if str(REPO) not in sys.path:  # mkdocs restores it after loading this file
        sys.path.insert(0, str(REPO))
    made = {
        "options/": ["options/index.md", *(f"options/{p.name}.md" for p in options.programs())],
        "api/": ["api/index.md", *(f"api/{room}.md" for room in api.ROOMS)],
    }
    config.nav = _completed(config.nav, made)
    return config


def _completed(nav: Any, made: dict[str, list[str]]) -> Any:
    if isinstance(nav, dict):
        return {title: _completed(part, made) for title, part in nav.items()}
    if isinstance(nav, list):
        return [_completed(part, made) for part in nav]
    return made.get(nav, nav)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in ``docs/``, and the files that pages refer to."""
    pages = {"options/index.md": options.index(options.programs()), "api/index.md": api.index()}
    pages |= {f"options/{p.name}.md": options.page(p) for p in options.programs()}
    pages |= {f"api/{room}.md": api.page(room) for room in api.ROOMS}
    for name, page in places.INCLUDED.items():
        pages[page] = (REPO / name).read_text(encoding="utf-8")
    for file in files:
        if file.src_uri.endswith(".ipynb"):
            name = f"{places.DOCS}/{file.src_uri}"
            pages[places.place_of(name)] = places.notebook_page(name)
        elif file.is_documentation_page():
            pages[file.src_uri] = file.content_string
    named = set()
    for page, text in list(pages.items()):
        named |= places.named_files(text, posixpath.dirname(places.file_of(page)))
    for name in sorted(named):
        place = places.place_of(name)
        if place.startswith("source/"):
            pages[place] = places.source_page(name)
        elif files.get_file_from_path(place) is None and place not in pages:
            files.append(File.generated(config, place, abs_src_path=str(REPO / name)))
    for page, text in pages.items():
        if files.get_file_from_path(page) is None:
            files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files outside of ``docs/``."""
    return places.relinked(markdown, page.file.src_uri)


def on_page_content(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML, videos as players, names of files as links to them."""
    text = _FORMULA.sub(_formula, text)
    text = _VIDEO.sub(_video, text)
    text = _ROLE.sub("", text)
    if page.file.src_uri.startswith("source/"):
        return text
    return _CODE.sub(lambda found: _linked(found, page, files), text)


def _formula(found: re.Match[str]) -> str:
    tex = html.unescape(found[2]).replace(r"\arg", r"\operatorname{arg}")  # which it does not know
    formula = convert(tex, display="block" if found[1] == "div" else "inline")
    long = found[1] == "span" and len(tex) > 40  # wider than a phone: it may scroll
    return f'<span class="formula">{formula}</span>' if long else formula


def _video(found: re.Match[str]) -> str:
    return (
        f'<video src="{found[1]}" controls muted loop playsinline preload="metadata" '
        f'aria-label="{html.escape(re.sub("<.*?>", "", found[2]))}"></video>'
    )


def _linked(found: re.Match[str], page: Page, files: Files) -> str:
    """`rl/q_agent.py` as a link to the page that shows it."""
    if not found[2] or not (place := places.place_of(found[2])):
        return found[0]
    file = files.get_file_from_path(place)
    if file is None or file.src_uri == page.file.src_uri:
        return found[0]
    return f'<a href="{get_relative_url(file.url, page.url)}">{found[0]}</a>'

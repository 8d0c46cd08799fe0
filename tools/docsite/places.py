"""Where files of the repository are on the site, and links that lead there.

Pages are written for GitHub: links are relative to their file, also to files outside of ``docs/``.
On the site such a file is a page of its own (``PAGES``), a picture, video or record under its own
name, or, if it is code, a page that shows it (``source/...``).
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
DOCS = "docs"

# files outside of docs/ that are pages
PAGES = {
    "README.md": "index.md",  # which says the same in fewer words
    "release/results/README.md": "results.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
INCLUDED = {name: page for name, page in PAGES.items() if name != "README.md"}
RECORDED = (".png", ".mp4", ".json")  # copied as they are, from release/results
LANGUAGES = {
    ".py": "python", ".pyi": "python", ".cc": "cpp", ".h": "cpp", ".yaml": "yaml", ".toml": "toml",
    ".sh": "bash", ".txt": "text", ".cff": "yaml", ".urdf": "xml",
}  # fmt: skip
_FENCED = re.compile(r"^(`{3,}).*?^\1", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_NAMED = re.compile(r"(?<!`)`([\w./-]+)`(?!`)")


def file_of(page: str) -> str:
    """The file that a page of the site (``algorithms.md``) was made from, relative to ``REPO``."""
    return {v: k for k, v in INCLUDED.items()}.get(page, f"{DOCS}/{page}")


def place_of(name: str) -> str:
    """The place of a file of the repository on the site; "" if it has none."""
    if not (REPO / name).is_file():
        return ""
    if name.startswith(f"{DOCS}/"):
        page = name.removeprefix(f"{DOCS}/")
        return page.removesuffix(".ipynb") + ".md" if page.endswith(".ipynb") else page
    if name in PAGES:
        return PAGES[name]
    if name.startswith("release/results/") and name.endswith(RECORDED):
        return name
    return f"source/{name}.md" if is_code(name) else ""


def is_code(name: str) -> bool:
    """Whether a page can show this file."""
    return Path(name).suffix in LANGUAGES or name in ("LICENSE", "common_utils/Makefile")


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """``text`` with ``change`` made everywhere but in fenced blocks of code."""
    out, end = [], 0
    for block in _FENCED.finditer(text):
        out += [change(text[end : block.start()]), block.group()]
        end = block.end()
    return "".join([*out, change(text[end:])])


def relinked(text: str, page: str) -> str:
    """Markdown of ``page`` with links to files outside of ``docs/`` that work on the site.

    Links that lead nowhere stay as they are, so that the strict build reports them.
    """
    folder = posixpath.dirname(file_of(page))

    def link(found: re.Match[str]) -> str:
        target, hash_, anchor = found[2].partition("#")
        if not target or re.match(r"\w+:", target):
            return found[0]
        place = place_of(posixpath.normpath(posixpath.join(folder, target)))
        if not place:
            return found[0]
        shown = posixpath.relpath(place, posixpath.dirname(page) or ".")
        return f"{found[1]}{shown}{hash_}{anchor}{found[3]}"

    return outside_fences(text, lambda part: _LINK.sub(link, part))


def named_files(text: str, folder: str = "") -> set[str]:
    """Files of the repository that a page links to, or names as `code`."""
    named: set[str] = set()

    def collect(part: str) -> str:
        named.update(_NAMED.findall(part))
        for _, target, _ in _LINK.findall(part):
            named.add(posixpath.normpath(posixpath.join(folder, target.partition("#")[0])))
        return part

    outside_fences(text, collect)
    return {name for name in named if place_of(name)}


def source_page(name: str) -> str:
    """Markdown of the page that shows a file of code."""
    language = LANGUAGES.get(Path(name).suffix, "text")
    text = (REPO / name).read_text(encoding="utf-8").rstrip("\n")
    front = "---\nsearch:\n  exclude: true\n---\n"  # the words of code would bury the pages
    return f"{front}# `{name}`\n\n``````{language}\n{text}\n``````\n"


def notebook_page(name: str) -> str:
    """Markdown of a notebook: its cells, and what they printed."""
    cells = json.loads((REPO / name).read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _cell(cell)) + "\n"


def _cell(cell: dict[str, Any]) -> Iterable[str]:
    text = _joined(cell["source"])
    if cell["cell_type"] == "markdown":
        yield text
        return
    yield f"```python\n{text}\n```"
    for output in cell.get("outputs", []):
        shown = output.get("text") or output.get("data", {}).get("text/plain")
        if shown:
            yield f"```text\n{_joined(shown).rstrip()}\n```"


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)

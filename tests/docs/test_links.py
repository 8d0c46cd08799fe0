"""Links between pages, and from code to pages, lead somewhere."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SOURCES = {".py", ".h", ".cc", ".cu", ".yaml", ".toml", ".sh"}


def tracked(*suffixes: str) -> list[Path]:
    """Files of the repository, also new ones, without what git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True).stdout
    files = [REPO / name for name in names.splitlines()]
    return [f for f in files if f.suffix in suffixes and f.is_file()]


@cache
def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def broken(page: Path, target: str, folder: Path) -> str:
    """Why a link does not lead anywhere; empty when it does."""
    name, _, anchor = target.partition("#")
    file = (folder / name).resolve() if name else page
    if not file.exists():
        return f"{target}: no such file"
    if anchor and anchor not in anchors(file):
        return f"{target}: no such heading"
    return ""


@pytest.mark.parametrize("page", tracked(".md"), ids=lambda p: str(p.relative_to(REPO)))
def test_links_of_a_page(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    local = [t for t in targets if not re.match(r"https?:|mailto:", t)]
    assert [why for t in local if (why := broken(page, t, page.parent))] == []


def test_pages_named_in_code() -> None:
    named = [
        (file, target)
        for file in tracked(*SOURCES)
        for target in re.findall(r"docs/[\w/]+\.md(?:#[\w-]+)?", file.read_text())
    ]
    assert len(named) > 20
    assert [f"{f}: {why}" for f, t in named if (why := broken(f, t, REPO))] == []


@pytest.mark.parametrize("page", tracked(".md"), ids=lambda p: str(p.relative_to(REPO)))
def test_files_named_in_a_page(page: Path) -> None:
    """`room/file.py`, also with a wildcard, and `room/file.py: name`, which is defined there."""
    rooms = "bc|benchmarks|common_utils|csrc|docs|env|evaluate|mw_main|networks|release/cfgs|rl"
    rooms += "|serve|tests|tools|workspace"
    pattern = rf"`((?:{rooms})/[\w/.*-]*[.*][\w*]*)(?:: (\w+))?`"
    found = re.findall(pattern, page.read_text())
    for name, inside in [f for f in found if "NAME" not in f[0]]:  # NAME is the reader's to choose
        files = [*REPO.glob(name), *page.parent.glob(name)]
        assert files, f"{name}: no such file"
        if inside:
            defined = rf"^ *(?:def|class) {inside}\b|^{inside}\b.*="
            assert re.search(defined, files[0].read_text(), re.MULTILINE), f"{name}: no {inside}"


def test_no_text_refers_to_a_document_that_is_not_here() -> None:
    """Behaviour is described under docs/reference, or in a paper, which is then named."""
    pattern = re.compile(r"\b(?:the )?spec(?:ification)?,? (?:section )?\d|\bspecification's\b")
    found = [
        f"{file.relative_to(REPO)}: {match.group()}"
        for file in tracked(".md", *SOURCES)
        if file != Path(__file__).resolve()
        for match in pattern.finditer(file.read_text())
    ]
    assert found == []


def test_messages_say_report_print_state_or_declare() -> None:
    """The one word that used to stand for all of these (CONTRIBUTING.md, English)."""
    word = re.compile(r"\bt" + r"old\b")
    files = tracked(".md", *SOURCES)
    assert [str(f.relative_to(REPO)) for f in files if word.search(f.read_text())] == []

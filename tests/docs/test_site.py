"""The site: built strictly, complete, without anything from other machines, fit for a phone."""

from __future__ import annotations

import functools
import html
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

import train_rl
from common_utils import run_config
from tests.chromium import browser
from tools.docsite import api, places
from tools.gallery import SCENES

REPO = Path(__file__).resolve().parents[2]
GALLERY = REPO / "release/results/gallery"
PHONE = 390  # pixels


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPO, env=quiet, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def pages(site: Path) -> list[Path]:
    return [p for p in sorted(site.rglob("*.html")) if p.name == "index.html"]


def test_every_page_is_there(site: Path) -> None:
    written = [p.relative_to(REPO / "docs").with_suffix("") for p in (REPO / "docs").rglob("*.md")]
    found = {p.parent.relative_to(site).as_posix() for p in pages(site)}
    assert {p.as_posix() for p in written if p.name != "index"} <= found
    assert {"results", "contributing", "changelog", "notebooks/q_agent", "."} <= found
    assert {f"api/{room}" for room in api.ROOMS} <= found
    assert {"options", "options/train_rl", "options/tools.generate_demos"} <= found


def test_every_link_picture_and_video_leads_to_a_file(site: Path) -> None:
    broken, checked = [], 0
    for page in pages(site):
        text = re.sub(r"<pre.*?</pre>", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r'\b(?:href|src)="([^"]*)"', text):
            url = urlsplit(html.unescape(target))
            if url.scheme or url.netloc or not url.path:
                continue
            place = urljoin(f"/{page.relative_to(site).as_posix()}", unquote(url.path)).lstrip("/")
            file = site / place
            checked += 1
            if not (file.is_file() or (file / "index.html").is_file()):
                broken.append(f"{page.relative_to(site)}: {target}")
    assert checked > 1000
    assert broken == []


def test_nothing_is_loaded_from_other_machines(site: Path) -> None:
    loads = (
        r"""<(?:script|img|video|iframe|source)[^>]+src="(?:https?:)?//"""
        r"""|<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href="https?:"""
    )
    for page in pages(site):
        assert not re.search(loads, page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", style.read_text()), style


def test_every_option_is_listed(site: Path) -> None:
    text = (site / "options/train_rl/index.html").read_text()
    for name, *_ in run_config.describe(train_rl.MainConfig):
        assert f'<dt id="{name}">' in text
    assert "Adam step size" in text or "step size" in text


def test_the_reference_has_public_names_only(site: Path) -> None:
    text = (site / "api/rl/index.html").read_text()
    assert 'id="rl.acting.ActsByValue.act"' in text and 'id="rl.selection.select_candidate"' in text
    assert not re.search(r'id="rl\.[\w.]*\._[a-z]', text)


def test_formulas_and_videos_need_no_script(site: Path) -> None:
    algorithms = (site / "algorithms/index.html").read_text()
    formulas = re.findall("<math.*?</math>", algorithms, re.DOTALL)
    assert len(formulas) >= 20 and "arithmatex" not in algorithms
    assert not any("\\" in formula for formula in formulas)  # what was not understood
    assert (site / "gallery/index.html").read_text().count("<video") == 2 * len(SCENES)


def test_the_gallery_has_small_videos_of_both_outcomes() -> None:
    rows = {row["file"]: row for row in json.loads((GALLERY / "gallery.json").read_text())}
    wanted = {
        f"{scene.suite}_{scene.task}_{outcome}.mp4"
        for scene in SCENES
        for outcome in ("success", "failure")
    }
    assert set(rows) == wanted == {p.name for p in GALLERY.glob("*.mp4")}
    sizes = [(GALLERY / name).stat().st_size for name in wanted]
    assert max(sizes) < 100_000 and sum(sizes) < 2_000_000
    assert all(row["success"] == row["file"].endswith("success.mp4") for row in rows.values())


def test_links_out_of_docs_lead_to_the_site() -> None:
    text = "[a](../release/results/README.md#x) [c](../README.md) [d](ibc.md) [e](../rl/actor.py)"
    assert places.relinked(text, "algorithms.md") == (
        "[a](results.md#x) [c](index.md) [d](ibc.md) [e](source/rl/actor.py.md)"
    )
    assert places.relinked("[a](../nowhere.md)", "ibc.md") == "[a](../nowhere.md)"
    assert places.relinked("[a](../ibc.md) [b](robosuite/lift_learning.png)", "results.md") == (
        "[a](../ibc.md) [b](release/results/robosuite/lift_learning.png)"
    )


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """Where the site is served, on loopback."""
    handler = functools.partial(Silent, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Silent(http.server.SimpleHTTPRequestHandler):
    """Prints nothing."""

    def log_message(self, *args: object) -> None:
        """No line per request."""


def test_no_page_is_wider_than_a_phone(site: Path, address: str, tmp_path: Path) -> None:
    shown = ["", "gallery/", "tutorials/own_task/", "algorithms/", "options/train_rl/", "api/rl/",
             "results/", "metrics/", "source/rl/q_agent.py/"]  # fmt: skip
    root = "document.documentElement"
    with browser(tmp_path / "browser") as page:
        for path in shown:
            there = f"location.pathname === '/{path}' && document.readyState === 'complete'"
            page.open(f"{address}/{path}", there, width=PHONE)
            assert page.value(f"{root}.scrollWidth - {root}.clientWidth") == 0, path

"""One place states the version; the licence and the citation agree with each other."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from common_utils.version import __version__

ROOT = Path(__file__).parents[2]


def test_the_newest_entry_of_the_changelog_is_the_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == __version__


def test_the_version_is_a_plain_release_number() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_the_citation_names_the_licence_and_the_papers_and_no_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert "version" not in citation
    assert citation["license"] == (ROOT / "LICENSE").read_text().split()[0] == "MIT"
    # the fields that version 1.2.0 of the format requires
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    titles = {reference["title"] for reference in citation["references"]}
    assert titles == {
        "Imitation Bootstrapped Reinforcement Learning",
        "Implicit Behavioral Cloning",
    }

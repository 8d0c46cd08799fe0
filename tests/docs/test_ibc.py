"""docs/ibc.md names only options, files and commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import train_bc
from common_utils import run_config
from common_utils.config_kinds import every_kind

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "docs" / "ibc.md").read_text()


def test_options_exist() -> None:
    kinds = every_kind(train_bc.MainConfig).values()
    options = {name for kind in kinds for name, *_ in run_config.describe(kind)}
    named = set(re.findall(r"`(?:--)?((?:ebm|mse|mdn|dataset|env)\.[a-z_.]+)[ `]", TEXT))
    sections = {name.rsplit(".", i)[0] for name in options for i in (1, 2)}
    assert len(named) > 15
    assert named - options - sections - {"dataset."} == set()


def test_every_quirk_has_its_row() -> None:
    rows = re.findall(r"^\| (\d+) \|", TEXT, flags=re.MULTILINE)
    assert [int(r) for r in rows] == list(range(1, 22))

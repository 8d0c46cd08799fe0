"""docs/ibc.md names only options, files and commands that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import train_bc
import train_rl
from common_utils import run_config
from common_utils.config_kinds import every_kind
from evaluate import eval as evaluation
from tools import (
    collect_oracle,
    held_out_energy,
    implicit_ibrl,
    particle_dimensions,
    plot_particle,
)

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "docs" / "ibc.md").read_text()
CONFIGS: dict[str, Any] = {"train_rl.py": train_rl.MainConfig, "train_bc.py": train_bc.MainConfig}
TOOLS: dict[str, Any] = {
    "tools.collect_oracle": collect_oracle.MainConfig,
    "tools.particle_dimensions": particle_dimensions.MainConfig,
    "tools.implicit_ibrl": implicit_ibrl.MainConfig,
}
PARSERS: dict[str, Any] = {
    "tools.plot_particle": plot_particle._parser,
    "tools.held_out_energy": held_out_energy._parser,
    "evaluate.eval": evaluation._parser,
}


def commands() -> list[str]:
    text = TEXT.replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.startswith("    python ")]


@pytest.mark.parametrize("command", [c for c in commands() if c.split()[1] in CONFIGS])
def test_commands_parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    _, program, *args = shlex.split(command)
    run_config.parse_args(CONFIGS[program], args)


@pytest.mark.parametrize("command", [c for c in commands() if " -m " in c])
def test_tools_take_their_options(command: str) -> None:
    module, *args = shlex.split(command.partition("#")[0])[2:]
    if module in TOOLS:
        run_config.parse_args(TOOLS[module], args)
    else:
        PARSERS[module]().parse_args(args)


def test_there_are_commands() -> None:
    assert len([c for c in commands() if c.split()[1] in CONFIGS]) == 5
    modules = {c.split()[2] for c in commands() if " -m " in c}
    assert modules == TOOLS.keys() | PARSERS.keys()


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

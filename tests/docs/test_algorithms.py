"""docs/algorithms.md names only options, files and commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import train_bc
import train_rl
from common_utils import run_config
from common_utils.config_kinds import every_kind
from mw_main import train_bc_mw, train_rl_mw

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "docs" / "algorithms.md").read_text()
CONFIGS = {
    "train_rl.py": train_rl.MainConfig,
    "train_bc.py": train_bc.MainConfig,
    "mw_main/train_rl_mw.py": train_rl_mw.MainConfig,
    "mw_main/train_bc_mw.py": train_bc_mw.MainConfig,
}


def test_options_exist() -> None:
    kinds = [kind for c in CONFIGS.values() for kind in every_kind(c).values()]
    options = {name for kind in kinds for name, *_ in run_config.describe(kind)}
    agent = {name for name in options if name.startswith("q_agent.")}
    leaves = {name.rsplit(".", 1)[-1] for name in options}
    named = set(re.findall(r"`(q_agent\.[a-z_.]+)[ `]", TEXT))
    assert named
    assert named - agent - {"q_agent."} == set()
    others = set(re.findall(r"`([a-z]+_[a-z_]+)(?: [\d.a-z]+)?`", TEXT))
    known = leaves | {"ibrl_soft", "state_norm"}
    assert others - known == set()


def test_departures_are_off_by_default() -> None:
    defaults = {name: d for name, _, d, _ in run_config.describe(train_rl.MainConfig)}
    section = TEXT.split("## Options that depart")[1].split("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| `")]
    names = [re.match(r"\| `([a-z_.]+)`", row).group(1) for row in rows]  # type: ignore[union-attr]
    assert len(names) == 7
    assert {n: defaults[n] for n in names} == dict.fromkeys(names, 0) | {
        "q_agent.num_bc_samples": 1
    }

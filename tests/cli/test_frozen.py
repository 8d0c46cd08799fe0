"""The command line is frozen: every option of every program, with its type and default.

Adding, renaming or changing an option is a decision that somebody makes on purpose:
``UPDATE_FROZEN_CLI=1 pytest tests/cli`` rewrites the lists in tests/cli/frozen.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import train_bc
import train_rl
from common_utils import run_config
from common_utils.config_kinds import every_kind
from mw_main import generate_metaworld_dataset, train_bc_mw, train_rl_mw
from tools import (
    collect_oracle,
    convert_dataset,
    convert_minari,
    coordinate_regression,
    expert_report,
    generate_demos,
)

FROZEN = Path(__file__).parent / "frozen"
PROGRAMS: dict[str, Any] = {
    "train_rl": train_rl.MainConfig,
    "train_bc": train_bc.MainConfig,
    "train_rl_mw": train_rl_mw.MainConfig,
    "train_bc_mw": train_bc_mw.MainConfig,
    "generate_metaworld_dataset": generate_metaworld_dataset.MainConfig,
    "collect_oracle": collect_oracle.MainConfig,
    "convert_dataset": convert_dataset.MainConfig,
    "convert_minari": convert_minari.MainConfig,
    "coordinate_regression": coordinate_regression.MainConfig,
    "generate_demos": generate_demos.MainConfig,
    "expert_report": expert_report.MainConfig,
}


def classes() -> dict[str, tuple[Any, Callable[[str], bool]]]:
    """Frozen file -> a config class, and which of its options belong there.

    A program with kinds has a file of what they share and one for each kind's own section.
    """
    out: dict[str, tuple[Any, Callable[[str], bool]]] = {}
    for program, config_class in PROGRAMS.items():
        kinds = list(every_kind(config_class).values())
        if len(kinds) == 1:
            out[program] = kinds[0], lambda name: True
            continue
        for kind in kinds:
            own = kind.sections()[kind.KIND].name + "."
            out[program] = kind, lambda name, own=own: not name.startswith(own)
            out[f"{program}.{own[:-1]}"] = kind, lambda name, own=own: name.startswith(own)
    return out


FILES = classes()


def rows(file: str) -> list[tuple[str, str, Any, str]]:
    config_class, belongs = FILES[file]
    return [row for row in run_config.describe(config_class) if belongs(row[0])]


def listing(file: str) -> str:
    """One line per option: dotted name, what it takes, default."""
    lines = [f"{name}  ({expects})  {default!r}" for name, expects, default, _ in rows(file)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", FILES)
def test_options_are_the_frozen_ones(name: str) -> None:
    file = FROZEN / f"{name}.txt"
    now = listing(name)
    if os.environ.get("UPDATE_FROZEN_CLI") == "1":
        file.write_text(now)
    then = file.read_text()
    changes = difflib.unified_diff(
        then.splitlines(), now.splitlines(), "frozen", "now", lineterm="", n=0
    )
    assert now == then, (
        f"the command line of {name} changed:\n"
        + "\n".join(changes)
        + "\nif that is meant: UPDATE_FROZEN_CLI=1 pytest tests/cli, then commit tests/cli/frozen"
    )


@pytest.mark.parametrize("name", FILES)
def test_every_option_says_what_it_does(name: str) -> None:
    assert [row[0] for row in rows(name) if not row[3]] == []


def test_every_frozen_file_is_of_a_program() -> None:
    assert {path.stem for path in FROZEN.glob("*.txt")} == set(FILES)

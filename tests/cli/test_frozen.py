"""The command line is frozen: every option of every program, with its type and default.

Adding, renaming or changing an option is a decision that somebody makes on purpose:
``UPDATE_FROZEN_CLI=1 pytest tests/cli`` rewrites the lists in tests/cli/frozen.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import pytest

import train_bc
import train_rl
from common_utils import run_config
from mw_main import generate_metaworld_dataset, train_bc_mw, train_rl_mw
from tools import (
    collect_oracle,
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
    "convert_minari": convert_minari.MainConfig,
    "coordinate_regression": coordinate_regression.MainConfig,
    "generate_demos": generate_demos.MainConfig,
    "expert_report": expert_report.MainConfig,
}


def listing(config_class: Any) -> str:
    """One line per option: dotted name, what it takes, default."""
    rows = [
        f"{name}  ({expectation})  {default!r}"
        for name, expectation, default, _ in run_config.describe(config_class)
    ]
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_options_are_the_frozen_ones(program: str) -> None:
    file = FROZEN / f"{program}.txt"
    now = listing(PROGRAMS[program])
    if os.environ.get("UPDATE_FROZEN_CLI") == "1":
        file.write_text(now)
    then = file.read_text()
    changes = difflib.unified_diff(
        then.splitlines(), now.splitlines(), "frozen", "now", lineterm="", n=0
    )
    assert now == then, (
        f"the command line of {program} changed:\n"
        + "\n".join(changes)
        + "\nif that is meant: UPDATE_FROZEN_CLI=1 pytest tests/cli, then commit tests/cli/frozen"
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_option_says_what_it_does(program: str) -> None:
    silent = [n for n, _, _, doc in run_config.describe(PROGRAMS[program]) if not doc]
    assert silent == []

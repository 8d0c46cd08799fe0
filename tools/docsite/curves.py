"""The learning curves of the site and the README, drawn from the recorded results.

    python -m tools.docsite.curves

It reads ``release/results/robosuite/{lift,can}_learning.json``, ``release/results/ibc/*.json``, and
writes the pictures beside them. ``python -m tools.docsite.overview`` then renews the README's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common_utils.errors import run_program
from tools import implicit_ibrl, particle_dimensions, plot_style

RESULTS = Path(__file__).resolve().parents[2] / "release" / "results"
METHODS = {"ibrl": "IBRL", "rft": "RFT", "rlpd": "RLPD"}


def curves(runs: Sequence[Mapping[str, Any]], bc: float, title: str, out: Path) -> None:
    """Success against steps: a colour and marker per method, thin lines for single runs.

    bc: success of the BC policies (their mean), a dashed line.
    """
    figure, axis = plot_style.pyplot().subplots(figsize=(6.5, 4.2))
    for number, (method, label) in enumerate(METHODS.items()):
        mine = [run for run in runs if run["method"] == method]
        if not mine:
            continue
        colour = plot_style.colour(number)
        values = np.array([run["eval_success_20"] for run in mine])
        if len(mine) > 1:
            axis.plot(mine[0]["steps"], values.T, color=colour, alpha=0.3, lw=0.8)
            label += f", mean of {len(mine)} seeds"
        axis.plot(
            mine[0]["steps"], values.mean(0), "osD"[number] + "-", ms=4, color=colour, label=label
        )
    axis.axhline(bc, color=plot_style.GREY, ls="--", label=f"BC ({bc:.0%})".replace("%", " %"))
    success = f"{plot_style.label_of('score/success')}, 20 episodes"
    axis.set(xlabel=plot_style.ENV_STEPS, ylabel=success, title=title, ylim=(-0.02, 1.02))
    axis.legend()
    plot_style.save(figure, out, dpi=130)


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def main() -> None:
    """Entry point."""
    lift, can = _read("robosuite/lift_learning"), _read("robosuite/can_learning")
    bc = float(np.mean([run["bc_success_50"] for run in lift["runs"] if run["method"] == "ibrl"]))
    place = RESULTS / "robosuite"
    curves(
        lift["runs"], bc, "Lift from states, 10 noisy demonstrations", place / "lift_learning.png"
    )
    curves(
        can["runs"], can["bc_success_50"], "PickPlaceCan from states, 50 demonstrations, one seed",
        place / "can_learning.png",
    )  # fmt: skip
    implicit_ibrl.plot(_read("ibc/implicit_ibrl")["runs"], RESULTS / "ibc/implicit_ibrl.png")
    dims = _read("ibc/particle_dimensions")
    episodes = dims["budget"]["num_eval_episode"]
    particle_dimensions.plot(dims["results"], episodes, RESULTS / "ibc/particle_dimensions.png")


if __name__ == "__main__":
    sys.exit(run_program(main))

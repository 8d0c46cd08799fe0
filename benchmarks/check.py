"""Whether what programs choose on this CPU is a good choice; under a minute, in CI.

    python -m benchmarks.check

Two rules, each for the calls of released configurations at their real widths and strides, with
small batches: what is measured at a program's start (IBRL_GEMM=auto) takes at most 1.15 x the time
of the best named library, and energy networks in bfloat16 take no longer than in float32 where
this CPU multiplies bfloat16. Ways take turns in one process, and the shortest process CPU time of
each counts. Exit status 1, and the calls that break a rule, if one stays broken.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import common, ibc, update
from common_utils.errors import run_program
from networks.fast import choice, measure
from networks.ibc.energy import build_name

AT_MOST = 1.15  # times the best
BATCH = 32
AGENTS = (
    "small_state", "robomimic_rl/lift_state_ibrl", "robomimic_rl/can_state_ibrl",
    "robomimic_rl/can_ibrl", "metaworld/ibrl_basic",
)  # fmt: skip
ENERGY = ("particle/mlp_ebm_langevin", "pushing_states/mlp_ebm")
FASTER_BUILDS = ("amx", "v4_bf16")  # that have instructions for bfloat16
ROUNDS, TURNS = 8, 4  # further rounds only while a rule is broken: others use the CPU as well

Way = Callable[[], Any]


def shortest(ways: Mapping[str, Way], best: dict[str, float]) -> dict[str, float]:
    """CPU seconds of each way, the shortest of several turns and of what ``best`` has."""
    for turn in range(TURNS + 1):
        for name, call in ways.items():
            began = time.process_time()
            call()
            if turn > 0:  # the first warms up
                best[name] = min(best.get(name, float("inf")), time.process_time() - began)
    return best


def obeyed(title: str, ways: Mapping[str, Way], judged: str, at_most: float = AT_MOST) -> bool:
    """Whether ``judged`` takes at most ``at_most`` times the best; prints the times."""
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        ratio = shortest(ways, best)[judged] / min(best.values())
        if ratio <= at_most:
            break
    times = ", ".join(f"{name} {1e3 * s:.3g} ms" for name, s in best.items())
    verdict = "ok" if ratio <= at_most else f"NOT at most {at_most}"
    print(f"{title}: {judged} takes {ratio:.2f} x the best ({times}): {verdict}", flush=True)
    return ratio <= at_most


def _by(table: choice.Table, call: Way) -> Way:
    def way() -> None:
        choice.use(table)
        call()

    return way


def check_choices() -> Iterator[bool]:
    """Every call of the agents: what was measured against each library by itself."""
    measured = measure.measured().table
    tables = {"auto": measured, **{by: choice.all_by(by) for by in choice.PRODUCTS}}
    for case in AGENTS:
        for name, call in update.agent_calls(case, batch_size=BATCH).items():
            ways = {by: _by(table, call) for by, table in tables.items()}
            yield obeyed(f"{case}, {name}", ways, "auto")
    choice.use(measured)


@contextmanager
def training_step(case: str, precision: str) -> Iterator[Way]:
    """A small training step of an energy network."""
    with tempfile.TemporaryDirectory() as folder:
        work = ibc.make_workspace(case, precision, Path(folder), batch_size=BATCH)
        work.log = ibc.Log()  # type: ignore[assignment]
        work.policy.train()
        yield work._train_step
        work.close()


def check_precisions() -> Iterator[bool]:
    """Training steps of energy networks, if bfloat16 is more than float32 with rounded factors."""
    if build_name("bfloat16", 128, 2) not in FASTER_BUILDS:
        return
    for case in ENERGY:
        with (
            training_step(case, "float32") as float32,
            training_step(case, "bfloat16") as bfloat16,
        ):
            yield obeyed(case, {"float32": float32, "bfloat16": bfloat16}, "bfloat16", 1.0)


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    common.start(common.parser(__doc__).parse_args(argv))
    torch.manual_seed(0)
    print("\n".join(measure.report()))
    return 0 if all([*check_choices(), *check_precisions()]) else 1


if __name__ == "__main__":
    sys.exit(run_program(main))

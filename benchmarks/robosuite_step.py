"""robosuite: the cost of a control step from states, in C++ and in robosuite's own Python.

    python -m benchmarks.robosuite_step [--json FILE] [--quick]

Process CPU time of an environment step (observation included) and of a reset, per task. The
references are robosuite's ``env.step`` and its default reset, a hard reset.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from benchmarks.common import Report, measure, run, timing_options
from common_utils.errors import run_program
from env.config import EnvConfig
from env.robosuite.env import RobosuiteEnv
from env.robosuite.sim import make_sim, reset_sim

TASKS = ("Lift", "PickPlaceCan", "NutAssemblySquare", "TwoArmTransport", "ToolHang")


def main(report: Report, args: argparse.Namespace) -> None:
    """All tasks."""
    options = timing_options(args)
    for task in TASKS[:1] if args.quick else TASKS:
        env = RobosuiteEnv(
            EnvConfig(suite="robosuite", task=task, use_state=1, episode_length=10**6)
        )
        theirs = make_sim(task)
        env.reset(seed=1)
        reset_sim(theirs, 1)
        still = np.zeros(env.spec.action_dim)
        reference = measure(lambda s=theirs, a=still: s.step(a), **options).cpu_ms  # type: ignore[misc]
        timing = measure(lambda e=env, a=still: e.step(a), **options)  # type: ignore[misc]
        report.add_timing(f"{task}, step", timing, reference)
        hard = make_sim(task, hard_reset=True)
        once = {**options, "repeats": 1, "min_seconds": 0.0, "warmup": 0}
        reference = measure(lambda s=hard: reset_sim(s, 1), **once).cpu_ms  # type: ignore[misc]
        timing = measure(lambda e=env: e.reset(seed=1), **options)  # type: ignore[misc]
        report.add_timing(f"{task}, reset", timing, reference)


if __name__ == "__main__":
    sys.exit(run_program(run, main, __doc__))

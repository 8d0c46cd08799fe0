"""Measure how often the scripted robosuite experts succeed, over fresh seeds.

    python -m tools.expert_report --tasks Lift,PickPlaceCan,NutAssemblySquare --num 100 \
        --noise 0.1 --seed 1 --out release/results/robosuite/experts.json

Prints a line per task and, with ``--out``, adds each result to that JSON file as soon as it is
known, replacing an earlier one for the same task and noise. States only; needs no OpenGL.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from common_utils import run_config
from common_utils.atomic import atomic_json
from common_utils.errors import run_program
from common_utils.progress import RunProgress, console
from common_utils.ranges import EpisodeLength, NotNegative, Or, Positive, Threads
from common_utils.seeding import seed_for
from env.robosuite.control import ActionNoise, Jitter, Noise
from env.robosuite.experts import EXPERTS
from env.robosuite.sim import TASKS
from evaluate.stats import wilson
from tools.demo_recorder import Settings
from tools.recording import Job, Outcome, play
from tools.results import earlier_results


@dataclass
class MainConfig:
    """Which experts to play, and for how long."""

    # tasks, joined by commas
    tasks: str = "Lift,PickPlaceCan,NutAssemblySquare"
    # episodes of each
    num: Positive = 100
    # standard deviation of action noise
    noise: ActionNoise = 0.1
    # metres by which waypoints in free space vary (-1: chosen to match the noise)
    jitter: Annotated[Jitter, Or(-1)] = -1.0
    # source of all randomness
    seed: NotNegative = 1
    # time limit in control steps (-1: the task's)
    episode_length: Annotated[EpisodeLength, Or(-1)] = -1
    # worker processes (0: this process)
    workers: Threads = 1
    # JSON file to add the results to
    out: str = ""

    def __post_init__(self) -> None:
        for task in self.names:
            if task not in EXPERTS:
                raise ValueError(f"tasks: '{task}', expected some of {','.join(EXPERTS)}")
        if self.jitter == -1:
            self.jitter = Noise.of(self.noise).jitter

    @property
    def names(self) -> list[str]:
        return self.tasks.split(",")


def measure(cfg: MainConfig, task: str) -> dict[str, Any]:
    """Play ``num`` episodes; returns the record that is stored."""
    limit = TASKS[task].horizon if cfg.episode_length == -1 else cfg.episode_length
    settings = Settings(task, cfg.noise, cfg.jitter, limit)
    jobs = [
        Job(
            n,
            seed_for(cfg.seed, "expert_report", task, n, bits=31),
            seed_for(cfg.seed, "expert", task, n, bits=31),
        )
        for n in range(cfg.num)
    ]
    done: list[tuple[Job, Outcome]] = []
    start = time.monotonic()
    with RunProgress(cfg.num, task) as progress:
        for job, outcome in play(settings, jobs, min(cfg.workers, cfg.num)):
            done.append((job, outcome))
            progress.update(len(done), success=np.mean([o.success for _, o in done]).item())
    record = {
        "task": task,
        "noise": cfg.noise,
        "jitter": cfg.jitter,
        "episode_length": limit,
        "seed": cfg.seed,
        **summary([o for _, o in done]),
    }
    stages = dict.fromkeys(stage for _, o in done for stage in o.achieved)
    if stages:
        record["achieved"] = {s: np.mean([s in o.achieved for _, o in done]).item() for s in stages}
    lost = sorted((j.env_seed, o.phase) for j, o in done if not o.success)
    record["failed_seeds_and_phases"] = [list(pair) for pair in lost]
    record["seconds"] = round(time.monotonic() - start, 1)
    return record


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Success rate with its 95 % interval, and the lengths of successes in control steps."""
    lengths = np.array([o.length for o in outcomes if o.success])
    rate = wilson(len(lengths), len(outcomes))
    out: dict[str, Any] = {
        "episodes": len(outcomes),
        "success_rate": rate.mean,
        "interval_95": [round(rate.low, 4), round(rate.high, 4)],
    }
    if len(lengths):
        out["mean_length"] = round(float(lengths.mean()), 1)
        marks = np.percentile(lengths, [0, 25, 50, 75, 95, 100])
        out["length_min_25_50_75_95_max"] = [round(float(x), 1) for x in marks]
    return out


def store(record: dict[str, Any], command: str, path: Path) -> None:
    """Put ``record`` into the list in ``path``. Raises ConfigError for a file of another kind."""
    records = earlier_results(path, "out", "experts")
    keys = ("task", "noise", "jitter", "episode_length")
    records = [r for r in records if any(r.get(k) != record[k] for k in keys)]
    records.append(record | {"command": command})
    order = list(EXPERTS)
    records.sort(key=lambda r: (order.index(r["task"]), r["noise"], r["jitter"]))
    atomic_json({"experts": records}, path)


def main() -> int:
    """Entry point; exit status 0."""
    cfg = run_config.parse(MainConfig)
    for task in cfg.names:
        record = measure(cfg, task)
        low, high = record["interval_95"]
        console().print(
            f"{task}: {record['success_rate']:.1%} of {cfg.num} episodes ({low:.1%} to "
            f"{high:.1%}), mean length {record.get('mean_length', '-')}, noise {cfg.noise:g}, "
            f"failures {record['failed_seeds_and_phases']}"
            + (f", achieved {record['achieved']}" if "achieved" in record else "")
        )
        if cfg.out:
            command = (
                f"python -m tools.expert_report --tasks {task} --num {cfg.num} "
                f"--noise {cfg.noise:g} --jitter {cfg.jitter:g} --seed {cfg.seed} "
                f"--episode_length {record['episode_length']}"
            )
            store(record, command, Path(cfg.out))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

"""Measure training on several ranks (``torchrun``): steps per second, and what the exchange costs.

    python -m benchmarks.ranks [--ranks 1,2] [--case bc,rl] [--json FILE]

Each number of ranks is started as ``torchrun`` starts it, with one thread per rank. bc is a
training step of robomimic_bc/can.yaml (ResNets), rl an update of critic and actor of can_ibrl.yaml
(ViT), both at 96 x 96 pixels on random data. The seconds for gradients contain the waiting for the
slower rank.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bc.dataset import RobomimicDataset
from benchmarks import common, ibc, update
from common_utils import ranks, run_config
from common_utils.atomic import atomic_json
from common_utils.demo_file import Recording, write_demos
from common_utils.errors import UserError, run_program
from common_utils.options import numeric
from common_utils.ranges import NotNegative, Positive
from networks import fast
from train_bc import MainConfig, Workspace
from workspace.build_policy import fill_in
from workspace.shared_updates import SharedUpdates

CASES = ("bc", "rl")
WARM_UP = 2


def bc_step(folder: Path, batch_size: int) -> Callable[[], object]:
    """A training step of can.yaml, of the real trainer."""
    cfg = run_config.load(MainConfig, update.CFGS / "robomimic_bc" / "can.yaml")
    rng = np.random.default_rng(0)
    recording, camera = Recording(), cfg.dataset.rl_cameras[0]
    for _ in range(200):
        obs: dict[str, np.ndarray] = {
            camera: rng.integers(0, 256, update.IMAGE, dtype=np.uint8),
            "prop": rng.standard_normal(9).astype(np.float32),
        }
        recording.append(obs, np.zeros(1), rng.uniform(-1, 1, 7).astype(np.float32), 0.0)
    kwargs = {"robots": ["Panda"]}
    args = {"env_name": "PickPlaceCan", "env_kwargs": kwargs}
    cfg.dataset.path = str(write_demos(folder, [recording], [camera], args))
    cfg.dataset.num_data, cfg.dataset.eval_episode_len = -1, -1
    cfg.device, cfg.num_eval_episode, cfg.save_dir = "cpu", 0, str(folder)
    cfg.batch_size = batch_size or cfg.batch_size
    data = RobomimicDataset(cfg.dataset, seed=0)
    fill_in(cfg, data)
    work = Workspace(cfg, data)
    work.log = ibc.Log()  # type: ignore[assignment]
    work.policy.train()
    return work._train_step


def rl_step(batch_size: int) -> Callable[[], object]:
    """An update of can_ibrl.yaml. Ranks other than the first do not return: they follow it."""
    cfg = update.config_of("robomimic_rl/can_ibrl")
    torch.manual_seed(0)
    agent, obs = update.make_agent("robomimic_rl/can_ibrl", cfg)
    updates = SharedUpdates(agent)
    if not ranks.is_first():
        updates.follow()
        raise SystemExit(0)
    updates.begin()
    batch = update.make_batch(agent, obs, batch_size or cfg.batch_size)
    return lambda: updates.update(batch, 0.1, True)


class Clock:
    """Adds up the seconds that a function of ``common_utils.ranks`` takes, waiting included."""

    def __init__(self, name: str) -> None:
        self.seconds, self._function = 0.0, getattr(ranks, name)
        setattr(ranks, name, self)

    def __call__(self, *args: Any) -> Any:
        began = time.perf_counter()
        try:
            return self._function(*args)
        finally:
            self.seconds += time.perf_counter() - began


def measure(step: Callable[[], object], steps: int) -> dict[str, float]:
    """Seconds of a step, and in it of the exchange of gradients and of sending a batch."""
    clocks = {"gradients": Clock("average"), "batch": Clock("scattered")}
    for _ in range(WARM_UP):
        step()
    for clock in clocks.values():
        clock.seconds = 0.0
    began = time.perf_counter()
    for _ in range(steps):
        step()
    whole = (time.perf_counter() - began) / steps
    return {"step": whole, **{name: clock.seconds / steps for name, clock in clocks.items()}}


def work(case: str, args: argparse.Namespace) -> None:
    """What each rank does; the first one writes the seconds."""
    fast.set_up(1)
    with ranks.joined(), tempfile.TemporaryDirectory() as folder:
        if case == "bc":
            step = bc_step(Path(folder), args.batch_size)
        else:
            step = rl_step(args.batch_size)
        found = measure(step, args.steps)
        if ranks.is_first():
            atomic_json(found, args.out)
            if case == "rl" and ranks.world() > 1:
                ranks.shared({"do": "end"})


def started(num: int, case: str, args: argparse.Namespace) -> dict[str, float]:
    """The seconds of a case on so many ranks."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(num)]
        words += ["-m", "benchmarks.ranks", "--worker", case, "--out", str(out)]
        words += ["--steps", str(args.steps), "--batch_size", str(args.batch_size)]
        done = subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"})
        if done.returncode or not out.exists():
            raise UserError(f"{num} ranks, {case}: ended with status {done.returncode}")
        return json.loads(out.read_text(encoding="utf-8"))


def _numbers(text: str) -> list[int]:
    return [numeric(Positive)(word) for word in text.split(",")]


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = common.parser(__doc__)
    p.add_argument("--ranks", type=_numbers, default=[1, 2], help="numbers of ranks (1,2)")
    p.add_argument("--case", default="bc,rl", help="cases to measure (bc,rl)")
    p.add_argument("--steps", type=numeric(Positive), default=10, help="steps that are timed")
    p.add_argument("--batch_size", type=numeric(NotNegative), default=0, help="0: as configured")
    p.add_argument("--worker", choices=CASES, help=argparse.SUPPRESS)
    p.add_argument("--out", help=argparse.SUPPRESS)
    return p


def main() -> None:
    """Command line."""
    args = parser().parse_args()
    if args.quick:
        args.steps, args.batch_size = 2, args.batch_size or 32
    if args.worker:
        work(args.worker, args)
        return
    report = common.start(args)
    for case in args.case.split(","):
        if case not in CASES:
            raise UserError(f"--case: {case!r}, expected some of {', '.join(CASES)}")
        first = None
        for num in args.ranks:
            found = started(num, case, args)
            rate = 1 / found["step"]
            first = rate if first is None else first
            name = f"{case}, {num} ranks"
            report.add(name, "steps_per_second", rate, "1/s", first, higher_is_better=True)
            for part in ("gradients", "batch"):
                report.add(name, f"seconds_{part}", found[part], "s")
    report.write(args.json)


if __name__ == "__main__":
    sys.exit(run_program(main))

"""Measure several environments that play at the same time (``num_env``).

    MUJOCO_GL=egl python -m benchmarks.envs [--json FILE] [--quick] [--part frames]

frames: PickPlaceCan as its pixel agents see it (96 x 96), random actions: steps per second, each
with its picture, in this process and in 1 and 2 others. training: whole runs of ``train_rl`` from
states on Lift and Meta-World with 1, 2 and 4 environments (RL alone, no evaluations): environment
steps per second, and what one costs the learner (acting, storing, sampling, updating), which should
not depend on their number. ray (only if it is asked for; needs requirements-scale.txt): what a step
takes in a process and in a Ray actor on this machine, with states and with a picture, and what the
actor costs more. raylets (likewise): runs as those of training, on Lift with two environments in
actors, on a cluster of one and of two nodes of this machine. Wall time: measure on a machine that
does nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

import train_rl
from benchmarks import common
from benchmarks.loop import SECTIONS, trained
from common_utils import run_config
from common_utils.elsewhere import joined_ray
from common_utils.errors import run_program
from common_utils.extras import optional
from common_utils.options import numeric
from common_utils.ranges import Positive
from env.config import EnvConfig
from env.lanes import Lanes, open_lanes
from workspace.rl_config import rl_env_config

CFGS = Path(__file__).resolve().parents[1] / "release" / "cfgs"
PIXELS = "robomimic_rl/can_ibrl.yaml"
STATES = {"Lift": "robomimic_rl/lift_state_ibrl.yaml", "Meta-World": "metaworld/quickstart_rl.yaml"}
# without demonstrations and BC, which cost the same for any number
ALONE = {
    "bc_policy": "", "preload_num_data": 0, "preload_datapath": "", "num_eval_episode": 0,
    "q_agent.act_method": "rl", "q_agent.norm_state": 0, "use_wb": 0,
}  # fmt: skip


def load(file: str, **options: object) -> train_rl.MainConfig:
    """A released configuration, without what ``ALONE`` leaves out."""
    given = [f"--{k}={v}" for k, v in {**ALONE, **options}.items()]
    return run_config.parse_args(train_rl.MainConfig, [f"--config_path={CFGS / file}", *given])


def play(lanes: Lanes, steps: int, actions: np.ndarray) -> None:
    """``steps`` of each environment; ``actions`` [steps, N, A]."""
    for row in actions[:steps]:
        for lane, action in enumerate(row):
            lanes.send(lane, action)
        for lane in range(lanes.num):
            lanes.receive(lane)


def frames_per_second(cfg: EnvConfig, num: int, way: str, steps: int, repeats: int) -> float:
    """Steps of ``num`` environments per second, each with its picture; resets are not counted."""
    rng, rates = np.random.default_rng(0), []
    with closing(open_lanes(cfg, num, way=way)) as lanes:
        for repeat in range(repeats + 1):
            for lane in range(num):
                lanes.reset(lane, repeat)
            for lane in range(num):
                lanes.receive(lane)
            shape = (steps, num, lanes.spec.action_dim)
            actions = rng.uniform(-1, 1, shape).astype(np.float32)
            started = time.perf_counter()
            play(lanes, steps, actions)
            rates.append(steps * num / (time.perf_counter() - started))
    return common.median(rates[1:])  # the first draws what is kept


def frames(report: common.Report, args: argparse.Namespace) -> None:
    """The part ``frames``."""
    steps, repeats = (5, 1) if args.quick else (100, 5)
    cfg = rl_env_config(load(PIXELS))
    cfg.episode_length = steps + 1
    one = 0.0
    for num, way in ((1, "local"), (1, "process"), (2, "process")):
        rate = frames_per_second(cfg, num, way, steps, repeats)
        case = f"Can, pixels, {num} environment(s), {way}"
        report.add(case, "frames_per_second", rate, "1/s")
        one = one or rate
        if num > 1:
            report.add(case, "times_as_fast_as_local", rate / one, "x")


def training(report: common.Report, args: argparse.Namespace) -> None:
    """The part ``training``."""
    numbers = (1, 2) if args.quick else (1, 2, 4)
    for name, file in STATES.items():
        for num in numbers:
            whole_runs(report, args, f"{name}, states, {num} environment(s)", file, num_env=num)


def whole_runs(
    report: common.Report, args: argparse.Namespace, case: str, file: str, **options: object
) -> None:
    """Runs of ``train_rl`` from start to end, timed after their warm-up."""
    steps, repeat = (16, 1) if args.quick else (args.steps, args.repeat)
    rates, learner, cpu = [], [], []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as root:
            work = trained(
                load(
                    file, num_warm_up_episode=4, num_train_step=steps, log_per_step=steps,
                    save_dir=f"{root}/run", **options,
                )
            )  # fmt: skip
        spent = {k: work.watch.seconds.get(k, 0.0) for k in SECTIONS}
        rates.append(steps / sum(spent.values()))
        learner.append(1e3 * (sum(spent.values()) - spent["env"]) / steps)
        cpu.append(1e3 * work.cpu_seconds / steps)
    report.add(case, "env_steps_per_second", common.median(rates), "1/s")
    report.add(case, "learner_ms_per_env_step", common.median(learner), "ms")
    report.add(case, "trainer_cpu_ms_per_env_step", common.median(cpu), "ms")
    report.write(args.json)  # an interrupted measurement keeps what it has


def ray(report: common.Report, args: argparse.Namespace) -> None:
    """The part ``ray``."""
    steps, repeats = (5, 1) if args.quick else (40, 10)  # the particle has 50 steps
    pixels = rl_env_config(load(PIXELS))
    cases = {
        "particle, states": EnvConfig(suite="particle", task="PARTICLE_2d", use_state=1),
        "Can, pixels": pixels,
    }
    for name, cfg in cases.items():
        cfg.episode_length = steps + 1
        took = {}
        for way in ("process", "ray"):
            took[way] = 1e3 / frames_per_second(cfg, 1, way, steps, repeats)
            report.add(f"{name}, {way}", "ms_per_step", took[way], "ms")
        report.add(name, "ms_per_step_more_in_an_actor", took["ray"] - took["process"], "ms")


def raylets(report: common.Report, args: argparse.Namespace) -> None:
    """The part ``raylets``."""
    for nodes in (1, 2):
        with ray_nodes(nodes):
            case = f"Lift, states, 2 environments in actors, {nodes} raylet(s)"
            whole_runs(report, args, case, STATES["Lift"], num_env=2, rollout="ray")


@contextmanager
def ray_nodes(number: int) -> Iterator[None]:
    """A Ray cluster of nodes on this machine, which this process has joined."""
    ray = optional("ray", "scale", "--part raylets")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        for _ in range(number - 1):
            cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        joined_ray("--part raylets", cluster.address)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


PARTS = {"frames": frames, "training": training, "ray": ray, "raylets": raylets}
ONLY_IF_ASKED = ("ray", "raylets")


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--part", choices=("all", *PARTS), default="all")
    parser.add_argument(
        "--steps", type=numeric(Positive), default=500, help="environment steps per training run"
    )
    parser.add_argument(
        "--repeat", type=numeric(Positive), default=3, help="runs to take the median of"
    )
    args = parser.parse_args()
    os.environ.setdefault("MUJOCO_GL", "egl")
    report = common.start(args)
    for name, part in PARTS.items():
        if args.part == name or (args.part == "all" and name not in ONLY_IF_ASKED):
            part(report, args)
    report.write(args.json)


if __name__ == "__main__":
    sys.exit(run_program(main))

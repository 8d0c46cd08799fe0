"""Measure the cost of a training step and an action for every released Implicit BC config.

    python -m benchmarks.ibc [--case NAME] [--precision float32] [--repeat N] [--json FILE]
    python -m benchmarks.ibc --compare float32,bfloat16 [--case NAME] [--repeat N] [--json FILE]

``--compare`` alternates precisions in one run, and prints ratios to the first (the default of
--repeat is 5 there).

Process CPU time on one thread. A training step is that of a real run: it draws the batch from the
dataset (random numbers in the task's sizes), makes the counter-examples, and updates the weights.
An action is for one observation. Reference figures are those of the original TensorFlow program
with its input pipeline, measured on an AMD Zen 5; on another machine a ratio is only a guide
(docs/performance.md).
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from benchmarks import common, compare
from common_utils import run_config
from common_utils.demo_file import Recording, write_demos
from common_utils.errors import run_program
from common_utils.logger import MultiCounter
from common_utils.options import numeric
from common_utils.ranges import Positive, Threads
from networks import fast
from networks.ibc.energy import Precision, build_name
from train_bc import MainConfig, RobomimicDataset, Workspace, fill_in

CFGS = Path(__file__).resolve().parents[1] / "release" / "cfgs" / "ibc"
PIPELINE = 0.33  # seconds of the original's input pipeline per batch of 512

# Process CPU seconds of the original program: per training step without its pipeline, per action.
REFERENCE: dict[str, tuple[float, float | None]] = {
    "particle/mlp_mse": (0.0075, 0.0008),
    "particle/mlp_ebm_langevin": (1.62, 0.139),
    "pushing_states/mlp_mse": (0.013, 0.003),
    "pushing_states/mlp_ebm": (1.41, 0.196),
    "pushing_states/mlp_ebm_langevin": (3.0, 0.674),
    "pushing_pixels/pixel_ebm_langevin": (9.2, None),
}


@dataclass(frozen=True)
class Sizes:
    """One step of a task: widths of state and action, and the names in its recordings."""

    state: int
    action: int
    env_args: dict[str, Any]


SIZES = {
    "particle": Sizes(8, 2, {"env_name": "Particle-v0", "n_dim": 2}),
    "pushing_states": Sizes(10, 2, {"env_name": "BlockPush-v0"}),
    "pushing_pixels": Sizes(0, 2, {"env_name": "BlockPush-v0"}),
    "d4rl": Sizes(45, 24, {"env_name": "pen-human-v0"}),
}
IMAGE = (3, 240, 320)
QUICK_ROWS = 16  # of a batch, with --quick


def cases() -> list[str]:
    """Every released configuration of Implicit BC."""
    return sorted(str(p.relative_to(CFGS).with_suffix("")) for p in CFGS.glob("*/*.yaml"))


def precisions(case: str) -> tuple[str, ...]:
    """Arithmetic that a case's network supports: in its trunk, or for images its convolutions."""
    if "mlp_ebm" in case:
        return get_args(Precision)
    return ("float32", "bfloat16") if "pixel_ebm" in case else ("float32",)


def write_data(folder: Path, sizes: Sizes, episodes: int, length: int) -> Path:
    """Recordings of random numbers."""
    rng = np.random.default_rng(0)
    recordings = []
    for _ in range(episodes):
        recording = Recording()
        for _ in range(length):
            obs: dict[str, np.ndarray] = {
                "state": rng.standard_normal(sizes.state).astype(np.float32)
            }
            if not sizes.state:
                obs = {"rgb": rng.integers(0, 256, IMAGE, dtype=np.uint8)}
            action = rng.uniform(-1, 1, sizes.action).astype(np.float32)
            recording.append(obs, np.zeros(1), action, 0.0)
        recordings.append(recording)
    return write_demos(folder, recordings, [] if sizes.state else ["rgb"], sizes.env_args)


def make_workspace(
    case: str, precision: str, folder: Path, batch_size: int = 0, device: str = "cpu"
) -> Workspace:
    """The training run of a case on recorded random numbers; it plays no games.

    batch_size: 0 for the configuration's own.
    """
    sizes = SIZES[case.split("/")[0]]
    pixels = not sizes.state
    option = "--ebm.pixel.image.conv_precision" if pixels else "--ebm.precision"
    args = ["--config_path", str(CFGS / f"{case}.yaml")]
    if len(precisions(case)) > 1:
        args += [option, precision]
    cfg = run_config.parse_args(MainConfig, args)
    path = write_data(folder, sizes, 4 if pixels else 100, 40 if pixels else 50)
    cfg.dataset.path, cfg.dataset.num_data, cfg.save_dir = str(path), -1, str(folder)
    cfg.device, cfg.num_eval_episode = device, 0
    cfg.batch_size = batch_size or cfg.batch_size
    data = RobomimicDataset(cfg.dataset, seed=0)
    fill_in(cfg, data)
    return Workspace(cfg, data)


class Log:
    """Collects the metrics of a step."""

    def __init__(self) -> None:
        self.meters = MultiCounter()


def bench(
    report: common.Report, case: str, precision: str, timing: dict[str, Any], rows: int = 0
) -> None:
    """One training step and one action of a configuration; ``rows``: of a batch, 0 for its own."""
    torch.manual_seed(0)
    name = case if precision == "float32" else f"{case}, {precision}"
    step_s, act_s = REFERENCE.get(case, (None, None))
    with tempfile.TemporaryDirectory() as folder:
        work = make_workspace(case, precision, Path(folder), rows)
        work.log = Log()  # type: ignore[assignment]
        work.policy.train()
        t = common.measure(work._train_step, **timing)
        batch = work.cfg.batch_size
        total = None if step_s is None else step_s + PIPELINE * batch / 512
        report.add(f"{name}: training step", "cpu_time", t.cpu_ms / 1e3, "s", total)
        report.add(f"{name}: training step", "wall_time", t.wall_ms / 1e3, "s")
        work.policy.eval()
        obs = {k: v[0] for k, v in work.data.batch_at(np.arange(2)).obs.items()}
        t = common.measure(lambda: work.policy.act(obs), **timing)  # type: ignore[operator]
        report.add(f"{name}: action", "cpu_time", t.cpu_ms / 1e3, "s", act_s)
        work.close()


def compared_calls(
    case: str, variant: compare.Variant, rows: int = 0
) -> dict[str, Callable[[], Any]]:
    """A training step and an action in the variant's precision; for a process of its own."""
    folder = tempfile.TemporaryDirectory()
    work = make_workspace(case, variant.precision or "float32", Path(folder.name), rows)
    work.log = Log()  # type: ignore[assignment]
    obs = {k: v[0] for k, v in work.data.batch_at(np.arange(2)).obs.items()}

    def step(_folder: tempfile.TemporaryDirectory[str] = folder) -> None:
        # the folder is removed when this function is
        work.policy.train()
        work._train_step()

    def act() -> None:
        work.policy.eval()
        work.policy.act(obs)  # type: ignore[operator]

    return {"training step": step, "action": act}


def _compare(args: argparse.Namespace, chosen: list[str], argv: list[str] | None) -> None:
    turns = args.repeat or (1 if args.quick else 5)
    command = shlex.join(["python", "-m", "benchmarks.ibc", *(argv or sys.argv[1:])])
    calls = partial(compared_calls, rows=QUICK_ROWS if args.quick else 0)
    rows: list[compare.Compared] = []
    for case in chosen:
        variants = {p: compare.Variant(precision=p) for p in args.compare if p in precisions(case)}
        if len(variants) < len(args.compare):
            print(f"{case}: left out, its network has {', '.join(precisions(case))} only")
            continue
        found = compare.compare(case, variants, calls, turns, args.threads)
        compare.show(found)
        rows += found
        compare.write(args.json, rows, args.threads, command)


def _precisions(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [n for n in names if n not in get_args(Precision)]:
        known = ", ".join(get_args(Precision))
        raise argparse.ArgumentTypeError(f"'{unknown[0]}', expected some of {known}")
    return names


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--case", action="append", help="only these (shell pattern, repeatable)")
    parser.add_argument(
        "--precision", choices=[*get_args(Precision), "all"], default="all", help="for EBMs"
    )
    parser.add_argument(
        "--repeat", type=numeric(Positive), help="repeats whose median is taken (default 3)"
    )
    parser.add_argument(
        "--compare", metavar="A,B,...", type=_precisions,
        help=f"alternate these and print ratios to the first: {', '.join(get_args(Precision))}",
    )  # fmt: skip
    parser.add_argument(
        "--kernel_threads", type=numeric(Threads), default=0, help="threads of the kernels"
    )
    args = parser.parse_args(argv)
    chosen = cases()
    if args.case:
        chosen = [c for c in chosen if any(fnmatch.fnmatch(c, f"*{p}") for p in args.case)]
        if not chosen:
            parser.error(f"--case: none of {cases()} matches {args.case}")
    if args.compare and args.kernel_threads:
        parser.error("--kernel_threads: not with --compare, which runs on one kernel thread")
    timing: dict[str, Any] = {"repeats": args.repeat or 3, "min_seconds": 0.1, "warmup": 1}
    if args.quick:
        timing = {"repeats": 1, "min_seconds": 0.001, "warmup": 0}
    report = common.start(args)
    fast.set_up(kernel_threads=args.kernel_threads)
    chosen_builds = {p: build_name(p, 128, 1) for p in get_args(Precision)}
    print("energy networks: " + ", ".join(f"{p} {b}" for p, b in chosen_builds.items()))
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")
    if args.compare:
        return _compare(args, chosen, argv)
    for case in chosen:
        known = precisions(case)
        for precision in known:
            if args.precision in (precision, "all") or len(known) == 1:
                bench(report, case, precision, timing, QUICK_ROWS if args.quick else 0)
                report.write(args.json)


if __name__ == "__main__":
    sys.exit(run_program(main))

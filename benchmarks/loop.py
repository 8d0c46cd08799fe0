"""Measure environment steps per second of whole training runs, and where their time goes.

    python -m benchmarks.loop [--json FILE] [--config FILE ...] [--steps N]

Each case is a real run of ``train_rl`` from states on Meta-World: scripted demonstrations, a
short BC run, warm-up, then ``--steps`` training steps (without evaluation), repeated; medians.
``cpu_ms_per_env_step`` is the training steps' process CPU time, which other load hardly affects.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import train_bc
import train_rl
from benchmarks import common
from common_utils import run_config
from common_utils.errors import run_program
from common_utils.options import numeric
from common_utils.ranges import Positive
from common_utils.run_folder import RunFolder
from mw_main import generate_metaworld_dataset as demos
from workspace import prepare_rl
from workspace.build_agent import inherit_env

CFGS = Path(__file__).resolve().parents[1] / "release" / "cfgs" / "metaworld"
SECTIONS = ("act", "env", "add", "sample", "update")


def prepare(root: Path) -> tuple[Path, Path]:
    """Demonstrations and BC weights for all cases."""
    config = run_config.load(demos.MainConfig, CFGS / "quickstart_demos.yaml")
    config.output_path = str(root / "demos")
    data = demos.generate(config)
    bc = run_config.load(train_bc.MainConfig, CFGS / "quickstart_bc.yaml")
    bc.dataset.path, bc.save_dir = str(data), str(root / "bc")
    bc.epoch_len, bc.num_eval_episode = 200, 0
    train_bc.run(bc)
    return data, root / "bc" / "model0.pt"


class TimedWorkspace(train_rl.Workspace):
    """Also sums the process CPU time of training steps, without checkpoints and logs."""

    cpu_seconds = 0.0

    def _train_one_step(self) -> None:
        start = time.process_time()
        super()._train_one_step()
        self.cpu_seconds += time.process_time() - start


def one_run(config: Path, data: Path, bc: Path, save_dir: Path, steps: int) -> TimedWorkspace:
    """Train ``steps`` environment steps; the returned workspace has the timings."""
    cfg = run_config.load(train_rl.MainConfig, config)
    cfg.preload_datapath, cfg.bc_policy, cfg.save_dir = str(data), str(bc), str(save_dir)
    cfg.num_train_step = cfg.log_per_step = steps
    cfg.num_eval_episode = 0
    cfg.num_warm_up_episode = min(cfg.num_warm_up_episode, 10)
    inherit_env(cfg)
    return trained(cfg)


def trained(cfg: train_rl.MainConfig) -> TimedWorkspace:
    """The workspace of a new run, after it was trained and closed."""
    work = TimedWorkspace(cfg)
    work.folder = RunFolder(cfg.save_dir, resume=False, overwrite=False)
    with work.folder, work.folder.open_log(cfg, ()) as work.log:
        try:
            prepare_rl.prepare(work)
            work.train()
        finally:
            work.close()
    return work


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--config", action="append", help="configs to run (default: quickstart)")
    parser.add_argument(
        "--steps", type=numeric(Positive), default=500, help="environment steps per run"
    )
    parser.add_argument(
        "--repeat", type=numeric(Positive), default=3, help="runs to take the median of"
    )
    args = parser.parse_args()
    steps, repeat = (50, 1) if args.quick else (args.steps, args.repeat)
    report = common.start(args)
    with tempfile.TemporaryDirectory() as temp:
        root = Path(temp)
        data, bc = prepare(root)
        for config in args.config or [str(CFGS / "quickstart_rl.yaml")]:
            case = Path(config).stem
            runs = [
                one_run(Path(config), data, bc, root / f"{case}_{i}", steps) for i in range(repeat)
            ]
            # the sections, not the wall time: it includes progress lines and the final checkpoint
            rates, shares = [], []
            for run in runs:
                spent = {k: run.watch.seconds.get(k, 0.0) for k in SECTIONS}
                total = sum(spent.values())
                rates.append(steps / total)
                shares.append({k: v / total for k, v in spent.items()})
            report.add(case, "env_steps_per_second", common.median(rates), "1/s")
            cpu = common.median([1e3 * run.cpu_seconds / steps for run in runs])
            report.add(case, "cpu_ms_per_env_step", cpu, "ms")
            for k in SECTIONS:
                share = common.median([s[k] for s in shares])
                report.add(case, f"share_{k}", 100 * share, "%")
    report.write(args.json)


if __name__ == "__main__":
    sys.exit(run_program(main))

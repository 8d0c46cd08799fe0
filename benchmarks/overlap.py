"""Environment steps per second on robosuite from states: one after the other, or both at once.

    python -m benchmarks.overlap [--json FILE] [--config FILE ...] [--steps N] [--repeat N]

Each case is a real run of ``train_rl`` (demonstrations by the scripted expert, a short BC run,
warm-up, then ``--steps`` training steps without evaluation). Wall time, because that is the
point; so nothing else may run beside it. The modes take turns, medians over the repeats:
``alternating`` is the default loop on one thread; ``overlap`` adds ``overlap_env 1``,
``threads`` gives the updates both cores (``kernel_threads 2``).
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
from common_utils.run_folder import RunFolder
from networks import fast
from tools import generate_demos
from workspace.build_agent import inherit_env

CFGS = Path(__file__).resolve().parents[1] / "release" / "cfgs"
CONFIGS = ("lift_state_ibrl", "can_state_ibrl")
# name: (overlap_env, kernel_threads)
MODES = {
    "alternating": (0, 1),
    "overlap": (1, 1),
    "threads": (0, 2),
    "overlap_and_threads": (1, 2),
}


def prepare(root: Path, config: Path) -> tuple[Path, Path]:
    """Demonstrations and BC weights for one configuration."""
    cfg = run_config.load(train_rl.MainConfig, config)
    data = generate_demos.generate(
        generate_demos.MainConfig(
            task=cfg.task_name,
            num=cfg.preload_num_data,
            episode_length=cfg.episode_length,
            cameras=[],
            out=str(root / "demos"),
        )
    )
    name = config.stem.replace("_ibrl", "")
    bc = run_config.load(train_bc.MainConfig, CFGS / "robomimic_bc" / f"{name}.yaml")
    bc.dataset.path, bc.save_dir = str(data), str(root / "bc")
    bc.num_epoch, bc.epoch_len, bc.num_eval_episode = 1, 200, 0
    bc.use_wb = 0
    train_bc.run(bc)
    return data, root / "bc" / "model0.pt"


def one_run(
    config: Path, data: Path, bc: Path, save_dir: Path, steps: int, mode: str
) -> tuple[float, dict[str, float]]:
    """(environment steps per second, seconds of each part) of one run's training steps."""
    cfg = run_config.load(train_rl.MainConfig, config)
    cfg.preload_datapath, cfg.bc_policy, cfg.save_dir = str(data), str(bc), str(save_dir)
    cfg.num_train_step, cfg.log_per_step = steps, steps + 1
    cfg.num_eval_episode, cfg.num_warm_up_episode = 0, 10
    cfg.overlap_env, cfg.kernel_threads = MODES[mode]
    inherit_env(cfg)
    fast.set_up(1, cfg.kernel_threads)
    work = train_rl.Workspace(cfg)
    work.folder = RunFolder(cfg.save_dir, resume=False, overwrite=False)
    with work.folder, work.folder.open_log(cfg, ()) as work.log:
        try:
            work.prepare()
            started = time.perf_counter()
            work.train()
            seconds = time.perf_counter() - started
        finally:
            work.close()
    spent = dict(work.watch.seconds)
    # the last checkpoint is the same in every mode and no part of the steps
    return steps / (seconds - spent.pop("checkpoint", 0.0)), spent


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--config", action="append", help="configs (default: Lift's and Can's)")
    parser.add_argument("--steps", type=int, default=400, help="environment steps per run")
    parser.add_argument("--repeat", type=int, default=3, help="runs whose median is taken")
    args = parser.parse_args()
    steps, repeat = (20, 1) if args.quick else (args.steps, args.repeat)
    report = common.start(args)
    paths = args.config or [str(CFGS / "robomimic_rl" / f"{name}.yaml") for name in CONFIGS]
    with tempfile.TemporaryDirectory() as temp:
        for config in map(Path, paths):
            root = Path(temp) / config.stem
            data, bc = prepare(root, config)
            rates: dict[str, list[float]] = {mode: [] for mode in MODES}
            waits: dict[str, list[float]] = {mode: [] for mode in MODES}
            for i in range(repeat):
                for mode in MODES:
                    folder = root / f"{mode}_{i}"
                    rate, spent = one_run(config, data, bc, folder, steps, mode)
                    rates[mode].append(rate)
                    waits[mode].append(1e3 * spent["env"] / steps)
            for mode in MODES:
                case = f"{config.stem} {mode}"
                rate = common.median(rates[mode])
                reference = common.median(rates["alternating"])
                report.add(case, "env_steps_per_second", rate, "1/s")
                report.add(case, "times_alternating", rate / reference, "x")
                report.add(case, "waiting_for_env_per_step", common.median(waits[mode]), "ms")
    report.write(args.json)


if __name__ == "__main__":
    sys.exit(run_program(main))

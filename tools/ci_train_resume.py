"""Do a short IBRL run without interruption, then killed and resumed, and compare the two.

    python tools/ci_train_resume.py [--out exp/ci] [--seed N]

This takes about a minute. Demonstrations, BC and IBRL use the quickstart's configs with a tiny
budget, through the documented commands. SIGKILL ends the second run at a random moment after its
first checkpoint, and ``--resume 1`` resumes it; its weights and metrics must then equal those of
the first run bit for bit. Exit status 0 if they do.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common_utils.errors import run_program
from common_utils.options import Options, numeric
from common_utils.ranges import Seed
from common_utils.records import read_metrics
from common_utils.run_state import latest_state

CFGS = ROOT / "release" / "cfgs" / "metaworld"
WEIGHTS = ("latest.pt", "model0.pt")


def options(values: dict[str, object]) -> list[str]:
    return [part for key, value in values.items() for part in (f"--{key}", str(value))]


def start(script: str, config: str, values: dict[str, object]) -> subprocess.Popen[bytes]:
    command = [sys.executable, script, "--config_path", str(CFGS / config), *options(values)]
    print("$", *(["python", *command[1:]]), flush=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env)


def finish(process: subprocess.Popen[bytes]) -> None:
    status = process.wait()
    if status != 0:
        raise SystemExit(f"exit status {status} of: {' '.join(map(str, process.args))}")  # type: ignore[arg-type]


def kill_after_first_checkpoint(process: subprocess.Popen[bytes], run: Path, delay: float) -> None:
    """SIGKILL ``delay`` seconds after a complete state appears in the run's folder."""
    while not list((run / "state").glob("step_*/COMPLETE")):
        if process.poll() is not None:
            raise SystemExit(
                f"{run}: the run ended (status {process.returncode}) before a checkpoint"
            )
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = latest_state(run / "state")
    if state is None:
        raise SystemExit(f"{run}: no state left after the kill")
    print(
        f"killed {delay:.2f} s after its first checkpoint; newest state: {state.name}", flush=True
    )


def differences(a: Path, b: Path) -> list[str]:
    """Where two runs differ: weights, and every logged number that is not a time."""
    found = []
    for name in WEIGHTS:
        x, y = (torch.load(run / name, weights_only=True) for run in (a, b))
        found += [f"{name}: {k}" for k in x if k not in y or not torch.equal(x[k], y[k])]
    logs = [read_metrics(run / "metrics.jsonl") for run in (a, b)]
    if [r["step"] for r in logs[0]] != [r["step"] for r in logs[1]]:
        found.append("metrics.jsonl: different steps")
    for x, y in zip(*logs, strict=False):
        found += [
            f"metrics.jsonl, step {x['step']}: {k}: {x.get(k)} against {y.get(k)}"
            for k in sorted(x.keys() | y.keys())
            if not is_time(k) and x.get(k) != y.get(k)
        ]
    return found


def is_time(key: str) -> bool:
    return key in ("wall", "other/speed", "other/elapsed_time") or key.startswith("time/")


def main(argv: list[str] | None = None) -> int:
    parser = Options(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=ROOT / "exp" / "ci", help="created afresh")
    parser.add_argument(
        "--seed", type=numeric(Seed), default=None, help="seed of the time of the kill"
    )
    args = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
    print(f"kill seed {seed}")
    out: Path = args.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    data = out / "demos" / "dataset.hdf5"

    demos = {"output_path": data.parent, "num_episodes": 3}
    finish(start("mw_main/generate_metaworld_dataset.py", "quickstart_demos.yaml", demos))
    bc = {
        "dataset.path": data,
        "num_epoch": 1,
        "epoch_len": 500,
        "num_eval_episode": 2,
        "num_final_episode": 2,
        "save_dir": out / "bc",
    }
    finish(start("train_bc.py", "quickstart_bc.yaml", bc))
    rl = {
        "preload_datapath": data,
        "bc_policy": out / "bc" / "latest.pt",
        "num_warm_up_episode": 2,
        "num_train_step": 300,
        "log_per_step": 100,
        "num_eval_episode": 2,
    }
    finish(start("train_rl.py", "quickstart_rl.yaml", {**rl, "save_dir": out / "straight"}))
    killed = {**rl, "save_dir": out / "killed"}
    process = start("train_rl.py", "quickstart_rl.yaml", killed)
    kill_after_first_checkpoint(process, out / "killed", random.Random(seed).uniform(0, 4))
    finish(start("train_rl.py", "quickstart_rl.yaml", {**killed, "resume": 1}))

    found = differences(out / "straight", out / "killed")
    for line in found[:20]:
        print("DIFFERS:", line)
    print("resumed run differs" if found else "the resumed run equals the uninterrupted one")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(run_program(main))

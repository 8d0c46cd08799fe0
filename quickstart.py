"""From three scripted demonstrations to a trained IBRL agent, in minutes on a CPU.

    python quickstart.py

Generates the demonstrations (Meta-World drawer-open, states), trains a BC policy on them, runs
IBRL bootstrapped by it, and evaluates both on the same 50 fresh episodes. Leaves in
``exp/quickstart``: summary.json, learning_curve.png, an MP4 of an evaluation episode (where
OpenGL works), and the runs with their checkpoints. Interrupted, it continues where it was.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from rich.table import Table

import train_bc
import train_rl
from common_utils import gl, run_config
from common_utils.atomic import atomic_json, atomic_write
from common_utils.errors import run_program
from common_utils.progress import console, format_seconds
from common_utils.ranges import NotNegative, Positive, Seed
from common_utils.records import read_metrics
from env.config import EnvConfig
from env.core import EnvError
from env.factory import make_env
from evaluate.pool import EvalPool
from evaluate.rollout import EvalResult, run_eval
from mw_main import generate_metaworld_dataset as demos

CFG_DIR = Path(__file__).resolve().parent / "release" / "cfgs" / "metaworld"
EVAL_SEED = 1_000_000  # far from every seed that training or its evaluations use


@dataclass
class QuickstartConfig(run_config.RunConfig):
    """What may be changed about the quickstart."""

    # source of the randomness of BC and IBRL
    seed: Seed = 1
    # environment steps of IBRL; 0 takes the config's
    num_train_step: NotNegative = 0
    # episodes of the final evaluation, of BC and of IBRL
    num_eval_episode: Positive = 50
    # folder of everything it makes
    save_dir: str = "exp/quickstart"


def say(line: str) -> None:
    """A line between the stages."""
    console().rule(line, align="left")


def make_demos(cfg: QuickstartConfig) -> Path:
    """Three successful scripted episodes, states only; the same ones for every ``seed``."""
    folder = Path(cfg.save_dir) / "demos"
    if not (folder / demos.FILE_NAME).exists():
        config = run_config.load(demos.MainConfig, CFG_DIR / "quickstart_demos.yaml")
        config.output_path = str(folder)
        demos.generate(config)
    return folder / demos.FILE_NAME


def train_bc_policy(cfg: QuickstartConfig, data: Path) -> Path:
    """BC on the demonstrations; returns its weights."""
    config = run_config.load(train_bc.MainConfig, CFG_DIR / "quickstart_bc.yaml")
    config.dataset.path, config.seed = str(data), cfg.seed
    config.save_dir = f"{cfg.save_dir}/bc"
    config.resume = 1  # if it was begun before
    train_bc.run(config)
    return Path(config.save_dir) / "model0.pt"


def train_ibrl(cfg: QuickstartConfig, data: Path, bc_weights: Path) -> Path:
    """IBRL bootstrapped by the BC policy; returns its best weights."""
    config = run_config.load(train_rl.MainConfig, CFG_DIR / "quickstart_rl.yaml")
    config.preload_datapath, config.bc_policy = str(data), str(bc_weights)
    config.seed, config.save_dir = cfg.seed, f"{cfg.save_dir}/ibrl"
    config.num_train_step = cfg.num_train_step or config.num_train_step
    config.use_wb = cfg.use_wb
    config.resume = 1
    train_rl.run(config)
    return Path(config.save_dir) / "model0.pt"


def plot_curve(run_dir: Path, bc: EvalResult, out: Path) -> None:
    """Success against environment steps, with BC's final success as a line."""
    records = [r for r in read_metrics(run_dir / "metrics.jsonl") if "score/score" in r]
    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    steps = [r["step"] for r in records]
    ax.plot(steps, [r["score/score"] for r in records], marker="o", label="IBRL (evaluations)")
    exploring = [r.get("score/train_score", float("nan")) for r in records]
    ax.plot(steps, exploring, alpha=0.5, label="IBRL (exploring)")
    ax.axhline(bc.success_rate, ls="--", color="gray", label="BC")
    ax.set(xlabel="environment steps", ylabel="success rate", ylim=(-0.02, 1.02))
    ax.set_title("Meta-World drawer-open from states, 3 demonstrations")
    ax.legend(loc="lower right")
    ax.grid(alpha=0.3)
    with atomic_write(out) as temp:
        fig.savefig(temp, format="png", dpi=150)
    plt.close(fig)


def record_video(agent: Any, env_cfg: EnvConfig, out_dir: Path) -> str:
    """One evaluation episode as MP4; returns what happened, in words."""
    backend = gl.best_backend()
    if backend == "disabled":
        return "no video: no OpenGL back end renders here (python -m common_utils.doctor)"
    env = make_env(env_cfg)
    try:
        run_eval(env, agent, 1, EVAL_SEED, record=out_dir)
    except EnvError as error:  # the result must not be lost with the image
        return f"no video: {error}"
    finally:
        env.close()
    return f"video in {out_dir}"


def run(cfg: QuickstartConfig) -> dict[str, Any]:
    """All stages; returns (and writes) the summary."""
    out = Path(cfg.save_dir)
    started = time.monotonic()
    say("1/4 demonstrations")
    data = make_demos(cfg)
    say("2/4 behaviour cloning")
    bc_weights = train_bc_policy(cfg, data)
    say("3/4 IBRL")
    weights = train_ibrl(cfg, data, bc_weights)
    say(f"4/4 evaluation, {cfg.num_eval_episode} fresh episodes each")
    agent, env, params = train_rl.load_model(str(weights), "auto")
    env.close()
    bc_policy, _ = train_bc.load_policy(str(bc_weights), "auto")
    with EvalPool(params, num_proc=2) as pool:
        bc = pool.run(bc_policy, cfg.num_eval_episode, EVAL_SEED)
        ibrl = pool.run(agent, cfg.num_eval_episode, EVAL_SEED)
    records = read_metrics(out / "ibrl" / "metrics.jsonl")
    summary = {
        "task": params["task"],
        "seed": cfg.seed,
        "bc_success": bc.success_rate,
        "bc_interval": [bc.rate().low, bc.rate().high],
        "ibrl_success": ibrl.success_rate,
        "ibrl_interval": [ibrl.rate().low, ibrl.rate().high],
        "env_steps": int(records[-1]["step"]),
        "train_seconds": float(records[-1]["other/elapsed_time"]),
        "total_seconds": time.monotonic() - started,
        "eval_episodes": cfg.num_eval_episode,
    }
    atomic_json(summary, out / "summary.json")
    plot_curve(out / "ibrl", bc, out / "learning_curve.png")
    video = record_video(agent, EnvConfig(**params), out / "videos")
    print_table(summary, bc, ibrl)
    console().print(f"curve {out / 'learning_curve.png'}, checkpoint {weights}, {video}")
    return summary


def print_table(summary: dict[str, Any], bc: EvalResult, ibrl: EvalResult) -> None:
    """The result, for people."""
    table = Table(title=f"Meta-World {summary['task']} from states, 3 demonstrations")
    for column in ("policy", f"success over {summary['eval_episodes']} episodes", "95 % interval"):
        table.add_column(column)
    for name, result in (("BC", bc), ("IBRL", ibrl)):
        rate = result.rate()
        interval = f"{100 * rate.low:.0f} to {100 * rate.high:.0f} %"
        table.add_row(name, f"{100 * rate.mean:.0f} %", interval)
    console().print(table)
    console().print(
        f"{summary['env_steps']} environment steps, "
        f"training {format_seconds(summary['train_seconds'])}, "
        f"everything {format_seconds(summary['total_seconds'])}"
    )


def main() -> int:
    """Entry point: exit status 0 on success."""
    cfg = run_config.parse(QuickstartConfig)
    run(cfg)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

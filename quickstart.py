"""From three scripted demonstrations to a trained IBRL agent, in minutes on a CPU.

    python quickstart.py

Generates the demonstrations (Meta-World drawer-open, states), trains a BC policy on them, runs
IBRL bootstrapped by it, and evaluates both on the same 50 fresh episodes. Leaves in
``exp/quickstart``: summary.json, learning_curve.png, an MP4 of an evaluation episode (where
OpenGL works), and the runs with their checkpoints. Interrupted, it continues where it was.
"""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

import train_rl
from common_utils import gl, run_config
from common_utils.atomic import atomic_json
from common_utils.errors import run_program
from common_utils.progress import console, format_seconds
from common_utils.ranges import NotNegative, Positive, Seed
from common_utils.records import read_metrics
from common_utils.run_folder import output_folder
from env.config import EnvConfig
from env.core import EnvError
from env.factory import make_env
from evaluate.rollout import EvalResult, run_eval
from tools import plot_style, stages
from tools.stages import CFG_DIR


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


def rl_config(cfg: QuickstartConfig) -> train_rl.MainConfig:
    """IBRL's configuration, with what the quickstart's options say."""
    config = run_config.load(train_rl.MainConfig, CFG_DIR / "quickstart_rl.yaml")
    config.num_train_step = cfg.num_train_step or config.num_train_step
    config.use_wb, config.use_trackio = cfg.use_wb, cfg.use_trackio
    return config


def plot_curve(run_dir: Path, bc: EvalResult, out: Path) -> None:
    """Success against environment steps, with BC's final success as a line."""
    records = [r for r in read_metrics(run_dir / "metrics.jsonl") if "score/score" in r]
    fig, ax = plot_style.pyplot().subplots(figsize=(6, 4))
    steps = [r["step"] for r in records]
    ax.plot(steps, [r["score/score"] for r in records], marker="o", label="IBRL (evaluations)")
    exploring = [r.get("score/train_score", float("nan")) for r in records]
    ax.plot(steps, exploring, alpha=0.5, label="IBRL (exploring)")
    ax.axhline(bc.success_rate, ls="--", color=plot_style.GREY, label="BC")
    label = plot_style.label_of("score/success")
    ax.set(xlabel=plot_style.ENV_STEPS, ylabel=label, ylim=(-0.02, 1.02))
    ax.set_title("Meta-World drawer-open from states, 3 demonstrations")
    ax.legend(loc="lower right")
    plot_style.save(fig, out)


def record_video(agent: Any, env_cfg: EnvConfig, out_dir: Path) -> str:
    """One evaluation episode as MP4; returns what happened, in words."""
    backend = gl.best_backend()
    if backend == "disabled":
        return "no video: no OpenGL back end renders here (python -m common_utils.doctor)"
    env = make_env(env_cfg)
    try:
        run_eval(env, agent, 1, stages.EVAL_SEED, record=out_dir)
    except EnvError as error:  # the result must not be lost with the image
        return f"no video: {error}"
    finally:
        env.close()
    return f"video in {out_dir}"


def run(cfg: QuickstartConfig) -> dict[str, Any]:
    """All stages; returns (and writes) the summary."""
    out = output_folder(cfg.save_dir)
    started = time.monotonic()
    say("1/4 demonstrations")
    data = stages.make_demos(CFG_DIR / "quickstart_demos.yaml", out / "demos")
    say("2/4 behaviour cloning")
    bc_config = CFG_DIR / "quickstart_bc.yaml"
    bc_weights = stages.train_bc_policy(bc_config, data, out / "bc", cfg.seed)
    say("3/4 IBRL")
    weights = stages.train_ibrl(rl_config(cfg), data, bc_weights, out / "ibrl", cfg.seed)
    say(f"4/4 evaluation, {cfg.num_eval_episode} fresh episodes each")
    found = stages.evaluate(weights, bc_weights, cfg.num_eval_episode, num_proc=2)
    bc, ibrl = found.bc, found.ibrl
    records = read_metrics(out / "ibrl" / "metrics.jsonl")
    summary = {
        "task": found.env_cfg.task,
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
    video = record_video(found.agent, found.env_cfg, out / "videos")
    print_table(summary, bc, ibrl)
    console().print(f"curve {out / 'learning_curve.png'}, checkpoint {weights}, {video}")
    html = shlex.quote(str(out / "report.html"))
    console().print(
        f"report: python -m tools.report {shlex.quote(str(out))} --out {html}", soft_wrap=True
    )
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

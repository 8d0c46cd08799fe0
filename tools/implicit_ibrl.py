"""IBRL bootstrapped by an implicit policy, compared with IBRL as published.

    python -m tools.implicit_ibrl --policy ebm --seed 1       # or mse, mdn; every seed

One command makes one run: demonstrations by a noisy demonstrator (the same for all runs),
a BC policy on them (squared error, a mixture of Gaussians, or energy-based), IBRL bootstrapped
by it, and its evaluation. An interrupted run continues where it stopped. Each run writes
``{policy}_seed{seed}/summary.json``; the summaries of all finished runs are then gathered in
``results.json`` and ``curves.png`` (``--gather 1`` does only that). The configurations are
``release/cfgs/metaworld/implicit_*.yaml``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import train_rl
from common_utils import run_config
from common_utils.atomic import atomic_json
from common_utils.errors import run_program
from common_utils.progress import console
from common_utils.ranges import Between, NotNegative, Positive, Seed
from common_utils.records import read_metrics
from common_utils.run_config import ConfigError, Flag
from common_utils.run_folder import output_folder
from evaluate.rollout import EvalResult
from tools import plot_style, stages
from tools.results import read_json
from tools.stages import CFG_DIR


class Compared(NamedTuple):
    """A kind of BC policy in the comparison."""

    label: str
    colour: str
    # whether several of its proposals for one observation differ
    samples: bool = True


POLICIES = {
    "mse": Compared("squared error (IBRL as published)", plot_style.GREY, samples=False),
    "mdn": Compared("mixture of Gaussians", plot_style.ORANGE),
    "ebm": Compared("energy-based", plot_style.BLUE),
}


@dataclass
class MainConfig:
    """One run, or the gathering of all runs."""

    # the BC policy that bootstraps
    policy: Literal["mse", "mdn", "ebm"] = "ebm"
    # source of the randomness of BC and IBRL; the demonstrations are the same for all runs
    seed: Seed = 1
    # environment steps of IBRL; 0 takes the config's
    num_train_step: NotNegative = 0
    # proposals of a policy that samples; 0 takes the config's
    num_bc_samples: Annotated[int, Between(0, 4096)] = 0
    # episodes of the final evaluations, of BC and of IBRL
    num_eval_episode: Positive = 50
    # folder of all runs
    save_dir: str = "exp/implicit_ibrl"
    # 1: run nothing, only gather the finished runs
    gather: Flag = 0

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return Path(self.save_dir) / f"{self.policy}_seed{self.seed}"


def rl_config(cfg: MainConfig) -> train_rl.MainConfig:
    """IBRL's configuration with the options applied."""
    config = run_config.load(train_rl.MainConfig, CFG_DIR / "implicit_rl.yaml")
    config.num_train_step = cfg.num_train_step or config.num_train_step
    if not POLICIES[cfg.policy].samples:
        config.agent_cfg.num_bc_samples = 1
    elif cfg.num_bc_samples:
        config.agent_cfg.num_bc_samples = cfg.num_bc_samples
    return config


def run(cfg: MainConfig) -> dict[str, Any]:
    """All stages of one run; returns (and writes) its summary."""
    # all runs share the demonstrations
    out, config = output_folder(cfg.save_dir), rl_config(cfg)
    data = stages.make_demos(CFG_DIR / "implicit_demos.yaml", out / "demos")
    bc_config = CFG_DIR / f"implicit_bc_{cfg.policy}.yaml"
    bc_weights = stages.train_bc_policy(bc_config, data, cfg.run_dir / "bc", cfg.seed)
    weights = stages.train_ibrl(config, data, bc_weights, cfg.run_dir / "ibrl", cfg.seed)
    found = stages.evaluate(weights, bc_weights, cfg.num_eval_episode, num_proc=0)
    records = [r for r in read_metrics(cfg.run_dir / "ibrl/metrics.jsonl") if "score/score" in r]
    summary = {
        "policy": cfg.policy,
        "seed": cfg.seed,
        "task": found.env_cfg.task,
        "num_bc_samples": config.agent_cfg.num_bc_samples,
        "bc": rate(found.bc),
        "ibrl": rate(found.ibrl),
        "env_steps": int(records[-1]["step"]),
        "train_seconds": round(float(records[-1]["other/elapsed_time"]), 1),
        "steps": [int(r["step"]) for r in records],
        "success": [float(r["score/score"]) for r in records],
        "exploring_success": [r.get("score/train_score") for r in records],
    }
    atomic_json(summary, cfg.run_dir / "summary.json")
    return summary


def rate(result: EvalResult) -> dict[str, Any]:
    """Success with its 95 % interval."""
    r = result.rate()
    return {"success": r.mean, "interval": [r.low, r.high], "episodes": len(result)}


# ------------------------------------------------------------------------- all runs


def gather(folder: Path) -> list[dict[str, Any]]:
    """Summaries of all finished runs, in order; writes results.json and curves.png."""
    runs = [_summary(path) for path in folder.glob("*_seed*/summary.json")]
    runs.sort(key=lambda r: (list(POLICIES).index(r["policy"]), r["seed"]))
    if not runs:
        return runs
    command = "python -m tools.implicit_ibrl --policy P --seed N"
    results: dict[str, Any] = {"command": command, "runs": runs}
    atomic_json(results, folder / "results.json")
    plot(runs, folder / "curves.png")
    return runs


def _summary(path: Path) -> dict[str, Any]:
    run = read_json(path, "save_dir")
    if run.get("policy") not in POLICIES or "success" not in run:
        raise ConfigError(
            f"save_dir: '{path}' is not a summary of a run; remove it to gather the others"
        )
    return run


def mean_curve(runs: list[dict[str, Any]], key: str) -> tuple[list[int], np.ndarray]:
    """Steps that all runs have, and their values there, float64 [runs, steps]."""
    steps = sorted(set.intersection(*(set(r["steps"]) for r in runs)))
    values = [[r[key][r["steps"].index(s)] for s in steps] for r in runs]
    return steps, np.array(values, dtype=np.float64)  # None becomes NaN


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Success against environment steps: mean and range over the seeds; BC is a dotted line."""
    titles = {"success": "evaluations", "exploring_success": "while exploring"}
    figure, axes = plot_style.pyplot().subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for policy, (label, colour, _) in POLICIES.items():
            mine = [r for r in runs if r["policy"] == policy]
            if not mine:
                continue
            steps, values = mean_curve(mine, key)
            axis.plot(
                steps, values.mean(0), "o-", ms=3, color=colour, label=f"{label}, {len(mine)} seeds"
            )
            axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.15)
            bc = float(np.mean([r["bc"]["success"] for r in mine]))
            axis.axhline(bc, ls=":", color=colour)
        axis.set(xlabel=plot_style.ENV_STEPS, title=title, ylim=(-0.02, 1.02))
    axes[0].set_ylabel(f"{plot_style.label_of('score/success')}; dotted: its BC policy")
    axes[0].legend(loc="lower right")
    figure.suptitle(f"IBRL on {runs[0]['task']} from states, by the policy that bootstraps it")
    plot_style.save(figure, path, dpi=130)


def table(runs: list[dict[str, Any]]) -> str:
    """A line per run."""
    lines = ["policy  seed     BC   IBRL   mean over the curve   steps   training"]
    for r in runs:
        bc, ibrl = r["bc"]["success"], r["ibrl"]["success"]
        lines.append(
            f"{r['policy']:6}  {r['seed']:4}  {bc:5.0%}  {ibrl:5.0%}  "
            f"{np.mean(r['success']):19.0%}   {r['env_steps']:5}   "
            f"{r['train_seconds'] / 60:4.1f} min"
        )
    return "\n".join(lines)


def main() -> int:
    """Entry point: exit status 0 on success."""
    cfg = run_config.parse(MainConfig)
    if not cfg.gather:
        run(cfg)
    runs = gather(output_folder(cfg.save_dir))
    console().print(table(runs) if runs else f"no finished run in {cfg.save_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

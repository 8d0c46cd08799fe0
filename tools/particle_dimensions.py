"""Plot the success of explicit and implicit policies against the particle's dimensions
(Implicit BC, Figure 6).

    python -m tools.particle_dimensions --save_dir exp/particle_dimensions

For each number of dimensions, the oracle records demonstrations, a policy of each kind is trained
on them (``release/cfgs/ibc/particle/mlp_{mse,ebm_langevin}.yaml`` with the budget below), and its
success is measured over ``num_eval_episode`` episodes. Writes ``results.json`` and
``dimensions.png`` into ``save_dir`` after each run. The default budget is the published one with
fewer steps (1,500 of 10,000) and takes about 35 minutes on one core; shorter chains end before
they have crossed the box. An interrupted command continues when it is run again.
"""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


import train_bc
from common_utils import run_config
from common_utils.atomic import atomic_json
from common_utils.errors import run_program
from common_utils.paths import RELEASED
from common_utils.progress import console
from common_utils.ranges import Above, BatchSize, Below, Between, Positive, Seed
from common_utils.run_folder import output_folder
from evaluate.stats import Rate, wilson
from networks.ibc.energy import Precision
from tools import collect_oracle, plot_style
from tools.results import earlier_results

CFG_DIR = RELEASED / "ibc" / "particle"
# configuration, label and colour
POLICIES = {
    "mse": ("mlp_mse", "explicit (MSE)", plot_style.ORANGE),
    "ebm": ("mlp_ebm_langevin", "implicit (EBM, Langevin)", plot_style.BLUE),
}


@dataclass
class MainConfig:
    """The sweep; its outcome depends on every field except ``save_dir``."""

    # dimensions of the particle
    dims: list[Annotated[int, Between(1, 1024)]] = field(default_factory=lambda: [1, 2, 4, 8, 16])
    # which of mse and ebm
    policies: list[str] = field(default_factory=lambda: list(POLICIES))
    # seeds of the training runs
    seeds: list[Seed] = field(default_factory=lambda: [0])
    # demonstrated episodes
    num_demos: Positive = 2000
    # gradient steps of the explicit policy
    mse_steps: Positive = 5000
    # gradient steps of the implicit policy ...
    ebm_steps: Positive = 1500
    # ... on batches of this many demonstrated steps ...
    ebm_batch_size: BatchSize = 512
    # ... with chains of this many steps in training and when acting ...
    ebm_iterations: Annotated[int, Between(1, 10000)] = 100
    # ... computed in this arithmetic
    precision: Precision = "bfloat16"
    # the step size falls to this fraction of its initial value
    final_lr: Annotated[float, Above(0), Below(1)] = 0.86
    # episodes of the evaluation: seeds 0, 1, ...
    num_eval_episode: Positive = 50
    # folder of demonstrations, runs and results
    save_dir: str = "exp/particle_dimensions"

    def __post_init__(self) -> None:
        unknown = [p for p in self.policies if p not in POLICIES]
        if unknown or not self.policies:
            raise ValueError(f"policies: {self.policies}, expected some of {', '.join(POLICIES)}")
        for name in ("dims", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name}: [], expected at least one")

    @property
    def budget(self) -> dict[str, Any]:
        """The settings that a run's result depends on, besides dimensions, policy and seed."""
        left_out = ("dims", "policies", "seeds", "save_dir")
        return {k: v for k, v in asdict(self).items() if k not in left_out}


def make_demos(cfg: MainConfig, dim: int) -> Path:
    """The oracle's episodes in ``dim`` dimensions."""
    folder = Path(cfg.save_dir) / "demos" / f"particle_{dim}d"
    # does nothing if they exist, and refuses to replace others
    return collect_oracle.collect(
        collect_oracle.MainConfig(
            task=f"PARTICLE_{dim}d", num=cfg.num_demos, replicas=0, out=str(folder)
        )
    )


def run_config_of(cfg: MainConfig, policy: str, dim: int, seed: int, data: Path) -> Any:
    """train_bc's configuration of one run."""
    steps = cfg.mse_steps if policy == "mse" else cfg.ebm_steps
    config = run_config.load(train_bc.MainConfig, CFG_DIR / f"{POLICIES[policy][0]}.yaml")
    config.dataset.path, config.env.task = str(data), f"PARTICLE_{dim}d"
    config.seed, config.epoch_len, config.num_epoch = seed, steps, 1
    # 0.99 ** (steps / lr_decay_steps) = final_lr
    config.lr_decay_steps = steps * math.log(0.99) / math.log(cfg.final_lr)
    config.num_eval_episode = cfg.num_eval_episode
    if policy == "ebm":
        ebm = config.own_section
        config.batch_size, ebm.precision = cfg.ebm_batch_size, cfg.precision
        ebm.langevin.num_iterations = cfg.ebm_iterations
    config.save_dir = str(Path(cfg.save_dir) / f"{policy}_{dim}d_seed{seed}")
    config.resume = 1  # if it was started before
    return config


def measure(cfg: MainConfig, policy: str, dim: int, seed: int) -> dict[str, Any]:
    """Train (or continue training) one policy and measure its success."""
    config = run_config_of(cfg, policy, dim, seed, make_demos(cfg, dim))
    start = time.process_time()
    work = train_bc.run(config)
    rate = wilson(round(work.scores["score"] * cfg.num_eval_episode), cfg.num_eval_episode)
    return {
        "policy": policy,
        "dim": dim,
        "seed": seed,
        "steps": work.step,
        "success": rate.mean,
        "interval": [rate.low, rate.high],
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def sweep(cfg: MainConfig) -> list[dict[str, Any]]:
    """Do all missing runs; results.json and dimensions.png are written after each."""
    out = output_folder(cfg.save_dir)
    out.mkdir(parents=True, exist_ok=True)
    results = earlier_results(
        out / "results.json", "save_dir", settings=cfg.budget, section="budget"
    )
    for seed in cfg.seeds:
        for dim in cfg.dims:
            for policy in cfg.policies:
                key = (policy, dim, seed)
                if any((r["policy"], r["dim"], r["seed"]) == key for r in results):
                    continue
                results.append(measure(cfg, *key))
                _write(cfg, results)
    return results


def _write(cfg: MainConfig, results: list[dict[str, Any]]) -> None:
    values = {"dims": cfg.dims, "policies": cfg.policies, "seeds": cfg.seeds} | cfg.budget
    texts = (
        f"--{k} {shlex.quote(json.dumps(v) if isinstance(v, list) else str(v))}"
        for k, v in values.items()
    )
    command = " ".join(["python -m tools.particle_dimensions", *texts])
    tree = {"command": command, "budget": cfg.budget, "results": results}
    atomic_json(tree, Path(cfg.save_dir) / "results.json")
    plot(results, cfg.num_eval_episode, Path(cfg.save_dir) / "dimensions.png")


def pooled(runs: list[dict[str, Any]], episodes: int) -> Rate:
    """Success over the episodes of several runs, ``episodes`` each."""
    wins = sum(round(r["success"] * episodes) for r in runs)
    return wilson(wins, episodes * len(runs))


def plot(results: list[dict[str, Any]], episodes: int, path: Path) -> None:
    """Success against dimensions: a line per policy, 95 % intervals over all seeds' episodes."""
    figure, axis = plot_style.pyplot().subplots(figsize=(5.5, 3.8))
    for policy, (_, label, colour) in POLICIES.items():
        mine = [r for r in results if r["policy"] == policy]
        dims = sorted({r["dim"] for r in mine})
        rates = [pooled([r for r in mine if r["dim"] == d], episodes) for d in dims]
        axis.plot(dims, [r.mean for r in rates], "o-", color=colour, label=label)
        low, high = [r.low for r in rates], [r.high for r in rates]
        axis.fill_between(dims, low, high, color=colour, alpha=0.15)
    ticks = sorted({r["dim"] for r in results})
    label = plot_style.label_of("score/success")
    axis.set(xscale="log", xlabel="dimensions", ylabel=label, ylim=(-0.02, 1.02))
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.minorticks_off()
    axis.set_title("Particle, 95 % intervals")
    axis.legend()
    plot_style.save(figure, path, dpi=130)


def table(results: list[dict[str, Any]]) -> str:
    """A line per run."""
    lines = ["policy  dimensions  seed  steps  success  95 % interval  CPU"]
    for r in sorted(results, key=lambda r: (r["policy"], r["dim"], r["seed"])):
        low, high = r["interval"]
        lines.append(
            f"{r['policy']:6}  {r['dim']:10}  {r['seed']:4}  {r['steps']:5}  {r['success']:7.0%}  "
            f"{low:5.0%} to {high:4.0%}  {r['cpu_seconds'] / 60:.1f} min"
        )
    return "\n".join(lines)


def main() -> int:
    """Entry point: exit status 0 on success."""
    cfg = run_config.parse(MainConfig)
    results = sweep(cfg)
    console().print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

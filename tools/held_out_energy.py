"""Test whether an implicit policy gives demonstrated actions a lower energy than other actions
on data it was not trained on.

    python -m tools.held_out_energy --weight exps/ibc/push_pixels/model0.pt \
        --data release/data/ibc/push_pixels_test/dataset.hdf5 --out release/results/ibc/pixels

For steps of demonstrations that the policy has not seen, the demonstrated action is ranked among
uniformly drawn ones by the energy (Implicit BC, equation 1; lower is better). Writes
``OUT.json`` and ``OUT.png`` (the training loss of the weights' run, the ranks, the energies).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import h5py
import numpy as np
import torch

import train_bc
from bc.dataset import RobomimicDataset
from bc.ibc import losses, samplers
from bc.ibc.ebm_policy import EbmPolicy
from common_utils.atomic import atomic_json
from common_utils.errors import run_program
from common_utils.options import Options, numeric
from common_utils.ranges import Between, Positive, Seed
from common_utils.records import read_metrics
from common_utils.run_config import ConfigError
from env.named_modules import add_trust_option
from networks import fast
from tools import plot_style

BATCH = 32


@torch.no_grad()
def logits_of(
    policy: EbmPolicy, data: RobomimicDataset, rows: np.ndarray, num: int, seed: int
) -> np.ndarray:
    """f(o, a) = -energy, float32 [len(rows), num + 1]: uniform actions, the demonstrated last."""
    rng = torch.Generator().manual_seed(seed)
    low, high = policy.box_low.cpu(), policy.box_high.cpu()
    parts = []
    for part in np.array_split(rows, math.ceil(len(rows) / BATCH)):
        batch = data.batch_at(part)
        device = policy.act_norm.offset.device
        encoded = policy.net.encode(
            policy.features({k: v.to(device) for k, v in batch.obs.items()})
        )
        uniform = samplers.uniform(len(part), num, low, high, rng).to(device)
        actions = torch.cat([uniform, policy.target(batch, device).unsqueeze(1)], dim=1)
        parts.append(policy.net.score(encoded, actions).float().cpu().numpy())
    return np.concatenate(parts)


def measure(logits: np.ndarray) -> dict[str, float]:
    """Statistics of M steps from logits [M, num + 1], the demonstrated action's last.

    rank: share of the other actions with an energy at most the demonstrated one's (0 is best, 0.5
    chance); below_mean: share of steps where the demonstrated action's energy is below the mean;
    first: share where it is the lowest; margin: mean energy of the others minus its own;
    info_nce: the loss; chance: the loss of an untrained network.
    """
    true, others = logits[:, -1:], logits[:, :-1]
    return {
        "rank": float((others >= true).mean()),
        "below_mean": float((others.mean(1) < true[:, 0]).mean()),
        "first": float((others < true).all(1).mean()),
        "margin": float((true - others).mean()),
        "info_nce": float(losses.info_nce(torch.from_numpy(logits)).mean()),
        "chance": math.log(logits.shape[1]),
    }


def held_out(cfg: train_bc.MainConfig, path: str) -> RobomimicDataset:
    """The demonstrations of another file, read with the run's own settings."""
    if Path(path).resolve() == Path(cfg.dataset.path).resolve():
        raise ConfigError(f"--data: '{path}' is what the policy was trained on")
    data = RobomimicDataset(replace(cfg.dataset, path=path, num_data=-1))
    try:
        if data.task_name != cfg.task_name:
            raise ConfigError(
                f"--data: '{path}' shows {data.task_name or 'no named task'}, expected "
                f"{cfg.task_name}, on which the policy was trained"
            )
        trained_on = _episode_seeds(cfg.dataset.path)
        if common := len(trained_on & _episode_seeds(path)):
            raise ConfigError(
                f"--data: {common} of the {data.num_episodes} episodes in '{path}' start from "
                f"seeds that '{cfg.dataset.path}' holds as well; collect them with another --seed"
            )
    except ConfigError:
        data.close()
        raise
    return data


def _episode_seeds(path: str) -> set[int]:
    """Seeds of the recorded episodes, if the file exists and holds them."""
    if not Path(path).is_file():
        return set()
    with h5py.File(path, "r") as file:
        return {int(demo.attrs["seed"]) for demo in file["data"].values() if "seed" in demo.attrs}


def _check_inputs(policy: EbmPolicy, data: RobomimicDataset, path: str) -> None:
    for key, wanted in policy.input_specs().items():
        found = data.observation_specs.get(key)
        if found is None or found.shape != wanted.shape:
            raise ConfigError(
                f"--data: '{path}', {key}: shape {None if found is None else found.shape}, but the "
                f"policy takes {wanted.shape}"
            )


def loss_curve(weight: Path) -> tuple[list[int], list[float]]:
    """Steps and mean losses logged by the weights' run (empty without a log)."""
    path = weight.parent / "metrics.jsonl"
    records = read_metrics(path) if path.is_file() else []
    records = [r for r in records if "train/loss" in r]
    return [int(r["step"]) for r in records], [float(r["train/loss"]) for r in records]


def evaluate(
    weight: Path, path: str, num: int, steps: int, seed: int, trust_module: Sequence[str] = ()
) -> dict[str, Any]:
    """Measure one checkpoint; ``ranks`` and ``margins`` hold one value per step."""
    policy, cfg = train_bc.load_policy(weight, trust_module=trust_module)
    if not isinstance(policy, EbmPolicy) or policy.cfg.autoregressive:
        raise ConfigError(
            f"--weight: '{weight}' is not an energy-based policy over whole actions, "
            "expected policy_type ebm"
        )
    data = held_out(cfg, path)
    try:
        _check_inputs(policy, data, path)
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.permutation(data.num_steps)[:steps])
        logits = logits_of(policy, data, rows, num, seed)
    finally:
        data.close()
    curve = loss_curve(weight)
    return {
        "task": data.task_name,
        "demonstrations": data.num_episodes,
        "steps": len(rows),
        "counter_examples": num,
        "seed": seed,
        **measure(logits),
        "ranks": [round(float(r), 4) for r in (logits[:, :-1] >= logits[:, -1:]).mean(1)],
        "margins": [round(float(m), 3) for m in logits[:, -1] - logits[:, :-1].mean(1)],
        "loss_steps": curve[0],
        "loss": [round(v, 4) for v in curve[1]],
        "config": {k: v for k, v in asdict(cfg).items() if k in ("batch_size", "seed", "lr")},
    }


def plot(result: dict[str, Any], path: Path) -> None:
    """Training loss, ranks, margins."""
    figure, (loss, rank, margin) = plot_style.pyplot().subplots(1, 3, figsize=(12, 3.4))
    loss.plot(result["loss_steps"], result["loss"])
    loss.set(xlabel=plot_style.GRADIENT_STEPS, ylabel="training loss")
    rank.hist(result["ranks"], bins=np.linspace(0, 1, 26))
    rank.axvline(0.5, color=plot_style.GREY, ls="--", label="chance, on average")
    rank.set(
        xlabel="others with at most its energy (share)",
        ylabel="held-out steps",
        title=f"rank of the demonstrated action: mean {result['rank']:.3f}",
    )
    rank.legend()
    margin.hist(result["margins"], bins=30)
    margin.axvline(0, color=plot_style.GREY, ls="--")
    margin.set(
        xlabel="mean energy of the others minus its own",
        title=f"margin: above 0 in {result['below_mean']:.1%}",
    )
    plot_style.save(figure, path, dpi=120)


def _parser() -> argparse.ArgumentParser:
    parser = Options(
        prog="python -m tools.held_out_energy", description="Rank held-out actions by energy."
    )
    parser.add_argument(
        "--weight", required=True, help="a policy's weights, with cfg.yaml next to them"
    )
    parser.add_argument("--data", required=True, help="HDF5 file of held-out demonstrations")
    parser.add_argument(
        "--num", type=numeric(Annotated[int, Between(1, 2**20)]), default=256,
        help="uniform actions per step",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=numeric(Positive), default=500, help="maximum number of held-out steps"
    )
    parser.add_argument(
        "--seed", type=numeric(Seed), default=0, help="seed of the steps and the actions"
    )
    parser.add_argument("--out", default="held_out_energy", help="OUT.json and OUT.png")
    add_trust_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status (2: wrong options, checkpoint or data)."""
    parser = _parser()
    args = parser.parse_args(argv)
    fast.set_up()
    result = evaluate(
        Path(args.weight), args.data, args.num, args.steps, args.seed, args.trust_module
    )
    command = "python -m tools.held_out_energy " + " ".join(
        f"--{k} {v}"
        for k, v in vars(args).items()
        if k not in ("weight", "data", "out", "trust_module")
    )
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_json({"command": command} | result, out.with_name(f"{out.name}.json"))
    plot(result, out.with_name(f"{out.name}.png"))
    print(
        f"{result['task']}, {result['steps']} held-out steps: the demonstrated action's energy is "
        f"below that of {1 - result['rank']:.1%} of {args.num} uniform actions (chance 50 %),\n"
        f"below their mean at {result['below_mean']:.1%} of the steps; "
        f"InfoNCE {result['info_nce']:.3f} (chance {result['chance']:.3f})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

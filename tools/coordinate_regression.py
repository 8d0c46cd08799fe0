"""Coordinate regression (Implicit Behavioral Cloning, Figure 4): locate the one coloured square
in an image, after training on 10 or 30 images.

    python -m tools.coordinate_regression --out release/results/ibc

Writes ``coordinate_regression.json`` and ``coordinate_regression.png`` there: errors in pixels on
held-out images, inside and outside the convex hull of the training points. ``train_bc.py`` trains
the policies on generated files with one image per step; the action is the square's centre. An
interrupted command continues when it is run again.

The paper's authors published no program for this task; we chose the images, networks and numbers
of steps. Three policies:

* ``ibc``: the energy model with the encoder ``spatial_attention``, uniform counter-examples over
  the whole image, derivative-free optimisation;
* ``mse``: explicit regression with the same encoder;
* ``mse_convmlp``: the explicit Conv-MLP with coordinate channels of the pushing task.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

import train_bc
from common_utils import run_config
from common_utils.atomic import atomic_json
from common_utils.demo_file import Recording, write_demos
from common_utils.errors import run_program
from common_utils.ranges import AtLeast, BatchSize, Between, Positive, PositiveNumber
from common_utils.run_config import ConfigError
from common_utils.run_folder import output_folder
from networks import fast
from tools import plot_style
from tools.results import earlier_results

NAME = "coordinate_regression"
CAMERA = "spot"
WHITE, GREEN = 255, (40, 160, 60)
# half the square's side, rounded down
RADIUS = 2
TEST_SEED = 10**6

_ENCODER = {"encoder": "spatial_attention", "filters": 32, "num_blocks": 3, "num_heads": 16}
_TRUNK = {"layers": "MLPDropout", "width": 128, "depth": 2, "rate": 0.0}
# how the policies differ in train_bc's configuration
POLICIES: dict[str, dict[str, Any]] = {
    "mse_convmlp": {"policy_type": "mse", "mse": {"pixel": _TRUNK}},
    "mse": {"policy_type": "mse", "mse": {"pixel": _TRUNK | _ENCODER}},
    "ibc": {
        "policy_type": "ebm",
        "ebm": {
            "pixel": {**_ENCODER, "value_width": 128, "value_blocks": 1},
            "num_counter_examples": 256,
            "fraction_langevin_samples": 0.0,
            "grad_penalty": {"add_grad_penalty": 0},
            # cover the whole image, even where there are no training points
            "uniform_boundary_buffer": 100.0,
            "scalar_box": 0,
            "num_action_samples": 2048,
            "use_dfo": 1,
            "use_langevin": 0,
            "dfo": {"aligned": 1},
        },
    },
}


@dataclass
class MainConfig:
    """The experiment; its outcome depends on every field except ``out``."""

    # training points
    num_points: list[Annotated[int, AtLeast(3)]] = field(default_factory=lambda: [10, 30])
    # which of mse_convmlp, mse and ibc
    policies: list[str] = field(default_factory=lambda: list(POLICIES))
    # sets of training points and initial weights: seeds 0, 1, ...
    num_seeds: Positive = 1
    # held-out points, the same for all
    num_test: Positive = 400
    # width and height of the images in pixels
    image_size: Annotated[int, Between(16, 4096)] = 64
    # gradient steps
    steps: Positive = 300
    # images per step
    batch_size: BatchSize = 10
    # Adam's initial step size; it falls to a twentieth
    lr: PositiveNumber = 1e-3
    # folder of the results
    out: str = "release/results/ibc"

    def __post_init__(self) -> None:
        unknown = [p for p in self.policies if p not in POLICIES]
        if unknown or not self.policies:
            raise ValueError(f"policies: {self.policies}, expected some of {', '.join(POLICIES)}")
        if not self.num_points:
            raise ValueError("num_points: [], expected at least one")


# ------------------------------------------------------------------------- images


def points(num: int, seed: int, size: int) -> np.ndarray:
    """Centres (row, column) of squares that lie wholly in the image: int64 [num, 2]."""
    rng = np.random.default_rng(seed)
    return rng.integers(RADIUS, size - RADIUS, (num, 2))


def pictures(centres: np.ndarray, size: int) -> np.ndarray:
    """uint8 [num, 3, size, size]: a green square on white."""
    out = np.full((len(centres), 3, size, size), WHITE, np.uint8)
    for picture, (row, column) in zip(out, centres, strict=True):
        square = np.s_[:, row - RADIUS : row + RADIUS + 1, column - RADIUS : column + RADIUS + 1]
        picture[square] = np.array(GREEN)[:, None, None]
    return out


def to_action(centres: np.ndarray, size: int) -> np.ndarray:
    """Pixels to [-1, 1], float32."""
    return (centres / (size - 1) * 2 - 1).astype(np.float32)


def in_hull(hull_of: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Which of [M, 2] lie in the convex hull of [N, 2]: bool [M]."""
    from scipy.spatial import Delaunay

    return Delaunay(hull_of).find_simplex(queries) >= 0


# ------------------------------------------------------------------------- one run


def train(cfg: MainConfig, policy: str, num: int, seed: int, folder: Path) -> Any:
    """The trained policy, in eval mode; its run is in ``folder``."""
    centres = points(num, seed, cfg.image_size)
    recording = Recording(
        obs={CAMERA: list(pictures(centres, cfg.image_size))},
        actions=list(to_action(centres, cfg.image_size)),
        rewards=[0.0] * num,
    )
    path = write_demos(folder / "data", [recording], [CAMERA], {"env_name": NAME})
    tree: dict[str, Any] = {
        "dataset": {
            "path": str(path),
            "rl_camera": CAMERA,
            "sampling": "epochs",
            "eval_episode_len": max(num, 1),
        },
        "seed": seed,
        "batch_size": cfg.batch_size,
        "optimizer": "keras_adam",
        "lr": cfg.lr,
        "lr_schedule": "exponential",
        "lr_decay_steps": cfg.steps / 300,
        "grad_clip": 0,
        "num_epoch": 1,
        "epoch_len": cfg.steps,
        "num_eval_episode": 0,
        "device": "cpu",
        "save_dir": str(folder / "run"),
        **POLICIES[policy],
    }
    config = run_config.from_dict(train_bc.MainConfig, tree, NAME)
    image = config.own_section.pixel.image
    image.target_height = image.target_width = cfg.image_size
    return train_bc.run(config).policy.eval()


def errors_of(policy: Any, centres: np.ndarray, size: int) -> np.ndarray:
    """Distance of prediction and truth in pixels, float64 [N]."""
    rng, parts = torch.Generator().manual_seed(0), []
    for part in np.array_split(centres, -(-len(centres) // 50)):
        action = policy.act({CAMERA: torch.from_numpy(pictures(part, size))}, generator=rng)
        parts.append((action.numpy().astype(np.float64) + 1) / 2 * (size - 1) - part)
    return np.linalg.norm(np.concatenate(parts), axis=1)


def measure(cfg: MainConfig, policy: str, num: int, seed: int) -> dict[str, Any]:
    """Train and test one policy; errors in pixels."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trained = train(cfg, policy, num, seed, Path(folder))
    seconds = time.process_time() - start
    seen, test = points(num, seed, cfg.image_size), held_out(cfg)
    errors, inside = errors_of(trained, test, cfg.image_size), in_hull(seen, test)
    return {
        "policy": policy,
        "num_points": num,
        "seed": seed,
        "train_error": float(errors_of(trained, seen, cfg.image_size).mean()),
        "inside_error": float(errors[inside].mean()) if inside.any() else None,
        "outside_error": float(errors[~inside].mean()) if not inside.all() else None,
        "inside_points": int(inside.sum()),
        "training_cpu_seconds": round(seconds, 1),
        "errors": [round(float(e), 2) for e in errors],
    }


def held_out(cfg: MainConfig) -> np.ndarray:
    """The held-out centres [num_test, 2]."""
    return points(cfg.num_test, TEST_SEED, cfg.image_size)


# ------------------------------------------------------------------------- all runs


def experiment(cfg: MainConfig) -> list[dict[str, Any]]:
    """Do all runs and return their results; the file is written after each run."""
    out = output_folder(cfg.out, "out", "a folder")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{NAME}.json"
    settings = {k: v for k, v in asdict(cfg).items() if k != "out"}
    what = {k: settings[k] for k in ("num_test", "image_size", "steps", "batch_size", "lr")}
    results = earlier_results(path, "out", settings=what)
    _check_points(cfg)
    for seed in range(cfg.num_seeds):
        for num in cfg.num_points:
            for policy in cfg.policies:
                key = (policy, num, seed)
                if any((r["policy"], r["num_points"], r["seed"]) == key for r in results):
                    continue
                results.append(measure(cfg, policy, num, seed))
                command = "python -m tools.coordinate_regression " + " ".join(
                    f"--{k} {json.dumps(v, separators=(',', ':'))}" for k, v in settings.items()
                )
                atomic_json({"command": command, **what, "results": results}, path)
    return results


def _check_points(cfg: MainConfig) -> None:
    """Refuse points on one line, whose hull is empty, before anything is trained."""
    for seed in range(cfg.num_seeds):
        for num in cfg.num_points:
            seen = points(num, seed, cfg.image_size)
            if np.linalg.matrix_rank(seen - seen[0]) < 2:
                raise ConfigError(
                    f"num_points: the {num} points of seed {seed} at image_size {cfg.image_size} "
                    "lie on a line, expected at least a triangle; use more points"
                )


def table(results: list[dict[str, Any]]) -> str:
    """Mean errors over the seeds, a line per policy and number of points."""
    lines = ["points  policy         train  inside  outside  (pixels; inside, outside: the hull)"]
    for num, policy in sorted({(r["num_points"], r["policy"]) for r in results}):
        mine = [r for r in results if (r["num_points"], r["policy"]) == (num, policy)]
        means = [
            np.mean([r[k] for r in mine if r[k] is not None] or [np.nan])
            for k in ("train_error", "inside_error", "outside_error")
        ]
        lines.append(f"{num:6}  {policy:12}" + "".join(f"{m:8.2f}" for m in means))
    return "\n".join(lines)


def plot(cfg: MainConfig, results: list[dict[str, Any]]) -> Path:
    """Held-out errors over the image, seed 0: a row per number of points."""
    from matplotlib.colors import LogNorm
    from scipy.spatial import ConvexHull

    rows, columns = cfg.num_points, cfg.policies
    size = (3.2 * len(columns) + 1, 3.3 * len(rows))
    figure, axes = plot_style.pyplot().subplots(
        len(rows), len(columns), figsize=size, squeeze=False
    )
    test = held_out(cfg)
    dots: Any = None
    for i, num in enumerate(rows):
        seen = points(num, 0, cfg.image_size)
        hull = seen[np.append(ConvexHull(seen).vertices, ConvexHull(seen).vertices[0])]
        for j, policy in enumerate(columns):
            axis = axes[i, j]
            (run,) = (
                r for r in results
                if (r["policy"], r["num_points"], r["seed"]) == (policy, num, 0)
            )  # fmt: skip
            values = np.maximum(run["errors"], 0.1)
            norm = LogNorm(0.1, cfg.image_size / 2)
            dots = axis.scatter(test[:, 1], test[:, 0], c=values, s=14, norm=norm, cmap="viridis")
            axis.plot(hull[:, 1], hull[:, 0], "k--", linewidth=1)
            axis.scatter(seen[:, 1], seen[:, 0], c=plot_style.ORANGE, marker="x", s=24)
            axis.grid(False)
            axis.set(aspect="equal", xticks=[], yticks=[])
            axis.invert_yaxis()
            errors = [run[k] for k in ("inside_error", "outside_error")]
            inside, outside = ("-" if v is None else f"{v:.1f}" for v in errors)
            axis.set_title(f"{policy}, {num} points\ninside {inside}, outside {outside} px")
    figure.colorbar(dots, ax=axes, label="error (pixels)", shrink=0.8)
    path = Path(cfg.out) / f"{NAME}.png"
    plot_style.save(figure, path, dpi=110)
    return path


def main() -> int:
    """Entry point: parse, run what is missing, print the table, plot."""
    fast.set_up()
    cfg = run_config.parse(MainConfig)
    results = experiment(cfg)
    print(table(results))
    print(plot(cfg, results))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

"""Every YAML file of Implicit BC holds the published values, and nothing else.

The tables are written from the publication's configurations, not from the files; a field that
no table names must have its default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import train_bc
from common_utils import run_config
from workspace.build_policy import build_policy

CFGS = Path(__file__).resolve().parents[2] / "release" / "cfgs" / "ibc"

COMMON: dict[str, Any] = {
    "seed": 0,
    "dataset.stack_pad": "repeat",
    "dataset.sampling": "epochs",
    "optimizer": "keras_adam",
    "lr": 1e-3,
    "lr_schedule": "exponential",
    "lr_decay_steps": 100,
    "grad_clip": 0,
    "num_final_episode": 0,
}
STATES = {"dataset.use_state": 1, "dataset.state_stack": 2, "batch_size": 512}
TASK: dict[str, dict[str, Any]] = {
    "particle": STATES
    | {
        "dataset.path": "release/data/ibc/particle_2d/dataset.hdf5",
        "dataset.eval_episode_len": 50,
        "env.suite": "particle",
        "env.task": "PARTICLE_2d",
        "epoch_len": 10000,
    },
    "d4rl": STATES
    | {
        "dataset.path": "release/data/d4rl/door-human-v0/dataset.hdf5",
        "dataset.state_stack": 1,
        # demonstrations are longer than the task's time limit, which holds nevertheless
        "dataset.eval_episode_len": 1000,
        "env.suite": "d4rl",
        "epoch_len": 5000,
    },
}
PUSHING = {"env.suite": "block_pushing", "env.goal_tolerance": 0.02, "epoch_len": 5000}
# demonstrated with 0.04 (the tasks' own), judged by it: 0.02 would be asked of no demonstration
OWN_TOLERANCE = {"env.goal_tolerance": 0}
for name, limit, more in (
    ("push", 100, {}),
    ("push_discontinuous", 200, OWN_TOLERANCE),
    ("push_multimodal", 200, OWN_TOLERANCE),
):
    TASK[name] = (
        STATES
        | PUSHING
        | more
        | {
            "dataset.path": f"release/data/ibc/{name}/dataset.hdf5",
            "dataset.eval_episode_len": limit,
            "env.task": name.upper(),
        }
    )
TASK["push_pixels"] = PUSHING | {
    "dataset.path": "release/data/ibc/push_pixels/dataset.hdf5",
    "dataset.eval_episode_len": 100,
    "dataset.rl_camera": "rgb",
    "dataset.obs_stack": 2,
    "env.task": "PUSH",
    "batch_size": 128,
}
# 5000 samples, or 100 batches
SAMPLES = {"small": 5000, "best": 51200, "pixels": 12800}


def below(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{k}": v for k, v in values.items()}


LANGEVIN = below(
    "ebm",
    {
        "num_counter_examples": 8,
        "compute_mse": 1,
        "langevin.num_iterations": 100,
        "num_action_samples": 512,
    },
)
DFO = below(
    "ebm",
    {
        "fraction_langevin_samples": 0,
        "compute_mse": 1,
        "grad_penalty.add_grad_penalty": 0,
        "use_dfo": 1,
        "use_langevin": 0,
    },
)
MIXTURE = below("mdn.net", {"training_temperature": 1, "test_temperature": 1})


def policy(kind: str, width: int, depth: int, samples: str, min_max: int = 0) -> dict[str, Any]:
    """Type, trunk and normalisation; EBMs have no dropout, the others 0.1 (the default)."""
    trunk = {"width": width, "depth": depth} | ({"rate": 0} if kind == "ebm" else {})
    norm = {"min_max_actions": min_max, "num_samples": SAMPLES[samples]}
    return {"policy_type": kind} | below(f"{kind}.net", trunk) | below(f"{kind}.norm", norm)


def run(steps: int, episodes: int) -> dict[str, int]:
    return {"steps": steps, "num_eval_episode": episodes}


def ebm(width: int, depth: int, samples: str) -> dict[str, Any]:
    # float32's tolerances at more than twice its speed (not the publication's to say)
    trunk = policy("ebm", width, depth, samples, min_max=1)
    return trunk | {"ebm.precision": "bfloat16x3"}


AGAIN = {"ebm.optimize_again": 1}
PIXEL_VALUE = below("ebm.pixel", {"value_width": 1024, "value_blocks": 1})


def pixel(kind: str, min_max: int, more: dict[str, Any]) -> dict[str, Any]:
    norm = {"min_max_actions": min_max, "num_samples": SAMPLES["pixels"]}
    return {"policy_type": kind} | below(f"{kind}.norm", norm) | more


# file -> task, steps and evaluation episodes, and everything else
PUBLISHED: dict[str, tuple[str, dict[str, int], dict[str, Any]]] = {
    "particle/mlp_ebm_langevin": (
        "particle", run(100_000, 20), ebm(256, 2, "small") | LANGEVIN,
    ),
    "particle/mlp_ebm_langevin_best": (
        "particle", run(100_000, 50), ebm(2048, 2, "best") | LANGEVIN,
    ),
    "particle/mlp_mse": ("particle", run(50_000, 20), policy("mse", 256, 2, "small")),
    "particle/mlp_mse_best": ("particle", run(50_000, 50), policy("mse", 2048, 2, "best")),
    "pushing_states/mlp_ebm": ("push", run(50_000, 20), ebm(128, 16, "small") | DFO),
    "pushing_states/mlp_ebm_best": ("push", run(100_000, 100), ebm(128, 8, "best") | DFO),
    "pushing_states/mlp_ebm_langevin": (
        "push", run(100_000, 20), ebm(128, 16, "small") | LANGEVIN | AGAIN,
    ),
    "pushing_states/mlp_mse": ("push", run(50_000, 20), policy("mse", 128, 16, "small")),
    "pushing_states/mlp_mse_best": (
        "push", run(100_000, 100), policy("mse", 1024, 8, "best") | {"lr": 5e-4},
    ),
    "pushing_states/mlp_mdn_best": (
        "push", run(100_000, 100), policy("mdn", 512, 8, "best") | MIXTURE,
    ),
    "pushing_pixels/pixel_ebm_best": (
        "push_pixels", run(100_000, 100),
        pixel("ebm", 0, PIXEL_VALUE | DFO | {"ebm.num_action_samples": 2048}),
    ),
    "pushing_pixels/pixel_ebm_langevin": (
        "push_pixels", run(100_000, 20),
        pixel("ebm", 1, PIXEL_VALUE | LANGEVIN | AGAIN | {"ebm.num_action_samples": 2048}),
    ),
    "pushing_pixels/pixel_mse_best": (
        "push_pixels", run(100_000, 100),
        pixel("mse", 0, {"mse.pixel.width": 512, "mse.pixel.depth": 4}),
    ),
    "pushing_pixels/pixel_mdn_best": (
        "push_pixels", run(100_000, 100),
        pixel("mdn", 1, below("mdn.pixel", {
            "width": 512, "depth": 8, "image.target_height": 90, "image.target_width": 120,
            "training_temperature": 2, "test_temperature": 2, "test_variance_exponent": 4,
        })),
    ),
    "d4rl/mlp_ebm_langevin_best": (
        "d4rl", run(100_000, 100),
        ebm(512, 8, "best") | LANGEVIN | AGAIN | {"lr": 5e-4} | below("ebm", {
            "net.dense_layer_type": "spectral_norm", "norm.use_sqrt_std": 1,
            "langevin.sampler_stepsize_init": 0.5, "langevin.delta_action_clip": 0.5,
            "langevin.noise_scale": 0.5, "again_stepsize_init": 1e-5,
            "inference_langevin_noise_scale": 0.5,
        }),
    ),
    "d4rl/mlp_mse_best": (
        "d4rl", run(100_000, 100), policy("mse", 2048, 8, "best") | {"lr_decay_steps": 200},
    ),
    "d4rl/mlp_mdn": (
        "d4rl", run(100_000, 100), policy("mdn", 128, 2, "best") | {"lr": 1e-4},
    ),
}  # fmt: skip
# tasks without a published configuration: that of pushing
for variant in ("discontinuous", "multimodal"):
    for stem in ("mlp_ebm", "mlp_ebm_langevin", "mlp_mse"):
        _, *rest = PUBLISHED[f"pushing_states/{stem}"]
        PUBLISHED[f"pushing_states/{stem}_{variant}"] = (f"push_{variant}", *rest)  # type: ignore[assignment]
    _, *rest = PUBLISHED["pushing_states/mlp_mdn_best"]
    PUBLISHED[f"pushing_states/mlp_mdn_{variant}"] = (f"push_{variant}", *rest)  # type: ignore[assignment]


def load(file: str) -> train_bc.MainConfig:
    return run_config.load(train_bc.MainConfig, CFGS / f"{file}.yaml")


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        section = isinstance(value, dict)
        out |= flat(value, f"{prefix}{key}.") if section else {prefix + key: value}
    return out


def test_every_file_is_known_here() -> None:
    files = {p.relative_to(CFGS).with_suffix("").as_posix() for p in CFGS.rglob("*.y*ml")}
    assert files == set(PUBLISHED) and len(files) == 17 + 8


@pytest.mark.parametrize("file", PUBLISHED)
def test_published_values(file: str) -> None:
    task, steps, values = PUBLISHED[file]
    values = COMMON | TASK[task] | values | steps
    values["num_epoch"] = values.pop("steps") // values["epoch_len"]
    config = load(file)
    loaded = flat(run_config.to_dict(config))
    defaults = {name: default for name, _, default, _ in run_config.describe(type(config))}
    assert set(values) <= set(loaded)
    expected = defaults | values
    assert {k: (v, expected[k]) for k, v in loaded.items() if v != expected[k]} == {}


@pytest.mark.parametrize("file", PUBLISHED)
def test_a_config_survives_being_saved_and_builds_its_policy(file: str, tmp_path: Path) -> None:
    cfg = load(file)
    run_config.dump(cfg, tmp_path / "cfg.yaml")
    assert run_config.diff(cfg, run_config.load(train_bc.MainConfig, tmp_path / "cfg.yaml")) == []
    cfg.action_dim = 2
    cfg.obs_shape = [20] if cfg.dataset.use_state else [6, 240, 320]
    assert build_policy(cfg).act is not None

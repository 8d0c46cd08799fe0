"""tools.particle_dimensions: real runs of a few steps, gone on with, recorded and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from common_utils import run_config
from common_utils.run_config import ConfigError
from evaluate.stats import wilson
from tools import particle_dimensions as tool
from tools.particle_dimensions import MainConfig

TINY = {
    "dims": [1, 3],
    "num_demos": 3,
    "mse_steps": 4,
    "ebm_steps": 2,
    "ebm_batch_size": 8,
    "ebm_iterations": 2,
    "num_eval_episode": 2,
}


def test_runs_are_recorded_go_on_and_are_drawn(tmp_path: Path) -> None:
    first = tool.sweep(MainConfig(**TINY | {"dims": [3], "save_dir": str(tmp_path)}))
    assert [(r["policy"], r["dim"], r["steps"]) for r in first] == [("mse", 3, 4), ("ebm", 3, 2)]
    results = tool.sweep(MainConfig(**TINY | {"save_dir": str(tmp_path)}))
    assert results[:2] == first and {r["dim"] for r in results[2:]} == {1}
    for r in results:
        assert 0 <= r["interval"][0] <= r["success"] <= r["interval"][1] <= 1
    tree = json.loads((tmp_path / "results.json").read_text())
    assert tree["results"] == results and "--ebm_batch_size 8" in tree["command"]
    assert "--dims '[1, 3]'" in tree["command"]
    assert (tmp_path / "dimensions.png").read_bytes().startswith(b"\x89PNG")
    assert tool.table(results).count("\n") == 4
    run = yaml.safe_load((tmp_path / "ebm_3d_seed0" / "cfg.yaml").read_text())
    assert run["env"]["task"] == "PARTICLE_3d" and run["ebm"]["precision"] == "bfloat16"
    assert 0.99 ** (2 / run["lr_decay_steps"]) == pytest.approx(0.86)
    with pytest.raises(ConfigError, match="other settings"):
        tool.sweep(MainConfig(**TINY | {"ebm_steps": 3, "save_dir": str(tmp_path)}))


def test_demonstrations_of_another_budget_are_not_taken(tmp_path: Path) -> None:
    tool.make_demos(MainConfig(**TINY | {"save_dir": str(tmp_path)}), 1)
    with pytest.raises(ConfigError, match="made with other options"):
        tool.make_demos(MainConfig(**TINY | {"num_demos": 4, "save_dir": str(tmp_path)}), 1)


def test_seeds_are_pooled() -> None:
    rate = tool.pooled([{"success": 0.9}, {"success": 0.8}, {"success": 1.0}], 50)
    assert rate.mean == pytest.approx(0.9) and rate == wilson(135, 150)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": [0]}, r"dims: .*got \[0\]"),
        ({"policies": ["mdn"]}, "policies.*mdn.*mse, ebm"),
        ({"ebm_steps": 0}, "ebm_steps: .*got 0"),
        ({"final_lr": 1.0}, "final_lr: .*got 1.0"),
        ({"seeds": []}, "seeds"),
    ],
)
def test_bad_options_are_reported(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config.from_dict(MainConfig, options)

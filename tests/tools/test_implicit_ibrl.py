"""tools.implicit_ibrl from start to end on tiny budgets, gone on with, gathered and drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import train_bc
import train_rl
from common_utils import run_config
from tools import implicit_ibrl as tool
from tools import stages
from tools.implicit_ibrl import MainConfig


@pytest.fixture
def small_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The released configurations with smaller numbers."""
    folder = tmp_path / "cfgs"
    folder.mkdir()
    bc = {"epoch_len": 5, "num_eval_episode": 1, "num_final_episode": 0}
    less: dict[str, dict[str, Any]] = {
        "implicit_demos": {"num_episodes": 1},
        "implicit_bc_mse": bc,
        "implicit_bc_ebm": bc,
        "implicit_rl": {
            "preload_num_data": 1,
            "num_warm_up_episode": 1,
            "num_train_step": 60,
            "log_per_step": 30,
            "num_eval_episode": 1,
            "episode_length": 30,
        },
    }
    for name, values in less.items():
        tree = yaml.safe_load((tool.CFG_DIR / f"{name}.yaml").read_text()) | values
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.setattr(tool, "CFG_DIR", folder)
    return folder


def test_runs_are_made_and_gathered(small_configs: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    for policy in ("mse", "ebm"):
        cfg = MainConfig(policy=policy, seed=3, num_eval_episode=2, save_dir=str(out))  # type: ignore[arg-type]
        summary = tool.run(cfg)
        assert summary["steps"] == [30, 60] and summary["env_steps"] == 60
        assert summary["num_bc_samples"] == {"mse": 1, "ebm": 4}[policy]
        assert summary["bc"]["episodes"] == summary["ibrl"]["episodes"] == 2
    again = tool.run(cfg)  # nothing is done again
    assert again == summary
    runs = tool.gather(out)
    assert [(r["policy"], r["seed"]) for r in runs] == [("mse", 3), ("ebm", 3)]
    assert json.loads((out / "results.json").read_text())["runs"] == runs
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert tool.table(runs).count("\n") == 2
    # both were given the same demonstrations
    trees = [yaml.safe_load((out / f"{p}_seed3/ibrl/cfg.yaml").read_text()) for p in ("mse", "ebm")]
    assert trees[0]["preload_datapath"] == trees[1]["preload_datapath"]


def test_curves_are_averaged_where_all_runs_have_them() -> None:
    runs = [
        {"steps": [10, 20, 30], "success": [0.0, 0.5, 1.0], "exploring_success": [None, 0.2, 0.4]},
        {"steps": [10, 20], "success": [0.2, 0.7], "exploring_success": [0.1, 0.4]},
    ]
    steps, values = tool.mean_curve(runs, "success")
    assert steps == [10, 20]
    np.testing.assert_allclose(values.mean(0), [0.1, 0.6])
    assert np.isnan(tool.mean_curve(runs, "exploring_success")[1][0, 0])


def test_the_runs_differ_by_their_bc_policy_alone() -> None:
    demos = run_config.load(stages.demos.MainConfig, tool.CFG_DIR / "implicit_demos.yaml")
    rl = run_config.load(train_rl.MainConfig, tool.CFG_DIR / "implicit_rl.yaml")
    assert rl.preload_num_data == demos.num_episodes and rl.q_agent.num_bc_samples > 1
    assert rl.episode_length == demos.env_cfg.episode_length
    assert rl.task_name == demos.env_cfg.env_name
    bc = [
        run_config.load(train_bc.MainConfig, tool.CFG_DIR / f"implicit_bc_{policy}.yaml")
        for policy in tool.POLICIES
    ]
    assert [c.kind for c in bc] == ["state", "mdn", "ebm"]
    for c in bc:
        assert c.dataset == bc[0].dataset and c.dataset.eval_episode_len == rl.episode_length

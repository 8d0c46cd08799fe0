"""tools.held_out_energy: ranks are those of the network's energies, on data it has not seen."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train_bc
from common_utils import run_config
from common_utils.errors import run_program
from tools import collect_oracle, plot_particle
from tools import held_out_energy as tool

ROOT = Path(__file__).resolve().parents[2]


def test_measures() -> None:
    logits = np.array([[0.0, 1, 2, 3], [5, 1, 1, 1], [2, 2, 2, 2], [1, 4, 0, 3]], np.float32)
    found = tool.measure(logits)
    # shares of the other three that are at least as good: 0, 3/3, 3/3, 1/3
    assert found["rank"] == pytest.approx((0 + 1 + 1 + 1 / 3) / 4)
    assert found["first"] == 0.25
    assert found["below_mean"] == 0.5  # 3 > 1, 1 < 7/3, 2 = 2, 3 > 5/3
    assert found["margin"] == pytest.approx((2 - 4 / 3 + 0 + 4 / 3) / 4)
    equal = tool.measure(np.zeros((2, 4), np.float32))
    assert equal["info_nce"] == pytest.approx(math.log(4), abs=1e-4) == equal["chance"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A short run on the particle, and other episodes."""
    root = tmp_path_factory.mktemp("energy")
    for name, seed in (("train", 0), ("test", 1)):
        collect_oracle.collect(
            collect_oracle.MainConfig(
                task="PARTICLE_2d", num=10, seed=seed, replicas=0, out=str(root / name)
            )
        )
    cfg = run_config.load(
        train_bc.MainConfig, ROOT / "release/cfgs/ibc/particle/mlp_ebm_langevin.yaml"
    )
    cfg.dataset.path, cfg.save_dir = str(root / "train/dataset.hdf5"), str(root / "run")
    cfg.batch_size, cfg.epoch_len, cfg.num_epoch, cfg.num_eval_episode = 64, 100, 2, 0
    cfg.ebm.langevin.num_iterations, cfg.ebm.net.width = 5, 64
    train_bc.run(cfg)
    return root / "run" / "model0.pt", root / "test" / "dataset.hdf5"


def test_a_trained_policy_prefers_what_was_demonstrated(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weight, data = run
    out = tmp_path / "plots" / "energy_v1"
    options = ["--num", "32", "--steps", "80", "--out", str(out)]
    assert run_program(tool.main, ["--weight", str(weight), "--data", str(data), *options]) == 0
    assert "80 held-out steps" in capsys.readouterr().out
    result = json.loads(out.with_suffix(".json").read_text())
    assert result["steps"] == len(result["ranks"]) == 80
    assert np.mean(result["ranks"]) == pytest.approx(result["rank"], abs=1e-3)
    assert result["rank"] < 0.3 and result["below_mean"] > 0.75 and result["margin"] > 0
    assert result["info_nce"] < result["chance"] == pytest.approx(math.log(33))
    assert result["loss_steps"] == [100, 200] and result["loss"][1] < result["loss"][0]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_its_energy_is_drawn_by_the_documented_command(
    run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--weight", str(run[0]), "--num", "2", "--energy", "--out", str(tmp_path / "plots")]
    assert run_program(plot_particle.main, options) == 0
    printed = capsys.readouterr().out
    drawn = sorted(p.name for p in (tmp_path / "plots").glob("*.png"))
    assert "trajectories.png" in drawn and any(n.startswith("energy") for n in drawn)
    assert all(name in printed for name in drawn)


def test_what_cannot_be_measured_is_reported(
    run: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    weight, data = run
    seen = str(data.parents[1] / "train" / "dataset.hdf5")
    assert run_program(tool.main, ["--weight", str(weight), "--data", seen]) == 2
    assert "trained on" in capsys.readouterr().err
    assert run_program(tool.main, ["--weight", str(weight), "--data", "no.hdf5"]) == 2
    assert "no.hdf5" in capsys.readouterr().err
    assert run_program(tool.main, ["--weight", "no/model0.pt", "--data", str(data)]) == 2
    assert "no/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ({"task": "PARTICLE_2d", "num": 3}, "3 of the 3 episodes .* start from seeds"),
        ({"task": "PARTICLE_3d", "num": 1, "seed": 1}, "shows PARTICLE_3d, expected PARTICLE_2d"),
        ({"task": "PARTICLE_2d", "num": 1, "seed": 1, "hide_velocity": 1}, r"state: shape \(12,\)"),
    ],
)
def test_other_data_are_reported(
    run: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    printed: str,
) -> None:
    out = tmp_path / "other"
    collect_oracle.collect(collect_oracle.MainConfig(replicas=0, out=str(out), **options))
    assert (
        run_program(tool.main, ["--weight", str(run[0]), "--data", str(out / "dataset.hdf5")]) == 2
    )
    assert re.search(printed, capsys.readouterr().err)

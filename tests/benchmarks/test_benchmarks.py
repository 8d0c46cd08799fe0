"""The benchmarks run, from their command lines, and write the records they promise."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bc.normalized import NormalizedPolicy
from benchmarks import ibc, update

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"case", "metric", "value", "unit", "threads", "reference", "ratio"}


def records_of(tmp_path: Path, module: str, *args: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Run a benchmark as a user would; its records by (case, metric)."""
    file = tmp_path / "records.json"
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", "--quick", "--json", str(file), *args],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MUJOCO_GL": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = json.loads(file.read_text())
    for r in records:
        assert set(r) == KEYS
        assert math.isfinite(r["value"]) and r["value"] >= 0, r
        assert r["threads"] >= 1 and r["unit"]
        if r["reference"] is not None:
            assert r["ratio"] == pytest.approx(r["reference"] / r["value"])
    by_name = {(r["case"], r["metric"]): r for r in records}
    assert len(by_name) == len(records) > 0
    return by_name


def test_replay(tmp_path: Path) -> None:
    records = records_of(tmp_path, "replay")
    assert records["sample(256), pixel, full episodes", "cpu_time"]["reference"] == 6.5
    assert records["memory, pixel, full episodes", "per_transition"]["unit"] == "B"
    assert records["add, state", "cpu_time_per_step"]["value"] > 0


def test_update(tmp_path: Path) -> None:
    records = records_of(tmp_path, "update", "--case", "small_state", "--repeat", "1")
    cases = ("critic update", "critic + actor update", "act")
    for case, reference in zip(cases, update.REFERENCE["small_state"], strict=True):
        assert records[f"small_state: {case}", "cpu_time"]["reference"] == reference
    in_jax = records["small_state: critic update, RLPD in JAX", "cpu_time"]
    assert in_jax["value"] == records["small_state: critic update", "cpu_time"]["value"]


def test_loop(tmp_path: Path) -> None:
    records = records_of(tmp_path, "loop")
    value = {metric: r["value"] for (case, metric), r in records.items() if case == "quickstart_rl"}
    assert value["env_steps_per_second"] > 0
    assert value["cpu_ms_per_env_step"] > 0
    assert sum(v for k, v in value.items() if k.startswith("share_")) == pytest.approx(100)


def test_every_case_of_update_has_a_configuration() -> None:
    cases = update.rl_cases()
    assert {"metaworld/ibrl_basic", "metaworld/quickstart_rl", "small_state"} <= set(cases)
    for case in cases:
        update.config_of(case)
    kinds = {case: update.bc_config_of(case).kind for case in update.bc_cases()}
    assert kinds["metaworld/train_bc_mw"] == "metaworld"
    assert kinds["metaworld/quickstart_bc"] == "state"
    assert kinds["robomimic_bc/can"] == "pixel"


def test_jax_comparison_tells_that_jax_is_not_required() -> None:
    if importlib.util.find_spec("jax") is not None:
        pytest.skip("JAX is installed")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.jax_rlpd"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "pip install jax" in done.stderr


@pytest.mark.parametrize("case", ibc.cases())
def test_every_ibc_configuration_finds_its_batches(case: str, tmp_path: Path) -> None:
    work = ibc.make_workspace(case, ibc.precisions(case)[-1], tmp_path)
    try:
        batch = work.data.sample_bc(2, work.device)
        assert isinstance(work.policy, NormalizedPolicy)
        assert batch.obs[work.policy.obs_key].shape == (2, *work.cfg.obs_shape)
        assert batch.action.shape == (2, ibc.SIZES[case.split("/")[0]].action)
    finally:
        work.close()

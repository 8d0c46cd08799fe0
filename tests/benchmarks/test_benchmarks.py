"""The benchmarks run, from their command lines, and write the records they promise."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bc.normalized import NormalizedPolicy
from benchmarks import check, compare, ibc, update
from benchmarks.eager import EagerAgent
from common_utils.ibrl_utils import eval_mode
from networks import fast
from tests import forkserver
from tests.runs import env

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"case", "metric", "value", "unit", "threads", "reference", "ratio"}


def records_of(tmp_path: Path, module: str, *args: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Run a benchmark as a user would; its records by (case, metric)."""
    file = tmp_path / "records.json"
    words = ["-m", f"benchmarks.{module}", "--quick", "--json", str(file), *args]
    done = forkserver.run(*words, variables=env(), timeout=300)
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


CASES = (
    "small_state",
    "robomimic_rl/can_state_rft",
    "robomimic_rl/can_rft",
    "metaworld/ibrl_basic",
)


@pytest.mark.parametrize("case", CASES)
def test_the_eager_program_computes_what_the_agent_does(case: str) -> None:
    cfg = update.config_of(case)
    cfg.q_agent.actor.dropout = cfg.q_agent.state_actor.dropout = 0  # masks are drawn differently
    cfg.q_agent.actor.hidden_dim = cfg.q_agent.critic.hidden_dim = 64
    if case == "robomimic_rl/can_state_rft":
        cfg.q_agent.bc_loss_dynamic = 1
        cfg.q_agent.act_method = "ibrl_soft"
    torch.manual_seed(0)
    agent, obs = update.make_agent(case, cfg)
    batch = update.make_batch(agent, obs, 8)
    if batch.next_bc_action is not None:
        batch.next_bc_action.copy_(agent.propose(batch.next_obs))
    rft = {}
    if cfg.add_bc_loss:
        ref_agent, _ = update.make_agent(case, cfg)
        rft = {"bc_batch": batch, "ref_agent": ref_agent}
    eager = EagerAgent(agent)
    one = {k: v[0] for k, v in obs(1).items()}
    with eval_mode(agent), eval_mode(eager.agent):
        torch.testing.assert_close(
            agent.act(one, stddev=0.1), eager.act(one, 0.1), atol=1e-5, rtol=0
        )
    # Adam's first steps are as long for gradients of rounding errors as for any other
    for tolerance in (2e-5, 1e-3, 1e-3):
        start = torch.get_rng_state()
        ours = agent.update(batch, 0.1, True, **rft)
        torch.set_rng_state(start)
        theirs = eager.update(batch, 0.1, True, **rft)
        assert set(theirs) <= set(ours)
        for name, value in theirs.items():
            assert value == pytest.approx(float(ours[name]), rel=tolerance, abs=1e-5), name


def test_the_eager_program_is_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = update.calls_of("robomimic_rl/can_rft", eager=True)

    def none(*args: object) -> None:
        raise AssertionError("an operation of networks.fast")

    monkeypatch.setattr(fast.ops, "call", none)
    monkeypatch.setattr(fast.ops, "find", none)
    calls["act"]()
    with pytest.raises(AssertionError, match=r"an operation of networks\.fast"):
        update.calls_of("small_state")["act"]()


def test_comparisons_alternate_and_name_the_machine(tmp_path: Path) -> None:
    file = tmp_path / "cpu.json"
    args = ["--compare", "eager,auto", "--case", "small_state", "--quick", "--json"]
    done = forkserver.run("-m", "benchmarks.update", *args, file, variables=env(), timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["cpu"] and found["command"].startswith("python -m benchmarks.update --compare")
    rows = found["rows"]
    assert [r["variant"] for r in rows] == ["eager", "auto"] * 3
    for r in rows:
        first = next(x for x in rows if x["call"] == r["call"])
        assert r["ratio"] == pytest.approx(first["cpu_ms"] / r["cpu_ms"])
        assert 0 < r["cpu_ms_least"] <= r["cpu_ms"] <= r["cpu_ms_most"]


def test_an_unknown_variant_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        update.main(["--compare", "eager,fast"])
    assert "'fast', expected some of eager, plain" in capsys.readouterr().err


def test_precisions_of_an_energy_network_alternate(tmp_path: Path) -> None:
    file = tmp_path / "cpu.json"
    args = ["--compare", "float32,bfloat16", "--case", "particle/mlp_*_langevin", "--quick"]
    words = ["-m", "benchmarks.ibc", *args, "--json", file]
    done = forkserver.run(*words, variables=env(), timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert [r["call"] for r in rows] == ["training step"] * 2 + ["action"] * 2
    assert [r["variant"] for r in rows] == ["float32", "bfloat16"] * 2
    for r in rows:
        first = next(x for x in rows if x["call"] == r["call"])
        assert r["ratio"] == pytest.approx(first["cpu_ms"] / r["cpu_ms"])


@pytest.mark.parametrize(
    "args, message",
    [
        (["--compare", "float32,half"], "'half', expected some of float32, bfloat16x3"),
        (["--compare", "float32,bfloat16", "--kernel_threads", "2"], "--kernel_threads: not with"),
    ],
)
def test_an_impossible_comparison_of_precisions_is_refused(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        ibc.main(args)
    assert message in capsys.readouterr().err


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


def burn(seconds: float) -> None:
    """Keep the processor busy for so long."""
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass


def test_a_bad_choice_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    ways = {"auto": partial(burn, 0.012), "mkl": partial(burn, 0.004)}
    assert not check.obeyed("x", ways, "auto")
    said = re.search(r"auto takes ([\d.]+) x the best", capsys.readouterr().out)
    assert said and float(said[1]) == pytest.approx(3, rel=0.2)
    assert check.obeyed("x", ways, "mkl")
    assert "mkl takes 1.00 x the best" in capsys.readouterr().out


def test_operations_are_counted_through_the_kernels() -> None:
    """Forward, and backward to weights and input: three products of 2 m n k operations."""
    x, w = torch.randn(64, 80, requires_grad=True), torch.randn(96, 80, requires_grad=True)
    before = fast.table.rows()
    counted = compare._count(lambda: fast.linear(x, w).sum().backward())
    assert counted == pytest.approx(3 * 2 * 64 * 80 * 96 / 1e9)
    assert fast.table.rows() == before

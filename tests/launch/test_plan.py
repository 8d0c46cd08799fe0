"""Forecasts: the model on costs made by hand, the files, the command. No test depends on time."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from common_utils.errors import ConfigError
from launch import costs as recorded
from launch import plan
from launch.costs import Costs
from launch.forecast import Plan, forecast, shards, update_seconds, with_gpu, with_ranks
from launch.rounds import Setting, play


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few steps that forecasts are quick."""
    monkeypatch.setattr("launch.forecast.MOST_STEPS", 2000)


def made(**changes: Any) -> Costs:
    """A step takes 10 ms, an update 4; nothing else takes time, and no episode ends."""
    plain = Costs(
        config="by hand", cpu="none", step_s=0.010, update_s=0.004, half_update_s=0.003,
        act_numbers=[1, 2], act_s=[0.0, 0.0], episode_length=10**6, replay_bytes=1000,
        trainer_bytes=100, env_bytes=10, episode_bytes=1, observation_bytes=80, action_bytes=20,
    )  # fmt: skip
    return replace(plain, **changes)


def rate(costs: Costs, num_env: int, cores: int, nodes: int = 1) -> float:
    return forecast(costs, Plan(Setting(num_env, cores, nodes))).steps_per_second


# ------------------------------------------------------------------ rounds, by hand


def test_one_environment_takes_turns_with_its_updates() -> None:
    played = play(made(), Setting(1, cores=8), 50)
    assert played.seconds == pytest.approx(50 * 0.014)
    assert played.learner["simulate"] == pytest.approx(50 * 0.010)
    assert played.learner["update"] == pytest.approx(50 * 0.004)
    assert played.waited == 0
    assert played.busy == pytest.approx(played.seconds)


def test_free_cores_hide_simulation_behind_updates() -> None:
    """Two lanes, a core each: both simulate 10 ms, then an update each; the second lane's step has
    been over for long, and the next round begins after the second update."""
    played = play(made(), Setting(2, cores=3), 20)
    assert played.seconds == pytest.approx(10 * (0.010 + 2 * 0.004))
    assert played.waited == pytest.approx(10 * 0.010)


def test_a_core_is_shared_equally() -> None:
    """On one core the two steps end together after 20 ms; nothing can be hidden."""
    played = play(made(), Setting(2, cores=1), 20)
    assert played.seconds == pytest.approx(10 * (0.020 + 2 * 0.004))
    assert played.busy == pytest.approx(played.seconds)


def test_an_update_slows_down_who_shares_its_core() -> None:
    """One core, and 6 ms for asking: nothing is lost, and nothing is hidden."""
    costs = made(send_s=0.006)
    # 0: the start of lane 0 is asked for; 6: its step, which then shares the core with the asking
    # of lane 1 (until 24), and 4 ms that are left with the step of lane 1 (until 32); the update
    # shares with it, too (until 40); then come its last 2 ms, and the second update
    assert play(costs, Setting(2, cores=1), 2).seconds == pytest.approx(0.046)
    # with a second core lane 0 ends at 16, and nobody waits for the core
    both = play(costs, Setting(2, cores=2), 2)
    assert both.seconds == pytest.approx(0.018 + 0.004 + 0.006 + 0.004)


def test_a_crowded_machine_is_slower_by_the_measured_factor() -> None:
    both = play(made(crowded=1.5, update_s=0.0), Setting(2, cores=2), 2)
    assert both.seconds == pytest.approx(0.015)
    half = play(made(crowded=1.5, update_s=0.0), Setting(2, cores=3), 2)  # two of three cores
    assert half.seconds == pytest.approx(0.0125)


def test_starts_of_episodes() -> None:
    """Each episode of 5 steps begins with 20 ms; both lanes begin and end together."""
    costs = made(reset_s=0.020, episode_length=5, update_s=0.0)
    together = play(costs, Setting(2, cores=4, together=True), 20)
    assert together.seconds == pytest.approx(3 * 0.020 + 10 * 0.010)  # the last starts as well
    alone = play(costs, Setting(1, cores=4, together=True), 10)
    assert alone.seconds == pytest.approx(3 * 0.020 + 10 * 0.010)
    # at different steps: every other lane waits, so that both starts are paid for
    apart = play(costs, Setting(2, cores=4), 20)
    assert apart.seconds > together.seconds


def test_every_round_waits_for_a_start_with_as_many_environments_as_steps() -> None:
    costs = made(reset_s=0.5, episode_length=20, update_s=1e-6)
    assert rate(costs, 20, cores=64) == pytest.approx(20 / 0.510, rel=0.05)


# ------------------------------------------------------------------ limits


def test_with_infinite_cores_the_learner_is_the_limit() -> None:
    found = forecast(made(), Plan(Setting(2000, cores=4000)))
    assert found.steps_per_second == pytest.approx(1 / 0.004, rel=0.01)
    assert found.learner_limit == pytest.approx(1 / 0.004)
    assert found.bottleneck.startswith("learner (update")
    assert found.learner_busy == pytest.approx(1, abs=0.01)


def test_environments_are_the_limit_of_cheap_updates() -> None:
    found = forecast(made(update_s=1e-5), Plan(Setting(4, cores=16)))
    assert found.bottleneck.startswith("environments")
    assert found.steps_per_second == pytest.approx(400, rel=0.02)
    full = forecast(made(update_s=1e-5), Plan(Setting(16, cores=2)))
    assert full.bottleneck.startswith("cores")
    assert full.steps_per_second == pytest.approx(200, rel=0.02)
    assert full.cores_busy == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("num_env", [1, 3, 8, 30])
def test_more_cores_never_make_a_run_slower(num_env: int) -> None:
    costs = made(send_s=1e-4, receive_s=2e-4, answer_s=1e-4, reset_s=0.1, episode_length=50)
    rates = [rate(costs, num_env, cores) for cores in (1, 2, 4, 8, 16, 32)]
    assert all(b >= a * (1 - 1e-9) for a, b in pairwise(rates))


def test_machines_of_a_cluster_count_like_cores() -> None:
    costs = made(update_s=1e-5)
    assert rate(costs, 32, cores=2, nodes=4) == pytest.approx(rate(costs, 32, cores=8), rel=0.03)


def test_memory_and_traffic() -> None:
    found = forecast(made(), Plan(Setting(10, cores=8, nodes=3), ranks=1))
    assert found.memory == {"replay": 1000 + 9, "trainer": 100, "environments": 4 * 10}
    assert found.memory_elsewhere == 3 * 10
    assert found.to_learner == pytest.approx(80 * found.steps_per_second)
    assert found.between_machines == pytest.approx(100 * found.steps_per_second * 0.6)
    alone = forecast(made(), Plan(Setting(1, cores=8)))
    assert alone.memory["environments"] == 0
    assert alone.to_learner == alone.between_machines == 0


def test_saved_states_cost_their_share() -> None:
    costs = made(checkpoint_s=2.0, checkpoint_bytes=1000, replay_bytes=500, log_per_step=100)
    found = forecast(costs, Plan())
    assert 1 / found.with_checkpoints == pytest.approx(1 / found.steps_per_second + 3.0 / 100)


def test_updates_per_second() -> None:
    costs = made(num_critic_update=3, critic_s=0.001, update_freq=2)
    found = forecast(costs, Plan())
    assert found.steps_per_second == pytest.approx(1 / (0.010 + (2 * 0.001 + 0.004) / 2))
    assert found.updates_per_second == pytest.approx(1.5 * found.steps_per_second)


# ------------------------------------------------------------------ ranks, GPUs, shards


def test_ranks_divide_what_grows_with_the_batch() -> None:
    """Of 4 ms, 2 grow with the batch (half of it takes 3)."""
    costs = made(exchange_s=0.0005, scatter_s=0.0001)
    assert update_seconds(costs, 1, cores=4) == pytest.approx(0.004)
    assert with_ranks(costs, 2).update_s == pytest.approx(0.003 + 0.0006)
    assert with_ranks(costs, 4).update_s == pytest.approx(0.0025 + 0.0006 * 1.5)
    assert update_seconds(costs, 2, cores=1) == pytest.approx(2 * 0.0036)  # they share it


def test_a_gpu_speeds_up_networks_alone() -> None:
    costs = made(observe_s=0.002, add_s=0.001)
    faster = with_gpu(costs, 10)
    assert (faster.update_s, faster.observe_s) == (0.0004, 0.0002)
    assert (faster.step_s, faster.add_s) == (costs.step_s, costs.add_s)
    assert with_gpu(costs, None) == costs


def test_shards_use_what_the_environments_play() -> None:
    costs = made(act_s=[0.001, 0.002], weights_bytes=7, batch_bytes=5, exchange_s=1e-5)
    setting = Setting(1000, cores=50, nodes=20)
    found = shards(costs, Plan(setting))
    assert found is not None
    assert found.played == pytest.approx(1000 / 0.010)
    assert found.collectors == 100  # 100,000 steps of 1 ms per second
    # the half of an update that does not grow with the batch stays
    assert found.update_freq > 100 and found.ranks <= 64
    assert shards(costs, Plan(Setting(1, cores=8))) is None
    assert shards(made(update_s=1e-5), Plan(Setting(4, cores=4))) is None


# ------------------------------------------------------------------ files, the command


def test_acting_for_numbers_that_were_not_measured() -> None:
    costs = made(act_numbers=[1, 4, 8], act_s=[0.001, 0.004, 0.006])
    assert [costs.act(n) for n in (1, 2, 4, 6, 8, 16)] == pytest.approx(
        [0.001, 0.002, 0.004, 0.005, 0.006, 0.010]
    )


def test_costs_come_back_from_their_file(tmp_path: Path) -> None:
    costs = made(act_numbers=[1, 4], act_s=[0.25, 0.5])
    recorded.write(costs, tmp_path / "costs.json", "a command")
    assert recorded.read(tmp_path / "costs.json") == costs


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[1]", "no section 'costs'"),
        ('{"costs": {"step_s": -1}}', "step_s"),
        ('{"costs": {"step_s": NaN}}', "step_s"),
        ('{"costs": {"speed": 1}}', "speed"),
        ('{"costs": {"act_numbers": [2, 1], "act_s": [1.0, 1.0]}}', "act_s"),
        ('{"costs": {"act_numbers": []}}', "act_s"),
        ('{"costs": {"crowded": 0.5}}', "crowded"),
        ('{"costs": {"step_s": 0.1}}', "config: missing"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(ConfigError, match=said) as refused:
        recorded.read(tmp_path / "costs.json")
    assert "costs.json" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_command_reads_recorded_costs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded.write(made(), tmp_path / "costs.json", "a command")
    out = tmp_path / "plan.json"
    words = ["--costs", str(tmp_path / "costs.json"), "--cores", "4", "--num_env", "1,2,1000"]
    assert plan.main([*words, "--nodes", "2", "--gpus", "1", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert [f["num_env"] for f in found["forecasts"]] == [1, 2, 1000]
    for part in found["forecasts"]:
        assert f"{part['steps_per_second']:.4g}" in printed
        assert part["bottleneck"] in printed
    for said in ("by hand", "2 machine(s) with 4 core(s)", "GPU times are unknown", "Gbit/s"):
        assert said in printed
    assert found["costs"]["step_s"] == 0.010


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--config_path: empty"),
        (["--costs", "{costs}", "--config_path", "a.yaml"], "--config_path: given with --costs"),
        (["--costs", "{costs}", "--set", "seed=1"], "--set: given with --costs"),
        (["--costs", "{costs}", "--gpu_speedup", "3"], "--gpu_speedup: given without GPUs"),
        (["--costs", "{costs}", "--ranks", "2", "--cores", "4"], "--ranks: 2, expected 1"),
        (["--costs", "nowhere.json"], "--costs: cannot read 'nowhere.json'"),
        (["--config_path", "release/cfgs/robomimic_bc/can.yaml"], "is of a BC run"),
        (
            ["--config_path", "release/cfgs/robomimic_rl/can_ibrl.yaml"],
            "to measure with an untrained one: --bc_config",
        ),
    ],
)
def test_refused_options(tmp_path: Path, words: list[str], said: str) -> None:
    path = tmp_path / "costs.json"
    recorded.write(made(), path, "a command")
    with pytest.raises(ConfigError) as refused:
        plan.main([word.format(costs=path) for word in words])
    assert said in str(refused.value)


RL = """
suite: particle
task_name: PARTICLE_2d
use_state: 1
episode_length: 17
num_warm_up_episode: 1
batch_size: 8
num_critic_update: 2
update_freq: 1
q_agent:
  act_method: ibrl
  device: cpu
  state_critic: {hidden_dim: 32}
  state_actor: {hidden_dim: 32}
"""
BC = """
dataset: {use_state: 1}
state_policy: {hidden_dim: 16}
"""


def test_a_run_is_measured_with_its_real_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Short measurements of a small run: everything has a time, and sizes are exact."""
    monkeypatch.setattr("launch.measure.SECONDS", 0.02)
    (tmp_path / "rl.yaml").write_text(RL)
    (tmp_path / "bc.yaml").write_text(BC)
    saved = tmp_path / "costs.json"
    words = ["--config_path", str(tmp_path / "rl.yaml"), "--bc_config", str(tmp_path / "bc.yaml")]
    options = ["--set", f"save_dir={tmp_path / 'run'}", "--set", "discount=0.98"]
    assert plan.main([*words, *options, "--save_costs", str(saved), "--cores", "2"]) == 0
    found = recorded.read(saved)
    measured = {k: v for k, v in vars(found).items() if k.endswith("_s") and k != "act_s"}
    unmeasured = {k for k, v in measured.items() if not v}
    assert unmeasured <= {"render_s", "answer_s"}  # it draws nothing; waking up may be hidden
    assert min(found.act_s) > 0
    assert found.batch_size == 8 and found.num_critic_update == 2
    assert found.observation_bytes == 4 * 8  # two positions, velocities and goals in the plane
    assert found.action_bytes == 8
    assert found.env_bytes > 10 << 20 and found.trainer_bytes > 50 << 20
    assert found.gradient_bytes < found.checkpoint_bytes
    assert not (tmp_path / "run").exists()
    assert "--discount=0.98" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["lift", "metaworld", "can_ibrl"])
def test_recorded_costs_can_be_planned_with(name: str) -> None:
    root = Path(__file__).resolve().parents[2] / "release" / "results" / "benchmarks"
    costs = recorded.read(root / f"amd_zen3_costs_{name}.json")
    one, many = (forecast(costs, Plan(Setting(num, 2))) for num in (1, 4))
    assert many.steps_per_second > 0.5 * one.steps_per_second
    assert costs.exchange_s > 0 and costs.env_bytes > 100 << 20

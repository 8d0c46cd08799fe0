"""A new BC policy is one file (``toy_policy.py``) and one row: everything else is there.

It is trained by ``train_bc.py``'s own main, evaluated, resumed, loaded and bootstraps IBRL.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))

import toy_policy

import train_bc
import train_rl
from bc.registry import POLICIES
from common_utils import run_config
from common_utils.errors import run_program
from common_utils.records import read_metrics
from evaluate import eval as evaluation
from evaluate.rollout import run_eval
from tools import collect_oracle


@pytest.fixture(autouse=True)
def _row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "toy", toy_policy.ROW)


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demos")
    collect_oracle.collect(collect_oracle.MainConfig("PARTICLE_1d", 4, 0, out=str(folder)))
    return folder / "dataset.hdf5"


def main(program: object, *args: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *args])
        return run_program(program.main)  # type: ignore[attr-defined]


def train(demos: Path, save_dir: Path, *more: str) -> int:
    args = ["--policy_type", "toy", "--toy.width", "8", "--dataset.use_state", "1"]
    args += ["--dataset.path", str(demos), "--save_dir", str(save_dir), "--device", "cpu"]
    args += ["--num_epoch", "2", "--epoch_len", "10", "--batch_size", "16"]
    args += ["--num_eval_episode", "1", "--num_final_episode", "1", *more]
    return main(train_bc, *args)


def test_it_trains_resumes_plays_and_bootstraps_ibrl(
    demos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(demos, whole) == 0
    row = read_metrics(whole / "metrics.jsonl")[0]
    assert row["train/toy_error"] == row["train/loss"] and "score/score" in row
    tree = yaml.safe_load((whole / "cfg.yaml").read_text())
    assert tree["toy"] == {"width": 8, "noise": 0.1} and tree["policy_type"] == "toy"
    assert tree.keys().isdisjoint(row.section for kind, row in POLICIES.items() if kind != "toy")

    assert train(demos, parts, "--num_epoch", "1") == 0
    assert train(demos, parts, "--resume", "1") == 0
    a, b = (torch.load(run / "latest.pt", weights_only=True) for run in (whole, parts))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert float(a["norm.std"].max()) != 1.0

    policy, env, _ = train_bc.load_model(whole / "latest.pt", "cpu")
    assert isinstance(policy, toy_policy.ToyPolicy) and not policy.training
    assert (
        run_eval(env, policy, 2, 0).scores.tolist() == run_eval(env, policy, 2, 0).scores.tolist()
    )
    env.close()
    args = ["--weight", str(whole / "latest.pt"), "--num_game", "1", "--mp", "0"]
    assert evaluation.main([*args, "--device", "cpu"]) == 0
    assert "success" in capsys.readouterr().out

    assert main(train_rl, *ibrl(whole / "latest.pt", tmp_path / "rl")) == 0
    last = read_metrics(tmp_path / "rl" / "metrics.jsonl")[-1]
    assert last["train/critic_loss"] > 0 and 0 <= last["actor/bootstrap_bc"] <= 1


def ibrl(bc_policy: Path, save_dir: Path) -> list[str]:
    options = {
        "suite": "particle",
        "task_name": "PARTICLE_1d",
        "use_state": 1,
        "episode_length": 10,
        "bc_policy": bc_policy,
        "q_agent.act_method": "ibrl",
        "q_agent.num_bc_samples": 3,
        "q_agent.device": "cpu",
        "q_agent.state_critic.hidden_dim": 16,
        "q_agent.state_actor.hidden_dim": 16,
        "num_warm_up_episode": 1,
        "num_train_step": 20,
        "log_per_step": 20,
        "num_eval_episode": 1,
        "batch_size": 16,
        "replay_buffer_size": 10,
        "save_dir": save_dir,
    }
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


def test_the_command_line_knows_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(train_bc, "--help", "--policy_type", "toy", "--dataset.use_state", "1")
    shown = capsys.readouterr().out
    assert done.value.code == 0 and "--toy.noise" in shown and "--ebm." not in shown
    assert "standard deviation of drawn actions" in shown
    for args, message in (
        (["--toy.noise", "-1"], "toy.noise: -1.0, expected 0 or more"),
        (["--dataset.use_state", "0"], "policy_type: toy does not work with dataset.use_state 0"),
        (["--mse.net.width", "8"], "--mse.net.width: an option of policy_type mse.* is toy"),
    ):
        with pytest.raises(run_config.ConfigError, match=message):
            given = ["--policy_type", "toy", "--dataset.use_state", "1", *args]
            run_config.parse_args(train_bc.MainConfig, given)

"""A new agent is one file (``toy_agent.py``) and one row: everything else is there.

It is trained by ``train_rl.py``'s own main on demonstrations and with a BC policy's proposals,
stopped, resumed, loaded and evaluated.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))

import toy_agent

import train_bc
import train_rl
from common_utils import run_config
from common_utils.errors import run_program
from common_utils.records import read_metrics
from evaluate import eval as evaluation
from rl.registry import AGENTS
from tools import collect_oracle


@pytest.fixture(autouse=True)
def _row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AGENTS, "toy", toy_agent.ROW)


def main(program: object, options: dict[str, object], *flags: str) -> int:
    words = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["program", *words, *flags])
        return run_program(program.main)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demos")
    collect_oracle.collect(collect_oracle.MainConfig(task="PARTICLE_1d", num=4, out=str(folder)))
    return folder / "dataset.hdf5"


@pytest.fixture(scope="module")
def bc_policy(demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bc") / "run"
    options = {
        "policy_type": "state",
        "dataset.use_state": 1,
        "dataset.path": demos,
        "state_policy.hidden_dim": 16,
        "device": "cpu",
        "num_epoch": 1,
        "epoch_len": 10,
        "num_eval_episode": 0,
        "save_dir": folder,
    }
    assert main(train_bc, options) == 0
    return folder / "latest.pt"


def options(demos: Path, bc_policy: Path, save_dir: Path, **more: object) -> dict[str, object]:
    return {
        "agent": "toy",
        "toy.width": 8,
        "toy.device": "cpu",
        "toy.num_bc_samples": 2,
        "suite": "particle",
        "task_name": "PARTICLE_1d",
        "use_state": 1,
        "episode_length": 10,
        "bc_policy": bc_policy,
        "preload_datapath": demos,
        "preload_num_data": 2,
        "mix_rl_rate": 0.5,
        "num_warm_up_episode": 1,
        "num_train_step": 40,
        "log_per_step": 20,
        "num_eval_episode": 1,
        "batch_size": 16,
        "replay_buffer_size": 10,
        "save_dir": save_dir,
        **more,
    }


def test_it_trains_resumes_and_plays(
    demos: Path, bc_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(train_rl, options(demos, bc_policy, whole)) == 0
    last = read_metrics(whole / "metrics.jsonl")[-1]
    assert last["train/critic_loss"] > 0 and 0 <= last["actor/bootstrap_bc"] <= 1
    tree = yaml.safe_load((whole / "cfg.yaml").read_text())
    assert tree["agent"] == "toy" and tree["toy"]["width"] == 8 and "q_agent" not in tree

    assert main(train_rl, options(demos, bc_policy, parts, num_train_step=20)) == 0
    assert main(train_rl, options(demos, bc_policy, parts, resume=1)) == 0
    a, b = (torch.load(run / "latest.pt", weights_only=True) for run in (whole, parts))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert {k.split(".")[0] for k in a} == {"critic", "actor"}

    agent, env, _ = train_rl.load_model(str(whole / "latest.pt"), "cpu")
    env.close()
    assert isinstance(agent, toy_agent.ToyAgent) and agent.num_bc_action == 2
    capsys.readouterr()
    args = ["--mode", "rl", "--weight", str(whole / "latest.pt"), "--num_game", "1", "--mp", "0"]
    assert evaluation.main([*args, "--device", "cpu"]) == 0
    assert "success" in capsys.readouterr().out


def test_the_command_line_knows_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(train_rl, {"agent": "toy", "use_state": 1}, "--help")
    shown = capsys.readouterr().out
    assert done.value.code == 0 and "--toy.lr" in shown and "--q_agent." not in shown
    for args, message in (
        (["--toy.width", "0"], "toy.width: 0, expected at least 1"),
        (["--use_state", "0"], "agent: toy does not go with use_state 0"),
        (["--q_agent.lr", "1"], "--q_agent.lr: an option of agent q_agent.* is toy"),
        (
            ["--pretrain_num_epoch", "1", "--preload_num_data", "1"],
            "pretrain_num_epoch: 1, expected 0: the agent toy has no such phase",
        ),
    ):
        with pytest.raises(run_config.ConfigError, match=message):
            run_config.parse_args(
                train_rl.MainConfig, ["--agent", "toy", "--use_state", "1", *args]
            )

"""A new agent is one file (``toy_agent.py``) and one row: everything else is there.

It is trained by ``train_rl.py``'s own main on demonstrations and with a BC policy's proposals,
killed, resumed, loaded and evaluated. Configurations of when there was one agent still load.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests import forkserver

sys.path.insert(0, str(Path(__file__).parent))

import toy_agent

import train_bc
import train_rl
from common_utils import run_config
from common_utils.errors import run_program
from common_utils.records import read_metrics
from evaluate import eval as evaluation
from rl.q_agent import QAgent
from rl.registry import AGENTS
from tools import collect_oracle

# train_rl.py with the row, killed in the update of that number
KILLED = """
import os, signal, sys
number = int(sys.argv.pop(1))
import toy_agent, train_rl
from rl.q_agent import QAgent
from rl.registry import AGENTS
AGENTS["toy"] = toy_agent.ROW
update, done = toy_agent.ToyAgent.update, []
def one(*args, **more):
    done.append(1)
    if len(done) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return update(*args, **more)
toy_agent.ToyAgent.update = one
train_rl.main()
"""


@pytest.fixture(autouse=True)
def _row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(AGENTS, "toy", toy_agent.ROW)


def as_words(options: dict[str, object]) -> list[str]:
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


def main(program: object, options: dict[str, object], *flags: str) -> int:
    words = as_words(options)
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


# what both agents are trained with here
TASK = {"suite": "particle", "task_name": "PARTICLE_1d", "use_state": 1, "episode_length": 10}
QUICK = {"log_per_step": 20, "num_eval_episode": 1, "batch_size": 16, "replay_buffer_size": 10}


def options(demos: Path, bc_policy: Path, save_dir: Path, **more: object) -> dict[str, object]:
    return {
        **TASK,
        **QUICK,
        "agent": "toy",
        "toy.width": 8,
        "toy.device": "cpu",
        "toy.num_bc_samples": 2,
        "bc_policy": bc_policy,
        "preload_datapath": demos,
        "preload_num_data": 2,
        "mix_rl_rate": 0.5,
        "num_warm_up_episode": 1,
        "num_train_step": 40,
        "save_dir": save_dir,
        **more,
    }


def q_agent_options(save_dir: Path, steps: int, **more: object) -> dict[str, object]:
    return {
        **TASK,
        **QUICK,
        "q_agent.device": "cpu",
        "q_agent.state_actor.hidden_dim": 8,
        "q_agent.state_critic.hidden_dim": 8,
        "num_warm_up_episode": 2,
        "num_train_step": steps,
        "save_dir": save_dir,
        **more,
    }


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def equal_weights(one: Path, other: Path) -> bool:
    a, b = (torch.load(run / "latest.pt", weights_only=True) for run in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_trains_resumes_and_plays(
    demos: Path, bc_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(train_rl, options(demos, bc_policy, whole)) == 0
    last = read_metrics(whole / "metrics.jsonl")[-1]
    assert last["train/critic_loss"] > 0 and 0 <= last["actor/bootstrap_bc"] <= 1
    tree = yaml.safe_load((whole / "cfg.yaml").read_text())
    assert tree["agent"] == "toy" and tree["toy"]["width"] == 8 and "q_agent" not in tree

    words = ["-c", KILLED, "15", *as_words(options(demos, bc_policy, killed))]
    child = forkserver.run(*words, variables=environment(), folder=Path(__file__).parent)
    assert child.returncode == -signal.SIGKILL
    assert read_metrics(killed / "metrics.jsonl")[-1]["step"] == 20
    assert (
        main(train_rl, options(demos, bc_policy, killed, resume=1, **{"toy.device": "auto"})) == 0
    )
    assert equal_weights(whole, killed)
    weights = torch.load(whole / "latest.pt", weights_only=True)
    assert {k.split(".")[0] for k in weights} == {"critic", "actor"}

    agent, env, _ = train_rl.load_model(str(whole / "latest.pt"), "cpu")
    env.close()
    assert isinstance(agent, toy_agent.ToyAgent) and agent.num_bc_action == 2
    capsys.readouterr()
    args = ["--weight", str(whole / "latest.pt"), "--num_game", "1", "--mp", "0"]
    assert evaluation.main([*args, "--device", "cpu"]) == 0
    assert "success" in capsys.readouterr().out


def test_the_command_line_knows_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(train_rl, {"agent": "toy", "use_state": 1}, "--help")
    shown = capsys.readouterr().out
    assert done.value.code == 0 and "--toy.lr" in shown and "--q_agent." not in shown
    # and no other comment with it
    assert "\n      which agent: q_agent is the one of IBRL" in shown
    assert "agent: expected one of" in refusal(capsys, {"agent": "nobody"}, "--help")


def refusal(capsys: pytest.CaptureFixture[str], options: dict[str, object], *flags: str) -> str:
    """The one line that a program reports instead of running."""
    capsys.readouterr()
    assert main(train_rl, options, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agent": "nobody"}, "q_agent, toy, got 'nobody'"),
        ({"agent": "q_agent"}, "--toy.width: an option of agent toy, but the chosen agent is q_"),
        (
            {"q_agent.lr": 1},
            "--q_agent.lr: an option of agent q_agent, but the chosen agent is toy",
        ),
        ({"toy.widht": 1}, "--toy.widht: unknown option; did you mean toy.width?"),
        ({"toy.width": 0}, "toy.width: 0, expected at least 1"),
        ({"toy.num_bc_samples": 0}, "toy.num_bc_samples: expected an integer within [1, 4096]"),
        ({"use_state": 0}, "agent: toy reads state: expected use_state 1, got 0"),
        ({"pretrain_num_epoch": 1}, "pretrain_num_epoch: 1, expected 0: the agent toy has no"),
        ({"add_bc_loss": 1}, "add_bc_loss: 1, expected 0: the agent toy has no"),
        ({"toy.width": 10**9}, "toy.width: 1000000000, expected less (default 32)"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_does_not_go_together_is_refused_in_a_line(
    changes: dict[str, object],
    message: str,
    demos: Path,
    bc_policy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    assert message in refusal(capsys, options(demos, bc_policy, run, **changes))
    assert not run.exists()


def test_what_the_agent_itself_refuses_is_named_with_its_section(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rft = {"add_bc_loss": 1, "preload_num_data": 1, "preload_datapath": "demos.hdf5"}
    for changes, message in (
        ({"q_agent.norm_state": 1}, "q_agent.norm_state: 1 takes mean and std from demonstrations"),
        ({"q_agent.act_method": "ibrl"}, "q_agent.act_method 'ibrl', q_agent.bootstrap_method ''"),
        ({**rft, "q_agent.bc_loss_dynamic": 1}, "q_agent.bc_loss_dynamic: 1 compares"),
    ):
        assert message in refusal(capsys, q_agent_options(tmp_path / "run", 20, **changes))
        assert not (tmp_path / "run").exists()


def test_a_configuration_from_before_the_choice_loads_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, old = tmp_path / "whole", tmp_path / "old"
    assert main(train_rl, q_agent_options(whole, 40)) == 0
    assert main(train_rl, q_agent_options(old, 20)) == 0
    tree = yaml.safe_load((old / "cfg.yaml").read_text())
    assert tree.pop("agent") == "q_agent"
    (old / "cfg.yaml").write_text(yaml.safe_dump(tree))

    agent, env, _ = train_rl.load_model(str(old / "latest.pt"), "cpu")
    env.close()
    assert isinstance(agent, QAgent) and agent.cfg.state_actor.hidden_dim == 8
    other = {**TASK, **QUICK, "num_warm_up_episode": 2, "save_dir": old, "resume": 1}
    assert main(train_rl, {**other, "agent": "toy"}) == 2
    assert "agent: q_agent -> toy" in capsys.readouterr().err
    assert main(train_rl, q_agent_options(old, 40, resume=1)) == 0
    assert equal_weights(whole, old)


def test_a_run_of_an_agent_that_is_gone_is_refused_by_its_name(
    demos: Path, bc_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert main(train_rl, options(demos, bc_policy, run, num_train_step=20)) == 0
    monkeypatch.delitem(AGENTS, "toy")
    with pytest.raises(run_config.ConfigError, match=r"cfg.yaml: agent: .*q_agent, got 'toy'"):
        train_rl.load_model(str(run / "latest.pt"), "cpu")


def test_weights_of_another_agent_are_refused(
    demos: Path, bc_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(train_rl, q_agent_options(tmp_path / "other", 20)) == 0
    more: dict[str, object] = {"load_pretrained_agent": tmp_path / "other" / "latest.pt"}
    for policy_only in (0, 1):
        more["load_policy_only"] = policy_only
        assert main(train_rl, options(demos, bc_policy, tmp_path / "run", **more)) == 2
        error = capsys.readouterr().err
        assert f"error: load_pretrained_agent: '{more['load_pretrained_agent']}' does not" in error
        assert "ToyAgent" in error and "Traceback" not in error


def test_a_soft_agent_is_also_evaluated_choosing_greedily(bc_policy: Path, tmp_path: Path) -> None:
    more = {"q_agent.act_method": "ibrl_soft", "bc_policy": bc_policy, "num_eval_episode": 2}
    assert main(train_rl, q_agent_options(tmp_path, 20, **more)) == 0
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    difference = last["score/greedy_score"] - last["score/score"]
    assert last["score_diff/greedy-soft"] == pytest.approx(difference)

"""An actor that no update delays, and a learner that keeps the number of updates per step."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train_rl
from common_utils.kept_weights import KeptWeights
from common_utils.run_config import ConfigError, to_dict
from rl.q_agent import QAgent
from tests.runs import metrics
from tests.train import small
from workspace.actor import Actor, Phase
from workspace.actor_play import ActorProcess
from workspace.build_agent import bare_agent
from workspace.rl_config import rl_env_config

POINT = {"suite": "particle", "task_name": "PARTICLE_2d", "goal_tolerance": 2, "episode_length": 7}
PACED = {
    "suite": "gymnasium", "task_name": "tests.train.paced_tasks:paced/Point-v0",
    "gym.success_key": "truncated", "episode_length": 8, "log_per_step": 20, "num_eval_episode": 0,
}  # fmt: skip
SLOW = 1.0  # seconds of an update


def config(save_dir: Path, steps: int = 22, **more: Any) -> train_rl.MainConfig:
    return small.config(save_dir, steps, **{"log_per_step": 11, "actor_learner": 1, **more})


# ------------------------------------------------------------------ the actor alone


def actor_of(tmp_path: Path, **more: Any) -> tuple[Actor, dict[str, np.ndarray]]:
    cfg = config(tmp_path / "run", **POINT, **more)
    env = rl_env_config(cfg)
    settings = {"config": to_dict(cfg), "env": asdict(env), "weights": asdict(KeptWeights())}
    actor = Actor(settings)
    agent = bare_agent(cfg, actor.spec)
    return actor, {k: v.numpy().copy() for k, v in agent.state_dict().items()}


def played(actor: Actor, done: int, number: int, weights: Any = None) -> list[dict[str, Any]]:
    """The next ``number`` steps, after which it waits."""
    news, until = actor.take(done, True, weights), time.monotonic() + 60
    while len(news) < number and time.monotonic() < until:
        news += actor.take(done, True, None)
    news += actor.take(done, True, None)
    assert [kind for kind, _ in news] == ["step"] * number
    return [step for _, step in news]


@pytest.mark.parametrize("lead", [0, 3])
def test_it_is_never_further_ahead(lead: int, tmp_path: Path) -> None:
    actor, weights = actor_of(tmp_path, max_lead=lead)
    actor.begin(vars(Phase(None, 0, 12, 5)), weights)
    played(actor, 0, lead + 1)
    played(actor, 1, 1)
    played(actor, 5, 4)
    played(actor, 12, 12 - (lead + 1) - 5)  # as many as the phase has
    actor.begin(vars(Phase(None, 12, 12, 6)), weights)
    played(actor, 0, lead + 1)
    actor.close()


def test_it_acts_with_the_newest_weights(tmp_path: Path) -> None:
    actor, weights = actor_of(tmp_path, max_lead=0, stddev_max=0)
    bias = next(k for k in reversed(weights) if k.startswith("actor.") and k.endswith("bias"))
    zero = {k: v * 0 if k.startswith("actor.") else v for k, v in weights.items()}

    def action(step: dict[str, Any]) -> np.ndarray:
        return next(args[1] for method, args in step["calls"] if method == "add")

    actor.begin(vars(Phase(None, 0, 9, 0)), zero)
    (first,) = played(actor, 0, 1)
    assert action(first).tolist() == [0, 0]
    (second,) = played(actor, 1, 1, {**zero, bias: zero[bias] + 1})
    assert action(second) == pytest.approx(np.tanh([1, 1]))
    actor.close()


def test_a_warm_up_has_as_many_episodes_as_are_missing(tmp_path: Path) -> None:
    actor, weights = actor_of(tmp_path)
    actor.begin(vars(Phase(2, 0, 9, 0)), weights)
    steps = played(actor, 0, 14)
    assert [s["ended"].length for s in steps if s["ended"]] == [7, 7]
    assert [s["episode"] for s in steps] == [1] * 7 + [2] * 7
    begun = [m for s in steps for m, _ in s["calls"]].count("new_episode")
    assert begun == 2
    actor.close()


# ------------------------------------------------------------------ whole runs


def test_in_turns_it_updates_as_an_ordinary_run(tmp_path: Path) -> None:
    train_rl.run(config(tmp_path / "ordinary", **POINT, actor_learner=0))
    work = train_rl.run(config(tmp_path / "turns", **POINT, max_lead=0))
    keys = ("step", "other/train_step", "other/episode", "data/stddev", "data/episode_len")
    ordinary, turns = metrics(tmp_path / "ordinary"), metrics(tmp_path / "turns")
    assert [[r[k] for k in keys] for r in turns] == [[r[k] for k in keys] for r in ordinary]
    assert all(r["data/actor_lead"] == 0 for r in turns)
    assert set(turns[0]) - set(ordinary[0]) == {"data/actor_lead"}
    assert work.train_step == 11 and work.steps_done == 22
    log = (tmp_path / "turns" / "train.log").read_text()
    assert "an actor in a process of its own, at most 0 steps ahead of the updates" in log


def test_a_slow_update_delays_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the actor is killed, and later it hangs: both times another one plays on. A resumed run
    plays on as well. The number of updates per step stays the same."""
    monkeypatch.setenv("PACED", str(tmp_path))
    update, step, killed = QAgent.update, train_rl.Workspace.step_env, []
    slow = [SLOW]

    def slowly(*args: Any) -> dict[str, torch.Tensor]:
        time.sleep(slow[0])
        return update(*args)

    def losing(work: train_rl.Workspace, choose: Any) -> bool:
        if work.steps_done == 8:  # eight steps with four updates: the actor is ahead, and waits
            slow[0] = 0
        if work.steps_done == 20 and not killed:
            killed.append(work.envs.worker.process.pid)
            os.kill(killed[0], signal.SIGKILL)
            (tmp_path / "hang").touch()
        return step(work, choose)

    monkeypatch.setattr(QAgent, "update", slowly)
    monkeypatch.setattr(train_rl.Workspace, "step_env", losing)
    options = {**PACED, "max_lead": 12, "env_timeout": 3}
    work = train_rl.run(config(tmp_path / "run", 40, **options))
    assert (work.steps_done, work.train_step) == (40, 20)
    assert [r["other/train_step"] for r in metrics(tmp_path / "run")] == [10, 20]
    leads = [r["data/actor_lead"] for r in metrics(tmp_path / "run")]
    assert leads[0] > 3 and max(leads) <= 12

    lines = [line.split() for line in (tmp_path / "times").read_text().splitlines()]
    first = np.diff([float(t) for _, t in lines[8:20]])  # the warm-up has eight steps
    # four updates fall into the time of these steps; had they waited, it would be four seconds
    assert np.median(first) < SLOW / 4 and first.sum() < 2.5 * SLOW
    assert len({pid for pid, _ in lines}) == 3 and not (tmp_path / "hang").exists()

    log = (tmp_path / "run" / "train.log").read_text()
    assert "the actor (process" in log and "was killed by signal 9" in log
    assert "the actor played no step for 3 s; another actor plays on" in log
    assert log.count("steps of an episode are dropped") == 2

    work = train_rl.run(config(tmp_path / "run", 50, **options, resume=1))
    assert (work.steps_done, work.train_step) == (50, 25)


def test_what_it_cannot_do_is_refused(tmp_path: Path, capsys: Any) -> None:
    remote = {"suite": "remote", "remote.url": "ws://127.0.0.1:1", "task_name": "Arm"}
    cfg = config(tmp_path / "run", **remote)
    with pytest.raises(ConfigError, match="num_eval_episode: 1, expected 0 with actor_learner 1"):
        ActorProcess(cfg, rl_env_config(cfg), KeptWeights())
    train_rl.run(config(tmp_path / "run", **POINT, dry_run=1))
    assert "timed one after the other" in capsys.readouterr().out

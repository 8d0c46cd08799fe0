"""An environment in the trainer's process that does not answer any more ends the run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import train_rl
from common_utils import run_config
from tests.runs import metrics, program
from tests.train import small
from workspace import watchdog

OPTIONS = {
    "suite": "gymnasium", "task_name": "tests.train.paced_tasks:paced/Point-v0",
    "gym.success_key": "truncated", "episode_length": 8, "log_per_step": 10, "num_eval_episode": 0,
    "env_timeout": 2,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["sleep", "lock"])
def test_a_hang_ends_the_run_which_then_continues(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PACED", str(tmp_path))
    (tmp_path / "hang").write_text(kind)
    cfg = small.config(tmp_path / "run", 20, **OPTIONS)
    run_config.dump(cfg, tmp_path / "cfg.yaml")
    done = program("train_rl.py", "--config_path", tmp_path / "cfg.yaml", PACED=str(tmp_path))
    assert done.returncode == 2 and not (tmp_path / "hang").exists()
    line = "the environment did not answer for 2 s (env_timeout) in step, at "
    assert line in done.stderr and "paced_tasks.py:" in done.stderr
    assert "Traceback" not in done.stderr
    assert line in (tmp_path / "run" / "train.log").read_text()
    if kind == "lock":
        cfg.resume = 1
        work = train_rl.run(cfg)
        assert work.steps_done == 20 and [r["step"] for r in metrics(tmp_path / "run")] == [10, 20]


def test_short_calls_are_not_one_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(watchdog, "_end", lambda line, log: ended.append(line))
    monkeypatch.setattr(watchdog, "ENVS", str(Path(__file__).parent))

    def step(seconds: float) -> None:
        time.sleep(seconds)

    with watchdog.watched("particle", 0.2, print):
        for _ in range(60):
            step(0.01)
        assert not ended
        step(1.0)
    assert ended and "in step, at " in ended[0] and Path(__file__).name in ended[0]

"""Sweeps through submitit, on its local and debug executors: pytest -m slurm"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from common_utils.errors import ConfigError
from launch import sweep
from launch.engines.slurm import Job, SlurmEngine
from launch.sweep_file import entry_of
from launch.trials import expand
from tests.launch.tiny import RL, assert_as_by_hand, starts

pytestmark = pytest.mark.slurm

LOCAL = ["--engine=slurm", "--engine_option=cluster=local"]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "rl.yaml"
    path.write_text(RL)
    return path


def test_an_array_of_jobs_runs_the_trials(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = [f"--config_path={config}", f"--out={out}", *LOCAL]
    assert sweep.main([*options, "--grid=q_agent.lr=1e-3", "--seeds=0"]) == 0
    found = json.loads((out / "results.json").read_text())
    assert [t["state"] for t in found["trials"]] == ["finished"]
    assert_as_by_hand(out / "rl_q_agent.lr=1e-3_seed0", tmp_path)
    assert list((out / "slurm").glob("*_log.out"))


def test_a_job_that_is_preempted_is_continued_by_its_next_start(
    config: Path, tmp_path: Path
) -> None:
    longer = RL.replace("num_train_step: 24", "num_train_step: 480")
    config.write_text(longer.replace("log_per_step: 12", "log_per_step: 24"))
    out = tmp_path / "out"
    (trial,) = expand([entry_of(str(config), "", "3", [], [])], out)
    engine = SlurmEngine(out, {"cluster": "local"})
    (job,) = engine.submit([trial])
    assert isinstance(job, Job)
    metrics = Path(trial.folder, "metrics.jsonl")
    wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0)
    controller = job._job._process.pid
    (task,) = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(task), signal.SIGUSR2)  # as Slurm does before it takes a node away
    wait_for(lambda: job.poll() is not None)
    outcome = job.poll()
    assert outcome is not None and (outcome.status, outcome.stopped) == (0, False)
    assert starts(out, trial.name) == 2
    log = (out / "logs" / f"{trial.name}.log").read_text()
    assert "SIGTERM at step" in log and "resumed from" in log
    assert_as_by_hand(Path(trial.folder), tmp_path)


def test_jobs_of_a_sweep_that_is_stopped_are_cancelled(config: Path, tmp_path: Path) -> None:
    config.write_text(RL.replace("num_train_step: 24", "num_train_step: 100000"))
    out = tmp_path / "out"
    started = out / "rl_seed1" / "metrics.jsonl"

    def stop() -> None:
        wait_for(lambda: started.exists() and started.stat().st_size > 0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    assert sweep.main([f"--config_path={config}", f"--out={out}", *LOCAL]) == 130
    (trial,) = json.loads((out / "results.json").read_text())["trials"]
    assert trial["state"] == "interrupted" and 0 < trial["step"] < 100000
    log = out / "logs" / "rl_seed1.log"
    wait_for(lambda: "state saved" in log.read_text())


def test_the_debug_executor_runs_in_the_sweep(pretend: str, tmp_path: Path) -> None:
    options = ["--engine=slurm", "--engine_option=cluster=debug", f"--out={tmp_path}"]
    assert sweep.main([f"--program={pretend}", "--seeds=0", *options]) == 0
    assert sweep.main([f"--program={pretend}", "--seeds=1", "--set=task_name=fails", *options]) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cluster": "x"}, "cluster: 'x', expected one of slurm, local, debug"),
        ({"cluster": "slurm"}, "--engine slurm: .*expected the commands of Slurm"),
    ],
)
def test_what_is_refused(settings: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        SlurmEngine(tmp_path, settings)


def wait_for(true: object, within: float = 120) -> None:
    """Until the function returns true."""
    assert callable(true)
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, "too late"
        time.sleep(0.05)

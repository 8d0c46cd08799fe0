"""Sweeps on this machine: skipped, resumed, failed and stopped trials; real runs end to end."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import train_bc
import train_rl
from common_utils import run_config
from common_utils.errors import ConfigError, run_program
from common_utils.folder_lock import FolderLock, holder_of
from launch import sweep
from launch.attempt import Attempt, wait_until_free
from launch.engines.local import LocalEngine
from launch.needs import own_memory, rl_memory
from launch.sweep_file import entry_of
from launch.trials import expand
from tests.launch.tiny import RL
from tests.runs import assert_same_run
from tools import collect_oracle

GIB = 1 << 30


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def states(out: Path) -> dict[str, str]:
    return {t["name"]: t["state"] for t in results(out)["trials"]}


def starts(out: Path, name: str) -> int:
    return len((out / name / "started").read_text().splitlines())


def pretend_sweep(out: Path, *options: str) -> int:
    return sweep.main(["--program=pretend", f"--out={out}", *options])


# ------------------------------------------------------------------------- what becomes of trials


def test_finished_trials_are_skipped_and_failed_ones_tried_again(
    pretend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert pretend_sweep(out, "--seeds=0", "--grid=task_name=works,fails_once") == 1
    printed = capsys.readouterr().out
    assert "pretend_task_name=works_seed0: finished, score 0.1\n" in printed
    assert "pretend_task_name=fails_once_seed0: failed, exit status 3; the end of" in printed
    assert "    something\n    went wrong here\\x1b[2J\n" in printed
    assert "1 finished, 1 failed of 2 trials" in printed
    assert pretend_sweep(out, "--seeds=0", "--grid=task_name=works,fails_once,new") == 0
    printed = capsys.readouterr().out
    assert "pretend_task_name=works_seed0: finished before, score 0.1\n" in printed
    assert "3 finished of 3 trials" in printed
    assert set(states(out).values()) == {"finished"}
    assert starts(out, "pretend_task_name=works_seed0") == 1
    assert starts(out, "pretend_task_name=fails_once_seed0") == 2
    assert starts(out, "pretend_task_name=new_seed0") == 1
    assert holder_of(out) == ""


def test_a_trial_of_another_configuration_is_not_finished(pretend: str, tmp_path: Path) -> None:
    for epochs, expected in ((1, 1), (1, 1), (2, 2)):
        assert pretend_sweep(tmp_path, f"--set=num_epoch={epochs}") == 0
        assert starts(tmp_path, "pretend_seed1") == expected


def test_numbers_are_rliable_s(pretend: str, tmp_path: Path) -> None:
    assert pretend_sweep(tmp_path, "--seeds=0:5") == 0
    (group,) = results(tmp_path)["groups"].values()
    # scores 0.1 to 0.5; a quarter of five, rounded down, is cut at each end
    assert group["iqm"] == pytest.approx(0.3) and group["mean"] == pytest.approx(0.3)
    low, high = group["interval"]
    assert 0.1 <= low < 0.25 and 0.35 < high <= 0.5
    assert (group["runs"], group["step"]) == (5, 10)
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_run_that_cannot_be_read_costs_only_its_own_result(pretend: str, tmp_path: Path) -> None:
    options = ("--grid=lr=1e-3,2e-3", "--seeds=0")
    assert pretend_sweep(tmp_path, *options) == 0
    (tmp_path / "pretend_lr=1e-3_seed0" / "metrics.jsonl").unlink()
    assert pretend_sweep(tmp_path, *options) == 0
    assert set(results(tmp_path)["groups"]) == {"pretend lr=2e-3"}
    assert "it has no metrics.jsonl" in results(tmp_path)["notes"][0]


def test_what_needs_a_failed_trial_is_not_run(pretend: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("""
trials:
  last: {program: pretend, needs: {load_model: bad}}
  bad: {program: pretend, options: {task_name: fails}, needs: {load_model: good}}
  good: {program: pretend}
  other: {program: pretend, needs: {load_model: [good, good/latest.pt]}}
""")
    out = tmp_path / "out"
    assert sweep.main([f"--file={file}", f"--out={out}"]) == 1
    assert states(out) == {
        "good_seed1": "finished", "other_seed1": "finished", "bad_seed1": "failed",
        "last_seed1": "not run",
    }  # fmt: skip
    assert not (out / "last_seed1").exists()


def test_a_signal_stops_the_trials_and_the_next_start_continues(
    pretend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--seeds=0:2", "--set=task_name=waits", "--num_parallel=1")
    started = tmp_path / "pretend_seed0" / "started"

    def stop() -> None:
        deadline = time.monotonic() + 60
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    assert pretend_sweep(tmp_path, *options) == 130
    thread.join()
    assert states(tmp_path) == {"pretend_seed0": "interrupted", "pretend_seed1": "waiting"}
    assert (tmp_path / "pretend_seed0" / "saved").exists()
    assert "SIGTERM: the trials have saved their states" in capsys.readouterr().out
    assert started.read_text() == "resume=1\n"


def test_trials_of_a_killed_sweep_save_their_state(pretend: str, tmp_path: Path) -> None:
    (trial,) = expand([entry_of("", pretend, "0", ["task_name=waits"], [])], tmp_path)

    def sweep_that_dies() -> None:
        Attempt(trial, tmp_path)
        while not Path(trial.folder, "started").exists():
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=sweep_that_dies)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while not Path(trial.folder, "saved").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ------------------------------------------------------------------------- memory


def test_a_trial_waits_for_memory(
    pretend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.engines.local.memory_of", lambda trial: GIB)
    one, two = expand([entry_of("", pretend, "0:2", ["task_name=waits"], [])], tmp_path)
    engine = LocalEngine(tmp_path, {})
    (handle,) = engine.submit([one])
    for free, fits in ((1.9 * GIB, False), (2.2 * GIB, True)):
        monkeypatch.setattr("launch.engines.local.available_memory", lambda free=free: free)
        assert engine.has_memory(two, [one]) is fits
        assert engine.has_memory(two, [])
    handle.stop()
    while handle.poll() is None:
        time.sleep(0.02)


def test_memory_is_that_of_the_program_s_parts(tmp_path: Path) -> None:
    cfg = tmp_path / "rl.yaml"
    cfg.write_text(RL)
    args = [f"--config_path={cfg}"]
    small = rl_memory(run_config.parse_args(train_rl.MainConfig, args))
    args.append("--replay_buffer_size=1000500")
    large = rl_memory(run_config.parse_args(train_rl.MainConfig, args))
    # at least the states, actions and rewards of a million episodes more, of 17 steps each
    assert 17e6 * 4 * (8 + 2 + 1) <= large - small < 17e6 * 4 * (8 + 2 + 1) * 2
    assert small > own_memory() - GIB


# ------------------------------------------------------------------------- refused


def test_a_folder_in_use_is_refused(pretend: str, tmp_path: Path) -> None:
    (tmp_path / "pretend_seed1").mkdir()
    lock = FolderLock(tmp_path / "pretend_seed1")
    lock.acquire()
    try:
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on"):
            pretend_sweep(tmp_path)
        with pytest.raises(Exception, match="in use by process .*, expected to be free"):
            wait_until_free(tmp_path / "pretend_seed1", within=0.1)
    finally:
        lock.release()
    whole = FolderLock(tmp_path)
    whole.acquire()
    try:
        with pytest.raises(ConfigError, match="--out: .* is in use by"):
            pretend_sweep(tmp_path)
    finally:
        whole.release()
    assert pretend_sweep(tmp_path) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--file=x.yaml", "--seeds=0"], "--seeds: given with --file, expected one of the two"),
        (["--file=x.yaml"], "--file: cannot read 'x.yaml': No such file"),
        (["--config_path=x.yaml"], "--config_path: cannot read '"),
        ([], "--program: no configuration and no program"),
        (["--program=train_bc", "--engine_option=cpus=3"], "--engine_option: cpus: not one of"),
        (["--program=train_bc", "--num_parallel=-1"], "--num_parallel: expected an integer"),
    ],
)
def test_options_that_are_refused(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = run_program(sweep.main, [*options, f"--out={tmp_path / 'out'}"])
    except SystemExit as error:
        status = int(str(error.code))
    printed = capsys.readouterr().err
    assert (status, printed.count("\n")) == (2, 1) and message in printed


# ------------------------------------------------------------------------- real runs


def test_bc_then_rl_are_the_runs_made_by_hand(tmp_path: Path) -> None:
    """Bit for bit, and with the weights of the BC trial."""
    demos = tmp_path / "demos"
    collect_oracle.collect(collect_oracle.MainConfig("PARTICLE_2d", 3, 0, out=str(demos)))
    (tmp_path / "rl.yaml").write_text(RL)
    (tmp_path / "sweep.yaml").write_text(f"""
seeds: [3]
trials:
  bc:
    program: train_bc
    options:
      policy_type: mse
      dataset: {{use_state: 1, path: {demos}/dataset.hdf5}}
      device: cpu
      num_epoch: 1
      epoch_len: 10
      num_eval_episode: 0
  rl: {{config: rl.yaml, needs: {{bc_policy: bc}}, options: {{q_agent.act_method: ibrl}}}}
""")
    out = tmp_path / "out"
    assert sweep.main([f"--file={tmp_path}/sweep.yaml", f"--out={out}"]) == 0
    found = results(out)
    assert [t["step"] for t in found["trials"]] == [10, 24]
    assert found["groups"]["rl"]["tasks"].keys() == {"particle/PARTICLE_2d"}
    assert found["notes"] == ["bc_seed3: was not evaluated"]
    hand = tmp_path / "hand"
    bc = run_config.load(train_bc.MainConfig, out / "bc_seed3" / "cfg.yaml")
    bc.save_dir, bc.resume = str(hand / "bc"), 0
    train_bc.run(bc)
    rl = run_config.load(train_rl.MainConfig, out / "rl_seed3" / "cfg.yaml")
    assert rl.bc_policy == str(out / "bc_seed3" / "model0.pt")
    rl.save_dir, rl.resume, rl.bc_policy = str(hand / "rl"), 0, str(hand / "bc" / "model0.pt")
    train_rl.run(rl)
    assert_same_run(out / "bc_seed3", hand / "bc")
    assert_same_run(out / "rl_seed3", hand / "rl")

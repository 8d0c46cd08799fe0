"""The check for accelerators runs on a CPU, and survives parts that fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import device, device_parts
from networks import graphs
from tests import forkserver
from tests.runs import env

ROOT = Path(__file__).resolve().parents[2]


def check(out: Path, *args: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the script as a user would; what it printed and its report."""
    done = subprocess.run(
        [str(ROOT / "benchmarks" / "device_check.sh"), "--device", "cpu", "--quick", *args],
        cwd=out, env={**os.environ, "MUJOCO_GL": "disabled", "OUT": str(out)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done, json.loads((out / device.RESULTS).read_text())


def test_a_part_that_fails_is_recorded_and_the_others_run(tmp_path: Path) -> None:
    done, report = check(tmp_path, "--only", "can", "--only", "waits")
    assert done.returncode == 1, done.stderr
    found = report["parts"]
    assert {k: v["status"] for k, v in found.items()} == {"can": "failed", "waits": "ok"}
    assert "MUJOCO_GL" in found["can"]["reason"]  # disabled above: nothing can be rendered
    assert "can      failed" in done.stdout and "===== can" in (tmp_path / device.LOG).read_text()
    waits = found["waits"]["results"]["small_state, resident"]
    assert waits["wait_ms"] == waits["with its batch"]["ms"] - waits["update"]["ms"]
    assert (report["torch"], report["device"]) == (torch.__version__, "cpu")
    assert sorted(p.name for p in tmp_path.iterdir()) == [device.RESULTS, device.LOG]


QUICK = device_parts.Task("cpu", True, float("inf"))


def test_updates_are_timed_as_they_are_and_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "BACKEND", graphs.BACKEND)  # put back afterwards
    (case,) = dict(device_parts.updates(QUICK)).values()
    assert set(case) == {"critic update", "critic + actor update", "act"}
    assert all(0 < c["ms_least"] <= c["ms"] <= c["ms_most"] for c in case.values())
    found = dict(device_parts.compiled(QUICK))
    graph, plain = found["small_state, default"]["act"], found["small_state, off"]["act"]
    assert graph["times_faster"] == plain["ms"] / graph["ms"]


def test_batches_and_implicit_bc_are_timed() -> None:
    assert set(found := dict(device_parts.replays(QUICK))) == {
        f"{what}, {how}" for what in ("state", "pixel") for how in ("copied", "resident")
    }
    assert all(f["bytes_per_second"] > 0 for f in found.values())
    found = dict(device_parts.bc_steps(QUICK))
    assert {k: set(v) for k, v in found.items()} == {
        "robomimic_bc/can_state": {"step"}, "particle/mlp_mse": {"training step", "action"}
    }  # fmt: skip


def test_a_part_that_hangs_is_stopped(tmp_path: Path) -> None:
    args = device.options().parse_args(["--device", "cpu", "--quick", "--out", str(tmp_path)])
    with open(tmp_path / "log", "a") as log:
        outcome = device.run_part("update", 0.2, args, log)
    assert (outcome.status, outcome.results) == ("timed out", None)
    assert 0.2 <= outcome.seconds < 5


def test_a_check_that_is_ended_leaves_nothing_running(tmp_path: Path) -> None:
    command = ["--device", "cpu", "--quick", "--only", "update", "--out", str(tmp_path)]
    process = forkserver.Program(["-m", "benchmarks.device", *command], env())
    deadline = time.monotonic() + 60
    while not (parts := running(str(tmp_path), "--part")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert len(parts) == 1 and not running(str(tmp_path))


def running(*words: str) -> list[str]:
    """Command lines of programs with these words."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_text().split("\0")
        except OSError:  # it has ended
            continue
        found += [" ".join(line)] if set(words) <= set(line) else []
    return found


def test_all_parts_fit_into_eight_minutes() -> None:
    assert sum(part.seconds for part in device_parts.PARTS.values()) <= 480


def test_a_case_that_fails_does_not_stop_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> dict[str, Any]:
        raise RuntimeError("no such operation\nand more")

    assert device_parts.measured(QUICK, fail) == {"error": "RuntimeError: no such operation"}
    assert "no such operation" in capsys.readouterr().err
    assert device_parts.measured(QUICK, lambda: {"ms": 1.0}) == {"ms": 1.0}
    late = device_parts.Task("cpu", True, 0.0)
    assert "left_out" in device_parts.measured(late, fail)


def test_a_bare_machine_is_set_up_first(tmp_path: Path) -> None:
    """A python without torch, as a system has; set_env.sh gives another."""
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "device_check.sh", tmp_path / "benchmarks")
    for name, script in (("bare", "exit 1"), ("ready", 'echo "run: $*, rendering: $MUJOCO_GL"')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "python").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name / "python").chmod(0o755)
    set_up = f"export PATH='{tmp_path}/ready':$PATH MUJOCO_GL=osmesa\n"
    (tmp_path / "set_env.sh").write_text(f"{set_up}sleep 1.1\necho set up\n")
    done = subprocess.run(
        [str(tmp_path / "benchmarks" / "device_check.sh"), "--out", "x"], cwd="/",
        env={"PATH": f"{tmp_path}/bare:/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, said, ran = done.stdout.splitlines()
    assert said == "set up"
    options = re.fullmatch(
        r"run: -m benchmarks.device --seconds (\d+) --out x, rendering: osmesa", ran
    )
    assert options is not None and 470 <= int(options[1]) < 480  # its time counts
    (tmp_path / "set_env.sh").write_text("return 1\n")
    done = subprocess.run(
        [str(tmp_path / "benchmarks" / "device_check.sh")],
        env={"PATH": f"{tmp_path}/bare:/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr == "device_check: ERROR: set_env.sh failed\n"


def test_every_test_for_a_gpu_is_run() -> None:
    assert sorted(device_parts.TESTS) == sorted(p.name for p in (ROOT / "tests/gpu").glob("test_*"))


def test_failed_tests_are_named(tmp_path: Path) -> None:
    (tmp_path / "test_x.py").write_text("def test_a(): pass\ndef test_b(): assert 0\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=x.xml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True)
    found = device_parts._counts(tmp_path / "x.xml", done.returncode)
    assert (found["tests"], found["failures"], found["failed"]) == (2, 1, ["test_x::test_b"])
    assert found["error"] == "1 tests failed"
    assert "no results" in device_parts._counts(tmp_path / "none.xml", 3)["error"]


def test_every_release_configuration_is_measured() -> None:
    cases = device_parts.ordered_cases()
    assert sorted(cases) == sorted(device_parts.update.rl_cases())
    assert cases[0] == "robomimic_rl/can_ibrl"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported(tmp_path: Path) -> None:
    words = ["-m", "benchmarks.device", "--device", "cuda", "--out", str(tmp_path)]
    done = forkserver.run(*words, variables=env())
    assert done.returncode == 2
    assert done.stderr.startswith("error: --device: ") and not list(tmp_path.iterdir())

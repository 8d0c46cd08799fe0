from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common_utils import doctor

ROOT = Path(__file__).parents[2]


def run_doctor(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "common_utils.doctor", *args],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_this_machine_is_usable_and_everything_is_looked_at() -> None:
    done = run_doctor("--json")
    assert done.returncode == 0, done.stdout + done.stderr
    findings = {f["name"]: f for f in json.loads(done.stdout)}
    assert {
        "ibrl", "Python", "torch", "mujoco", "metaworld", "robosuite", "CUDA", "C++ compiler",
        "C++ replay core", "C++ kernels", "C++ energy networks", "C++ control loop",
        "GL rendering", "Memory", "Disk",
        "OMP_NUM_THREADS", "PYTHONPATH",
    } <= set(findings)  # fmt: skip
    assert findings["C++ replay core"]["status"] != "problem"
    assert all(f["advice"] for f in findings.values() if f["status"] == "problem")
    assert "egl" in findings["GL rendering"]["found"]


def test_the_table_says_the_verdict(capsys: pytest.CaptureFixture) -> None:
    doctor.report([doctor.Finding("x", doctor.NOTE, "[brackets] survive", "do this")])
    said = capsys.readouterr().out
    assert "[brackets] survive" in said
    assert "do this" in said


def test_a_missing_package_is_a_problem_with_its_remedy(tmp_path: Path) -> None:
    # an interpreter that has none of our packages, as on a fresh machine
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True)
    done = subprocess.run(
        [str(tmp_path / "bin" / "python"), "-m", "common_utils.doctor"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert "problem  torch: not installed -> source set_env.sh" in done.stdout
    assert "Not usable yet: numpy; torch;" in done.stdout


def test_missing_kernels_are_slower_but_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "common_utils.kernels", None)  # as if it were not built
    found = next(f for f in doctor.check_kernels() if f.name == "C++ kernels")
    assert found.status == doctor.NOTE
    assert "make" in found.advice


def test_a_name_that_another_package_took_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ibrl", "other"):
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "top_level.txt").write_text("tools\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    found = doctor.check_names()
    assert (found.status, "tools (other)" in found.found) == (doctor.PROBLEM, True)
    (tmp_path / "other-1.dist-info" / "top_level.txt").write_text("others\n")
    assert doctor.check_names().status == doctor.OK


def test_a_check_that_fails_becomes_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_broken() -> doctor.Finding:
        raise OSError("driver gone")

    monkeypatch.setattr(doctor, "check_cuda", check_broken)
    found = {f.name: f for f in doctor.examine()}
    assert found["broken"].status == doctor.PROBLEM
    assert "driver gone" in found["broken"].found

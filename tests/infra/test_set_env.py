"""set_env.sh, for real, on a small project of its own: no requirements, a module built by touch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKEFILE = """
here := $(dir $(lastword $(MAKEFILE_LIST)))
all:
\ttest -z "$$BREAK_BUILD"
\tcd $(here) && touch rela.so kernels.so osc.so ebm_kernels.so
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "a-project"
version = "1"
"""
# a build backend that needs no package: an editable wheel with a console command
BACKEND = """
import zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "a_project-1-py3-none-any.whl"
    info = {
        "METADATA": "Metadata-Version: 2.1\\nName: a-project\\nVersion: 1\\n",
        "WHEEL": "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        "entry_points.txt": "[console_scripts]\\na-command = common_utils.gl:main\\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        for file, text in info.items():
            wheel.writestr(f"a_project-1.dist-info/{file}", text)
    return name
"""
SHELLS = [
    "bash",
    pytest.param("zsh", marks=pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh here")),
]
SHOW = 'echo "P=$PYTHONPATH O=$OMP_NUM_THREADS G=$MUJOCO_GL V=$VIRTUAL_ENV W=$(command -v python)"'


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("a project")  # a blank in the path, as users have
    (root / "common_utils").mkdir()
    (root / "csrc").mkdir()
    shutil.copy(ROOT / "set_env.sh", root)
    (root / "requirements.txt").write_text("# nothing\n")
    (root / "pyproject.toml").write_text(PYPROJECT)
    (root / "backend.py").write_text(BACKEND)
    (root / "setup.py").touch()
    (root / "csrc" / "a.cc").write_text("int a;\n")
    (root / "common_utils" / "Makefile").write_text(MAKEFILE)
    (root / "common_utils" / "__init__.py").touch()
    (root / "common_utils" / "gl.py").write_text("main = print\nprint('disabled')\n")
    done = source(root, SHOW)
    assert done.returncode == 0, done.stderr
    assert "creating" in done.stdout
    return root


def source(
    root: Path,
    then: str,
    shell: str = "bash",
    before: str = "",
    cwd: Path | None = None,
    **env: str,
) -> subprocess.CompletedProcess[str]:
    """A clean login-like shell that sources the script and continues with ``then``."""
    clean = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
    # the interpreter's own environment must not look active, nor its programs shadow the system's
    clean["PATH"] = os.pathsep.join(
        [p for p in clean["PATH"].split(os.pathsep) if p != str(Path(sys.prefix) / "bin")]
    )
    script = f"{before}\nsource '{root}/set_env.sh'\n{then}\n"
    return subprocess.run(
        [shell, "-c", script],
        cwd=cwd or root,
        env={**clean, "SET_ENV_NO_APT": "1", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("before", ["", "set -eu", "set -eu; set -o pipefail"])
def test_ready_from_anywhere_and_quick_when_nothing_changed(
    project: Path, tmp_path: Path, shell: str, before: str
) -> None:
    start = time.monotonic()
    done = source(project, SHOW + "; echo $-", shell, before, cwd=tmp_path)
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said, shown, flags = done.stdout.splitlines()
    assert said.startswith("set_env: ready: ")
    venv = project / ".venv"
    assert shown == f"P={project} O=1 G=disabled V={venv} W={venv}/bin/python"
    assert ("e" in flags) == ("-e" in before)
    assert seconds < 2


@pytest.mark.parametrize("shell", SHELLS)
def test_repeating_changes_nothing(project: Path, shell: str) -> None:
    again = f"source '{project}/set_env.sh'\n{SHOW}\nset | grep -c '^_setup\\|^_set_env' || true"
    done = source(project, again, shell, PYTHONPATH="/mine")
    lines = done.stdout.splitlines()
    assert lines[0] == lines[1]
    assert lines[2].startswith(f"P={project}:/mine O=1 ")
    assert lines[3] == "0"  # leaves no functions behind


def test_a_changed_source_is_built_and_a_failed_build_leaves_the_shell_alive(project: Path) -> None:
    with open(project / "csrc" / "a.cc", "a") as handle:
        handle.write("int b;\n")
    broken = source(project, 'echo "status=$?"; echo alive', BREAK_BUILD="1")
    assert broken.returncode == 0
    assert "status=1\nalive" in broken.stdout
    assert "the C++ module did not build" in broken.stderr
    repaired = source(project, "echo status=$?")
    assert "building the C++ module" in repaired.stdout
    assert "status=0" in repaired.stdout
    assert "building" not in source(project, ":").stdout


def test_failed_requirements_are_named(project: Path) -> None:
    old = (project / "requirements.txt").read_text()
    (project / "requirements.txt").write_text("./no-such-package-folder\n")
    try:
        done = source(project, "echo status=$?")
    finally:
        (project / "requirements.txt").write_text(old)
    assert "status=1" in done.stdout
    assert "pip install -r requirements.txt failed" in done.stderr


def test_the_command_is_installed(project: Path) -> None:
    assert "disabled" in source(project, "a-command").stdout


def test_an_index_that_lacks_a_package_is_no_warning(project: Path, tmp_path: Path) -> None:
    old = (project / "requirements.txt").read_text()
    (project / "requirements.txt").write_text("no-such-package-at-all\n")
    try:
        done = source(
            project,
            "echo status=$?",
            PIP_INDEX_URL=f"file://{tmp_path}/none",
            PIP_EXTRA_INDEX_URL=f"file://{tmp_path}/nor",
        )
    finally:
        (project / "requirements.txt").write_text(old)
    assert "status=1" in done.stdout
    assert "WARNING" not in done.stdout + done.stderr
    # pip's own words about what is wrong are still printed
    assert "No matching distribution found for no-such-package-at-all" in done.stderr


@pytest.mark.parametrize("kind", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_is_used(project: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(project, tmp_path / "p", ignore=shutil.ignore_patterns(".venv", ".cache"))
    active = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", str(active)], check=True)
    done = source(tmp_path / "p", "echo status=$?", **{kind: str(active)})
    assert f"using the active environment {active}" in done.stdout
    assert f"ready: {active}," in done.stdout
    assert "status=0" in done.stdout
    assert not (tmp_path / "p" / ".venv").exists()


def test_an_active_environment_of_another_python_is_refused(project: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1 && exit 0\nexit 1\n')
    python.chmod(0o755)
    done = source(project, "echo status=$?", VIRTUAL_ENV=str(tmp_path))
    assert "status=1" in done.stdout
    assert "has Python 3.8.1, Python 3.10 to 3.12 is needed" in done.stderr


def test_a_python_that_does_not_run_is_passed_over(project: Path, tmp_path: Path) -> None:
    for name in ("python3", "python3.12", "python3.11", "python3.10"):
        shim = tmp_path / name
        shim.write_text("#!/bin/sh\nexit 127\n")
        shim.chmod(0o755)
    other = tmp_path / "p"
    shutil.copytree(project, other, ignore=shutil.ignore_patterns(".venv", ".cache"))
    done = source(other, "echo status=$?", PATH=f"{tmp_path}:/usr/bin:/bin")
    # either a system Python of the right version serves, or its absence is said
    if "status=0" in done.stdout:
        assert "creating" in done.stdout
    else:
        assert "no Python 3.10 to 3.12 found" in done.stderr or "cannot create" in done.stderr


def test_a_moved_project_makes_its_environment_anew(project: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(project, moved, symlinks=True)
    done = source(moved, SHOW)
    assert "is broken or was moved" in done.stdout
    assert f"V={moved}/.venv" in done.stdout


def test_the_users_gl_choice_stays_and_ours_is_renewed(project: Path) -> None:
    assert "G=egl" in source(project, SHOW, MUJOCO_GL="egl").stdout
    stamps = [p for p in (project / ".cache/set_env").iterdir() if p.suffix == ""]
    for stamp in stamps:
        stamp.write_text(stamp.read_text().replace("disabled", "osmesa"))
    try:
        ours = source(project, SHOW, MUJOCO_GL="disabled", _SET_ENV_GL="disabled")
    finally:
        for stamp in stamps:
            stamp.write_text(stamp.read_text().replace("osmesa", "disabled"))
    assert "G=osmesa" in ours.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_run_instead_of_sourced(project: Path, shell: str) -> None:
    done = subprocess.run([shell, str(project / "set_env.sh")], capture_output=True, text=True)
    assert done.returncode == 1
    assert "source this file instead" in done.stderr

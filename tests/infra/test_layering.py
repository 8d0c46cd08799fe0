"""``lint-imports`` keeps rooms free of circles: it fails on one, whatever it is made of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:  # import-linter brings it
    import tomli as tomllib

REPO = Path(__file__).resolve().parents[2]
CIRCLES = "No circles in any room"


def config() -> dict[str, Any]:
    return tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["importlinter"]


ROOMS = sorted(p.parent.name for p in REPO.glob("*/__init__.py") if p.parent.name != "tests")


def test_every_room_is_under_the_contract():
    contract = next(c for c in config()["contracts"] if c["name"] == CIRCLES)
    assert sorted(contract["ancestors"]) == sorted(config()["root_packages"]) == ROOMS


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rooms' Python files and the contracts, free to be changed."""
    root = tmp_path_factory.mktemp("rooms")
    shutil.copy(REPO / "pyproject.toml", root)
    for room in ROOMS:
        for path in (REPO / room).rglob("*.py"):
            target = root / path.relative_to(REPO)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return root


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [str(program), "--no-cache"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        text=True,
        capture_output=True,
    )


@pytest.mark.parametrize(
    ("file", "line", "where"),
    [
        ("env/config.py", "from env.factory import make_env", "env"),
        ("env/suites.py", "def f():\n    import env.d4rl", "env"),
        ("env/suites.py", "if TYPE_CHECKING:\n    import env.config", "env"),
        ("env/robosuite/obs.py", "import env.robosuite.env", "env.robosuite"),
        ("bc/base.py", "import bc.explicit.mse_policy", "bc"),
    ],
    ids=["plain", "in a function", "for type checkers", "within a package", "through a package"],
)
def test_a_circle_is_found(file: str, line: str, where: str, copied: Path) -> None:
    path, text = copied / file, (REPO / file).read_text()
    path.write_text(f"{text}\n{line}\n")
    try:
        done = lint(copied)
    finally:
        path.write_text(text)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{CIRCLES} BROKEN" in done.stdout
    assert f"No cycles are allowed in {where}." in done.stdout


def test_there_is_none_today(copied: Path) -> None:
    done = lint(copied)
    assert done.returncode == 0, done.stdout
    assert f"{CIRCLES} KEPT" in done.stdout

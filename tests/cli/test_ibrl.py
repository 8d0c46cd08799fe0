"""The console command ``ibrl``: each sub-command is the documented program."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from ibrl.commands import COMMANDS, Command, find, load, usage
from tests import forkserver
from tests.docs.commands import module_of
from tests.runs import REPO, env

NEEDED = {"train-rl", "train-bc", "eval", "demos", "inspect", "plot", "doctor"}


def ibrl(line: str, cwd: Path = REPO) -> subprocess.CompletedProcess[str]:
    words = ["-m", "ibrl", *shlex.split(line)]
    return forkserver.run(*words, variables=env(), folder=cwd, timeout=300)


def test_the_commands_are_there() -> None:
    assert {command.words.split()[0] for command in COMMANDS} >= NEEDED


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.words)
def test_a_row_names_a_program_and_is_shown(command: Command) -> None:
    assert callable(importlib.import_module(command.module).main)
    assert f"ibrl {command.words} " in usage()
    assert find([*command.words.split(), "--x", "1"]) == (command, ["--x", "1"])


def test_the_readme_lists_the_programs() -> None:
    rows = [line for line in (REPO / "README.md").read_text().splitlines() if "| `ibrl " in line]
    pairs: dict[str, str] = {}
    for row in rows:
        words, programs = (re.findall(r"`(.+?)`", cell) for cell in row.split("|")[1:3])
        for word, program in zip(words, programs, strict=True):
            pairs[word.removeprefix("ibrl ")] = module_of(program)
    assert pairs == {command.words: command.module for command in COMMANDS}


@pytest.mark.parametrize(
    ("line", "status", "text"),
    [
        ("", 2, "ibrl train-rl"),
        ("--help", 0, "ibrl demos robosuite"),
        ("--version", 0, "ibrl 0."),
        ("demos -h", 0, "usage: ibrl demos KIND"),
        ("train-bc --help", 0, "usage: ibrl train-bc [--config_path"),
        ("demos", 2, "error: ibrl demos: nothing, expected one of metaworld, robosuite, oracle\n"),
        ("demos lift", 2, "error: ibrl demos: 'lift', expected one of metaworld, robosuite"),
        ("trian-rl", 2, "error: ibrl: unknown command 'trian-rl'; did you mean train-rl?"),
        ("train-rl --sed 1", 2, "error: --sed: unknown option; did you mean seed?\n"),
        ("eval --weight none.pt", 2, "error: --weight: no file 'none.pt'"),
    ],
)
def test_what_it_answers(line: str, status: int, text: str) -> None:
    done = ibrl(line)
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    assert text in done.stdout + done.stderr


def test_it_runs_a_program_with_its_options(tmp_path: Path) -> None:
    done = ibrl("demos oracle --task PARTICLE_2d --num 2 --out demos", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demos" / "dataset.hdf5").is_file()
    done = ibrl("inspect demos/dataset.hdf5", tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_package_that_is_missing_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_a_package.py").write_text("import no_such_package.part\n")
    (tmp_path / "has_a_fault.py").write_text("import common_utils.no_such_file\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Exception, match=r"'no_such_package' is not installed.*ibrl\[sim\]"):
        load(Command("x", "needs_a_package", "", "sim"))
    with pytest.raises(ModuleNotFoundError, match="no_such_file"):  # a bug, not a package
        load(Command("x", "has_a_fault", "", "sim"))

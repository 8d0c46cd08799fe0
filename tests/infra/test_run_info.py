"""Every start of a run records what it depends on, and nothing in that file's place stops it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from common_utils import run_info
from common_utils.paths import REPO
from common_utils.run_info import INFO_FILE, read_starts, write_start
from common_utils.version import __version__
from tests.infra.test_run_folder import a_run


def test_a_run_and_its_resumption_are_two_entries(tmp_path: Path) -> None:
    run = tmp_path / "run"
    a_run(run)
    a_run(run, step=5, resume=True)
    first, second = read_starts(run)
    assert (first["step"], second["step"]) == (0, 3)
    assert first["preset"] == "" and first["changes"] == [f'save_dir: "" -> {run}']
    assert first["program"] == __version__
    assert first["packages"]["numpy"] == np.__version__
    assert first["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert first["cores"] == len(os.sched_getaffinity(0))
    a_run(run, overwrite=True)
    assert len(read_starts(run)) == 1


def test_the_commit_is_that_of_the_checkout() -> None:
    git = ["git", "-C", str(REPO)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode
    assert run_info.commit() == head.stdout.strip() + (" + changes" if changed else "")


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_info, "REPO", tmp_path)  # no checkout
    assert run_info.commit() == ""
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert run_info.commit() == ""


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"starts": [1]}', "[" * 10_000, "\0"])
def test_another_file_in_its_place_is_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / INFO_FILE).write_text(content)
    with pytest.raises(ValueError, match=INFO_FILE):
        read_starts(tmp_path)
    note = write_start(tmp_path, {"step": 1})
    assert f"it is kept as {INFO_FILE}.damaged" in note
    assert (tmp_path / f"{INFO_FILE}.damaged").read_text() == content
    assert [start["step"] for start in read_starts(tmp_path)] == [1]


def test_a_pipe_or_a_folder_in_its_place_stops_no_run(tmp_path: Path) -> None:
    for make in (os.mkfifo, os.mkdir):
        make(tmp_path / INFO_FILE)
        assert "is kept as" in write_start(tmp_path, {"step": 1})
        (tmp_path / INFO_FILE).unlink()
    target = tmp_path / "mine"
    target.write_text(json.dumps({"starts": []}))
    (tmp_path / INFO_FILE).symlink_to(target)
    write_start(tmp_path, {"step": 1})
    assert json.loads(target.read_text()) == {"starts": []}
    assert not (tmp_path / INFO_FILE).is_symlink()


def test_the_file_does_not_grow_without_limit(tmp_path: Path) -> None:
    starts = [{"step": i} for i in range(run_info.MOST_STARTS + 50)]
    (tmp_path / INFO_FILE).write_text(json.dumps({"starts": starts}))
    write_start(tmp_path, {"step": -1})
    kept = [start["step"] for start in read_starts(tmp_path)]
    assert len(kept) == run_info.MOST_STARTS + 1
    assert (kept[0], kept[-1]) == (0, -1)

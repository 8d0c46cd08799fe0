"""A log never prevents a run from continuing, and loses no record that can be read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import runs
from tests.fuzz import folders
from tests.fuzz.same_run import differences

pytestmark = pytest.mark.filterwarnings("ignore:.*skipped lines that are not records")

LOGS = ("metrics.jsonl", "train.log", "tb")
GARBAGE = b"\x00garbage }{\n[1, 2]\n\xff\xfe\x80 no text\n"


def stopped(kind: str, place: Path) -> Path:
    """A run that was killed before its last state; the newest one has seen records."""
    run = Path(shutil.copytree(folders.whole(kind), place / "run"))
    shutil.rmtree(run / "state" / folders.states(kind)[-1])
    return run


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def folder_there(path: Path) -> None:
    """In the place of a file a folder, in the place of a folder a file."""
    was_folder = path.is_dir()
    remove(path)
    if was_folder:
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "mine").write_text("mine")


def dangling_link(path: Path) -> None:
    remove(path)
    path.symlink_to("gone/for/ever")


def garbage_between_the_lines(path: Path) -> None:
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        data = file.read_bytes()
        second = data.find(b"\n") + 1
        file.write_bytes(GARBAGE + data[:second] + GARBAGE + data[second:])


HARMS: tuple[Callable[[Path], None], ...] = (folder_there, dangling_link, garbage_between_the_lines)


@pytest.mark.parametrize("kind", ["bc", "rl"])
@pytest.mark.parametrize("log", LOGS)
@pytest.mark.parametrize("harm", HARMS, ids=lambda f: f.__name__)
def test_a_state_goes_on_whatever_became_of_a_log(
    kind: str, log: str, harm: Callable[[Path], None], tmp_path: Path
) -> None:
    run, whole = stopped(kind, tmp_path), folders.whole(kind)
    before = runs.metrics(run)
    harm(run / log)
    kept = runs.metrics(run) if (run / "metrics.jsonl").is_file() else []
    if harm is garbage_between_the_lines:
        assert kept == before, "every record can still be read"
    assert folders.READERS["resume"](kind, run) is None
    after = runs.metrics(run)
    if kept:
        assert after == runs.metrics(whole)
    else:  # what the state does not hold is gone with the file; the rest is written
        assert after and after == runs.metrics(whole)[-len(after) :]
    if harm is not garbage_between_the_lines or log == "metrics.jsonl":
        assert (run / f"{log}.damaged").is_symlink() == (harm is dangling_link)
        assert "damaged" in (run / "train.log").read_text(errors="replace")


@pytest.mark.parametrize("kind", ["bc", "rl"])
def test_a_finished_run_that_is_resumed_again_and_again_stays_as_it_is(
    kind: str, tmp_path: Path
) -> None:
    whole = folders.whole(kind)
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    boards = []
    for _ in range(3):
        folders.train(kind, run)
        assert differences(run, whole) == []
        assert runs.metrics(run) == runs.metrics(whole)
        boards.append(len(list((run / "tb").iterdir())))
    assert boards[0] == boards[2], "each leaves one file of TensorBoard's at most"

"""A state that was copied from another run is noticed; runs without ids and moved ones go on."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from common_utils import run_id
from common_utils.run_folder import RunFolder
from common_utils.run_state import StateError, load_state, save_state
from tests.infra.test_run_folder import Config, a_run, contents
from tests.train.test_non_finite import bc, rl, write


def resumed(path: Path, step: int) -> None:
    a_run(path, step=step, resume=True)


def copy_state(source: Path, target: Path, step: int) -> Path:
    name = f"step_{step:09d}"
    return Path(shutil.copytree(source / "state" / name, target / "state" / name))


def id_of(path: Path) -> str:
    return (path / run_id.ID_FILE).read_text().strip()


def make_old(path: Path) -> None:
    """As an earlier version left it: neither the folder nor its states have an id."""
    (path / run_id.ID_FILE).unlink()
    for folder in list((path / "state").iterdir()):
        state = load_state(folder)
        del state.tree[run_id.ENTRY]
        shutil.rmtree(folder)
        save_state(path / "state", state.step, state.tree, keep=9)


def test_every_run_has_an_id_of_its_own_that_lasts(tmp_path: Path) -> None:
    a_run(tmp_path / "a")
    a_run(tmp_path / "b")
    first, other = id_of(tmp_path / "a"), id_of(tmp_path / "b")
    assert re.fullmatch("[0-9a-f]{32}", first) and first != other
    resumed(tmp_path / "a", 5)
    states = [load_state(p).tree[run_id.ENTRY] for p in (tmp_path / "a" / "state").iterdir()]
    assert states == [first, first] and id_of(tmp_path / "a") == first
    a_run(tmp_path / "a", overwrite=True)
    assert id_of(tmp_path / "a") not in (first, other)


def test_the_state_of_another_run_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    a_run(tmp_path / "a")
    a_run(tmp_path / "b", step=7)
    copied = copy_state(tmp_path / "b", tmp_path / "a", 7)
    before = contents(tmp_path / "a")
    with pytest.raises(StateError) as error:
        resumed(tmp_path / "a", 9)
    said = str(error.value)
    for part in (str(copied), id_of(tmp_path / "a")[:8], id_of(tmp_path / "b")[:8], "remove it"):
        assert part in said
    assert "\n" not in said and contents(tmp_path / "a") == before
    shutil.rmtree(copied)
    resumed(tmp_path / "a", 9)


def test_a_state_without_an_id_is_not_of_a_run_that_has_one(tmp_path: Path) -> None:
    a_run(tmp_path / "old", step=7)
    make_old(tmp_path / "old")
    a_run(tmp_path / "a")
    copy_state(tmp_path / "old", tmp_path / "a", 7)
    with pytest.raises(StateError, match=r"another run \(id none\)"):
        resumed(tmp_path / "a", 9)


def test_runs_without_ids_go_on_without(tmp_path: Path) -> None:
    a_run(tmp_path)
    make_old(tmp_path)
    resumed(tmp_path, 5)
    resumed(tmp_path, 7)
    assert not (tmp_path / run_id.ID_FILE).exists()
    assert run_id.ENTRY not in load_state(tmp_path / "state" / "step_000000007").tree


def test_a_run_killed_before_its_first_state_starts_over(tmp_path: Path) -> None:
    config = Config(save_dir=str(tmp_path))
    with RunFolder(str(tmp_path), resume=False, overwrite=False) as folder:
        folder.open_log(config, ()).close()
    resumed(tmp_path, 3)
    resumed(tmp_path, 5)
    assert [p.name for p in tmp_path.glob("run_id*")] == [run_id.ID_FILE]


@pytest.mark.parametrize("way", ["moved", "copied"])
def test_a_whole_folder_may_be_moved_or_copied(way: str, tmp_path: Path) -> None:
    a_run(tmp_path / "a")
    (shutil.move if way == "moved" else shutil.copytree)(tmp_path / "a", tmp_path / "b")
    with RunFolder(str(tmp_path / "b"), resume=True, overwrite=False) as folder:
        config = Config(save_dir=str(tmp_path / "b"))
        with folder.open_log(config, ("save_dir",)) as log:
            folder.save(5, {"log": log.state_dict()})
    assert load_state(tmp_path / "b/state/step_000000005").tree[run_id.ENTRY] == id_of(
        tmp_path / "b"
    )


@pytest.mark.parametrize("harm", ["gone", "bytes", "folder", "pipe", "dangling"])
def test_a_lost_or_damaged_id_is_taken_from_the_state(
    harm: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    a_run(tmp_path)
    before, path = id_of(tmp_path), tmp_path / run_id.ID_FILE
    path.unlink()
    if harm == "bytes":
        path.write_bytes(b"\xff\x00")
    elif harm == "folder":
        path.mkdir()
    elif harm == "pipe":
        os.mkfifo(path)
    elif harm == "dangling":
        path.symlink_to("nowhere")
    resumed(tmp_path, 5)
    assert id_of(tmp_path) == before
    assert ("run_id.txt.damaged" in capsys.readouterr().out) == (harm != "gone")


def test_both_trainers_refuse_the_state_of_another_run(tmp_path: Path) -> None:
    demos = write(tmp_path, 1.0)
    for kind, train in (
        ("rl", lambda path, *more: rl(path, *more)),
        ("bc", lambda path, *more: bc(path, demos, *more)),
    ):
        runs = [tmp_path / kind / name for name in "ab"]
        for run in runs:
            train(run)
        shutil.rmtree(runs[0] / "state")
        shutil.copytree(runs[1] / "state", runs[0] / "state")
        with pytest.raises(StateError, match="belongs to another run"):
            train(runs[0], "--resume=1")
        shutil.copy(runs[1] / run_id.ID_FILE, runs[0])
        train(runs[0], "--resume=1")

"""A run's folder belongs to one run at a time, and nothing in it is overwritten unasked."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

import pytest

from common_utils.resources import ResourceError
from common_utils.run_config import ConfigError, RunConfig
from common_utils.run_folder import RunFolder
from common_utils.run_state import StateError, latest_state, verify_state

ROOT = Path(__file__).parents[2]


@dataclass
class Config(RunConfig):
    # anything
    lr: float = 0.1


def open_folder(path: Path, resume: bool = False, overwrite: bool = False) -> RunFolder:
    return RunFolder(str(path), resume=resume, overwrite=overwrite)


def a_run(path: Path, step: int = 3, overwrite: bool = False, resume: bool = False) -> None:
    """A whole small run: config, weights, a record, a state."""
    with open_folder(path, resume, overwrite) as folder:
        with folder.open_log(Config(save_dir=str(path)), ()) as log:
            log.log(step, {"x": step})
            (path / "model0.pt").write_text("weights")
            folder.save(step, {"log": log.state_dict()})


def contents(path: Path) -> dict[str, bytes]:
    files = (p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in files}


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"holds a run \(.*model0.pt.*--resume 1.*--overwrite 1"):
        a_run(tmp_path / "run")
    assert contents(tmp_path / "run") == before
    assert "state/step_000000003/COMPLETE" in before and ".lock" not in before


LEFT = [["cfg.yaml", "model0.pt"], ["metrics.jsonl"], ["latest.pt"]]


@pytest.mark.parametrize("left", ["train.log", "bc_policy"])
def test_logs_and_policies_without_a_config_are_a_run_too(left: str, tmp_path: Path) -> None:
    path = tmp_path / left
    path.write_text("x") if left == "train.log" else (path.mkdir(), (path / "0.pt").touch())
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=f"holds a run \\({left}\\)"):
        a_run(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("left", LEFT)
def test_a_run_without_its_state_is_not_wiped(
    left: list[str], resume: bool, tmp_path: Path
) -> None:
    """state/ was removed, or only the results were copied here."""
    run = tmp_path / "run"
    a_run(run)
    (run / "latest.pt").write_text("weights")
    for path in run.iterdir():
        if path.name not in left:
            subprocess.run(["rm", "-r", str(path)], check=True)
    before = contents(run)
    with pytest.raises(ConfigError, match="no saved state" if resume else "holds a run"):
        a_run(run, resume=resume)
    assert contents(run) == before


def test_a_run_that_dies_while_it_replaces_another_leaves_no_half_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next resume would go on from the state before it, and leave the half for ever."""
    unlink = os.unlink
    for deleted in range(4):  # files of two states
        run = tmp_path / str(deleted)
        a_run(run)
        a_run(run, step=5, resume=True)
        calls = iter(range(deleted))

        def dying(*args: Any, calls: Iterator[int] = calls, **kwargs: Any) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            unlink(*args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "unlink", dying)
            patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)  # the lock's
            a_run(run, step=5, overwrite=True)
        left = [p for p in (run / "state").iterdir() if p.name.startswith("step_")]
        assert [verify_state(path) for path in left] == [3] * (deleted < 2)


def test_a_run_killed_before_its_first_state_starts_over(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = Config(save_dir=str(tmp_path))
    with open_folder(tmp_path) as folder, folder.open_log(config, ()):
        pass
    with pytest.raises(ConfigError, match="cfg.yaml"):
        a_run(tmp_path)
    with pytest.raises(ConfigError, match="not that of the run(.|\n)*lr: 0.1 -> 0.2"):
        with open_folder(tmp_path, resume=True) as folder:
            folder.open_log(Config(save_dir=str(tmp_path), lr=0.2), ())
    a_run(tmp_path, resume=True)
    assert "starting from the beginning" in capsys.readouterr().out
    assert latest_state(tmp_path / "state") is not None


def test_a_config_that_differs_everywhere_is_refused_in_three_lines(tmp_path: Path) -> None:
    fields = [(f"option{number}", int, 0) for number in range(20)]
    wide = make_dataclass("wide", fields, bases=(Config,), namespace={"__module__": __name__})
    with open_folder(tmp_path) as folder:
        folder.open_log(wide(save_dir=str(tmp_path)), ()).close()
    other = {name: 1 for name, *_ in fields}
    with pytest.raises(ConfigError, match=r"option0: 0 -> 1; .*\(20 in all\)") as error:
        with open_folder(tmp_path, resume=True) as folder:
            folder.open_log(wide(save_dir=str(tmp_path), **other), ())
    assert len(str(error.value).splitlines()) <= 3


def test_overwriting_leaves_nothing_of_the_old_run(tmp_path: Path) -> None:
    a_run(tmp_path, step=300)
    mine = {"notes.txt": "mine", "my_backup.pt": "mine"}
    old = ["model2.pt", "epoch5.pt", "latest.pt", "data1.h5", ".tmp-0123456789ab-latest.pt"]
    for name in [*mine, *old]:
        (tmp_path / name).write_text("mine")
    a_run(tmp_path, step=2, overwrite=True)
    names = {p.name for p in tmp_path.iterdir()}
    made = "cfg.yaml", "metrics.jsonl", "model0.pt", "run_id.txt", "run_info.json", "train.log"
    assert names == {*mine, *made, "state", "tb"}
    assert [p.name for p in (tmp_path / "state").iterdir()] == ["step_000000002"]
    assert '"step": 2' in (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match="either continue"):
        open_folder(tmp_path, resume=True, overwrite=True)


def test_a_refused_run_changes_nothing_and_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), open_folder(tmp_path / "a" / "b"):
        raise KeyError("the simulator is missing")
    assert list(tmp_path.iterdir()) == []
    a_run(tmp_path / "run")
    before = contents(tmp_path / "run")
    with pytest.raises(KeyError), open_folder(tmp_path / "run", overwrite=True):
        raise KeyError("the simulator is missing")
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_refused_while_preparing_leaves_no_run(overwrite: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    if overwrite:
        run.mkdir()
        (run / "notes.txt").write_text("mine")
        a_run(run, overwrite=True)
    with pytest.raises(ConfigError, match="no such demonstrations"):
        with open_folder(run, overwrite=overwrite) as folder:
            with folder.open_log(Config(save_dir=str(run)), ()), folder.preparing():
                folder.save(0, {})
                raise ConfigError("no such demonstrations")
    assert [p.name for p in tmp_path.rglob("*")] == (["run", "notes.txt"] if overwrite else [])
    a_run(run)


@pytest.mark.parametrize("made", ["a record", "weights", "a second state", "resumed"])
def test_what_a_run_has_made_outlives_an_error_while_preparing(made: str, tmp_path: Path) -> None:
    if made == "resumed":
        a_run(tmp_path)
    with pytest.raises(ConfigError, match="died"):
        with open_folder(tmp_path, resume=made == "resumed") as folder:
            with folder.open_log(Config(save_dir=str(tmp_path)), ()) as log, folder.preparing():
                folder.save(0, {})
                if made == "a record":
                    log.log(0, {"x": 1})
                if made == "weights":
                    (tmp_path / "model0.pt").write_text("weights")
                if made == "a second state":
                    folder.save(0, {})
                raise ConfigError("the simulator died")
    assert latest_state(tmp_path / "state") is not None
    assert (tmp_path / "cfg.yaml").is_file() and (tmp_path / "train.log").is_file()


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="save_dir"):
        RunFolder(name, resume=False, overwrite=False)


def test_a_file_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        a_run(tmp_path / "run")


HOLD = """
import sys, time
from common_utils.run_folder import RunFolder
with RunFolder(sys.argv[1], resume=False, overwrite=False):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_run_at_a_time_and_death_lets_go(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    (tmp_path / "link").symlink_to("run")
    for name, overwrite in (("run", False), ("link", False), ("run", True)):
        with pytest.raises(ConfigError, match=rf"in use by process {holder.pid} on \S+ since"):
            a_run(tmp_path / name, overwrite=overwrite)
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=60)
    a_run(tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


def test_what_is_no_lock_is_neither_written_to_nor_waited_for(tmp_path: Path) -> None:
    """Somebody else's folder may hold a link in its place, to any file."""
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.write_text("of somebody else")
    lock = run / ".lock"
    for make in (
        lambda: lock.symlink_to(other),
        lambda: lock.symlink_to(tmp_path / "nothing"),
        lambda: lock.symlink_to("/dev/zero"),
        lambda: os.mkfifo(lock),
    ):
        make()
        with pytest.raises(ConfigError, match=f"save_dir: '{lock}' is a link, .* expected an ord"):
            a_run(run)
        assert os.listdir(run) == [".lock"]
        lock.unlink()
    assert other.read_text() == "of somebody else" and not (tmp_path / "nothing").exists()


def test_a_folder_taken_away_stops_the_run(tmp_path: Path) -> None:
    """A new folder of that name would hold half a run and look like a whole one."""
    run = tmp_path / "run"
    with open_folder(run) as folder, folder.open_log(Config(save_dir=str(run)), ()) as log:
        run.rename(tmp_path / "moved")
        with pytest.raises(StateError, match="no longer belongs to this run"):
            folder.save(1, {"log": log.state_dict()})
        assert not run.exists()
        a_run(run)
        with pytest.raises(StateError, match="no longer belongs to this run"):
            folder.save(1, {})
        with open_folder(run, resume=True):  # its lock outlives our end
            folder.__exit__(None, None, None)
            assert (run / ".lock").exists()


def test_a_folder_replaced_by_a_file_is_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(StateError, match="no longer belongs to this run"), open_folder(run) as held:
        run.rename(tmp_path / "moved")
        run.touch()
        held.save(1, {})


def test_what_a_kill_left_is_cleared_by_the_next_start(tmp_path: Path) -> None:
    a_run(tmp_path)
    (tmp_path / ".tmp-0123456789ab-latest.pt").write_text("half")
    (tmp_path / "state" / ".tmp_step_9_1_abc").mkdir()
    (tmp_path / "other_run").mkdir()
    (tmp_path / "other_run" / ".tmp-0123456789ab-latest.pt").write_text("being written")
    with open_folder(tmp_path, resume=True) as folder:
        folder.open_log(Config(save_dir=str(tmp_path)), ()).close()
    left = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob(".tmp*")]
    assert left == ["other_run/.tmp-0123456789ab-latest.pt"]


def test_a_moved_run_goes_on_where_it_may(tmp_path: Path) -> None:
    a_run(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    with open_folder(tmp_path / "new", resume=True) as folder:
        assert folder.state is not None and folder.state.step == 3
        folder.open_log(Config(save_dir=str(tmp_path / "new")), ("save_dir",)).close()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda p: p.write_bytes(b"lr: \xff\xfe\n"), "cfg.yaml: not UTF-8 text"),
        (lambda p: p.unlink(), "holds a state, but no cfg.yaml"),
        (lambda p: (p.unlink(), p.mkdir()), "holds a state, but no cfg.yaml"),
        (lambda p: (p.unlink(), os.mkfifo(p)), "holds a state, but no cfg.yaml"),
        (lambda p: p.write_text("lr: [unfinished"), "not valid YAML"),
        (lambda p: p.write_text("lrr: 1\n"), "lrr: unknown field"),
        (lambda p: p.write_text(""), "cfg.yaml: holds no fields (empty, or cut off)"),
    ],
)
def test_a_damaged_config_is_named(harm: object, said: str, tmp_path: Path) -> None:
    a_run(tmp_path)
    harm(tmp_path / "cfg.yaml")  # type: ignore[operator]
    before = {k: v for k, v in contents(tmp_path).items() if k != ".lock"}
    with pytest.raises(ConfigError, match=re.escape(said)):
        with open_folder(tmp_path, resume=True) as folder:
            folder.open_log(Config(save_dir=str(tmp_path)), ())
    assert contents(tmp_path) == before


def test_a_full_disk_promises_a_state_only_where_there_is_one(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    config = Config(save_dir=str(tmp_path))
    with pytest.raises(ResourceError) as error, open_folder(tmp_path) as folder:
        raise full
    assert str(error.value) == f"save_dir '{tmp_path}': the disk is full"
    with pytest.raises(ResourceError, match="the disk is full; no state has been saved yet"):
        with open_folder(tmp_path) as folder, folder.open_log(config, ()):
            raise RuntimeError("torch cannot write") from full
    a_run(tmp_path, resume=True)
    with pytest.raises(ResourceError, match="state/step_000000003 is kept, --resume 1 continues"):
        with open_folder(tmp_path, resume=True) as folder, folder.open_log(config, ()):
            raise full


def test_states_that_were_taken_away_are_not_promised(tmp_path: Path) -> None:
    config = Config(save_dir=str(tmp_path))
    with pytest.raises(ResourceError, match="the states that were saved are no longer in state/"):
        with open_folder(tmp_path) as folder, folder.open_log(config, ()):
            folder.save(1, {"x": 1})
            (tmp_path / "state").rename(tmp_path / "elsewhere")
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("file/run", "Not a directory|File exists"),
        ("n" * 300, "File name too long"),
        ("/proc/run", "No such file or directory"),
        ("locked", "Is a directory"),
    ],
)
def test_what_the_file_system_refuses_is_an_error_of_one_line(
    name: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "locked" / ".lock").mkdir(parents=True)
    with pytest.raises(ResourceError, match=said) as error:
        a_run(tmp_path / name)
    assert "\n" not in str(error.value) and "[Errno" in str(error.value)


def test_a_file_elsewhere_is_not_blamed_on_the_folder(tmp_path: Path) -> None:
    for run in (tmp_path / "run", tmp_path / "new" / "run"):
        with pytest.raises(ResourceError) as error, open_folder(run):
            open(tmp_path / "demos.hdf5")
        assert str(error.value) == f"[Errno 2] No such file or directory: '{tmp_path}/demos.hdf5'"
        with pytest.raises(ResourceError, match=f"^save_dir '{run}': "), open_folder(run):
            open(run / "cfg.yaml")


def test_a_bug_stays_a_bug(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="^a bug$"), open_folder(tmp_path):
        raise RuntimeError("a bug")

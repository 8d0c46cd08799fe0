"""What a run wrote is cut back to where its state saw it, and never lost otherwise."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common_utils.logger import RunLogger
from common_utils.records import cut_back, position, read_metrics


def steps(folder: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["x"]) for r in read_metrics(folder / "metrics.jsonl")]


def board(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tb"))
    events.Reload()
    return [(e.step, e.value) for e in events.Scalars("x")]


def write(folder: Path, *records: dict[str, Any]) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def test_what_came_after_the_state_goes_even_at_its_own_step(tmp_path: Path) -> None:
    """BC pretraining logs all of its epochs at step 0."""
    with RunLogger(tmp_path, quiet=True) as log:
        log.log(0, {"x": 1})
        state = log.state_dict()
        log.log(0, {"x": 2})
    with RunLogger(tmp_path, quiet=True, resume_step=0, saved=state) as log:  # killed again
        log.log(0, {"x": 2})
    with RunLogger(tmp_path, quiet=True, resume_step=0, saved=state) as log:
        log.log(0, {"x": 2})
        log.log(5, {"x": 3})
    # files of one second are read by the order of their names, in which 11 comes before 9
    assert steps(tmp_path) == sorted(board(tmp_path)) == [(0, 1), (0, 2), (5, 3)]


def test_a_run_resumed_before_its_first_record(tmp_path: Path) -> None:
    with RunLogger(tmp_path, quiet=True) as log:
        state = log.state_dict()
        log.log(0, {"x": 1})
    with RunLogger(tmp_path, quiet=True, resume_step=0, saved=state) as log:
        log.log(0, {"x": 1})
    assert steps(tmp_path) == board(tmp_path) == [(0, 1)]


def test_a_state_of_an_earlier_version_cuts_by_step_and_time(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {"step": 0, "wall": 1.0, "x": 1},
        {"step": 0, "wall": 9.0, "x": 2},
        {"step": 7, "wall": 10.0, "x": 3},
    )
    for where in (None, {}, {"metrics": {"bytes": "x"}, "events": 3}):
        assert cut_back(tmp_path, where, 0, wall=5.0) == []
        assert steps(tmp_path) == [(0, 1)]
    path.unlink()
    assert cut_back(tmp_path, None, 0) == []


def test_a_changed_file_keeps_every_readable_record(tmp_path: Path) -> None:
    """Garbage in the middle moves what follows: the remembered length would cut too early."""
    path = write(tmp_path, *({"step": s, "wall": float(s), "x": s} for s in (1, 2, 3)))
    where = position(tmp_path)
    lines = path.read_bytes().split(b"\n")
    garbage = b"\xff\xfe nonsense\x85{"
    path.write_bytes(b"\n".join([lines[0], garbage, *lines[1:]]) + b'{"step": 4, "wall": 4, "x": 4')
    broken = path.read_bytes()
    notes = cut_back(tmp_path, where, 3, wall=3.5)
    assert steps(tmp_path) == [(1, 1), (2, 2), (3, 3)]
    assert len(notes) == 1 and "lines that are not records: 1" in notes[0]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == broken


def test_records_whose_times_were_changed_are_kept_aside(tmp_path: Path) -> None:
    path = write(tmp_path, *({"step": s, "wall": float(s), "x": s} for s in (1, 2)))
    where = position(tmp_path)
    path.write_text(path.read_text().replace('"wall": 1.0', '"wall": 1e9'))
    changed = path.read_text()
    notes = cut_back(tmp_path, where, 2, wall=2.5)
    assert len(notes) == 1 and "was changed by hand" in notes[0]
    assert steps(tmp_path) == [(2, 2)]
    assert (tmp_path / "metrics.jsonl.damaged").read_text() == changed


def test_a_file_that_lost_its_end_keeps_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, *({"step": s, "wall": float(s), "x": s} for s in (1, 2)))
    where = position(tmp_path)
    path.write_bytes(path.read_bytes()[:-5])
    assert cut_back(tmp_path, where, 2) == []
    assert steps(tmp_path) == [(1, 1)]


def test_a_pipe_among_the_events_is_left_alone(tmp_path: Path) -> None:
    """Opening it would wait for a writer for ever."""
    (tmp_path / "tb").mkdir()
    pipe = tmp_path / "tb" / "events.out.tfevents.1.host.2.0"
    os.mkfifo(pipe)
    where = position(tmp_path)
    assert where["events"] == {}
    assert cut_back(tmp_path, where, 0) == [] and pipe.exists()


def test_reading_passes_over_what_is_no_record_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "x": 1}\n'
    bad = [b"nonsense", b"\xff\xff", b'{"stp": 1}', b"[1]", b'{"step": true}', b"[" * 5000]
    path.write_bytes(good + b"\n".join(bad) + b"\n\n" + good + b'{"step": 2, "x"')
    with pytest.warns(UserWarning, match="not records: 2, 3, 4, 5, 6, ..."):
        assert [r["x"] for r in read_metrics(path)] == [1, 1]


def test_records_after_the_file_was_removed_are_kept(tmp_path: Path) -> None:
    with RunLogger(tmp_path, quiet=True) as log:
        log.log(1, {"x": 1})
        (tmp_path / "metrics.jsonl").unlink()
        state = log.state_dict()
        log.log(2, {"x": 2})
    assert steps(tmp_path) == [(2, 2)] and state["files"]["metrics"]["bytes"] == 0
    assert "was removed" in (tmp_path / "train.log").read_text()
    with RunLogger(tmp_path, quiet=True, resume_step=1, saved=state) as log:
        log.log(2, {"x": 3})
    assert steps(tmp_path) == [(2, 3)]


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "editor"])
def test_records_after_the_file_was_replaced_are_kept(kind: str, tmp_path: Path) -> None:
    with RunLogger(tmp_path, quiet=True) as log:
        log.log(1, {"x": 1})
        path = (tmp_path / "metrics.jsonl").rename(tmp_path / "before")
        if kind == "folder":
            path.with_name("metrics.jsonl").mkdir()
        elif kind == "pipe":
            os.mkfifo(path.with_name("metrics.jsonl"))
        elif kind == "link":
            path.with_name("metrics.jsonl").symlink_to("before")
        else:  # editors write a new file and rename it
            path.with_name("metrics.jsonl").write_bytes(path.read_bytes())
        state = log.state_dict()
        log.log(2, {"x": 2})
    assert steps(tmp_path) == ([(1, 1)] if kind in ("link", "editor") else []) + [(2, 2)]
    assert "was replaced while the run" in (tmp_path / "train.log").read_text()
    with RunLogger(tmp_path, quiet=True, resume_step=1, saved=state) as log:
        log.log(2, {"x": 3})
    assert steps(tmp_path)[-1] == (2, 3)


@pytest.mark.parametrize("name", ["train.log", "notes.txt"])
def test_nothing_is_written_to_a_folder_that_was_replaced(name: str, tmp_path: Path) -> None:
    with RunLogger(tmp_path / "run", quiet=True) as log:
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / name).write_text("another's")
        log.state_dict()
    assert [p.name for p in (tmp_path / "run").iterdir()] == [name]


@pytest.mark.parametrize("name", ["metrics.jsonl", "train.log", "wandb_id.txt"])
@pytest.mark.parametrize("resume_step", [None, 3])
def test_a_folder_in_the_place_of_a_log_is_set_aside(
    name: str, resume_step: int | None, tmp_path: Path
) -> None:
    (tmp_path / name / "sub").mkdir(parents=True)
    with RunLogger(tmp_path, quiet=True, resume_step=resume_step) as log:
        log.log(4, {"x": 1})
    assert steps(tmp_path) == [(4, 1)]
    assert (tmp_path / f"{name}.damaged" / "sub").is_dir()
    assert "set aside" in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize("name", ["metrics.jsonl", "train.log"])
def test_a_link_in_the_place_of_a_log_becomes_a_copy(name: str, tmp_path: Path) -> None:
    """What a folder's files lead to belongs to somebody else."""
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.write_text('{"step": 1, "x": 0}\n{"step": 9, "x": 0}\n')
    before = other.read_bytes()
    (run / name).symlink_to(other)
    with RunLogger(run, quiet=True, resume_step=3) as log:
        log.log(4, {"x": 1})
    assert other.read_bytes() == before and not (run / name).is_symlink()
    assert steps(run) == ([(1, 0)] if name == "metrics.jsonl" else []) + [(4, 1)]
    assert "was a link, is a copy" in (run / "train.log").read_text()


def test_linked_events_are_neither_cut_nor_removed(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (run / "tb", other):
        folder.mkdir(parents=True)
    (other / "events.out.tfevents.1").write_text("0123456789")
    (run / "tb" / "events.out.tfevents.1").symlink_to(other / "events.out.tfevents.1")
    where = {"metrics": None, "events": {"events.out.tfevents.1": 3}}
    assert cut_back(run, where, 0) == []
    (run / "tb").rename(run / "links")
    (run / "tb").symlink_to(other)
    with RunLogger(run, quiet=True, resume_step=3, saved={"files": {**where, "events": {}}}) as log:
        log.log(4, {"x": 1})
    assert (other / "events.out.tfevents.1").read_text() == "0123456789"
    assert board(run) == [(4, 1)] and (run / "tb.damaged").is_symlink()


def test_a_file_in_the_place_of_tensorboards_folder_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "tb").write_text("x")
    with RunLogger(tmp_path, quiet=True, resume_step=3, saved={"files": "?"}) as log:
        log.log(4, {"x": 1})
    assert board(tmp_path) == [(4, 1)] and (tmp_path / "tb.damaged").is_file()

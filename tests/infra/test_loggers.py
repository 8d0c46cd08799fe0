"""Loggers by their real packages: what they record, after a resume too, and what ends none."""

from __future__ import annotations

import dataclasses
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_bc
from common_utils.errors import ConfigError
from common_utils.logger import RunLogger
from common_utils.loggers.sink import RunInfo
from common_utils.loggers.table import SINKS
from common_utils.loggers.trackio import TrackioSink
from common_utils.records import read_metrics
from common_utils.run_config import RunConfig
from common_utils.run_folder import RunFolder
from tests.runs import forked
from workspace import rl_config


def part(path: Path, how: str, *steps: int, lost: int | None = None) -> None:
    """A part of a training; ``how`` is "begin", "resume" or "replace". ``lost`` is a step whose
    records no state holds."""
    cfg = RunConfig(use_trackio=1, save_dir=str(path))
    with RunFolder(cfg.save_dir, resume=how == "resume", overwrite=how == "replace") as folder:
        with folder.open_log(cfg, ()) as log:
            if folder.state is not None:
                log.load_state_dict(folder.state.tree["log"])
            for step in (*steps, *([] if lost is None else [lost])):
                log.log(step, {"score/score": step / 8, "train/nan": math.nan})
                log.log(step, {"train/loss": -step})
                if step != lost:
                    folder.save(step, {"log": log.state_dict()})


def recorded(project: str) -> list[dict[str, Any]]:
    """The runs of a project that trackio itself finds: id, name, config, scores, rows."""
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    out = []
    for run in Api().runs(project):
        values = SQLiteStorage.get_metric_values(project, run.name, "score/score", run_id=run.id)
        rows = SQLiteStorage.get_logs(project, run.name, run_id=run.id)
        found = {"id": run.id, "name": run.name, "config": run.config, "rows": rows}
        out.append({**found, "scores": [(row["step"], row["value"]) for row in values]})
    return out


def trackio_history(run: Path) -> list[list[dict[str, Any]]]:
    """What trackio holds after each part of a training."""
    found = []
    part(run, "begin", 1, 2, lost=3)
    found.append(recorded("lift"))
    part(run, "resume", 4, 5)
    found.append(recorded("lift"))
    shutil.rmtree(run / "trackio")  # as if it was not used until now
    part(run, "resume", 6)
    found.append(recorded("lift"))
    return found


def test_trackio_records_a_run_that_is_resumed_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    run = tmp_path / "lift" / "ibrl_seed1"
    # with a token, trackio.init would ask Hugging Face who this is
    ((first,), (now,), (later,)) = forked(trackio_history, run, HF_TOKEN="hf_x")
    assert first["scores"] == [(1, 0.125), (2, 0.25), (3, 0.375)]
    assert now["scores"] == [(1, 0.125), (2, 0.25), (4, 0.5), (5, 0.625)]  # resumed after step 2
    assert later["scores"] == [*now["scores"], (6, 0.75)]
    run_id = (run / "run_id.txt").read_text().strip()
    for found in (first, now, later):
        assert (found["id"], found["name"]) == (run_id, "ibrl_seed1")
        assert found["config"]["save_dir"] == str(run) and found["config"]["_Group"] == "ibrl"
    # all that metrics.jsonl holds, at times that do not run backwards
    kept = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in later["rows"]] == [row["step"] for row in kept]
    for row, mine in zip(later["rows"], kept, strict=True):
        values = {k: math.nan if v is None else v for k, v in mine.items()}
        assert {k: row[k] for k in values.keys() - {"wall"}} == pytest.approx(
            {k: v for k, v in values.items() if k != "wall"}, nan_ok=True
        )
    times = [row["timestamp"] for row in later["rows"]]
    assert times == sorted(times)


def trackio_obstacles(run: Path, other: Path) -> list[dict[str, Any]]:
    """Trainings whose folder trackio cannot use; then one that replaces them."""
    (run / "trackio").symlink_to(other)
    part(run, "begin", 1, 2)
    (run / "trackio").unlink()
    (run / "trackio").write_text("mine")
    part(run, "resume", 3)
    (run / "trackio").unlink()
    part(run, "resume", 4)
    (run / "trackio" / "lift.db").write_bytes(b"no database" * 1000)
    part(run, "resume", 5, 6)
    part(run, "replace", 7)
    return recorded("lift")


def test_trackio_that_fails_does_not_end_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    run, other = tmp_path / "lift" / "run", tmp_path / "other"
    run.mkdir(parents=True)
    other.mkdir()
    (now,) = forked(trackio_obstacles, run, other)
    assert now["scores"] == [(7, 0.875)]
    assert list(other.iterdir()) == []
    out, err = capfd.readouterr()
    lines = [line for line in (out + err).splitlines() if "warning" in line.lower()]
    assert len(lines) == 3 and "Traceback" not in out + err, lines
    assert all(line.startswith("warning: trackio: ") for line in lines)
    assert all(line.endswith("; the run goes on without it") for line in lines)


def trackio_shared(one: Path, two: Path) -> list[dict[str, Any]]:
    """Two runs of the same name in one folder; and what is refused."""
    part(one, "begin", 1)
    part(two, "begin", 1)
    part(two, "resume", 2)
    assert not (one / "trackio").exists()
    with pytest.raises(ConfigError, match="use_trackio: 1, but.*reserved for trackio"):
        part(two.parents[1] / "registry-a" / "run", "begin", 1)
    assert not (two.parents[1] / "registry-a").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRACKIO_DIR")
        with pytest.raises(ConfigError, match="trackio records into .* in this process, expected"):
            TrackioSink(RunInfo(one))
    return recorded("lift")


def test_runs_share_a_folder_that_the_user_names(tmp_path: Path) -> None:
    one, two = tmp_path / "a" / "lift" / "run", tmp_path / "b" / "lift" / "run"
    found = forked(trackio_shared, one, two, TRACKIO_DIR=str(tmp_path / "shared"))
    ids = [(folder / "run_id.txt").read_text().strip() for folder in (one, two)]
    assert {run["id"]: run["scores"] for run in found} == {
        ids[0]: [(1, 0.125)],
        ids[1]: [(1, 0.125), (2, 0.25)],
    }


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ConfigError, match="trackio cannot be imported.*pip install trackio"):
        part(tmp_path / "lift" / "run", "begin", 1)
    assert not (tmp_path / "lift").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_whose_folder_is_removed_does_not_end_a_run(tmp_path: Path) -> None:
    with RunLogger(tmp_path, quiet=True) as log:
        log.log(1, {"x": 1.0})
        log.state_dict()
        shutil.rmtree(tmp_path / "tb")
        for step in (2, 3, 4):
            log.log(step, {"x": 1.0})
            log.state_dict()
    assert (tmp_path / "train.log").read_text().count("warning: TensorBoard: ") == 1
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_tensorboard_has_the_numbers(tmp_path: Path) -> None:
    with RunLogger(tmp_path, quiet=True) as log:
        for step in (1, 2, 2):
            log.log(step, {"score/score": step / 8})
    board = EventAccumulator(str(tmp_path / "tb"))
    board.Reload()
    found = [(e.step, e.value) for e in board.Scalars("score/score")]
    assert found == [(1, 0.125), (2, 0.25), (2, 0.25)]


def test_every_logger_has_a_field_that_a_resumed_run_may_change() -> None:
    assert set(SINKS) < {field.name for field in dataclasses.fields(RunConfig)}
    for module in (rl_config, train_bc):
        assert set(SINKS) <= set(module.RESUMABLE_CHANGES)

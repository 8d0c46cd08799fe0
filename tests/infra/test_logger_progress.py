from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common_utils import progress
from common_utils.logger import MultiCounter, RunLogger
from common_utils.progress import RunProgress, format_seconds, pace
from common_utils.records import read_metrics

ROOT = Path(__file__).parents[2]


def test_meters_give_mean_min_max_and_start_afresh() -> None:
    meters = MultiCounter()
    for value in (1.0, 4.0, 1.0):
        meters.append("a", value)
        meters.append("t", torch.tensor(value, requires_grad=True) * 2)
    meters.append("sum", 10.0, count=4)
    got = meters.summary()
    assert list(got) == ["a", "sum", "t"]
    assert (got["a"].mean, got["a"].min, got["a"].max, got["a"].count) == (2.0, 1.0, 4.0, 3)
    assert (got["t"].mean, got["t"].min, got["t"].max) == (4.0, 2.0, 8.0)
    assert got["sum"].mean == 2.5
    assert meters.summary() == {}


def test_meters_hold_many_tensors_and_keep_no_graph() -> None:
    meters = MultiCounter()
    for i in range(1000):
        meters.update({"x": torch.tensor(float(i)), "y": float(i)})
    kept = meters.state_dict()["x"]
    assert len(kept["pending"]) + len(kept["reduced"]) < 260
    got = meters.summary(reset=False)
    assert got["x"] == got["y"]
    assert got["x"].mean == 499.5
    weight = torch.ones(1, requires_grad=True)
    meters.append("z", (weight * 2).sum())
    assert not meters.state_dict()["z"]["pending"][0].requires_grad
    with pytest.raises(ValueError, match=r"\[2\]"):
        meters.append("x", torch.zeros(2))


def test_meters_resume_bit_for_bit(tmp_path: Path) -> None:
    values = torch.randn(700, generator=torch.Generator().manual_seed(0)) * 1e6

    def fill(meters: MultiCounter, some: torch.Tensor) -> None:
        for v in some:
            meters.append("x", v)
            meters.append("host", v.item())

    straight = MultiCounter()
    fill(straight, values)
    first = MultiCounter()
    fill(first, values[:411])
    torch.save(first.state_dict(), tmp_path / "m.pt")
    second = MultiCounter()
    second.load_state_dict(torch.load(tmp_path / "m.pt", weights_only=True))
    fill(second, values[411:])
    assert second.summary() == straight.summary()


def test_meters_of_a_resumed_run_follow_its_device() -> None:
    """What is read back is on the CPU; "meta" stands for a GPU."""
    before = MultiCounter()
    for number in range(300):  # some are reduced, some wait
        before.append("loss", torch.tensor(float(number)))
    after = MultiCounter()
    after.load_state_dict(before.state_dict())
    after.append("loss", torch.zeros((), device="meta"))
    stats = after._keys["loss"].device_stats()
    assert stats is not None and stats.device.type == "meta" and stats.shape == (2, 4)


def test_logger_writes_all_its_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with RunLogger(tmp_path) as log:
        log.print("hello [not markup]")
        log.meters.update({"train/loss": torch.tensor(2.0)})
        log.meters.update({"train/loss": 4.0})
        got = log.summarize(10, {"score/score": 0.5, "bad": float("nan")})
        assert got["train/loss"] == 3.0
        # written at once, not at close
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (record["step"], record["train/loss"], record["bad"]) == (10, 3, None)
    assert record["wall"] >= 0
    text = (tmp_path / "train.log").read_text()
    assert "hello [not markup]" in text
    assert "train/loss   3  [2, 4]" in text
    assert "hello [not markup]" in capsys.readouterr().out
    board = EventAccumulator(str(tmp_path / "tb"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("score/score")] == [(10, 0.5)]


def test_logger_records_the_traceback_of_a_failed_run(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunLogger(tmp_path, quiet=True):
        _ = 1 // 0
    assert "ZeroDivisionError" in (tmp_path / "train.log").read_text()


def test_resume_drops_what_came_after_the_saved_state(tmp_path: Path) -> None:
    with RunLogger(tmp_path, quiet=True) as log:
        for step in (10, 20, 30):
            log.log(step, {"x": step})
        log.meters.append("m", 1.0)
        state = log.state_dict()
    state["wall"] = 100.0
    with open(tmp_path / "metrics.jsonl", "a") as handle:
        handle.write('{"step": 40, "wal')  # killed while writing
    with RunLogger(tmp_path, quiet=True, resume_step=20) as log:
        log.load_state_dict(state)
        log.meters.append("m", 3.0)
        assert log.wall >= 100
        log.summarize(25)
    assert [(r["step"], r.get("x"), r.get("m")) for r in read_metrics(log.metrics_path)] == [
        (10, 10, None),
        (20, 20, None),
        (25, None, 2),
    ]
    board = EventAccumulator(str(tmp_path / "tb"))
    board.Reload()
    assert [e.step for e in board.Scalars("x")] == [10, 20]
    with RunLogger(tmp_path, quiet=True) as log:  # a new run in the same folder starts again
        log.log(1, {"x": 1})
    assert len(read_metrics(log.metrics_path)) == 1


def test_progress_prints_rate_limited_lines_when_piped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    progress.console.cache_clear()
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with RunProgress(1000, "IBRL", initial=500, line_every=30) as bar:
        for step in range(501, 601):
            clock[0] += 1.0
            bar.update(step, score=0.25)
    assert bar.rate == 1.0
    assert bar.seconds_left == 400
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "IBRL 530/1000, 7 min 50 s left, score 0.25",
        "IBRL 560/1000, 7 min 20 s left, score 0.25",
        "IBRL 590/1000, 6 min 50 s left, score 0.25",
    ]
    progress.console.cache_clear()


def test_progress_bar_on_a_terminal_keeps_printed_lines_whole() -> None:
    program = (
        "from common_utils.progress import RunProgress, console\n"
        "with RunProgress(100, 'IBRL') as bar:\n"
        "    for i in range(1, 101):\n"
        "        bar.update(i, score=0.5)\n"
        "        if i == 50: console().print('a whole line')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "a whole line\n" in done.stdout
    assert "100/100" in done.stdout
    assert "score 0.5" in done.stdout


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (125, "2 min 05 s"), (11100, "3 h 05 min"), (-1, "0 s")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_the_pace_of_a_run():
    line = "2.0 environment steps per second (evaluation included): about 50 s left for 300 steps"
    assert pace(2.0, 200, 300) == line

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rliable.metrics import aggregate_iqm

from common_utils.errors import run_program
from common_utils.run_config import ConfigError
from tools.plot_runs import main
from tools.reporting.curves import (
    Curve,
    aggregate,
    expand,
    group_name,
    intervals,
    iqm,
    read_curve,
    smooth,
)


def _run(folder: Path, values: list[float], every: int = 10, key: str = "score/score") -> Path:
    folder.mkdir()
    with open(folder / "metrics.jsonl", "w") as handle:
        for i, v in enumerate(values):
            handle.write(json.dumps({"step": i * every, "wall": float(i), key: v}) + "\n")
    return folder


@pytest.mark.parametrize(
    ("run", "group"),
    [("can_ibrl_seed3", "can_ibrl"), ("seed1_can", "can"), ("can", "can"), ("seed1", "seed1")],
)
def test_groups_are_names_without_seeds(run: str, group: str) -> None:
    assert group_name(run) == group


@pytest.mark.parametrize(("runs", "tasks"), [(1, 1), (3, 1), (5, 1), (8, 2), (40, 3)])
def test_the_iqm_is_that_of_rliable_at_every_step(runs: int, tasks: int) -> None:
    scores = np.random.default_rng(runs).normal(size=(runs, tasks, 4))
    assert np.allclose(iqm(scores), [aggregate_iqm(scores[..., t]) for t in range(4)])


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    # 200 experiments of 20 runs, as 200 steps of one; the truth is 0 at each
    scores = np.random.default_rng(0).normal(size=(20, 1, 200))
    point, low, high = intervals(scores, 300, 0.9)
    assert (low <= point).all() and (point <= high).all()
    assert 0.8 <= np.mean((low <= 0) & (high >= 0)) <= 0.97
    again = intervals(scores, 300, 0.9)
    assert np.array_equal(low, again[1])


def test_intervals_draw_from_a_generator_of_their_own() -> None:
    np.random.seed(5)
    want = np.random.random()
    np.random.seed(5)
    intervals(np.zeros((3, 1, 2)), 10, 0.95)
    assert np.random.random() == want


def test_intervals_are_stratified_by_task() -> None:
    # two tasks of very different level: without strata the interval would spread widely
    point, low, high = intervals(np.array([[[0.0], [100.0]]] * 2), 300, 0.95)
    assert low == high == point == 50
    _, low, high = intervals(np.array([[[0.0]], [[0.0]], [[100.0]], [[100.0]]]), 300, 0.95)
    assert low < 25 and high > 75


def test_tasks_need_equally_many_runs() -> None:
    steps, values = np.array([0.0, 1]), np.array([0.0, 1])
    curves = [Curve(f"{task}{i}", task, steps, values) for i, task in enumerate("aab")]
    with pytest.raises(ConfigError, match="runs per task: a 2, b 1; expected equally many"):
        aggregate(curves, 10, 0.95)


def test_curves_of_different_lengths_meet_at_common_steps() -> None:
    a = Curve("a", "", np.array([0.0, 10, 20, 30]), np.array([0.0, 1, 2, 3]))
    b = Curve("b", "", np.array([5.0, 15, 25]), np.array([1.0, 1, 1]))
    band = aggregate([a, b], 50, 0.95)
    assert band.steps.tolist() == [5, 10, 15, 20, 25]
    assert np.allclose(band.mean, [0.75, 1.0, 1.25, 1.5, 1.75])
    far = Curve("c", "", np.array([100.0]), np.array([1.0]))
    with pytest.raises(ConfigError, match="a, c have no steps in common"):
        aggregate([a, far], 50, 0.95)


def test_smoothing_is_a_running_mean() -> None:
    curve = Curve("a", "", np.arange(4.0), np.array([0.0, 2, 4, 8]))
    assert smooth(curve, 2).values.tolist() == [0, 1, 3, 6]
    assert smooth(curve, 1) is curve


def test_command_line_makes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs = [_run(tmp_path / f"ibrl_seed{s}", [0.0, 0.5, 0.8 + 0.05 * s]) for s in range(4)]
    runs.append(_run(tmp_path / "rlpd_seed0", [0.0, 0.1, 0.2], every=8))
    out = tmp_path / "curves.png"
    assert run_program(main, [*map(str, runs), "--out", str(out), "--bootstrap", "100"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("ibrl: 4 runs, at step 20 mean 0.875, IQM 0.875 [")
    assert said[1].startswith("rlpd: 1 runs, at step 16 mean 0.2")
    picture = np.asarray(Image.open(out).convert("RGB"))
    assert picture.shape[0] > 300
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50  # lines and bands, not a blank


def test_a_folder_of_runs_stands_for_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    parent = tmp_path / "metaworld"
    parent.mkdir()
    runs = [_run(parent / f"ibrl_seed{s}", [0.0, 0.5]) for s in (2, 1)]
    (parent / "not_a_run").mkdir()
    assert expand([parent, runs[0]]) == sorted(runs)
    assert (
        run_program(main, [str(parent), "--out", str(tmp_path / "o.png"), "--bootstrap", "50"]) == 0
    )
    assert "ibrl: 2 runs, at step 10" in capsys.readouterr().out
    assert run_program(main, [str(parent / "not_a_run")]) == 2
    assert "not_a_run: not a run" in capsys.readouterr().err


def test_tasks_are_strata(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    runs = [
        _run(tmp_path / f"{task}_ibrl_seed{s}", [0.0, level])
        for task, level in (("can", 0.2), ("square", 0.8))
        for s in range(2)
    ]
    args = ["--out", str(tmp_path / "o.png"), "--bootstrap", "50", "--task-from", "can|square"]
    assert run_program(main, [*map(str, runs), *args]) == 0
    assert "ibrl: 4 runs, at step 10 mean 0.5, IQM 0.5 [0.5, 0.5]" in capsys.readouterr().out


def test_what_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = _run(tmp_path / "a", [1.0])
    with pytest.raises(ConfigError, match="no 'loss' logged; it has score/score"):
        read_curve(run, "loss")
    assert run_program(main, [str(tmp_path / "nothing")]) == 2
    assert "not a run" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(run), "--confidence", "2"])


def test_an_integer_that_no_float_holds_is_passed_over(tmp_path: Path) -> None:
    run = _run(tmp_path / "run", [0.0, 0.5])
    with open(run / "metrics.jsonl", "a") as handle:
        handle.write(json.dumps({"step": 20, "wall": 2.0, "score/score": 10**400}) + "\n")
    assert read_curve(run, "score/score", "").steps.tolist() == [0, 10]

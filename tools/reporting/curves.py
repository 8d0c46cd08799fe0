"""Learning curves of runs, and the curves of several seeds combined by rliable.

Runs whose names differ only in their seed form one group. A group has its interquartile mean and a
percentile interval of a stratified bootstrap that redraws runs within each task (Agarwal et al.
2021, "Deep RL at the edge of the statistical precipice"), computed by the package of that paper.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common_utils.errors import ConfigError
from common_utils.extras import optional
from common_utils.records import METRICS, read_metrics


@dataclass(frozen=True)
class Curve:
    """One run: ``values[i]`` measured at ``steps[i]`` (increasing)."""

    name: str
    task: str
    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Band:
    """A group at common steps, float64 [T] each; ``low`` and ``high`` bound the IQM."""

    steps: np.ndarray
    mean: np.ndarray
    iqm: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: int


def group_name(run: str) -> str:
    """The run's name without its ``_``-separated parts that mention a seed."""
    return "_".join(p for p in run.split("_") if "seed" not in p) or run


def expand(folders: Sequence[Path]) -> list[Path]:
    """Run folders as given; a folder of runs is replaced by its runs, in name order."""
    runs: list[Path] = []
    for folder in folders:
        inside = sorted(p.parent for p in folder.glob(f"*/{METRICS}"))
        runs += [folder] if (folder / METRICS).is_file() or not inside else inside
    return list(dict.fromkeys(runs))


def read_records(folder: Path) -> list[dict[str, Any]]:
    """A run's records; ConfigError if the folder holds no run."""
    path = folder / METRICS
    if not path.is_file():
        found = "no such folder" if not folder.is_dir() else f"it has no {METRICS}"
        raise ConfigError(f"{folder}: not a run ({found}), expected a run or a folder of runs")
    return [record for record in read_metrics(path) if is_number(record["step"])]


def curve_of(
    name: str, records: Sequence[dict[str, Any]], key: str, task: str = ""
) -> Curve | None:
    """The curve of ``key``; None if it was never logged."""
    pairs = {r["step"]: r[key] for r in records if is_number(r.get(key))}
    steps = sorted(pairs)
    values = np.array([pairs[s] for s in steps], np.float64)
    return Curve(name, task, np.array(steps, np.float64), values) if pairs else None


def read_curve(folder: Path, key: str, task_pattern: str = "") -> Curve:
    """A run's curve; ConfigError if it never logged ``key``, or its name has no task."""
    task = ""
    records = read_records(folder)
    if task_pattern:
        match = re.search(task_pattern, folder.name)
        if match is None:
            raise ConfigError(
                f"{folder.name}: --task-from '{task_pattern}' does not match, "
                "expected a pattern of run names"
            )
        task = match.group(0)
    if curve := curve_of(folder.name, records, key, task):
        return curve
    keys = sorted({k for r in records for k in r} - {"step", "wall"})
    raise ConfigError(
        f"{folder / METRICS}: no '{key}' logged; it has {', '.join(keys) or 'nothing'}"
    )


def is_number(value: object) -> bool:
    """Whether a record's value is a finite number that float64 holds."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float) and math.isfinite(value)


def smooth(curve: Curve, window: int) -> Curve:
    """Running mean over the last ``window`` measurements."""
    if window <= 1:
        return curve
    total = np.cumsum(np.insert(curve.values, 0, 0.0))
    last = np.arange(1, len(curve.values) + 1)
    first = np.maximum(0, last - window)
    return Curve(curve.name, curve.task, curve.steps, (total[last] - total[first]) / (last - first))


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean [T] of scores [runs, tasks, T]: ``rliable.metrics.aggregate_iqm`` of each
    column (of up to three values in all it is the mean)."""
    from scipy.stats import trim_mean

    return np.atleast_1d(trim_mean(scores.reshape(-1, scores.shape[-1]), 0.25, axis=0))


def intervals(
    scores: np.ndarray, repeats: int, confidence: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(IQM, low, high), float64 [T] each, of scores [runs, tasks, T]; one run has no interval.

    Raises UserError if rliable is not installed.
    """
    if scores.shape[0] < 2:
        point = iqm(scores)
        return point, point, point
    library = optional("rliable.library", "report", "intervals over several runs")
    before = np.random.get_state()
    np.random.seed(seed)  # rliable draws from numpy's global generator
    try:
        points, bounds = library.get_interval_estimates(
            {"": scores}, iqm, reps=repeats, confidence_interval_size=confidence
        )
    finally:
        np.random.set_state(before)
    low, high = bounds[""]
    return points[""], low, high


def aggregate(curves: Sequence[Curve], repeats: int, confidence: float, seed: int = 0) -> Band:
    """Combine curves at the steps of all of them, up to the end of the shortest. Between its own
    measurements a curve is interpolated linearly. Raises ConfigError if they have no steps in
    common, or the tasks do not have equally many runs."""
    steps, values = at_common_steps(curves)
    tasks = list(dict.fromkeys(c.task for c in curves))
    runs = [values[[c.task == task for c in curves]] for task in tasks]
    if len({len(of_task) for of_task in runs}) > 1:
        found = ", ".join(f"{t} {len(r)}" for t, r in zip(tasks, runs, strict=True))
        raise ConfigError(f"runs per task: {found}; expected equally many for each task")
    point, low, high = intervals(np.stack(runs, axis=1), repeats, confidence, seed)
    return Band(steps, values.mean(0), point, low, high, len(curves))


def at_common_steps(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Steps [T] of the part that all curves cover, and their values there [N, T]."""
    start = max(c.steps[0] for c in curves)
    end = min(c.steps[-1] for c in curves)
    if end < start:
        names = ", ".join(c.name for c in curves)
        raise ConfigError(
            f"the runs {names} have no steps in common, expected runs logged at the same steps"
        )
    steps = np.unique(np.concatenate([c.steps for c in curves]))
    steps = steps[(steps >= start) & (steps <= end)]
    return steps, np.stack([np.interp(steps, c.steps, c.values) for c in curves])

"""Plot learning curves over runs and seeds, from their ``metrics.jsonl``, as a PNG.

    python tools/plot_runs.py exps/rl/can_* [--key score/score] [--out curves.png]
    python -m tools.plot_runs exps/rl       # every run directly in that folder

Runs whose names differ only in their seed (``can_ibrl_seed1``, ``can_ibrl_seed2``) form one
group. The plot shows the mean and the interquartile mean over each group's runs, and a band
from a percentile bootstrap that resamples runs (Agarwal et al. 2021, "Deep RL at the edge of
the statistical precipice"; ``--task-from`` stratifies the runs of a group by task).
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common_utils.atomic import atomic_write
from common_utils.errors import run_program
from common_utils.options import Options, numeric
from common_utils.ranges import Above, Below, Between, Positive
from common_utils.records import read_metrics
from common_utils.run_config import ConfigError

Statistic = Callable[[np.ndarray], np.ndarray]


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
        inside = sorted(p.parent for p in folder.glob("*/metrics.jsonl"))
        runs += [folder] if (folder / "metrics.jsonl").is_file() or not inside else inside
    return list(dict.fromkeys(runs))


def read_curve(folder: Path, key: str, task_pattern: str = "") -> Curve:
    """A run's curve; ConfigError if it never logged ``key``, or its name has no task."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise ConfigError(f"{folder}: not a run (neither it nor a folder in it has metrics.jsonl)")
    records = read_metrics(path)
    pairs = {r["step"]: r[key] for r in records if _is_float(r.get(key))}
    if not pairs:
        keys = sorted({k for r in records for k in r} - {"step", "wall"})
        raise ConfigError(f"{path}: no '{key}' logged; it has {', '.join(keys) or 'nothing'}")
    task = ""
    if task_pattern:
        match = re.search(task_pattern, folder.name)
        if match is None:
            raise ConfigError(
                f"{folder.name}: --task-from '{task_pattern}' does not match, "
                "expected a pattern of run names"
            )
        task = match.group(0)
    steps = sorted(pairs)
    values = np.array([pairs[s] for s in steps], np.float64)
    return Curve(folder.name, task, np.array(steps, np.float64), values)


def _is_float(value: object) -> bool:
    """Whether a record's value is a number that float64 holds."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max)


def iqm(values: np.ndarray) -> np.ndarray:
    """Interquartile mean over the first axis [N, ...]: the mean of the middle half.

    If N is not divisible by 4, the outermost of the kept values count in part, so that exactly
    half of the weight is kept (for N < 3 it is the mean).
    """
    n = values.shape[0]
    weights = np.clip(np.minimum(np.arange(1, n + 1), np.arange(n, 0, -1)) - n / 4, 0, 1)
    ordered = np.sort(values, axis=0)
    return np.tensordot(weights / weights.sum(), ordered, axes=(0, 0))


def stratified_bootstrap(
    values: np.ndarray,
    strata: Sequence[str],
    statistic: Statistic,
    repeats: int,
    confidence: float,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of ``statistic`` of [N, T] values; runs are redrawn by stratum."""
    rng = np.random.default_rng(seed)
    labels = np.array(strata)
    members = [np.flatnonzero(labels == s) for s in dict.fromkeys(strata)]
    draws = []
    for _ in range(repeats):
        index = np.concatenate([m[rng.integers(0, len(m), len(m))] for m in members])
        draws.append(statistic(values[index]))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.stack(draws), [tail, 1 - tail], axis=0)
    return low, high


def aggregate(curves: Sequence[Curve], repeats: int, confidence: float, seed: int = 0) -> Band:
    """Combine curves at the steps of all of them, up to the end of the shortest. Between its own
    measurements a curve is interpolated linearly."""
    start = max(c.steps[0] for c in curves)
    end = min(c.steps[-1] for c in curves)
    if end < start:
        names = ", ".join(c.name for c in curves)
        raise ConfigError(
            f"the runs {names} have no steps in common, expected runs logged at the same steps"
        )
    steps = np.unique(np.concatenate([c.steps for c in curves]))
    steps = steps[(steps >= start) & (steps <= end)]
    values = np.stack([np.interp(steps, c.steps, c.values) for c in curves])
    low, high = stratified_bootstrap(
        values, [c.task for c in curves], iqm, repeats, confidence, seed
    )
    return Band(steps, values.mean(0), iqm(values), low, high, len(curves))


def smooth(curve: Curve, window: int) -> Curve:
    """Running mean over the last ``window`` measurements."""
    if window <= 1:
        return curve
    total = np.cumsum(np.insert(curve.values, 0, 0.0))
    last = np.arange(1, len(curve.values) + 1)
    first = np.maximum(0, last - window)
    return Curve(curve.name, curve.task, curve.steps, (total[last] - total[first]) / (last - first))


def draw(bands: dict[str, Band], key: str, confidence: float, out: Path, title: str = "") -> None:
    """One panel: solid IQM with its band, dashed mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, band in bands.items():
        label = f"{name} ({band.runs} {'run' if band.runs == 1 else 'runs'})"
        (line,) = axis.plot(band.steps, band.iqm, label=label)
        axis.plot(band.steps, band.mean, ls="--", lw=1, color=line.get_color())
        if band.runs > 1:
            axis.fill_between(band.steps, band.low, band.high, alpha=0.2, color=line.get_color())
    axis.set(xlabel="environment steps", ylabel=key, title=title)
    axis.grid(alpha=0.3)
    note = f"solid: IQM with {confidence:.0%} bootstrap interval; dashed: mean"
    axis.legend(title=note, title_fontsize="small", fontsize="small")
    with atomic_write(out) as temp:
        figure.savefig(temp, format="png", dpi=150)
    plt.close(figure)


BETWEEN_0_AND_1 = Annotated[float, Above(0), Below(1)]
RESAMPLINGS = Annotated[int, Between(1, 10**6)]


def parser() -> argparse.ArgumentParser:
    p = Options(description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("runs", nargs="+", type=Path, help="runs, or folders of runs")
    p.add_argument("--key", default="score/score", help="metric to plot (%(default)s)")
    p.add_argument("--out", type=Path, default=Path("learning_curves.png"), help="%(default)s")
    p.add_argument("--title", default="")
    p.add_argument(
        "--smooth", type=numeric(Positive), default=1, help="running mean over this many points"
    )
    p.add_argument("--confidence", type=numeric(BETWEEN_0_AND_1), default=0.95, help="%(default)s")
    p.add_argument(
        "--bootstrap", type=numeric(RESAMPLINGS), default=2000, help="resamplings (%(default)s)"
    )
    p.add_argument(
        "--task-from", default="", help="regular expression that finds the task in a run's name"
    )
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    groups: dict[str, list[Curve]] = {}
    for run in expand(args.runs):
        curve = smooth(read_curve(run, args.key, args.task_from), args.smooth)
        # with tasks given, runs of the same method on different tasks belong together
        name = curve.name.replace(curve.task, "").strip("_") if curve.task else curve.name
        groups.setdefault(group_name(name), []).append(curve)
    bands = {
        name: aggregate(curves, args.bootstrap, args.confidence)
        for name, curves in sorted(groups.items())
    }
    draw(bands, args.key, args.confidence, args.out, args.title)
    for name, band in bands.items():
        print(
            f"{name}: {band.runs} runs, at step {band.steps[-1]:.0f} mean {band.mean[-1]:.4g}, "
            f"IQM {band.iqm[-1]:.4g} [{band.low[-1]:.4g}, {band.high[-1]:.4g}]"
        )
    print(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

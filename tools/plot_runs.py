"""Plot learning curves over runs and seeds, from their ``metrics.jsonl``, as a PNG.

    python tools/plot_runs.py exps/rl/can_* [--key score/score] [--out curves.png]
    python -m tools.plot_runs exps/rl       # every run directly in that folder

Runs whose names differ only in their seed (``can_ibrl_seed1``, ``can_ibrl_seed2``) form one
group. The plot shows the mean and the interquartile mean over each group's runs, and a band
from rliable's percentile bootstrap, which resamples runs (Agarwal et al. 2021, "Deep RL at the
edge of the statistical precipice"; ``--task-from`` stratifies the runs of a group by task).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common_utils.errors import run_program
from common_utils.options import Options, numeric
from common_utils.ranges import Above, Below, Between, Positive
from tools import plot_style
from tools.reporting.curves import Band, Curve, aggregate, expand, group_name, read_curve, smooth


def draw(bands: dict[str, Band], key: str, confidence: float, out: Path, title: str = "") -> None:
    """One panel: solid IQM with its band, dashed mean."""
    figure, axis = plot_style.pyplot().subplots(figsize=(7, 4.5))
    for name, band in bands.items():
        label = f"{name} ({band.runs} {'run' if band.runs == 1 else 'runs'})"
        (line,) = axis.plot(band.steps, band.iqm, label=label)
        axis.plot(band.steps, band.mean, ls="--", lw=1, color=line.get_color())
        if band.runs > 1:
            axis.fill_between(band.steps, band.low, band.high, alpha=0.2, color=line.get_color())
    label = plot_style.label_of(key)
    named = key if label == key else f"{label}: {key}"
    axis.set(xlabel=f"{plot_style.ENV_STEPS} (BC: gradient steps)", ylabel=named, title=title)
    note = f"solid: IQM with {confidence:.0%} bootstrap interval; dashed: mean"
    axis.legend(title=note, title_fontsize="small")
    plot_style.save(figure, out)


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

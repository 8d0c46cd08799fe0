"""What a sweep has found: IQM and intervals over seeds and tasks, as JSON, a table and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from common_utils.atomic import atomic_json
from common_utils.errors import UserError
from launch.attempt import read_record
from launch.progress import Row, State
from tools.plot_runs import draw
from tools.reporting.curves import Band, Curve, aggregate, curve_of
from tools.reporting.runs import read_run

KEY = "score/score"
REPEATS, CONFIDENCE = 2000, 0.95  # of the bootstrap, as in tools.plot_runs
RESULTS, CURVES = "results.json", "curves.png"


class Found(NamedTuple):
    """The results of a group: of all its tasks together, and of each task."""

    pooled: Band
    by_task: Mapping[str, Band]


def gather(rows: Mapping[str, Row]) -> tuple[dict[str, Found], list[str]]:
    """The results of each group of finished trials that were evaluated, and what is missing."""
    curves: dict[str, list[Curve]] = {}
    notes = []
    for row in rows.values():
        if row.state is not State.FINISHED:
            continue
        try:
            run = read_run(Path(row.trial.folder))
        except (UserError, OSError) as error:  # must not cost the results of the others
            notes.append(str(error))
            continue
        if curve := curve_of(row.trial.name, run.records, KEY, run.task):
            curves.setdefault(row.trial.group, []).append(curve)
        else:
            notes.append(f"{row.trial.name}: was not evaluated")
    found = {}
    for group, of_group in curves.items():
        try:
            found[group] = _found(of_group)
        except UserError as error:
            notes.append(f"{group}: {error}")
    return found, notes


def _found(curves: Sequence[Curve]) -> Found:
    tasks = dict.fromkeys(curve.task for curve in curves)
    by_task = {t: aggregate([c for c in curves if c.task == t], REPEATS, CONFIDENCE) for t in tasks}
    pooled = (
        aggregate(curves, REPEATS, CONFIDENCE) if len(tasks) > 1 else next(iter(by_task.values()))
    )
    return Found(pooled, by_task)


def numbers(band: Band) -> dict[str, Any]:
    """A band at its last step: the number of runs, and null instead of an interval of one run."""
    interval = [float(band.low[-1]), float(band.high[-1])] if band.runs > 1 else None
    return {
        "runs": band.runs,
        "step": int(band.steps[-1]),
        "mean": float(band.mean[-1]),
        "iqm": float(band.iqm[-1]),
        "interval": interval,
    }


def write(sweep: Path, command: str, rows: Mapping[str, Row]) -> tuple[dict[str, Found], list[str]]:
    """Write results.json, and curves.png if a trial was evaluated; returns what was found, and
    what is missing."""
    found, notes = gather(rows)
    tree = {
        "command": command,
        "key": KEY,
        "confidence": CONFIDENCE,
        "bootstrap": REPEATS,
        "groups": {
            name: {**numbers(f.pooled), "tasks": {t: numbers(b) for t, b in f.by_task.items()}}
            for name, f in found.items()
        },
        "trials": [_trial(sweep, row) for row in rows.values()],
        "notes": notes,
    }
    atomic_json(tree, sweep / RESULTS)
    if found:
        draw({name: f.pooled for name, f in found.items()}, KEY, CONFIDENCE, sweep / CURVES)
    return found, notes


def _trial(sweep: Path, row: Row) -> dict[str, Any]:
    trial, record = row.trial, read_record(sweep, row.trial)
    return {
        "name": trial.name,
        "state": row.state.value,
        "status": record.get("status"),
        "group": trial.group,
        "program": trial.program,
        "seed": trial.seed,
        "values": dict(trial.values),
        "needs": list(trial.needs),
        "step": row.step,
        "steps": trial.steps,
        "score": row.score,
        "host": record.get("host"),
        "folder": trial.folder,
    }


def table(found: Mapping[str, Found]) -> Table:
    """A line for each group, and below it one for each of several tasks."""
    made = Table(title=f"{KEY} of the last common step")
    for head in ("group", "runs", "step", "mean", "IQM", f"{CONFIDENCE:.0%} interval"):
        made.add_column(head, justify="left" if head == "group" else "right", overflow="fold")
    for name, of_group in found.items():
        made.add_row(name, *_cells(of_group.pooled))
        for task, band in of_group.by_task.items() if len(of_group.by_task) > 1 else ():
            made.add_row(f"  {task}", *_cells(band))
    return made


def _cells(band: Band) -> tuple[str, ...]:
    n = numbers(band)
    low, high = n["interval"] or ("", "")
    shown = f"{low:.4g} to {high:.4g}" if n["interval"] else ""
    return str(n["runs"]), f"{n['step']:,}", f"{n['mean']:.4g}", f"{n['iqm']:.4g}", shown

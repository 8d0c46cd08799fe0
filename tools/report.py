"""One HTML file about one or many runs: curves, evaluations, videos, values, configuration.

    python -m tools.report exps/rl/can_* --out report.html
    python -m tools.report exp/quickstart          # every run in that folder, and its videos

RL runs, BC runs and Implicit BC runs, together or alone. The file holds everything, plotly.js and
the videos included, and opens without a network. Runs whose names differ only in their seed are
one group, as in ``tools.plot_runs``.

Exit status 0; 2 if a folder holds no run (the report is still written for the others).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common_utils.atomic import atomic_write
from common_utils.errors import USER_ERROR, UserError, print_error, run_program
from common_utils.options import Options, numeric
from common_utils.ranges import Between
from tools import plot_style
from tools.plot_runs import BETWEEN_0_AND_1, RESAMPLINGS
from tools.reporting import figures, tables, videos
from tools.reporting.curves import expand
from tools.reporting.page import MARK, Page
from tools.reporting.runs import Run, read_runs

MEGABYTES = Annotated[float, Between(0, 2000)]
KINDS = {"rl": "RL", "bc": "BC", "": "other runs"}


def parser() -> argparse.ArgumentParser:
    p = Options(prog="python -m tools.report", description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("runs", nargs="+", type=Path, help="runs, or folders of runs")
    p.add_argument("--out", type=Path, default=Path("report.html"), help="%(default)s")
    p.add_argument("--title", default="", help="default: the names of the runs")
    p.add_argument("--key", default="score/score", help="metric of the curves (%(default)s)")
    p.add_argument("--confidence", type=numeric(BETWEEN_0_AND_1), default=0.95, help="%(default)s")
    p.add_argument(
        "--bootstrap", type=numeric(RESAMPLINGS), default=2000, help="resamplings (%(default)s)"
    )
    p.add_argument(
        "--max_video_mb",
        type=numeric(MEGABYTES),
        default=20,
        help="of videos, in all (%(default)s)",
    )
    return p


def check_out(out: Path) -> None:
    """Raise UserError if ``out`` holds something else than a report."""
    if not out.exists():
        return
    if out.is_file():
        with open(out, "rb") as file:
            if file.read(len(MARK)) == MARK.encode():
                return
    raise UserError(
        f"--out: '{out}' exists and is not a report; expected a new name, or that of a report, "
        "which is replaced"
    )


def groups_of(runs: Sequence[Run]) -> dict[tuple[str, str, str], list[Run]]:
    """Runs by group, in the order of their names."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda r: (r.group, r.name)):
        groups.setdefault(run.group, []).append(run)
    return groups


def build(runs: Sequence[Run], refused: Sequence[str], args: argparse.Namespace) -> Page:
    """The report's page."""
    groups = groups_of(runs)
    page = Page(args.title or f"Report: {', '.join(g[2] for g in groups)}"[:120])
    page.section("Runs")
    page.table(tables.summary(runs), "runs")
    notes = [*refused, *(note for run in runs for note in run.notes)]
    notes += _curves(page, groups, args)
    _evaluations(page, runs)
    _videos(page, runs, args)
    if any(run.kind == "rl" for run in runs):
        _candidates(page, groups)
        _values(page, {group: runs for group, runs in groups.items() if group[0] == "rl"})
    _time(page, runs)
    _metrics(page, groups)
    _configuration(page, runs)
    _environment(page, runs)
    if notes:
        page.section("Notes", "What could not be read or shown.")
        page.listed(dict.fromkeys(notes))
    return page


def _curves(page: Page, groups: figures.Groups, args: argparse.Namespace) -> list[str]:
    page.section("Learning curves")
    if any(len(runs) > 1 for runs in groups.values()):
        page.say(
            f"Line: interquartile mean (IQM) of a group's runs, {args.confidence:.0%} interval of "
            f"a stratified bootstrap over runs ({args.bootstrap} resamplings, rliable). Faint: "
            "single runs. A group are the runs of a task whose names differ only in their seed."
        )
    notes = []
    for kind in sorted({group[0] for group in groups}, reverse=True):
        of_kind = {group: runs for group, runs in groups.items() if group[0] == kind}
        found, missing = figures.bands(of_kind, args.key, args.bootstrap, args.confidence)
        notes += missing
        if not found:
            page.say(f"{KINDS[kind]}: no {args.key} logged.")
            continue
        page.heading(f"{KINDS[kind]}: {args.key}")
        name = f"curve-{kind or 'other'}"
        page.plot(name, figures.learning_curves(of_kind, found, args.key, kind))
        page.table(tables.final(of_kind, found), f"final-{kind or 'other'}")
    return notes


def _evaluations(page: Page, runs: Sequence[Run]) -> None:
    page.section(
        "Evaluations",
        "Success with its 95 % Wilson interval over the episodes. The best of training was chosen "
        "for being high, so it is too high on average; 'evaluate.eval --weight RUN/model0.pt "
        "--num_game 50 --out RUN/evaluation.json' adds a row of new episodes.",
    )
    table = tables.evaluations(runs)
    if table.rows:
        page.table(table, "evaluations")
    else:
        page.say("No run was evaluated.")


def _videos(page: Page, runs: Sequence[Run], args: argparse.Namespace) -> None:
    page.section("Videos")
    paths = videos.find([folder for folder in args.runs if folder.is_dir()])
    found, notes = videos.embed(paths, runs, int(args.max_video_mb * 1e6))
    if found:
        page.videos(found)
    else:
        page.say(
            "None below the given folders ('evaluate.eval --weight RUN/model0.pt --num_game 5 "
            "--mp 0 --record_dir RUN/videos' makes some)."
        )
    for note in notes:
        page.say(note)


def _candidates(page: Page, groups: figures.Groups) -> None:
    page.section(
        "Candidates",
        "Whose action was played: the share of steps, mean over a group's runs. Areas: while "
        "exploring. Lines: the share of BC actions in evaluation and in the TD targets.",
    )
    number = 0
    for group, runs in groups.items():
        if group[0] != "rl":
            continue
        page.heading(figures.group_label(group, groups))
        if (figure := figures.candidates(runs)) is not None:
            page.plot(f"candidates-{number}", figure)
            number += 1
        else:
            page.say("One candidate: the actor's own action (no actor/bc_train logged).")


def _values(page: Page, groups: figures.Groups) -> None:
    page.section(
        "Q and return",
        "Q of the first observation and action of evaluation episodes (mean over the critic's "
        "members), and the discounted return that it predicts: means over a group's runs, then a "
        "point per evaluation of a run and per episode of an evaluation in a file. Q far above the "
        "return: the critic overestimates. With bootstrap_truncated 1, Q also counts what would "
        "come after the time limit.",
    )
    over_time, against = figures.value_over_time(groups), figures.value_against_return(groups)
    if over_time is not None:
        page.plot("value-time", over_time)
        runs = [run for of_group in groups.values() for run in of_group]
        page.table(tables.value_errors(runs), "values")
    if against is not None:
        page.plot("value-return", against)
    if over_time is None and against is None:
        page.say("No run logged score/start_q and score/discounted_return.")


def _time(page: Page, runs: Sequence[Run]) -> None:
    page.section("Time")
    if (figure := figures.time_shares(runs)) is not None:
        page.say("Parts of the measured time of training, until the last record.")
        page.plot("time", figure)
    if missing := [run.name for run in runs if not any(k.startswith("time/") for k in run.last)]:
        page.say(f"No shares of time logged (BC runs log none): {', '.join(missing)}.")


def _metrics(page: Page, groups: figures.Groups) -> None:
    page.section("All metrics", "Every logged number of every run (docs/metrics.md).")
    lines: list[dict[str, Any]] = []
    labels: dict[str, str] = {}
    for number, runs in enumerate(groups.values()):
        for run in runs:
            keys = sorted({k for record in run.records for k in record} - {"step", "wall"})
            curves = {key: curve for key in keys if (curve := run.curve(key)) is not None}
            labels |= {key: plot_style.label_of(key, run.protocol.by_return) for key in curves}
            lines.append({
                "name": run.name,
                "colour": plot_style.colour(number),
                "dash": plot_style.dash(number),
                "values": {k: [c.steps.tolist(), c.values.tolist()] for k, c in curves.items()},
            })  # fmt: skip
    kinds = {group[0] for group in groups}
    x = figures.x_label(kinds.pop()) if len(kinds) == 1 else "environment or gradient steps"
    if labels:
        page.metrics(lines, dict(sorted(labels.items())), figures.figure([], x, "")["layout"])
    else:
        page.say("No run logged a number.")


def _configuration(page: Page, runs: Sequence[Run]) -> None:
    page.section("Configuration")
    for run in runs:
        page.heading(run.name)
        if not run.config:
            page.say("cfg.yaml could not be read (see the notes).")
            continue
        recorded = tables.preset_changes(run)
        if recorded is None:
            page.say("The configuration file that it was started with was not recorded.")
        else:
            preset, changes = recorded
            before = f"Started with {preset}" if preset else "Started without a configuration file"
            base = "it and the defaults" if preset else "the defaults"
            page.say(f"{before}. What differs from {base}:" if changes else f"{before}.")
            if changes:
                page.code(changes)
        if run.defaults:
            changed = tables.changed_fields(run)
            page.folded(f"{len(changed.rows)} fields differ from the defaults", changed)
        every = tables.all_fields(run)
        page.folded(f"All {len(every.rows)} fields", every)


def _environment(page: Page, runs: Sequence[Run]) -> None:
    page.section("Environment", "Where and by what each run was started (run_info.json).")
    if any(run.starts for run in runs):
        page.table(tables.environment(runs), "environment")
    if missing := [run.name for run in runs if not run.starts]:
        page.say(f"Not recorded (runs of earlier versions): {', '.join(missing)}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    args = parser().parse_args(argv)
    check_out(args.out)
    runs, refused = read_runs(expand(args.runs))
    for line in refused:
        print_error(line)
    if not runs:
        return USER_ERROR
    page = build(runs, refused, args).render()
    with atomic_write(args.out, "w") as file:
        file.write(page)
    print(
        f"{args.out}: {len(runs)} {'run' if len(runs) == 1 else 'runs'}, {len(page) / 1e6:.1f} MB"
    )
    return USER_ERROR if refused else 0


if __name__ == "__main__":
    sys.exit(run_program(main))

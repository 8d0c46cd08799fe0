"""Report what demonstrations of any format hold and what is wrong with them, and draw them.

    python -m tools.inspect_dataset release/data/robomimic/can/processed_data96.hdf5 \\
        [--out sheet.png] [--demos 6] [--frames 8]

Prints demonstrations, lengths, returns, attributes, and every key with its shape and range, then
the problems found, which would make training fail. Writes a contact sheet of the images next to the
file (one row per demonstration and camera, time from left to right) and plots of the actions, or
reports that the folder is read-only. Raw recordings (robomimic, robosuite) are read too. Exit
status: 0, or 1 when problems were found, or 2 when the file cannot be read or a requested sheet
cannot be written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common_utils.errors import run_program
from common_utils.options import Options, numeric
from common_utils.progress import console
from common_utils.ranges import Between
from common_utils.resources import format_bytes
from common_utils.run_config import ConfigError
from tools.dataset_pictures import action_plots, contact_sheet
from tools.dataset_report import UNREADABLE, Report, inspect

# a problem that many demonstrations share is reported once, with this many of their names
NAMES_SHOWN = 4


def _summary(values: Sequence[float]) -> str:
    array = np.asarray(values, float)
    return (
        f"min {array.min():g}, median {np.median(array):g}, mean {array.mean():.4g}, "
        f"max {array.max():g}"
    )


def render(report: Report) -> Group:
    """The report as rich tables."""
    facts = Table(show_header=False)
    for key, value in report.facts.items():
        facts.add_row(key, Text(value))
    facts.add_row("demonstrations", str(len(report.lengths)))
    if report.lengths:
        facts.add_row("steps", f"{sum(report.lengths)}; lengths {_summary(report.lengths)}")
    if report.returns:
        facts.add_row("returns", _summary(report.returns))
    if report.returns and report.sparse:
        facts.add_row("successful", f"{len(report.first_success)} of {len(report.returns)}")
    if report.first_success:
        facts.add_row("steps to success", _summary(report.first_success))
    if report.raw:
        facts.add_row(
            "observations", "none: a raw recording (python -m tools.dataset_states_to_obs)"
        )
    parts: list[Any] = [facts, _key_table(report)]
    if report.actions.size:
        parts.append(_action_table(report.actions))
    return Group(*parts, _problem_text(report))


def _key_table(report: Report) -> Table:
    table = Table(title="keys", title_justify="left")
    for column in ("key", "one step", "min / mean / max", "stored"):
        table.add_column(column, no_wrap=True)
    for key, stats in report.keys.items():
        numbers = ""
        if stats.count:
            numbers = f"{stats.low:.3g} / {stats.total / stats.count:.3g} / {stats.high:.3g}"
        shape = "x".join(map(str, stats.shape)) or "1"
        table.add_row(key, f"{stats.dtype} {shape}", numbers, format_bytes(stats.bytes))
    return table


def _action_table(actions: np.ndarray) -> Table:
    table = Table(title="actions by dimension", title_justify="left")
    for column in ("", "min", "mean", "max", "std", "at or beyond +-1"):
        table.add_column(column)
    for number, values in enumerate(actions.T):
        with np.errstate(all="ignore"):  # faulty numbers are reported as problems
            numbers = (values.min(), values.mean(), values.max(), values.std())
        edge = float((np.abs(values) >= 1 - 1e-6).mean())
        table.add_row(str(number), *(f"{v:.3f}" for v in numbers), f"{edge:.1%}")
    return table


def _problem_text(report: Report) -> Text:
    if not report.problems:
        return Text("no problems found", style="green")
    lines = [f"{len(report.problems)} problems found:"]
    for text, names in report.problems.items():
        shown = ", ".join(names[:NAMES_SHOWN]) + (
            f", ... ({len(names)} in all)" if len(names) > NAMES_SHOWN else ""
        )
        lines.append(f"- {text}" + (f" [{shown}]" if shown else ""))
    return Text("\n".join(lines), style="red")


PICTURES = Annotated[int, Between(0, 1000)]


def parser() -> Options:
    """The command line."""
    p = Options(description=__doc__.split("\n")[0])
    p.add_argument("file", help="file or folder of demonstrations")
    p.add_argument("--out", default="", help="contact sheet (default: FILE_sheet.png)")
    p.add_argument(
        "--demos",
        type=numeric(PICTURES),
        default=6,
        help="demonstrations on the sheet and in the plots; 0: no drawings",
    )
    p.add_argument(
        "--frames", type=numeric(Annotated[int, Between(1, 1000)]), default=8, help="frames of each"
    )
    return p


def draw(options: Any, report: Report) -> int:
    """Write the sheet and the plots; returns the exit status that they ask for."""
    path = Path(options.file)
    stem = path.with_suffix("") if path.name else path.resolve()
    out = Path(options.out or f"{stem}_sheet.png")
    plots = Path(f"{stem}_actions.png") if not options.out else out.with_stem(f"{out.stem}_actions")
    try:
        if contact_sheet(path, out, options.demos, options.frames):
            console().print(f"contact sheet: {out}", soft_wrap=True)
        if action_plots(report, plots, options.demos):
            console().print(f"plots of actions: {plots}", soft_wrap=True)
    except ConfigError as error:
        if options.out:
            raise
        # a data folder may be read-only; the file is not at fault
        console().print(
            f"no contact sheet: {error}; --out FILE.png puts it elsewhere", soft_wrap=True
        )
    except UNREADABLE as error:
        console().print(Text(f"no contact sheet: {error}", style="red"))
        return 1
    return 0


def main(args: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is described above."""
    options = parser().parse_args(args)
    report = inspect(options.file)
    console().print(Text(str(report.path), style="bold"), soft_wrap=True)
    # key names must not be cut, even when the output is a pipe of 80 columns
    Console(width=max(110, console().width)).print(render(report))
    status = draw(options, report) if options.demos else 0
    return 1 if report.problems else status


if __name__ == "__main__":
    sys.exit(run_program(main))

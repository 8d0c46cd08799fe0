"""Many runs: seeds, a grid of values, BC before RL; on this machine, a Slurm or a Ray cluster.

    python -m launch.sweep --config_path release/cfgs/robomimic_rl/lift_state_ibrl.yaml \
        --seeds 0:5 --grid q_agent.lr=1e-4,3e-4 --out exps/sweeps/lift

Every trial is the ordinary program in a folder of its own, ``OUT/NAME_FIELD=VALUE_seedN``. The same
command again skips trials that have finished, continues those that were interrupted, and tries
failed ones again. After Ctrl-C or SIGTERM the trials save their state. At the end come
``OUT/results.json`` (interquartile mean and 95 % interval over seeds and tasks) and
``OUT/curves.png``. docs/scaling.md describes files of trials that need each other.

Exit status 0 if every trial has finished, 1 if not, 2 if nothing could be started.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from common_utils.atomic import make_folder
from common_utils.errors import INTERRUPTED, printable, run_program
from common_utils.extras import optional
from common_utils.folder_lock import FolderLock
from common_utils.next_commands import started_as
from common_utils.options import Options, numeric
from common_utils.progress import console
from common_utils.ranges import Between
from common_utils.run_config import ConfigError
from common_utils.run_folder import output_folder
from launch import results, sweep_file
from launch.attempt import LOGS, last_lines
from launch.engines.table import ENGINES, make_engine
from launch.programs import PROGRAMS
from launch.progress import Row, State
from launch.schedule import Schedule, rows_of
from launch.table import Display, summary
from launch.trials import Entry, expand

AT_A_TIME = Annotated[int, Between(0, 100_000)]


def parser() -> argparse.ArgumentParser:
    p = Options(prog="python -m launch.sweep", description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("--config_path", default="", help="the configuration of every trial")
    p.add_argument(
        "--program",
        choices=["", *PROGRAMS],
        default="",
        help="default: train_rl or train_bc, by the configuration",
    )
    p.add_argument(
        "--seeds", default="", help="0:5 (0 to 4) or 0,3,7; default: that of the configuration"
    )
    p.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="FIELD=A,B",
        help="a field and its values, such as q_agent.lr=1e-4,3e-4; several are combined",
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field that every trial has, such as num_train_step=20000",
    )
    p.add_argument("--file", default="", help="a YAML file of trials, instead of the options above")
    p.add_argument("--engine", choices=list(ENGINES), default="local", help="%(default)s")
    p.add_argument(
        "--engine_option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the engine (docs/scaling.md)",
    )
    p.add_argument(
        "--num_parallel",
        type=numeric(AT_A_TIME),
        default=0,
        help="trials at a time; 0: as many as fit (%(default)s)",
    )
    p.add_argument("--out", required=True, help="folder of the sweep")
    return p


def entries_of(args: argparse.Namespace) -> list[Entry]:
    """The entries that the options describe; raises ConfigError."""
    single = ("config_path", "program", "seeds", "grid", "set")
    if args.file:
        if given := [name for name in single if getattr(args, name)]:
            raise ConfigError(f"--{given[0]}: given with --file, expected one of the two")
        return sweep_file.read_entries(args.file)
    one = sweep_file.entry_of(args.config_path, args.program, args.seeds, args.set, args.grid)
    return [one]


def run(args: argparse.Namespace) -> int:
    """Run the sweep that the options describe; returns the exit status."""
    out = output_folder(args.out, "--out", "the folder of the sweep").absolute()
    trials = expand(entries_of(args), out)
    settings = dict(sweep_file.pairs(args.engine_option, "--engine_option"))
    if len({trial.group for trial in trials}) < len(trials):
        optional("rliable", "report", "intervals over several runs")
    engine = make_engine(args.engine, make_folder(out), settings)
    lock = FolderLock(out, "--out")
    lock.acquire()
    try:
        rows = rows_of(trials, out)
        with Display(rows) as display:
            signal_name = Schedule(rows, engine, args.num_parallel, display).run()
        return report(out, rows, signal_name)
    finally:
        engine.close()
        lock.release()


def report(out: Path, rows: Mapping[str, Row], signal_name: str) -> int:
    """Print and write what has come of the trials; returns the exit status."""
    command = shlex.join([*started_as(), *sys.argv[1:]])
    found, notes = results.write(out, command, rows)
    for row in rows.values():
        if row.state is State.FAILED:
            say_failed(out, row)
    for note in notes:
        say(f"note: {note}")
    if found:
        console().print(results.table(found))
    done = [out / results.RESULTS, *([out / results.CURVES] if found else [])]
    say(f"{summary(rows)}; {', '.join(map(str, done))}")
    if all(row.state is State.FINISHED for row in rows.values()):
        return 0
    if signal_name:
        say(f"{signal_name}: the trials have saved their states; the same command continues")
        return INTERRUPTED
    say("the same command continues what is interrupted, and tries again what has failed")
    return 1


def say_failed(out: Path, row: Row) -> None:
    """A trial's exit status and the last lines that it printed."""
    outcome = row.outcome
    status = "" if outcome is None else outcome.describe()
    say(f"{row.trial.name}: failed, {status}; the end of {out / LOGS / row.trial.name}.log:")
    for line in last_lines(out, row.trial):
        say(f"    {printable(line)}")


def say(line: str) -> None:
    """A line as it is."""
    console().print(line, markup=False, highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run(parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(run_program(main))

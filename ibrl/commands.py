"""``ibrl train-rl --config_path ...``: the programs as sub-commands of one console command.

Each is the program that the documentation names (``ibrl eval`` is ``python -m evaluate.eval``),
with the same options and exit status. A new sub-command is a row of ``COMMANDS``.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from common_utils.errors import USER_ERROR, UserError, run_program
from common_utils.extras import optional
from common_utils.version import __version__


class Command(NamedTuple):
    """The words after ``ibrl``, the module whose ``main`` they run, and what it does."""

    words: str
    module: str
    does: str
    extra: str = "train"  # of pyproject.toml, with the packages that the module imports


COMMANDS = (
    Command("quickstart", "quickstart", "demonstrations, BC and IBRL, in minutes", "sim"),
    Command("train-rl", "train_rl", "train an agent: IBRL, RLPD or RFT"),
    Command("train-bc", "train_bc", "train a BC policy, explicit or implicit"),
    Command("eval", "evaluate.eval", "evaluate checkpoints, record videos"),
    Command("demos metaworld", "mw_main.generate_metaworld_dataset", "by Meta-World's own", "sim"),
    Command("demos robosuite", "tools.generate_demos", "by experts for robosuite's tasks", "sim"),
    Command("demos oracle", "tools.collect_oracle", "by experts for Implicit BC's tasks", "sim"),
    Command("serve", "tools.serve", "serve a policy to robots (openpi's protocol)", "serve"),
    Command("export", "tools.export", "policies as ONNX, weights as safetensors"),
    Command("serve-env", "tools.serve_env", "offer an environment to a trainer elsewhere", "serve"),
    Command("inspect", "tools.inspect_dataset", "what a file of demonstrations contains"),
    Command("convert", "tools.convert_dataset", "demonstrations to other formats", "data"),
    Command("sweep", "launch.sweep", "many runs: seeds, grids, BC before RL", "report"),
    Command("plan", "launch.plan", "how fast a run will be, here or on other machines"),
    Command("plot", "tools.plot_runs", "learning curves of runs", "report"),
    Command("report", "tools.report", "one HTML file about runs: all there is to see", "report"),
    Command("completion", "ibrl.completion", "completion of these commands in bash and zsh", ""),
    Command("doctor", "common_utils.doctor", "what is installed here, how to fix problems", ""),
)
BY_WORDS = {command.words: command for command in COMMANDS}
# the first words of commands of two words
GROUPS = {words.split()[0] for words in BY_WORDS if " " in words}


def usage(first: str = "") -> str:
    """The help text; with ``first`` only the sub-commands that begin with this word."""
    shown = [c for c in COMMANDS if not first or c.words.split()[0] == first]
    width = max(len(c.words) for c in shown)
    rows = [f"  ibrl {c.words:{width}}  {c.does}" for c in shown]
    title = f"usage: ibrl {f'{first} KIND' if first else 'COMMAND'} [--option value ...]"
    return "\n".join([title, "", *rows, "", "Options of a command: ibrl COMMAND --help"])


def find(args: Sequence[str]) -> tuple[Command, list[str]]:
    """The sub-command that ``args`` begin with, and the rest; raises UserError."""
    for length in (1, 2):
        if command := BY_WORDS.get(" ".join(args[:length])):
            return command, list(args[length:])
    if args[0] in GROUPS:
        kinds = [words.split()[1] for words in BY_WORDS if words.split()[0] == args[0]]
        found = f"'{args[1]}'" if len(args) > 1 else "nothing"
        raise UserError(f"ibrl {args[0]}: {found}, expected one of {', '.join(kinds)}")
    firsts = {words.split()[0] for words in BY_WORDS}
    close = difflib.get_close_matches(args[0], firsts, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(
        f"ibrl: unknown command '{args[0]}'{hint} (expected one of {', '.join(sorted(firsts))})"
    )


def load(command: Command) -> Any:
    """The module of a command; UserError if a package that it needs is not installed."""
    return optional(command.module, command.extra, f"ibrl {command.words}")


def main() -> int | None:
    """Entry point: run the sub-command that ``sys.argv`` names; returns its exit status."""
    args = sys.argv[1:]
    if args == ["--version"]:
        print(f"ibrl {__version__}")
        return 0
    if not args:
        print(usage())
        return USER_ERROR
    if args[-1] in ("--help", "-h") and " ".join(args[:-1]) in ("", *GROUPS):
        print(usage(*args[:-1]))
        return 0
    command, rest = find(args)
    module = load(command)
    sys.argv = [f"ibrl {command.words}", *rest]
    status: int | None = module.main()
    return status


def program() -> int:
    """The console command."""
    return run_program(main)

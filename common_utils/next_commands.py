"""The commands that continue and evaluate a run, in the words in which this program was started."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# options of a start that do not belong to the next one
ONCE = ("resume", "overwrite")


def started_as() -> list[str]:
    """This program's command without its options: ``python train_rl.py``, ``ibrl train-rl``."""
    if is_ibrl():
        return sys.argv[0].split()
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" in os.environ and ranks > 1:
        return ["torchrun", "--nproc_per_node", str(ranks), sys.argv[0]]
    front = len(sys.orig_argv) - len(sys.argv[1:])
    return sys.orig_argv[: max(front, 1)]  # a program that runs this one may have set longer ones


def is_ibrl() -> bool:
    """Whether the console command was used, which puts its words into ``argv[0]``."""
    return sys.argv[0].startswith("ibrl ")


def again(changes: Mapping[str, object]) -> str:
    """This program's command with these options in addition, instead of those of the same name."""
    options = without(sys.argv[1:], [*ONCE, *changes])
    added = [word for name, value in changes.items() for word in (f"--{name}", str(value))]
    return shlex.join([*started_as(), *options, *added])


def without(args: Sequence[str], names: Sequence[str]) -> list[str]:
    """``args`` without the options of these names and their values."""
    out: list[str] = []
    dropping = False
    for word in args:
        if word.startswith("--"):
            dropping = word[2:].partition("=")[0] in names
        if not dropping:
            out.append(word)
    return out


def evaluation(weights: Path, trusted: Sequence[str] = ()) -> str:
    """The command that evaluates a weight file; ``trusted``: modules that its config names."""
    front = started_as()
    python = "python" if front[0] == "torchrun" else front[0]
    words = ["ibrl", "eval"] if is_ibrl() else [python, "-m", "evaluate.eval"]
    modules = [word for name in dict.fromkeys(trusted) for word in ("--trust_module", name)]
    return shlex.join([*words, "--weight", str(weights), "--num_game", "50", *modules])

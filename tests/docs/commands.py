"""Commands in documents and messages: found, and given to the parser of their program."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

from common_utils import run_config
from ibrl.commands import find

REPO = Path(__file__).resolve().parents[2]
VARIABLES = r"^(?:\w+=\S+ +)*"  # before a command
RUNS_OURS = r"(?:\w+=\S+ +)*(?:python |ibrl [a-z])"


def commands(page: str) -> list[str]:
    """The lines of a page's code blocks that run one of our programs."""
    text = re.sub(r"\\+\n", " ", (REPO / page).read_text())  # in docstrings \\ stands for \
    lines = re.findall(
        r"^ *(?:\w+=\S+ +|source set_env\.sh && )*((?:python|ibrl [a-z]).*)$", text, re.M
    )
    return [line.strip() for line in lines]


def program_of(command: str) -> tuple[str, list[str]]:
    """The program's module, dotted, and its options."""
    words = shlex.split(re.split(r" > | 2> ", command)[0], comments=True)
    if words[0] == "ibrl":
        found, options = find(words[1:])
        return found.module, options
    assert words[0] == "python", command
    if words[1] == "-m":
        return words[2], words[3:]
    return words[1].removesuffix(".py").replace("/", "."), words[2:]


def module_of(command: str) -> str:
    """The program's module, dotted."""
    return program_of(command)[0]


def check_command(command: str) -> None:
    """The program exists and its parser takes the options (run from the repository)."""
    module, options = program_of(command)
    program = importlib.import_module(module)
    options = [word for word in options if word != "--help"]  # takes any
    config = getattr(program, "MainConfig", None) or getattr(program, "QuickstartConfig", None)
    if config is not None:
        run_config.parse_args(config, options)
    else:
        make = getattr(program, "parser", None) or program._parser
        make().parse_args(options)

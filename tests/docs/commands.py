"""Commands in documents and messages: found, and given to the parser of their program."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

from common_utils import run_config

REPO = Path(__file__).resolve().parents[2]


def commands(page: str) -> list[str]:
    """The lines of a page's code blocks that run one of our programs."""
    text = re.sub(r"\\+\n", " ", (REPO / page).read_text())  # in docstrings \\ stands for \
    lines = re.findall(r"^ *(?:\w+=\S+ +|source set_env\.sh && )*(python .*)$", text, re.M)
    return [line.strip() for line in lines]


def module_of(command: str) -> str:
    """The program's module, dotted."""
    words = shlex.split(command, comments=True)
    return words[2] if words[1] == "-m" else words[1].removesuffix(".py").replace("/", ".")


def check_command(command: str) -> None:
    """The program exists and its parser takes the options (run from the repository)."""
    words = shlex.split(command, comments=True)
    assert words[0] == "python", command
    program = importlib.import_module(module_of(command))
    options = words[3:] if words[1] == "-m" else words[2:]
    options = [word for word in options if word != "--help"]  # takes any
    config = getattr(program, "MainConfig", None) or getattr(program, "QuickstartConfig", None)
    if config is not None:
        run_config.parse_args(config, options)
    else:
        make = getattr(program, "parser", None) or program._parser
        make().parse_args(options)

"""The entries of a sweep: from a YAML file, or from the options of the command line.

seeds: 0:3                  # of every trial; also [0, 1, 2]
options: {use_wb: 0}        # of every trial
trials:
  bc:
    config: bc.yaml
  ibrl:
    config: rl.yaml
    needs: {bc_policy: bc}          # the weights of the BC trial with the same seed
    grid: {q_agent.lr: [1e-4, 3e-4]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common_utils import run_config
from common_utils.errors import ConfigError
from common_utils.paths import beside, config_file, locate
from launch.programs import PROGRAMS, program_of
from launch.trials import Entry

MOST_SEEDS = 10_000
MAX_SEED = 2**32 - 4  # of common_utils.ranges.Seed
NAME = re.compile(r"[\w-]{1,60}")


@dataclass
class FileEntry:
    """An entry as it is written in a file."""

    # train_rl, train_bc, train_rl_mw or train_bc_mw; "": by the configuration
    program: str = ""
    # the configuration's file; "": the program's defaults
    config: str = ""
    # as in the command line (0:5), or a list; empty: those of the file
    seeds: Any = ""
    # field -> value
    options: dict[str, Any] = field(default_factory=dict)
    # field -> list of values
    grid: dict[str, Any] = field(default_factory=dict)
    # field -> the entry whose weights it takes, or several
    needs: dict[str, Any] = field(default_factory=dict)
    # entries with the same group are pooled in the results
    group: str = ""


@dataclass
class SweepFile:
    """A file of entries."""

    # of the entries that have none
    seeds: Any = ""
    # of every entry that does not set these fields itself
    options: dict[str, Any] = field(default_factory=dict)
    # name -> entry
    trials: dict[str, Any] = field(default_factory=dict)


# ------------------------------------------------------------------------- a file


def read_entries(path: str) -> list[Entry]:
    """The entries of a sweep's file; raises ConfigError, naming the file and the field."""
    tree = run_config.read_yaml(path, "--file")
    sweep = run_config.from_dict(SweepFile, tree, path)
    if not sweep.trials:
        raise ConfigError(f"{path}: trials: nothing, expected 'name: ...' entries")
    return [_entry(path, name, written, sweep) for name, written in sweep.trials.items()]


def _entry(path: str, name: str, written: Any, sweep: SweepFile) -> Entry:
    source = f"{path}: trials.{name}"
    if not NAME.fullmatch(name):
        raise ConfigError(f"{path}: trials: '{name}', expected up to 60 letters, digits, '_', '-'")
    if not isinstance(written, dict):
        raise ConfigError(f"{source}: {written!r}, expected fields such as config: FILE.yaml")
    own = run_config.from_dict(FileEntry, written, source)
    config_path = _found(own.config, beside(path), f"{source}: config")
    grid = run_config.flatten(own.grid)
    common = run_config.flatten(sweep.options)
    options = {k: v for k, v in common.items() if k not in grid} | run_config.flatten(own.options)
    needs = run_config.flatten(own.needs)
    return Entry(
        name=name,
        program=_program(own.program, config_path, source),
        config_path=config_path,
        options={k: as_text(v) for k, v in options.items()},
        grid={k: [as_text(v) for v in _listed(v, f"{source}: grid: {k}")] for k, v in grid.items()},
        seeds=_seeds(own.seeds or sweep.seeds, source if own.seeds else path),
        needs={k: _names(v, f"{source}: needs: {k}") for k, v in needs.items()},
        group=own.group,
        source=source,
    )


def _listed(value: Any, source: str) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{source}: {value!r}, expected a list of values such as [a, b]")
    return value


def _names(value: Any, source: str) -> list[str]:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{source}: {value!r}, expected the name of a trial, or a list of names")
    return names


def as_text(value: Any) -> str:
    """A value of a YAML file as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


# ------------------------------------------------------------------------- the command line


def entry_of(
    config_path: str, program: str, seeds: str, options: Sequence[str], grid: Sequence[str]
) -> Entry:
    """The entry that ``--config_path``, ``--set`` and ``--grid`` describe; raises ConfigError."""
    path = _found(config_path, [Path.cwd()], "--config_path")
    name = re.sub(r"[^\w-]+", "-", Path(path).stem)[:60] if path else ""
    grids = pairs(grid, "--grid")
    chosen = _program(program, path, "--config_path" if path else "--program")
    return Entry(
        name=name or chosen,
        program=chosen,
        config_path=path,
        options=dict(pairs(options, "--set")),
        grid={name: split_values(text, name) for name, text in grids},
        seeds=_seeds(seeds, "--seeds", flat=True),
        source="command line",
    )


def pairs(texts: Sequence[str], option: str) -> list[tuple[str, str]]:
    """NAME=VALUE texts of a repeated option; raises ConfigError."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.removeprefix("--").partition("=")
        if not equals or not name:
            raise ConfigError(f"{option}: '{text}', expected NAME=VALUE such as q_agent.lr=1e-4")
        if name in found:
            raise ConfigError(f"{option}: {name}: given twice, expected once")
        found[name] = value
    return list(found.items())


def split_values(text: str, name: str) -> list[str]:
    """``a,b,[c, d]`` as ["a", "b", "[c, d]"]; raises ConfigError, naming the field."""
    values, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            values.append("")
        else:
            values[-1] += character
    if depth or not all(value.strip() for value in values):
        raise ConfigError(f"--grid: {name}: '{text}', expected values such as 1e-4,3e-4")
    return [value.strip() for value in values]


# ------------------------------------------------------------------------- both


def _found(path: str, folders: Sequence[Path], source: str) -> str:
    """The absolute path of a configuration, "" for none."""
    if not path:
        return ""
    try:
        found = locate(config_file(path), folders)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    return str(Path(found).absolute())


def _program(name: str, config_path: str, source: str) -> str:
    if name in PROGRAMS:
        return name
    if name or not config_path:
        found = f"'{name}'" if name else "no configuration and no program"
        raise ConfigError(f"{source}: {found}, expected a program, one of {', '.join(PROGRAMS)}")
    return program_of(config_path, source)


def _seeds(value: Any, source: str, flat: bool = False) -> list[int]:
    """``0:5`` (without its end), ``0,3,7``, both mixed, a number or a list of numbers."""
    where = source if flat else f"{source}: seeds"
    if isinstance(value, int):  # YAML reads 1:4 as 64, in base 60
        raise ConfigError(f'{where}: {value}, expected a list such as [0, 1], or "0:5" in quotes')
    parts = [str(v) for v in value] if isinstance(value, list) else str(value).split(",")
    seeds: list[int] = []
    for part in parts if value != "" else []:
        match = re.fullmatch(r"\s*([0-9]{1,10})(?:\s*:\s*([0-9]{1,10}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or int(match[1]) + 1)) if match else (0, 0)
        if not 0 < last - first <= MOST_SEEDS or last - 1 > MAX_SEED:
            raise ConfigError(
                f"{where}: '{value}', expected seeds such as 0:5 (0 to 4) or 0,3,7, "
                f"up to {MAX_SEED}"
            )
        seeds += range(first, last)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{where}: '{value}', expected each seed once")
    return seeds

"""What a sweep runs: entries (a configuration with seeds and a grid), expanded into trials.

A trial is one start of an ordinary program. Every trial's configuration is read here, by the same
code as in the program, so that a mistake is reported before anything starts.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common_utils import run_config
from common_utils.errors import ConfigError, UserError
from launch.programs import PROGRAMS, cores_of, planned_steps
from launch.trial import Trial
from workspace.build_agent import check_files

# set by the sweep itself
OWN_FIELDS = {
    "save_dir": "each trial has a folder of its own below the sweep's",
    "seed": "expected in the seeds",
    "resume": "trials are always resumed",
    "overwrite": "expected another folder of the sweep",
    "dry_run": "expected a dry run of the program itself",
    "config_path": "expected an entry of its own for each configuration",
}
# Fields that say which task is played: runs that differ in these alone are pooled.
TASK_FIELDS = ("suite", "task_name", "env.suite", "env.task")
LONGEST_VALUE = 48  # characters of a value in a trial's name


@dataclass(frozen=True)
class Entry:
    """Several trials that are described together.

    options: field -> value as text. grid: field -> its values. needs: field of an input file ->
    the weights of other entries that it takes, as "ENTRY" or "ENTRY/FILE". seeds: none for that of
    the configuration. group: trials with the same one are pooled, "" for those of the entry.
    source: where it is written, for messages.
    """

    name: str
    program: str
    config_path: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    grid: Mapping[str, Sequence[str]] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    needs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    group: str = ""
    source: str = ""


def expand(entries: Sequence[Entry], folder: Path) -> list[Trial]:
    """The trials of a sweep in ``folder``, those that others need first.

    Raises ConfigError, naming the entry or the trial, for anything that cannot be run.
    """
    by_name = {entry.name: entry for entry in entries}
    for entry in entries:
        _check_fields(entry)
        _check_needs(entry, by_name)
    _refuse_circles(by_name)
    by_name = {name: _with_seeds(entry) for name, entry in by_name.items()}
    trials = [
        _trial(entry, seed, values, by_name, folder)
        for entry in by_name.values()
        for values in _points(entry.grid)
        for seed in entry.seeds
    ]
    for name, count in Counter(trial.name for trial in trials).items():
        if count > 1:
            raise ConfigError(
                f"{name}: {count} trials have this name, expected values that differ in their last "
                f"{LONGEST_VALUE} letters, digits and '.', '+', '-'"
            )
    return _in_order(trials)


# ------------------------------------------------------------------------- entries


def _check_fields(entry: Entry) -> None:
    given = Counter([*entry.options, *entry.grid, *entry.needs])
    for name, count in given.items():
        if name in OWN_FIELDS:
            raise ConfigError(f"{entry.source}: {name}: not a field to set, {OWN_FIELDS[name]}")
        if count > 1:
            raise ConfigError(f"{entry.source}: {name}: given twice, expected once")
    for name, values in entry.grid.items():
        if len(set(values)) < len(values) or not values:
            found = ", ".join(values) or "no value"
            raise ConfigError(f"{entry.source}: grid: {name}: {found}, expected different values")


def _check_needs(entry: Entry, by_name: Mapping[str, Entry]) -> None:
    files = PROGRAMS[entry.program].input_fields if entry.needs else ()
    for name, needed in entry.needs.items():
        if name not in files:
            raise ConfigError(
                f"{entry.source}: needs: {name}, expected a field of a file: {', '.join(files)}"
            )
        for text in needed:
            other, _, file = text.partition("/")
            if other not in by_name:
                raise ConfigError(
                    f"{entry.source}: needs: {name}: '{other}', expected one of the trials "
                    f"{', '.join(by_name)}"
                )
            if "/" in file or file in (".", ".."):
                raise ConfigError(
                    f"{entry.source}: needs: {name}: '{text}', expected TRIAL or TRIAL/FILE"
                )


def _refuse_circles(by_name: Mapping[str, Entry]) -> None:
    done: set[str] = set()

    def follow(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " needs ".join([*path[path.index(name) :], name])
            raise ConfigError(f"{by_name[name].source}: needs: a circle, {circle}")
        if name in done:
            return
        for needed in by_name[name].needs.values():
            for text in needed:
                follow(text.partition("/")[0], (*path, name))
        done.add(name)

    for name in by_name:
        follow(name, ())


def _with_seeds(entry: Entry) -> Entry:
    """Without seeds, that of the configuration."""
    if entry.seeds:
        return entry
    program = PROGRAMS[entry.program]
    try:
        cfg = run_config.parse_args(program.config_class, _front(entry))
    except UserError as error:
        raise ConfigError(f"{entry.source}: {error}") from None
    return replace(entry, seeds=(cfg.seed,))


def _front(entry: Entry) -> list[str]:
    return [f"--config_path={entry.config_path}"] if entry.config_path else []


def _points(grid: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Each combination of the grid's values; one without any for an empty grid."""
    combined = itertools.product(*grid.values())
    return [dict(zip(grid, values, strict=True)) for values in combined]


# ------------------------------------------------------------------------- trials


def _trial(
    entry: Entry,
    seed: int,
    values: Mapping[str, str],
    by_name: Mapping[str, Entry],
    folder: Path,
) -> Trial:
    program = PROGRAMS[entry.program]
    name = _name(entry.name, values, seed)
    settled = {**entry.options, **values, "seed": str(seed)}
    needs: list[str] = []
    for field_name, needed in entry.needs.items():
        paths = []
        for text in needed:
            other, _, file = text.partition("/")
            needs.append(_needed(entry, by_name[other], seed, values))
            paths.append(str(folder / needs[-1] / (file or "model0.pt")))
        settled[field_name] = "+".join(paths)
    options = [*_front(entry), *(f"--{field_name}={v}" for field_name, v in settled.items())]
    try:
        cfg = run_config.parse_args(program.config_class, options)
        _check_inputs(entry, cfg, program.kind)
    except UserError as error:
        raise ConfigError(f"{entry.source}: {name}: {error}") from None
    return Trial(
        name=name,
        program=entry.program,
        folder=str(folder / name),
        options=(*options, f"--save_dir={folder / name}"),
        seed=seed,
        group=_group(entry, values),
        digest=_digest(cfg),
        steps=planned_steps(program.kind, cfg),
        cores=cores_of(cfg),
        shape=_shape(cfg),
        values=tuple(values.items()),
        needs=tuple(dict.fromkeys(needs)),
    )


def _needed(entry: Entry, other: Entry, seed: int, values: Mapping[str, str]) -> str:
    """The trial of ``other`` that goes with a trial of ``entry``: that of the same seed (or its
    only one), and of the same values where both have a grid of a field."""
    where = f"{entry.source}: needs: {other.name}"
    if seed not in other.seeds and len(other.seeds) > 1:
        seeds = ", ".join(map(str, other.seeds))
        raise ConfigError(f"{where} has no seed {seed}, expected one of {seeds} (or one alone)")
    for name, possible in other.grid.items():
        if values.get(name) not in possible:
            raise ConfigError(
                f"{where} has a grid of {name} ({', '.join(possible)}); expected a grid of {name} "
                "with these values here too"
            )
    own = {name: values[name] for name in other.grid}
    return _name(other.name, own, seed if seed in other.seeds else other.seeds[0])


def _check_inputs(entry: Entry, cfg: Any, kind: str) -> None:
    """Refuse inputs that are missing, except those that the sweep makes."""
    given = copy.copy(cfg)
    for name in entry.needs:
        if "." not in name:
            setattr(given, name, "")
    if kind == "rl":
        check_files(given)


def _name(entry: str, values: Mapping[str, str], seed: int) -> str:
    """A folder's name; without the part of the seed it is that of the runs to compare with."""
    parts = [entry]
    for name, value in values.items():
        plain = re.sub(r"[^\w.+-]+", "-", value).strip("-")
        parts.append(f"{name}={plain[-LONGEST_VALUE:]}")
    return "_".join([*parts, f"seed{seed}"])


def _group(entry: Entry, values: Mapping[str, str]) -> str:
    shown = [f"{name}={value}" for name, value in values.items() if name not in TASK_FIELDS]
    return " ".join([entry.group or entry.name, *shown])


def _digest(cfg: Any) -> str:
    text = json.dumps(run_config.to_dict(cfg), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _shape(cfg: Any) -> str:
    """Without the seed and numbers with fractions (step sizes, noise), memory is the same."""
    flat = run_config.flatten(run_config.to_dict(cfg))
    kept = {k: v for k, v in flat.items() if k != "seed" and not isinstance(v, float)}
    return json.dumps([type(cfg).__name__, kept], sort_keys=True)


def _in_order(trials: Sequence[Trial]) -> list[Trial]:
    """Those that need nothing, then those that need them, and so on (there is no circle)."""
    by_name = {trial.name: trial for trial in trials}
    depth: dict[str, int] = {}

    def measure(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max(map(measure, by_name[name].needs), default=0)
        return depth[name]

    return sorted(trials, key=lambda trial: measure(trial.name))

"""What a run's folder holds, for a report. Any part may be missing or damaged: a note says so.

Folders may come from other people: files are read as data, up to a size, and links are not followed
out of the folder.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from common_utils import run_config
from common_utils.errors import ConfigError, UserError, shortened
from common_utils.plain_file import read_small_text
from common_utils.records import METRICS
from common_utils.run_config import CFG_NAME
from common_utils.run_info import read_starts
from evaluate.protocol import Protocol, protocol_of
from tools.reporting.curves import Curve, curve_of, group_name, read_records
from workspace.bc_config import MainConfig as BcConfig
from workspace.kinds import kind_in
from workspace.rl_config import MainConfig as RlConfig

CONFIGS: dict[str, type[run_config.RunConfig]] = {"rl": RlConfig, "bc": BcConfig}
EVALUATION = "evaluation*.json"
MAX_EVALUATION = 16 << 20  # bytes


class Played(NamedTuple):
    """An evaluation that ``evaluate.eval --out`` wrote into the folder: per episode, its seed,
    success, return and, of an RL agent, (Q at the start, discounted return)."""

    file: str
    weight: str
    seeds: list[int]
    successes: list[bool]
    returns: list[float]
    forecasts: list[tuple[float, float]]


@dataclass
class Run:
    """A run folder. ``config`` and ``defaults`` are flat (dotted name -> plain value)."""

    folder: Path
    name: str  # the shortest end of its path that no other run of the report has
    kind: str  # rl, bc, or "" if cfg.yaml does not say
    records: list[dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)
    played: list[Played] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def task(self) -> str:
        """suite/task, "" if cfg.yaml does not say."""
        env = "env." if self.kind == "bc" else ""
        suite = self.config.get(f"{env}suite", "")
        task = self.config.get("env.task") or self.config.get("task_name") or ""
        return "/".join(str(part) for part in (suite, task) if part)

    @property
    def suite(self) -> str:
        return self.task.partition("/")[0]

    @property
    def protocol(self) -> Protocol:
        return protocol_of(self.suite)

    @property
    def group(self) -> tuple[str, str, str]:
        """Runs of the same kind, task and name but for the seed are one group."""
        return self.kind, self.task, group_name(self.folder.name)

    @property
    def method(self) -> str:
        """What was trained, in the words of the papers."""
        if self.kind == "bc":
            policy = str(self.config.get("policy_type", "auto"))
            return {"ebm": "Implicit BC (ebm)", "auto": "BC"}.get(policy, f"BC ({policy})")
        if self.kind != "rl":
            return "?"
        how = str(self.config.get("q_agent.act_method", ""))
        if how.startswith("ibrl"):
            return "soft IBRL" if how == "ibrl_soft" else "IBRL"
        if _positive(self.config.get("add_bc_loss")):
            return "RFT"
        share = self.config.get("mix_rl_rate", 1)
        return "RLPD" if isinstance(share, (int, float)) and share < 1 else "RL"

    @property
    def seed(self) -> str:
        return str(self.config.get("seed", "?"))

    @property
    def last(self) -> dict[str, Any]:
        return self.records[-1]

    def curve(self, key: str) -> Curve | None:
        """The curve of a logged key; None if it was never logged."""
        return curve_of(self.name, self.records, key)

    def newest(self, key: str) -> float | None:
        """The last logged value of a key."""
        curve = self.curve(key)
        return None if curve is None else float(curve.values[-1])

    @property
    def steps_planned(self) -> int:
        """The steps that it was configured for; 0 if unknown."""
        if self.kind == "rl":
            return _integer(self.config.get("num_train_step"))
        return _integer(self.config.get("num_epoch")) * _integer(self.config.get("epoch_len"))


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0


def _integer(value: Any) -> int:
    return value if isinstance(value, int) else 0


def read_run(folder: Path) -> Run:
    """A run. Raises ConfigError, with the folder, if it holds no record of a run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        records = read_records(folder)
    notes = [str(w.message) for w in caught]
    if not records:
        raise ConfigError(f"{folder / METRICS}: holds no record, expected those of a run")
    run = Run(folder, folder.name, "", records, notes=notes)
    _read_config(run)
    try:
        run.starts = read_starts(folder)
    except ValueError as error:
        notes.append(str(error))
    for path in sorted(folder.glob(EVALUATION)):
        try:
            run.played.append(read_played(path))
        except ValueError as error:
            notes.append(f"{path}: {error}")
    return run


def _read_config(run: Run) -> None:
    """Fill in kind, config and defaults as far as cfg.yaml can be read."""
    path = run.folder / CFG_NAME
    try:
        tree = run_config.read_yaml(path)
    except ConfigError as error:
        run.notes.append(str(error))
        return
    run.config = run_config.flatten(tree)
    run.kind = kind_in(tree) or ""
    if not run.kind:
        run.notes.append(f"{path}: neither the configuration of an RL run nor of a BC run")
        return
    try:
        config = run_config.load(CONFIGS[run.kind], path)
    except UserError as error:
        run.notes.append(f"{shortened(str(error), 300)} (shown as it is, without the defaults)")
        return
    run.config = run_config.flatten(run_config.to_dict(config))
    run.defaults = run_config.defaults(type(config))


def read_played(path: Path) -> Played:
    """What ``evaluate.eval --out`` wrote; ValueError for anything else."""
    try:
        tree = json.loads(read_small_text(path, MAX_EVALUATION))
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from None
    except ValueError as error:
        raise ValueError(f"not an evaluation ({shortened(str(error))})") from None
    episodes = tree.get("episodes") if isinstance(tree, dict) else None
    try:
        rows = [(int(e["seed"]), bool(e["success"]), float(e["return"])) for e in episodes or ()]
        forecasts = [
            (float(e["start_q"]), float(e["discounted_return"]))
            for e in episodes or ()
            if "start_q" in e and "discounted_return" in e
        ]
    except (LookupError, TypeError, ValueError, OverflowError):
        rows = []
    if not rows:
        raise ValueError("not an evaluation, expected what 'evaluate.eval --out' writes")
    seeds, successes, returns = (list(column) for column in zip(*rows, strict=True))
    weight = shortened(str(tree.get("weight", "?")), 200)
    return Played(path.name, weight, seeds, successes, returns, forecasts)


def read_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs that can be read, with names of their own, and a line for each other folder."""
    runs, refused = [], []
    for folder in folders:
        try:
            runs.append(read_run(folder))
        except UserError as error:
            refused.append(str(error))
        except OSError as error:
            refused.append(f"{folder}: {error.strerror or error}")
    names = unique_names([run.folder for run in runs])
    for run in runs:
        run.name = names[run.folder]
    return runs, refused


def unique_names(folders: Sequence[Path]) -> Mapping[Path, str]:
    """Folder -> the shortest end of its path that no other of them has."""
    parts = {folder: Path(os.path.abspath(folder)).parts for folder in folders}
    names = {}
    for folder, own in parts.items():
        others = [p for f, p in parts.items() if f != folder]
        length = 1
        while length < len(own) and any(p[-length:] == own[-length:] for p in others):
            length += 1
        names[folder] = "/".join(own[-length:])
    return names

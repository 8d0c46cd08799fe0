"""The demonstration file: robomimic's HDF5 layout, the only one that this framework uses.

    data.attrs["env_args"]        JSON {"env_name", "env_kwargs"}, also in env_cfg.json next to it
    data/demo_{i}/actions         float [T, A]
    data/demo_{i}/rewards         float64 [T] (float32 in files written from a replay, as published)
    data/demo_{i}/dones           int64 [T], 1 at the end
    data/demo_{i}/states          float [T, D], the simulator's, if recorded
    data/demo_{i}/infos/{key}     float [T], other numbers that the environment reported per step
    data/demo_{i}.attrs["ended"]  "terminated" or "truncated", if recorded
    data/demo_{i}/obs/{key}       prop, state: float [T, ...]
    data/demo_{i}/obs/{camera}_image   uint8 [T, 3*stack, s, s]
    mask/{key}                    names of some of the demonstrations (robomimic's filter keys)
    data/demo_{i}/obs/{...}.attrs["stack"]   k, if each entry stacks k > 1 steps, newest first

The observation after the last action is not stored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from common_utils import h5_read
from common_utils.atomic import TEMP_MARK, atomic_json
from common_utils.h5_write import atomic_h5
from common_utils.progress import console

FILE_NAME = "dataset.hdf5"
CFG_NAME = "env_cfg.json"


@dataclass
class Recording:
    """An episode being recorded, one step at a time."""

    obs: dict[str, list[np.ndarray]] = field(default_factory=dict)
    states: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    dones: list[int] = field(default_factory=list)  # empty: 1 only at the end
    infos: dict[str, np.ndarray] = field(default_factory=dict)  # numbers [T] by key
    # k for each observation that stacks k > 1 steps, newest first
    stacks: dict[str, int] = field(default_factory=dict)
    reward_dtype: str = "float64"

    def __len__(self) -> int:
        return len(self.actions)

    def append(
        self, obs: Mapping[str, np.ndarray], state: np.ndarray, action: np.ndarray, reward: float
    ) -> None:
        """Add a step: the observation and state before ``action``, and the reward after it."""
        for key, value in obs.items():
            self.obs.setdefault(key, []).append(value)
        self.states.append(state)
        self.actions.append(action)
        self.rewards.append(reward)


class DemoWriter:
    """A file of demonstrations being written; see :func:`open_demos`."""

    def __init__(self, file: h5py.File, env_args: Mapping[str, Any] | None) -> None:
        self._file = file
        self.data = file.create_group("data")
        self.lengths: list[int] = []
        if env_args is not None:
            self.data.attrs["env_args"] = json.dumps(env_args)

    def add(
        self, recording: Recording, cameras: Sequence[str], attrs: Mapping[str, Any] | None = None
    ) -> None:
        """Write the next demonstration; ``cameras`` names the observations that are images."""
        demo = self.data.create_group(f"demo_{len(self.lengths)}")
        write_demo(demo, recording, cameras, attrs or {})
        self.lengths.append(len(recording))

    def copy(self, source: h5py.Group, name: str = "", **options: bool) -> h5py.Group:
        """Copy the next demonstration from a group of another file; returns the copy.

        It is named ``demo_{i}`` unless ``name`` says otherwise; ``options`` are passed to
        ``h5py.Group.copy``.
        """
        name = name or f"demo_{len(self.lengths)}"
        source.file.copy(source, self.data, name, **options)
        self.lengths.append(len(self.data[name]["actions"]))
        return self.data[name]

    def add_masks(self, masks: Mapping[str, Sequence[str]]) -> None:
        """Write filter keys (key -> names of demonstrations), stored as robomimic does."""
        for key, names in masks.items():
            self._file[f"mask/{key}"] = np.array(names, dtype="S")


@contextmanager
def open_demos(
    path: str | os.PathLike[str], env_args: Mapping[str, Any] | None
) -> Iterator[DemoWriter]:
    """Open a file to write demonstrations one by one; it appears at ``path`` whole or not at all.

    env_args: how the environment was built; None leaves it out. All writers of demonstration
    files use this function. Raises the OSError of the first write that failed.
    """
    with atomic_h5(path) as file:
        writer = DemoWriter(file, env_args)
        yield writer
        writer.data.attrs["total"] = sum(writer.lengths)


def write_demos(
    folder: str | Path,
    recordings: Sequence[Recording],
    cameras: Sequence[str],
    env_args: Mapping[str, Any],
    attrs: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Write ``folder/dataset.hdf5`` and ``folder/env_cfg.json``, each whole or not at all.

    See :func:`write_env_cfg` for an ``env_cfg.json`` that other files share.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    with open_demos(path, env_args) as out:
        for i, recording in enumerate(recordings):
            out.add(recording, cameras, attrs[i] if attrs else None)
    write_env_cfg(env_args, path)
    return path


def write_env_cfg(env_args: Mapping[str, Any], dataset: Path) -> None:
    """Write ``env_cfg.json`` next to ``dataset``, unless it would misdescribe other files there.

    All files of the folder share it. A different one is kept while other files use it, and none is
    created if other files lack their own description. A printed note says what was kept. The
    dataset itself is not affected: its attribute ``env_args`` overrides ``env_cfg.json``.
    """
    side = dataset.parent / CFG_NAME
    found = _read_json(side)
    if found == dict(env_args):
        return
    others = _other_datasets(dataset)
    if not side.exists():
        others = [p for p in others if not _describes_itself(p)]
    if not others:
        atomic_json(env_args, side)
        return
    names = ", ".join(p.name for p in others[:4]) + (", ..." if len(others) > 4 else "")
    kept = f"'{side}' is kept as it is" if side.exists() else f"no '{side}' is written"
    console().print(
        f"note: {kept}, because it would also be read for {names}; '{dataset.name}' has its own "
        "description (env_args)",
        markup=False,
        soft_wrap=True,
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # absent or damaged
        return None


def _other_datasets(dataset: Path) -> list[Path]:
    files = (p for suffix in ("*.hdf5", "*.h5") for p in dataset.parent.glob(suffix))
    found = (p for p in files if p.name != dataset.name and not p.name.startswith(TEMP_MARK))
    return sorted(p for p in found if p.is_file())  # opening a pipe would wait forever


def _describes_itself(path: Path) -> bool:
    try:
        with h5_read.open_file(path) as file:
            data = h5_read.find(file, "data")
            return data is not None and ("env_args" in data.attrs or "env_info" in data.attrs)
    except (OSError, KeyError, RuntimeError, ValueError):
        return False


def write_demo(
    demo: h5py.Group, recording: Recording, cameras: Sequence[str], attrs: Mapping[str, Any]
) -> None:
    """Write one demonstration into its (new, empty) group ``data/demo_{i}``."""
    dones = np.array(recording.dones or [0] * (len(recording) - 1) + [1], np.int64)
    demo["actions"] = np.stack(recording.actions)
    if len(recording.rewards):  # recordings of real robots often have none
        demo["rewards"] = np.array(recording.rewards, recording.reward_dtype)
    demo["dones"] = dones
    if recording.states:
        demo["states"] = np.stack(recording.states)
    for key, values in recording.obs.items():
        name = f"obs/{key}_image" if key in cameras else f"obs/{key}"
        # states that are observed as well are stored once, under two names
        demo[name] = demo["states"] if values is recording.states else np.stack(values)
        if (stack := recording.stacks.get(key, 1)) > 1:
            demo[name].attrs["stack"] = stack
    for key, info in recording.infos.items():
        demo[f"infos/{key}"] = np.asarray(info, np.float64)
    demo.attrs["num_samples"] = len(recording)
    for key, value in attrs.items():
        demo.attrs[key] = value

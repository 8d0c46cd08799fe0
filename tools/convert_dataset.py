"""Convert demonstrations from any format that can be read (docs/datasets.md) to another one.

    python -m tools.convert_dataset --dataset can.hdf5 --out can_lerobot --format lerobot
    python -m tools.convert_dataset --dataset can_lerobot --out back.hdf5 --format hdf5

What was written is read again and compared: numbers must be equal, and it is printed how much
pictures differ, where a video codec changed them. Nothing is overwritten.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bc.dataset_config import KeyOptions
from bc.demos import Demos
from bc.formats import open_demos
from bc.lerobot.writer import LOSSLESS
from common_utils import demo_file, run_config
from common_utils.demo_file import Recording
from common_utils.errors import run_program
from common_utils.paths import InputData
from common_utils.progress import console
from common_utils.ranges import AllOr, NotNegativeNumber
from common_utils.run_config import ConfigError, Flag
from env.config import EnvConfig
from env.factory import control_rate
from env.suites import SUITES
from tools import to_lerobot, to_minari, to_zarr
from tools.filter_keys import keys_by_name, masks_of

PICTURES_COMPARED = 3  # of each demonstration and camera
Masks = dict[str, list[str]]  # filter key -> the demonstrations that it lists


@dataclass
class MainConfig:
    """What to convert, into what, and where to write it."""

    # file or folder of demonstrations, in any format that can be read
    dataset: InputData = ""
    # file (hdf5) or folder to write (minari: its name ends in -v0); it must not exist
    out: str = ""
    # what to write
    format: Literal["lerobot", "hdf5", "zarr", "minari"] = "lerobot"
    # which arrays of the dataset are read as state (lerobot: observation.state), action, ...
    keys: KeyOptions = field(default_factory=KeyOptions)
    # number of demonstrations, from the first (-1: all)
    num: AllOr = -1
    # lerobot: how videos are packed
    codec: Literal["h264", "av1"] = "h264"
    # lerobot: 1: pictures as PNG instead of videos; minari: 1: as arrays instead of JPEG
    lossless: Flag = 0
    # lerobot: control steps per second; 0: as the dataset or its suite says
    fps: NotNegativeNumber = 0
    # lerobot: what the robot does, in words; "": as the dataset says, or the environment's name
    instruction: str = ""


def convert(cfg: MainConfig) -> Path:
    """Write the dataset and compare it; returns its path. Raises ConfigError or DatasetError."""
    if not cfg.out.strip():
        raise ConfigError("out: '', expected the file (hdf5) or folder (lerobot) to write")
    out = Path(cfg.out)
    if out.exists():
        raise ConfigError(f"out: '{out}' exists already, expected a new name")
    with open_demos(cfg.dataset, cfg.keys) as source:
        if len(source.names) < cfg.num:
            raise ConfigError(
                f"num: {cfg.num}, but '{cfg.dataset}' has {len(source.names)} demonstrations"
            )
        chosen = source.names[: cfg.num] if cfg.num > 0 else source.names
        masks = masks_of(source, {name: name for name in chosen})
        source.names = chosen
        notes = [*source.notes, *WRITERS[cfg.format](source, out, cfg, masks)]
        with open_demos(out) as written:
            notes += compare(source, written)
        steps = sum(source.length(name) for name in source.names)
    for note in notes:
        console().print(f"note: {note}", markup=False, soft_wrap=True)
    print(f"{out}: {len(source.names)} demonstrations, {steps} steps, equal to those read")
    return out


# ---------------------------------------------------------------- formats


def write_lerobot(source: Demos, out: Path, cfg: MainConfig, masks: Masks) -> list[str]:
    """A LeRobot dataset (v3.0)."""
    codec = LOSSLESS if cfg.lossless else cfg.codec
    tasks = {name: _instruction(source, name, cfg) for name in source.names}
    return to_lerobot.write(
        source, out, fps=_fps(source, cfg), codec=codec, tasks=tasks, lists=keys_by_name(masks)
    )


def _fps(source: Demos, cfg: MainConfig) -> float:
    kwargs = source.env_args.get("env_kwargs") or {}
    suite = EnvConfig(suite=source.suite, task=source.env_name or "?")
    suite.action_repeat = kwargs.get("action_repeat", suite.action_repeat)
    known = control_rate(suite) if source.suite in SUITES else None
    if found := cfg.fps or source.fps or known:
        return found
    raise ConfigError(
        f"fps: 0, but neither '{source.path}' nor its suite ('{source.suite or '?'}') says how "
        "many control steps there are in a second; expected that number"
    )


def _instruction(source: Demos, name: str, cfg: MainConfig) -> str:
    stated = cfg.instruction or source.attribute(name, "", "tasks")
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[-_]", " ", source.env_name).lower()
    return stated if isinstance(stated, str) and stated else words or "demonstration"


def write_hdf5(source: Demos, out: Path, cfg: MainConfig, masks: Masks) -> list[str]:
    """One HDF5 file in robomimic's layout."""
    left_out: set[str] = set()
    with demo_file.open_demos(out, source.env_args or None) as file:
        for name in to_lerobot.counted(source.names):
            recording = Recording()
            cameras: list[str] = []
            for key in source.all_keys(name):
                if to_lerobot.is_picture(source, name, key):
                    cameras.append(to_lerobot.camera_of(key))
                    recording.obs[cameras[-1]] = list(source.images(name, cameras[-1]))
                elif not _take(recording, key, source.array(name, key)):
                    left_out.add(key)
            file.add(recording, cameras, to_lerobot.kept_attributes(source, name, {}))
        new = {name: f"demo_{number}" for number, name in enumerate(source.names)}
        file.add_masks({key: [new[name] for name in listed] for key, listed in masks.items()})
    if source.env_args:
        demo_file.write_env_cfg(source.env_args, out)
    return [
        f"not written, since HDF5 files have no place for it: {', '.join(sorted(left_out))}"
    ] * (bool(left_out))


def _take(recording: Recording, key: str, array: np.ndarray) -> bool:
    """Put an array into its place; returns whether there is one."""
    plain: dict[str, list[Any]] = {
        "actions": recording.actions,
        "rewards": recording.rewards,
        "dones": recording.dones,
    }
    if key in plain:
        plain[key].extend(array if key == "actions" else array.tolist())
    elif key == "states":
        recording.states.extend(array)
    elif key.startswith("obs/") and array.dtype.kind in "fiub":
        recording.obs[key.removeprefix("obs/")] = list(array)
    elif key.startswith("infos/") and array.dtype.kind in "fiub" and array.ndim == 1:
        recording.infos[key.removeprefix("infos/")] = array
    else:
        return False
    return True


WRITERS: dict[str, Callable[[Demos, Path, MainConfig, Masks], list[str]]] = {
    "lerobot": write_lerobot,
    "hdf5": write_hdf5,
    "zarr": lambda source, out, cfg, masks: to_zarr.write(source, out, keys_by_name(masks)),
    "minari": lambda source, out, cfg, masks: to_minari.write(
        source, out, lists=keys_by_name(masks), lossless=bool(cfg.lossless)
    ),
}


# ---------------------------------------------------------------- comparison


def compare(source: Demos, written: Demos) -> list[str]:
    """How pictures differ, in words. Raises DatasetError where numbers do."""
    differences: list[np.ndarray] = []
    for name, again in zip(source.names, written.names, strict=True):
        for key in written.all_keys(again):
            if to_lerobot.is_picture(written, again, key):
                camera = to_lerobot.camera_of(key)
                last = source.length(name) - 1
                rows = np.unique(np.linspace(0, last, PICTURES_COMPARED).astype(int))
                pair = [d.images(n, camera, rows) for d, n in ((source, name), (written, again))]
                differences.append(np.abs(pair[0].astype(int) - pair[1]).ravel())
            elif source.has(name, key):
                _compare_numbers(source.array(name, key), written, again, key)
    if not differences:
        return []
    every = np.concatenate(differences)
    if not every.any():
        return ["pictures are equal"]
    return [
        f"pictures differ by {every.mean():.2f} of 255 on average, at most by {every.max()} "
        f"({PICTURES_COMPARED} of each demonstration were compared); --lossless 1 keeps them"
    ]


def _compare_numbers(before: np.ndarray, written: Demos, name: str, key: str) -> None:
    after = written.array(name, key)
    with np.errstate(over="ignore"):
        same = np.array_equal(before.astype(after.dtype), after, equal_nan=after.dtype.kind == "f")
    if not same:
        raise written.error(name, key, "is not what was to be written (a fault of this program)")


def main() -> int:
    """Entry point: parse, convert, exit status 0."""
    convert(run_config.parse(MainConfig))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

"""Turn raw recordings of robosuite or robomimic into demonstrations that BC and IBRL read.

    python -m tools.dataset_states_to_obs --dataset demo.hdf5 \
        --output_folder release/data/robomimic/can \
        [--camera_names agentview robot0_eye_in_hand] [--n 200]

Loads every recorded state into the current simulation, reads observations, renders images
(``--image_size``) and stores them resized (``--obs_size``), recomputes rewards and checks them
against the file's. Writes ``processed_data{obs_size}.hdf5`` and ``env_cfg.json``. Differences
from the recording (robosuite's version, the model, controllers, rewards) are printed and stored
with each demonstration as the attribute "notes". An interrupted run continues when the same
command is run again.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import h5py
import imageio.v2 as imageio
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bc.loader import DemoFile
from common_utils.atomic import atomic_torch_save, atomic_write
from common_utils.config_types import Flag
from common_utils.demo_file import DemoWriter
from common_utils.errors import run_program
from common_utils.options import Options, numeric
from common_utils.progress import console
from common_utils.ranges import AllOr, Between, OneOf, Or, PictureSize
from common_utils.run_config import ConfigError
from env.robosuite.sim import CONTROL_FREQ
from tools.filter_keys import masks_of
from tools.raw_demos import ReplaySettings, print_each_note, read_source
from tools.recording import DemoRun, Job, Parts, kept_reported

DEFAULT_CAMERAS = ["agentview", "robot0_eye_in_hand"]


@dataclass(frozen=True)
class ReplayRun(DemoRun):
    """A recording run with one attempt per demonstration of a file."""

    # filter keys, with the new names of the demonstrations
    masks: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def _jobs(self, parts: Parts) -> Iterator[Job]:
        return itertools.takewhile(lambda job: job.number < self.num, super()._jobs(parts))

    def _complete(self, out: DemoWriter) -> None:
        out.add_masks(self.masks)


PROCESSES = Annotated[int, Between(0, 256), Or(-1)]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Options(description=__doc__.split("\n", maxsplit=1)[0])
    switch: dict[str, Any] = {"nargs": "?", "type": numeric(Flag), "const": 1}
    p.add_argument("--dataset", required=True, help="HDF5 file with states and actions")
    p.add_argument("--output_folder", required=True)
    p.add_argument("--n", type=numeric(AllOr), default=-1, help="only the first n demonstrations")
    p.add_argument("--camera_names", nargs="*", default=DEFAULT_CAMERAS, help="none: states only")
    p.add_argument(
        "--image_size",
        type=numeric(PictureSize),
        default=224,
        help="pixels at which images are rendered (%(default)s)",
    )
    p.add_argument(
        "--obs_size",
        type=numeric(PictureSize),
        default=96,
        help="pixels at which images are stored (%(default)s)",
    )
    p.add_argument("--render_quality", choices=("faithful", "fast"), default="faithful")
    p.add_argument("--shaped", default=0, **switch, help="shaped instead of sparse rewards")
    p.add_argument(
        "--done_mode",
        type=numeric(Annotated[int, OneOf(0, 1, 2)]),
        default=0,
        help="dones are 1 at success (0), at the end (1), at both (2)",
    )
    p.add_argument("--copy_dones", default=0, **switch, help="keep the file's dones")
    p.add_argument("--copy_rewards", default=0, **switch, help="refused: rewards are recomputed")
    p.add_argument(
        "--on_mismatch",
        choices=("error", "report"),
        default="error",
        help="what to do when recorded rewards do not match the recorded states",
    )
    p.add_argument("--video", default=0, **switch, help="also write demo_N_CAMERA.mp4")
    p.add_argument("--tensor", default=0, **switch, help="also write demo_N.pt")
    p.add_argument("--save_hdf5", default=1, **switch, help="0: only videos or tensors are kept")
    p.add_argument(
        "--workers",
        type=numeric(PROCESSES),
        default=-1,
        help="processes; 0: this one, -1: one per core",
    )
    p.add_argument("--overwrite", default=0, **switch)
    return p


def check_options(options: argparse.Namespace) -> None:
    """Raise ConfigError for options that cannot be carried out."""
    if options.copy_rewards:
        raise ConfigError(
            "copy_rewards: 1, expected 0: rewards are recomputed from the states and checked "
            "against the file's; copying would hide a mismatch"
        )
    if options.n == 0 or options.n < -1:
        raise ConfigError(f"n: {options.n}, expected -1 (all) or at least 1")
    for name in ("image_size", "obs_size"):
        if getattr(options, name) < 1:
            raise ConfigError(f"{name}: {getattr(options, name)}, expected at least 1")
    if options.workers < -1:
        raise ConfigError(f"workers: {options.workers}, expected -1, 0 or more")
    if options.video and not options.camera_names:
        raise ConfigError("video: 1 needs a camera in camera_names")
    if not (options.save_hdf5 or options.video or options.tensor):
        raise ConfigError(
            "save_hdf5: 0, expected 1: without video or tensor nothing would be written"
        )


def plan(options: argparse.Namespace) -> ReplayRun:
    """The run that the options ask for; DatasetError for a file that cannot be replayed."""
    path = Path(options.dataset)
    output = Path(options.output_folder) / f"processed_data{options.obs_size}.hdf5"
    with DemoFile(path) as file:
        if output.exists() and output.samefile(path):
            raise ConfigError(f"output_folder: '{output}' is the dataset itself")
        source = read_source(file)
        names = file.names
        if options.n > len(names):
            raise ConfigError(
                f"n: {options.n}, but '{path}' holds {len(names)} demonstrations, expected no more"
            )
        num = len(names) if options.n < 0 else options.n
        masks = masks_of(file, {name: f"demo_{i}" for i, name in enumerate(names[:num])})
        longest = max(file.length(name) for name in names[:num])
    for note in source.notes:
        console().print(f"note: {note}", soft_wrap=True)
    settings = ReplaySettings(
        source=str(path),
        source_bytes=path.stat().st_size,
        cameras=list(options.camera_names),
        image_size=options.image_size,
        obs_size=options.obs_size,
        render_quality=options.render_quality,
        shaped=bool(options.shaped),
        done_mode=options.done_mode,
        copy_dones=bool(options.copy_dones),
        on_mismatch=options.on_mismatch,
        timeout=120 + longest * (1.0 + 2 * len(options.camera_names)),
    )
    cores = len(os.sched_getaffinity(0))
    return ReplayRun(
        file=output,
        settings=settings,
        env_args=settings.env_args(source) | {"num": num},
        seed=0,
        num=num,
        workers=min(cores if options.workers < 0 else options.workers, num),
        title=source.task,
        overwrite=bool(options.overwrite),
        masks=masks,
    )


def print_notes(path: Path) -> None:
    """Print each of the demonstrations' notes once, and how well single actions fit."""
    notes: dict[str, list[str]] = {}
    taken: dict[str, int] = {}
    errors = []
    with h5py.File(path, "r") as file:
        for demo in file["data"].values():
            errors.append(float(demo.attrs["single_step_error"]))
            for note in demo.attrs["notes"]:
                notes.setdefault(str(note), []).append(str(demo.attrs["source_demo"]))
            for body in demo.attrs["taken_over"]:
                taken[str(body)] = taken.get(str(body), 0) + 1
    print_each_note(notes)
    for body, count in taken.items():
        console().print(f"shape or place of '{body}' taken from {count} recorded models")
    console().print(
        f"single recorded actions, played from the recorded states, miss the next ones by "
        f"{np.mean(errors):.2g} rad on average (worst demonstration {max(errors):.2g})",
        soft_wrap=True,
    )


def save_extras(path: Path, video: bool, tensor: bool) -> None:
    """Write ``demo_N_CAMERA.mp4`` and ``demo_N.pt`` next to the dataset."""
    with h5py.File(path, "r") as file:
        for name, demo in file["data"].items():
            arrays = {key: dset[()] for key, dset in demo["obs"].items()}
            for key, frames in arrays.items() if video else ():
                if key.endswith("_image"):
                    camera = key.removesuffix("_image")
                    with atomic_write(path.parent / f"{name}_{camera}.mp4") as temp:
                        pictures = list(frames.transpose(0, 2, 3, 1))
                        imageio.mimwrite(temp, pictures, format="mp4", fps=CONTROL_FREQ)
            if tensor:
                import torch

                keys = ("actions", "rewards", "dones", "states")
                flat = {k: torch.from_numpy(demo[k][()]) for k in keys}
                obs = {k: torch.from_numpy(v) for k, v in arrays.items()}
                atomic_torch_save({**flat, "obs": obs}, path.parent / f"{name}.pt")


def convert(options: argparse.Namespace) -> Path:
    """Replay and write; returns the dataset's path (the file is removed with ``save_hdf5`` 0)."""
    check_options(options)
    run = plan(options)
    with kept_reported(run.kept):
        run.record()
    print_notes(run.file)
    save_extras(run.file, bool(options.video), bool(options.tensor))
    if not options.save_hdf5:
        run.file.unlink()
    return run.file


def main(args: Sequence[str] | None = None) -> int:
    """Entry point: exit status 0, or 2 with a message."""
    options = parser().parse_args(args)
    convert(options)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

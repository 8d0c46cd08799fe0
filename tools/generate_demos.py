"""Demonstrations of robosuite tasks by scripted experts, in robomimic's layout.

    python -m tools.generate_demos --task PickPlaceCan --num 200 --noise 0.1 --seed 1 \
        --out release/data/robomimic/can

writes ``processed_data96.hdf5`` and ``env_cfg.json`` into the folder ``--out``. Only successful
episodes are kept. ``--cameras []`` stores states only, and needs no OpenGL. An interrupted run
goes on where it was when the same command is given again: finished episodes wait in
``OUT/.parts``. The file depends on the options alone, not on the workers or interruptions.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import h5py

from common_utils import run_config
from common_utils.atomic import atomic_json, atomic_write
from common_utils.demo_file import CFG_NAME
from common_utils.progress import RunProgress, console
from common_utils.resources import ResourceError, check_fits
from common_utils.run_config import ConfigError, Flag
from common_utils.seeding import seed_for
from env.core import EnvError
from env.robosuite_control import Noise
from env.robosuite_experts import EXPERTS
from env.robosuite_sim import TASKS
from tools.demo_recorder import PART_GROUP, Job, Settings, disk_told, play

PARTS = ".parts"  # finished episodes of an unfinished run
SETTINGS_NAME = "settings.json"


@dataclass
class MainConfig:
    """What to record, and where."""

    # Lift, PickPlaceCan, NutAssemblySquare, TwoArmTransport or ToolHang
    task: str = "PickPlaceCan"
    # successful episodes to record
    num: int = 200
    # standard deviation of Gaussian noise on the executed (and recorded) actions, which reach
    # from -1 to 1
    noise: float = 0.1
    # metres by which waypoints in free space vary (-1: what goes with the noise, 0.015 at 0.1)
    jitter: float = -1.0
    # source of all randomness
    seed: int = 1
    # folder of processed_data{obs_size}.hdf5 and env_cfg.json
    out: str = ""
    # cameras to store; [] stores states only
    cameras: list[str] = field(default_factory=lambda: ["agentview", "robot0_eye_in_hand"])
    # pixels at which pictures are drawn
    image_size: int = 224
    # pixels of the stored pictures
    obs_size: int = 96
    # faithful or fast (docs/environments.md)
    render_quality: Literal["faithful", "fast"] = "faithful"
    # time limit in control steps (-1: the task's)
    episode_length: int = -1
    # worker processes (-1: one per core; 0: this process)
    workers: int = -1
    # give up when more than this share of at least 20 episodes fails
    max_failure_rate: float = 0.95
    # replace an existing dataset, and what an unfinished run left
    overwrite: Flag = 0

    def __post_init__(self) -> None:
        if self.task not in EXPERTS:
            raise ValueError(f"task: '{self.task}', expected one of {', '.join(EXPERTS)}")
        if self.jitter == -1:
            self.jitter = Noise.of(self.noise).jitter
        Noise(self.noise, self.jitter)  # checks both
        if self.episode_length == -1:
            self.episode_length = TASKS[self.task].horizon
        for name, least in (("num", 1), ("obs_size", 1), ("image_size", 1), ("episode_length", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: {getattr(self, name)}, expected at least {least}")
        if self.workers < -1:
            raise ValueError(f"workers: {self.workers}, expected -1, 0 or more")

    @property
    def settings(self) -> Settings:
        """What decides how attempts go."""
        names = Settings.__dataclass_fields__
        return Settings(**{name: getattr(self, name) for name in names})

    @property
    def file(self) -> Path:
        return Path(self.out) / f"processed_data{self.obs_size}.hdf5"

    @property
    def num_workers(self) -> int:
        if self.workers >= 0:
            return min(self.workers, self.num)
        return min(len(os.sched_getaffinity(0)), self.num)


class Parts:
    """The finished attempts of a run, on disk: ``{number}.hdf5``, or ``{number}.failed``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.won: set[int] = {int(p.stem) for p in folder.glob("[0-9]*.hdf5")}
        self.lost: set[int] = {int(p.stem) for p in folder.glob("[0-9]*.failed")}

    def path(self, number: int) -> Path:
        """Where attempt ``number`` is stored when it succeeds."""
        return self.folder / f"{number:06d}.hdf5"

    def add(self, number: int, success: bool) -> None:
        """Attempt ``number`` is over (its recording, if any, is stored already)."""
        if success:
            self.won.add(number)
        else:
            with disk_told(self.folder):
                (self.folder / f"{number:06d}.failed").touch()
            self.lost.add(number)

    @property
    def tried(self) -> int:
        """Attempts that are over."""
        return len(self.won) + len(self.lost)

    def missing(self) -> Iterator[int]:
        """Numbers of attempts to play, endlessly."""
        number = 0
        while True:
            if number not in self.won and number not in self.lost:
                yield number
            number += 1

    def chosen(self, num: int) -> list[int] | None:
        """The first ``num`` successes by number, once no earlier attempt is open."""
        wins = sorted(self.won)[:num]
        if len(wins) < num:
            return None
        closed = all(n in self.won or n in self.lost for n in range(wins[-1]))
        return wins if closed else None


def _settings_of(cfg: MainConfig) -> dict[str, Any]:
    return asdict(cfg.settings) | {"seed": cfg.seed}


def _env_args(cfg: MainConfig) -> dict[str, Any]:
    args = cfg.settings.env_args()
    args["expert"] |= {"seed": cfg.seed, "num": cfg.num}
    return args


def _prepare(cfg: MainConfig) -> Path:
    """The folder of parts, new or left by the same settings; ConfigError when by others."""
    folder = Path(cfg.out) / PARTS
    if cfg.overwrite:
        shutil.rmtree(folder, ignore_errors=True)
    wanted = _settings_of(cfg)
    told = folder / SETTINGS_NAME
    if not told.exists():
        with disk_told(folder):
            atomic_json(wanted, told)
    try:
        found = json.loads(told.read_text())
    except ValueError as error:
        raise ConfigError(
            f"out: '{told}' is damaged ({error}); --overwrite 1 starts anew"
        ) from None
    if found != wanted:
        raise ConfigError(
            f"out: '{folder}' holds episodes of an unfinished run with other options "
            f"({'; '.join(run_config.diff(found, wanted))}); give those to finish it, or "
            "--overwrite 1 to start anew"
        )
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two runs into one folder would play the same attempts twice."""
    with open(folder / "lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"out: another process is writing to '{folder.parent}'") from None
        yield


def _record(cfg: MainConfig, parts: Parts) -> list[int]:
    """Play until ``num`` successes are stored; their numbers."""

    def jobs() -> Iterator[Job]:
        for n in parts.missing():
            yield Job(
                n,
                seed_for(cfg.seed, "demonstration", n, bits=31),
                seed_for(cfg.seed, "expert", n, bits=31),
                str(parts.path(n)),
            )

    chosen = parts.chosen(cfg.num)
    if chosen is not None:
        return chosen
    done = min(len(parts.won), cfg.num)
    if parts.tried:
        console().print(f"going on: {done} of {cfg.num} demonstrations are there already")
    with RunProgress(cfg.num, "demonstrations", done) as progress:
        with closing(play(cfg.settings, jobs(), cfg.num_workers)) as played:
            for job, outcome in played:
                parts.add(job.number, outcome.success)
                progress.update(min(len(parts.won), cfg.num), failed=len(parts.lost))
                chosen = parts.chosen(cfg.num)
                if chosen is not None:
                    return chosen
                if parts.tried >= 20 and len(parts.lost) / parts.tried > cfg.max_failure_rate:
                    raise ConfigError(
                        f"noise: {len(parts.lost)} of {parts.tried} scripted episodes of "
                        f"{cfg.task} failed within episode_length {cfg.episode_length} "
                        f"(noise {cfg.noise:g}, jitter {cfg.jitter:g})"
                    )
    raise AssertionError("the attempts are endless")


def _merge(cfg: MainConfig, parts: Parts, chosen: list[int]) -> list[int]:
    """Write the dataset from its parts; the demonstrations' lengths."""
    paths = [parts.path(n) for n in chosen]
    check_fits({}, {"the dataset": sum(p.stat().st_size for p in paths)}, cfg.out)
    env_args = _env_args(cfg)
    lengths = []
    with disk_told(cfg.file), atomic_write(cfg.file) as temp, h5py.File(temp, "w") as file:
        data = file.create_group("data")
        for i, path in enumerate(paths):
            try:
                with h5py.File(path, "r") as part:
                    part.copy(PART_GROUP, data, name=f"demo_{i}")
            except (OSError, KeyError) as error:
                if not h5py.is_hdf5(path):
                    raise ConfigError(
                        f"out: '{path}' is damaged; delete it and run again"
                    ) from error
                raise
            lengths.append(int(data[f"demo_{i}"].attrs["num_samples"]))
        data.attrs["env_args"] = json.dumps(env_args)
        data.attrs["total"] = sum(lengths)
    atomic_json(env_args, Path(cfg.out) / CFG_NAME)
    return lengths


def _finished(cfg: MainConfig) -> bool:
    """Whether just this dataset is there; ConfigError when it is another one."""
    if not cfg.file.exists() or cfg.overwrite:
        return False
    try:
        with h5py.File(cfg.file, "r") as file:
            found = json.loads(str(file["data"].attrs["env_args"]))
    except (OSError, KeyError, ValueError):
        found = {}
    if found != _env_args(cfg):
        raise ConfigError(
            f"out: '{cfg.file}' exists and was made otherwise; --overwrite 1 replaces it"
        )
    return True


def generate(cfg: MainConfig) -> Path:
    """Record ``num`` successes, going on with an unfinished run; returns the dataset file.

    Raises ConfigError for an existing other dataset or an expert that keeps failing, EnvError
    for a worker that died and for a full disk; what was recorded until then is kept.
    """
    if not cfg.out:
        raise ConfigError("out: '', expected a folder, such as release/data/robomimic/can")
    if _finished(cfg):
        console().print(f"{cfg.file} is there already, made with these options")
        shutil.rmtree(Path(cfg.out) / PARTS, ignore_errors=True)
        return cfg.file
    folder = _prepare(cfg)
    with _locked(folder):
        parts = Parts(folder)
        chosen = _record(cfg, parts)
        lengths = _merge(cfg, parts, chosen)
    shutil.rmtree(folder)
    tried = chosen[-1] + 1
    failed = tried - len(chosen)
    console().print(
        f"{cfg.num} demonstrations of {cfg.task} in {cfg.file} "
        f"({cfg.file.stat().st_size / 2**20:.1f} MiB); {failed} of {tried} episodes failed "
        f"({failed / tried:.1%}); {min(lengths)} to {max(lengths)} steps, "
        f"mean {sum(lengths) / len(lengths):.1f}"
    )
    return cfg.file


def main() -> int:
    """Entry point: parse, record, exit status 0."""
    cfg = run_config.parse(MainConfig)
    try:
        generate(cfg)
    except (ConfigError, EnvError, ResourceError) as error:
        print(f"error: {error}", file=sys.stderr)
        _tell_kept(cfg)
        return 2
    except KeyboardInterrupt:
        _tell_kept(cfg)
        return 130
    return 0


def _tell_kept(cfg: MainConfig) -> None:
    folder = Path(cfg.out) / PARTS
    kept = len(Parts(folder).won) if cfg.out else 0
    if kept:
        print(
            f"{kept} finished episodes are kept in '{folder}'; the same command goes on with them",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())

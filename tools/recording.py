"""Recording runs: worker processes play episodes, which are stored singly and then merged.

``generate_demos``, ``collect_oracle`` and ``expert_report`` use it. An attempt is one episode;
its outcome depends only on the settings and its two seeds, not on the process that plays
it. Finished attempts wait in ``FOLDER/.parts``, so that an interrupted run continues when
the same command is run again, and the file depends only on the options.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import h5py
import numpy as np

from common_utils import run_config
from common_utils.atomic import atomic_json, full_disk
from common_utils.demo_file import DemoWriter, Recording, open_demos, write_demo, write_env_cfg
from common_utils.errors import UserError
from common_utils.h5_write import atomic_h5
from common_utils.progress import RunProgress, console
from common_utils.resources import check_fits
from common_utils.run_config import ConfigError
from common_utils.seeding import seed_for
from common_utils.specs import EnvSpec
from env.core import EnvError
from env.crew import Crew, Message

PARTS = ".parts"  # finished episodes of an unfinished run
SETTINGS_NAME = "settings.json"
PART_GROUP = "demo"  # the one group of a part file


@dataclass(frozen=True)
class Job:
    """An attempt to play; its recording is stored in ``part`` unless that is empty."""

    number: int
    env_seed: int
    expert_seed: int
    part: str = ""


@dataclass(frozen=True)
class Outcome:
    """How an attempt went: success, control steps, and where it ended (the expert's phase)."""

    success: bool
    length: int
    phase: str
    # whether its recording was stored
    kept: bool = False
    # parts of the task that were done (Expert.achieved), if its expert reports them
    achieved: tuple[str, ...] = ()


class Recorder(Protocol):
    """Plays attempts in one environment; a worker process holds one."""

    spec: EnvSpec

    def attempt(self, job: Job) -> Outcome:
        """Play one episode and store it if required. Raises EnvError on a full disk."""
        ...

    def close(self) -> None:
        """Free the simulator."""
        ...


class Settings(Protocol):
    """A dataclass of plain data that determines an attempt and how much of it is stored."""

    # "module:function" that builds the recorder from asdict(settings), in a worker
    MAKER: ClassVar[str]

    @property
    def timeout(self) -> float:
        """Seconds an attempt may take before its worker counts as hung."""
        ...

    def recorder(self) -> Recorder:
        """A recorder in this process. Raises EnvError for impossible settings."""
        ...


def store_part(
    recording: Recording,
    job: Job,
    cameras: Sequence[str],
    attrs: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write the attempt's part file atomically; ``arrays`` are stored next to its actions."""
    with disk_reported(job.part), atomic_h5(job.part) as file:
        demo = file.create_group(PART_GROUP)
        write_demo(demo, recording, cameras, attrs)
        for key, array in (arrays or {}).items():
            demo[key] = array


class disk_reported:
    """Context in which a full disk raises an EnvError that names the file."""

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError) and (reason := full_disk(error)):
            raise EnvError(f"{reason} while writing '{self.path}'") from error


def crew_size(asked: int, num: int, engine: str, field: str) -> int:
    """Workers for ``num`` episodes if a field asks for ``asked`` of them: -1 is one per core, or
    per CPU of the cluster (``env.crew.Crew`` takes no more). ValueError for a cluster without."""
    if engine != "process" and asked == 0:
        raise ValueError(f"{field}: 0 plays in this process, expected engine process")
    every = num if engine != "process" else len(os.sched_getaffinity(0))
    return min(every if asked < 0 else asked, num)


def play(
    settings: Settings, jobs: Iterable[Job], workers: int, engine: str = "process"
) -> Generator[tuple[Job, Outcome], None, None]:
    """Play ``jobs``, yielding each when it is done (with workers: in any order).

    Jobs are drawn when a worker is free; stop by closing the generator, which ends the
    workers. ``workers`` 0 plays in this process; ``engine`` is where they are, a row of
    ``env.remote.WORKERS``. A job whose worker dies or hangs is played again. Raises EnvError when
    one fails, when a job loses three, and on a full disk.
    """
    if workers == 0:
        with closing(settings.recorder()) as recorder:
            for job in jobs:
                yield job, recorder.attempt(job)
        return
    crew = Crew[Job](
        engine, workers, "recording worker", settings.timeout, EnvError, settings.MAKER,
        asdict(settings), console().print,  # type: ignore[call-overload]
    )  # fmt: skip
    with closing(crew):
        crew.fill()
        yield from _play(crew, iter(jobs))


def _play(crew: Crew[Job], jobs: Iterator[Job]) -> Iterator[tuple[Job, Outcome]]:
    while crew.assign(jobs, _begin):
        for member, (kind, answer, *_) in crew.answers():
            if kind == "misuse":
                raise EnvError(answer)
            job = member.task
            assert job is not None
            crew.done(member)
            if answer.kept and not Path(job.part).is_file():
                raise EnvError(
                    f"out: '{job.part}', written by {member.worker.name}, is not on this machine; "
                    "expected a folder that all nodes of the cluster share"
                )
            yield job, answer


def _begin(job: Job) -> tuple[Message, str]:
    doing = f"playing attempt {job.number} (seed {job.env_seed})"
    return ("call", "attempt", (job,), {}), doing


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
        """Note that attempt ``number`` is over (its recording, if any, is already stored)."""
        if success:
            self.won.add(number)
        else:
            with disk_reported(self.folder):
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
        """The first ``num`` successes by number, once all earlier attempts are over."""
        wins = sorted(self.won)[:num]
        if len(wins) < num:
            return None
        closed = all(n in self.won or n in self.lost for n in range(wins[-1]))
        return wins if closed else None


@dataclass(frozen=True)
class DemoRun:
    """One dataset to record.

    ``env_args`` is stored in the file and must hold everything that determines its content.
    ``title`` names the task in messages; ``details`` is added when too many episodes fail.
    """

    file: Path
    settings: Settings
    env_args: Mapping[str, Any]
    seed: int
    num: int
    workers: int
    title: str
    details: str = ""
    overwrite: bool = False
    max_failure_rate: float = 0.95
    engine: str = "process"

    @property
    def folder(self) -> Path:
        """Where the dataset goes."""
        return self.file.parent

    @property
    def parts_folder(self) -> Path:
        """Where finished attempts wait."""
        return self.folder / PARTS

    def record(self) -> list[int] | None:
        """Record (continuing an unfinished run), merge, and print a summary.

        Returns the demonstrations' lengths, or None if the dataset already existed. Raises
        ConfigError for a different existing dataset or an expert that keeps failing, EnvError for
        a worker that died and for a full disk; finished recordings are kept.
        """
        if self._finished():
            console().print(f"{self.file} exists already, made with these options")
            shutil.rmtree(self.parts_folder, ignore_errors=True)
            return None
        self._prepare()
        with self._locked():
            parts = Parts(self.parts_folder)
            chosen = self._play(parts)
            lengths = self._merge(parts, chosen)
        shutil.rmtree(self.parts_folder)
        tried = chosen[-1] + 1
        failed = tried - len(chosen)
        console().print(
            f"{self.num} demonstrations of {self.title} in {self.file} "
            f"({self.file.stat().st_size / 2**20:.1f} MiB); {failed} of {tried} episodes failed "
            f"and were left out ({failed / tried:.1%}); {min(lengths)} to {max(lengths)} steps, "
            f"mean {sum(lengths) / len(lengths):.1f}"
        )
        return lengths

    def kept(self) -> str:
        """The message after an interruption; empty when nothing is kept."""
        kept = len(Parts(self.parts_folder).won)
        if not kept:
            return ""
        return (
            f"{kept} finished episodes are kept in '{self.parts_folder}'; the same "
            "command continues from them"
        )

    def _finished(self) -> bool:
        """Whether exactly this dataset exists; ConfigError if a different one does."""
        if not self.file.exists() or self.overwrite:
            return False
        try:
            with h5py.File(self.file, "r") as file:
                found = json.loads(str(file["data"].attrs["env_args"]))
        except (OSError, KeyError, ValueError):
            found = {}
        if found != self.env_args:
            raise ConfigError(
                f"out: '{self.file}' exists, made with other options; --overwrite 1 replaces it"
            )
        return True

    def _prepare(self) -> None:
        """Make the folder of parts, or reuse it; ConfigError if other settings left it."""
        folder = self.parts_folder
        if self.overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        wanted = asdict(self.settings) | {"seed": self.seed}  # type: ignore[call-overload]
        file = folder / SETTINGS_NAME
        if not file.exists():
            with disk_reported(folder):
                atomic_json(wanted, file)
        try:
            found = json.loads(file.read_text())
        except ValueError as error:
            raise ConfigError(
                f"out: '{file}' is damaged ({error}); --overwrite 1 starts over"
            ) from None
        if found != wanted:
            raise ConfigError(
                f"out: '{folder}' holds episodes of an unfinished run with other options "
                f"({'; '.join(run_config.diff(found, wanted))}); use those to finish it, or "
                "--overwrite 1 to start over"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the folder: two runs in it would play the same attempts twice."""
        with open(self.parts_folder / "lock", "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(f"out: another process is writing to '{self.folder}'") from None
            yield

    def _jobs(self, parts: Parts) -> Iterator[Job]:
        for n in parts.missing():
            yield Job(
                n,
                seed_for(self.seed, "demonstration", n, bits=31),
                seed_for(self.seed, "expert", n, bits=31),
                str(parts.path(n)),
            )

    def _play(self, parts: Parts) -> list[int]:
        """Play until ``num`` successes are stored; returns their numbers."""
        chosen = parts.chosen(self.num)
        if chosen is not None:
            return chosen
        done = min(len(parts.won), self.num)
        if parts.tried:
            console().print(f"continuing: {done} of {self.num} demonstrations exist")
        with RunProgress(self.num, "demonstrations", done) as progress:
            jobs = self._jobs(parts)
            with closing(play(self.settings, jobs, self.workers, self.engine)) as played:
                for job, outcome in played:
                    parts.add(job.number, outcome.kept)
                    progress.update(min(len(parts.won), self.num), failed=len(parts.lost))
                    chosen = parts.chosen(self.num)
                    if chosen is not None:
                        return chosen
                    if parts.tried >= 20 and len(parts.lost) / parts.tried > self.max_failure_rate:
                        raise ConfigError(
                            f"max_failure_rate: {len(parts.lost)} of {parts.tried} scripted "
                            f"episodes of {self.title} failed{self.details}, expected a share of "
                            f"at most {self.max_failure_rate:g}"
                        )
        raise AssertionError("the attempts are endless")

    def _merge(self, parts: Parts, chosen: list[int]) -> list[int]:
        """Write the dataset from its parts; returns the demonstrations' lengths."""
        paths = [parts.path(n) for n in chosen]
        check_fits({}, {"the dataset": sum(p.stat().st_size for p in paths)}, str(self.folder))
        with disk_reported(self.file), open_demos(self.file, self.env_args) as out:
            for path in paths:
                try:
                    with h5py.File(path, "r") as part:
                        out.copy(part[PART_GROUP])
                except (OSError, KeyError) as error:
                    if not h5py.is_hdf5(path):
                        raise ConfigError(
                            f"out: '{path}' is damaged; delete it and run again"
                        ) from error
                    raise
            self._complete(out)
        write_env_cfg(self.env_args, self.file)
        return out.lengths

    def _complete(self, out: DemoWriter) -> None:
        """Write what belongs to the whole file; here nothing."""


@contextmanager
def kept_reported(kept: Callable[[], str]) -> Iterator[None]:
    """On an interruption, report what can be continued from (``kept``; "" for nothing)."""
    try:
        yield
    except UserError as error:
        if text := kept():
            error.args = (f"{error}\n{text}",)
        raise
    except KeyboardInterrupt:
        if text := kept():
            print(text, file=sys.stderr)
        raise

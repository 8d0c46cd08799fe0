"""A run's folder: who may write to it, what is never overwritten, where a run continues.

    with RunFolder(cfg.save_dir, resume=..., overwrite=...) as folder:
        state = folder.state                 # the state to continue, None for a fresh start
        ...                                  # build everything that may still fail
        with folder.open_log(cfg, MAY_CHANGE) as log:    # now the folder belongs to this run
            folder.save(step, tree)

The folder is locked while the block runs (``flock``: the lock ends with the process). Nothing in
the folder changes until the log is opened. If a run is refused, a folder created for it is removed.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from common_utils import records, run_config, run_id, run_info
from common_utils.atomic import full_disk, make_folder, remove_leftovers
from common_utils.errors import UserError
from common_utils.folder_lock import LOCK_NAME, FolderLock
from common_utils.kept_weights import KEPT_DIR
from common_utils.logger import RunLogger
from common_utils.loggers.sink import RunInfo, Sink
from common_utils.loggers.table import SINKS
from common_utils.loggers.wandb import ID_FILE
from common_utils.paths import is_input, same_input, split_paths
from common_utils.resources import ResourceError
from common_utils.run_config import CFG_NAME, ConfigError, RunConfig
from common_utils.run_state import (
    RunState,
    SavesItself,
    StateError,
    latest_state,
    load_latest,
    remove_states,
    save_state,
    tidy,
)

ConfigType = TypeVar("ConfigType", bound=RunConfig)

STATE_DIR = "state"
LOG_NAME = "train.log"  # what the run prints
SHOWN_CHANGES = 8  # config changes listed in a message
_WEIGHTS = re.compile(r".*\.(pt|safetensors)|data[0-9]+\.h5")
_WRITTEN = re.compile(r"(model|epoch)[0-9]+\.pt|latest\.pt|data[0-9]+\.h5")  # those that runs write


def output_folder(
    path: str, field: str = "save_dir", expected: str = "the folder of the run"
) -> Path:
    """The folder that a program writes to. Raises ConfigError, naming the field, for an empty
    name, a name that is not UTF-8 (TensorBoard cannot write there) and a file."""
    if not path.strip():
        raise ConfigError(f"{field}: '{path}', expected {expected}")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{field}: {path!a} is not UTF-8, expected {expected}") from None
    if os.path.exists(path) and not os.path.isdir(path):  # these raise nothing for impossible names
        raise ConfigError(f"{field}: '{path}' is a file, expected a folder")
    return Path(path)


class RunFolder:
    """The folder of one run, held by this process; use as a context manager.

    Entering raises ConfigError if another process holds the folder, if a fresh start would
    overwrite a run, or if the states to continue from were removed; StateError if there are states
    but none can be read. An error of the file system (a full disk, no permission, a file in the
    way), on entering or in the block, becomes a ResourceError.

    state: with ``resume`` the newest good state, else None.
    """

    def __init__(self, save_dir: str, *, resume: bool, overwrite: bool) -> None:
        path = output_folder(save_dir)
        if resume and overwrite:
            raise ConfigError(
                "overwrite: 1, but resume is 1: either continue the run in save_dir or replace it"
            )
        self.path = path
        self.resume, self.overwrite = resume, overwrite
        self.state: RunState | None = None
        self._made: list[Path] = []  # folders that did not exist before, innermost first
        self._lock = FolderLock(path)
        self._entered = False
        self._begun = False
        self._saved = 0  # number of states
        self._id = ""  # of the run, in its states too

    def __enter__(self) -> RunFolder:
        try:
            self._made = [p for p in (self.path, *self.path.parents) if not p.exists()]
            make_folder(self.path)
            self._lock.acquire()
            self._look()
            self._entered = True
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if not self._begun and self._saved and self._lock.is_held:  # refused while preparing
            self._wipe()
        self._release()
        if isinstance(
            error, (OSError, RuntimeError)
        ):  # torch reports a full disk as a RuntimeError
            full = full_disk(error)
            if full or isinstance(error, OSError):
                where = "" if self._is_elsewhere(error) else f"save_dir '{self.path}': "
                raise ResourceError(self._refused(where + (full or str(error)))) from error

    def _is_elsewhere(self, error: BaseException) -> bool:
        """Whether the error names a file that does not lie in the folder, such as an input."""
        name = getattr(error, "filename", None)
        if not self._entered or not isinstance(name, str):
            return False
        return not Path(os.path.abspath(name)).is_relative_to(os.path.abspath(self.path))

    def _refused(self, message: str) -> str:
        """The message when the file system stopped the run, and what the next one may do."""
        if not self._begun:
            return message
        try:
            state = latest_state(self.path / STATE_DIR)
        except StateError:
            state = None
        if state is None and self._saved:
            return f"{message}; the states that were saved are no longer in {STATE_DIR}/"
        if state is None:
            return f"{message}; no state has been saved yet, --resume 1 starts from the beginning"
        return f"{message}; {STATE_DIR}/{state.name} is kept, --resume 1 continues from it"

    def _release(self) -> None:
        """Release the folder; removes it if it was created for a run that did not begin."""
        self._lock.release()
        for folder in [] if self._begun else self._made:
            try:
                folder.rmdir()
            except OSError:  # another program has put something there
                break

    # ------------------------------------------------------- what is there

    def _look(self) -> None:
        held = self._held()
        if self.resume:
            self.state = load_latest(self.path / STATE_DIR)
            if self.state is None:
                self._check_never_began()
            else:
                self._id = run_id.take_id(self.path, self.state)
        elif held and not self.overwrite:
            raise ConfigError(
                f"save_dir: '{self.path}' holds a run ({', '.join(held)}); continue it with "
                "--resume 1, replace it with --overwrite 1, or choose another save_dir"
            )

    def _held(self) -> list[str]:
        """Names of what a fresh start would overwrite."""
        names = [p.name for p in self.path.iterdir() if _WEIGHTS.fullmatch(p.name)]
        for name in (CFG_NAME, records.METRICS, LOG_NAME):
            if os.path.lexists(self.path / name):
                names.append(name)
        for name in (STATE_DIR, records.EVENTS, KEPT_DIR):
            folder = self.path / name
            if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
                names.append(name)
        return sorted(names)

    def _weights_and_metrics(self) -> list[str]:
        """Names of what a run has made so far."""
        metrics = self.path / records.METRICS
        made = [name for name in self._held() if _WEIGHTS.fullmatch(name)]
        if metrics.exists() and (not metrics.is_file() or metrics.stat().st_size):
            made.append(records.METRICS)
        return made

    def _check_never_began(self) -> None:
        """Without a state, only a run that ended before its first one may start over."""
        if made := self._weights_and_metrics():
            raise ConfigError(
                f"resume: '{self.path}' holds {', '.join(made)}, but no saved state to continue "
                f"from: was {STATE_DIR}/ removed, or not copied along? Choose another save_dir, or "
                "replace the run with --overwrite 1 (and without --resume 1)"
            )

    def saved_config(self, config_class: type[ConfigType]) -> ConfigType | None:
        """The config of the run that is resumed, None for a fresh start.

        Raises ConfigError if it cannot be read.
        """
        path = self.path / CFG_NAME
        if not self.resume or not (self.state or os.path.lexists(path)):
            return None
        if not path.is_file():
            raise ConfigError(
                f"resume: '{self.path}' holds a state, but no {CFG_NAME} to compare with"
            )
        return run_config.load(config_class, path)

    # ---------------------------------------------------------------- beginning

    def open_log(self, cfg: RunConfig, may_change: Collection[str]) -> RunLogger:
        """Check ``cfg`` against the saved run's, prepare the folder, save ``cfg``, open the log.

        ``may_change`` names the fields that may differ. Raises ConfigError with the differences
        if any other field does.
        """
        saved = self.saved_config(type(cfg))
        if saved is not None:
            moved = self._moved_inputs(saved, cfg)
            cfg = _with_known_paths(saved, cfg, moved)
            changed = run_config.diff(saved, cfg)
            allowed = {*may_change, *moved}
            changed = [line for line in changed if line.split(":")[0] not in allowed]
            if changed:
                more = f"; ... ({len(changed)} in all)" if len(changed) > SHOWN_CHANGES else ""
                raise ConfigError(
                    f"resume: the config is not that of the run in {self.path}:\n  "
                    + "; ".join(changed[:SHOWN_CHANGES])
                    + more
                )
        if self.resume and self.state is None and saved is not None:
            print(f"resume: no saved state in {self.path}; starting from the beginning")
        if self.state is None:
            self._id = run_id.new_id()
        sinks = self._loggers(cfg)
        self._begun = True
        if self.overwrite:
            self._wipe()
        remove_leftovers(self.path)
        tidy(self.path / STATE_DIR)
        self._identify()
        run_config.dump(cfg, self.path / CFG_NAME)
        self._describe(cfg)
        state = self.state
        return RunLogger(
            self.path,
            sinks=sinks,
            resume_step=state.step if state is not None else None,
            saved=state.tree.get("log") if state is not None else None,
        )

    def _identify(self) -> None:
        """Write the run's id, before its first state. Only runs of earlier versions have none."""
        if self._id and (note := run_id.write_id(self.path, self._id)):
            print(note)

    def _describe(self, cfg: RunConfig) -> None:
        """Record this start: from which step, the configuration file, what differs from it."""
        facts = {
            "step": self.state.step if self.state is not None else 0,
            "preset": cfg.preset,
            "changes": run_config.changes(cfg),
        }
        if note := run_info.write_start(self.path, facts):
            print(note)

    def _loggers(self, cfg: RunConfig) -> list[Sink]:
        """Those that the configuration asks for; ConfigError if one cannot be used."""
        info = RunInfo(
            self.path,
            run_id=self._id,
            project=cfg.wb_project,
            name=cfg.run_name,
            group=cfg.group,
            config=run_config.to_dict(cfg),
            resumed=self.state is not None,
        )
        return [start(info) for field, start in SINKS.items() if getattr(cfg, field)]

    def _moved_inputs(self, saved: RunConfig, cfg: RunConfig) -> list[str]:
        """Fields whose input file is the same under another path, or has moved; prints them."""
        before, now = (run_config.flatten(run_config.to_dict(c)) for c in (saved, cfg))
        names = [k for k, kind in run_config.field_types(type(cfg)).items() if is_input(kind)]
        moved = [k for k in names if before[k] != now[k] and same_input(before[k], now[k])]
        for name in moved:
            if os.path.exists(split_paths(now[name])[0]):
                print(f"{name}: {before[name]} is now {now[name]}")
        return moved

    def save(
        self, step: int, tree: Mapping[str, Any], parts: Mapping[str, SavesItself] | None = None
    ) -> None:
        """Write the run's resumable state, atomically.

        Raises StateError if the folder was removed or replaced meanwhile. Then it writes nothing,
        because that would look like a complete run.
        """
        if not self._lock.is_held:
            raise StateError(
                f"save_dir: '{self.path}' no longer belongs to this run: the folder, or "
                f"{LOCK_NAME} in it, was removed or replaced while the run was writing to it"
            )
        own = {run_id.ENTRY: self._id} if self._id else {}
        save_state(self.path / STATE_DIR, step, {**tree, **own}, parts)
        self._saved += 1

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """A run that is refused in the block, before it has made anything, leaves nothing behind:
        the corrected command must not find a run that it would overwrite.
        """
        try:
            yield
        except UserError:
            made = self._weights_and_metrics() or self._saved > 1
            if self.state is None and not made:
                self._begun = False
            raise

    def _wipe(self) -> None:
        """Remove the run that is replaced, states first, so that a partial one is never resumed."""
        written = [name for name in self._held() if _WRITTEN.fullmatch(name)]
        others = (records.METRICS, records.EVENTS, LOG_NAME, ID_FILE, run_id.ID_FILE, CFG_NAME)
        for name in (STATE_DIR, *written, KEPT_DIR, *others, run_info.INFO_FILE):
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                (remove_states if name == STATE_DIR else shutil.rmtree)(path)
            else:
                path.unlink(missing_ok=True)


def _with_known_paths(saved: ConfigType, cfg: ConfigType, moved: Collection[str]) -> ConfigType:
    """``cfg`` with the absolute paths of ``saved`` for files that are gone, which keep the name
    that was given: it may be relative, and the next start may be elsewhere."""
    before, now = (run_config.flatten(run_config.to_dict(c)) for c in (saved, cfg))
    gone = {k: before[k] for k in moved if not os.path.exists(split_paths(now[k])[0])}
    if not gone:
        return cfg
    return run_config.from_dict(type(cfg), run_config.deflatten({**now, **gone}))

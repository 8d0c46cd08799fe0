"""Starting a run afresh or continuing it: the rule every trainer shares."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from common_utils import run_config
from common_utils.atomic import full_disk
from common_utils.resources import ResourceError
from common_utils.run_config import ConfigError, RunConfig
from common_utils.run_state import latest_state, tidy

STATE_DIR = "state"


def start_or_resume(cfg: RunConfig, resume: bool, may_change: Collection[str]) -> Path | None:
    """The saved state to continue from, or None for a fresh start (its config is written).

    ``may_change`` names the fields that may differ from the saved run's. Raises ConfigError
    with the differences if any other does, and when a fresh start would overwrite a run
    that can still be resumed.
    """
    root = Path(cfg.save_dir) / STATE_DIR
    tidy(root)
    path = latest_state(root)
    if not resume:
        if path is not None:
            raise ConfigError(
                f"save_dir: {cfg.save_dir} holds a run ({path.name}); continue it with "
                "--resume 1, or choose another save_dir"
            )
        run_config.dump(cfg, cfg.cfg_path)
        return None
    if path is None:
        print(f"resume: no saved state in {cfg.save_dir}; starting from the beginning")
        run_config.dump(cfg, cfg.cfg_path)
        return None
    saved = run_config.load(type(cfg), cfg.cfg_path)
    changed = [d for d in run_config.diff(saved, cfg) if d.split(":")[0] not in may_change]
    if changed:
        raise ConfigError(
            f"resume: the config is not that of the run in {cfg.save_dir}:\n  "
            + "\n  ".join(changed)
        )
    run_config.dump(cfg, cfg.cfg_path)
    return path


@contextmanager
def full_disk_reported(save_dir: str) -> Iterator[None]:
    """A full disk in the block becomes a ResourceError that names ``save_dir`` and the way on."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of it
        if not (cause := full_disk(error)):
            raise
        raise ResourceError(
            f"save_dir: {cause} while writing to '{save_dir}'; the last complete state is kept, "
            "--resume 1 continues from it"
        ) from error

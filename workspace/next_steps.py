"""What a trainer prints when it ends: the command that continues and the one that evaluates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from common_utils.next_commands import again, evaluation
from common_utils.run_config import RunConfig
from common_utils.saver import TopkSaver


class Run(Protocol):
    """The part of the trainers' workspaces that is used here."""

    saver: TopkSaver


Config = TypeVar("Config", bound=RunConfig)


def run_and_tell(
    run: Callable[[Config], Run],
    cfg: Config,
    longer: dict[str, Any],
    trusted: Callable[[], Sequence[str]],
) -> None:
    """Run a trainer, and print the commands that come next, also after a signal.

    longer: the option (and its value) with which a finished run continues. trusted: the modules
    that an evaluation must trust, once the run has filled in its config.
    """
    save_dir = Path(cfg.save_dir)
    try:
        work = run(cfg)
    except SystemExit as stop:  # a signal; the state is saved
        lines = [str(stop.code), f"  continue: {again({'resume': 1})}"]
        if (best := save_dir / "model0.pt").is_file():
            lines.append(f"  evaluate: {evaluation(best, trusted())}")
        raise SystemExit("\n".join(lines)) from None
    if getattr(cfg, "dry_run", 0):
        return
    if work.saver.best_path is not None:
        print(f"evaluate: {evaluation(work.saver.best_path, trusted())}")
    print(f"train longer: {again({'resume': 1, **longer})}")

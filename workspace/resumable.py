"""What both trainers' runs do alike: save their state, report at intervals, stop, continue."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from common_utils.logger import RunLogger
from common_utils.run_folder import RunFolder
from common_utils.run_state import GracefulStop, RunState, SavesItself, fitting


class ResumableRun(ABC):
    """Base of the trainers' workspaces.

    reported: False while the present step's evaluation is due or being played. A state that says
        so continues with that evaluation.
    """

    log: RunLogger
    folder: RunFolder
    stop: GracefulStop | None = None
    reported = True

    @property
    @abstractmethod
    def steps_done(self) -> int:
        """Training steps so far, by which states are named."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that changes while training, but for :meth:`state_parts`."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""

    @abstractmethod
    def moved(self, state: dict[str, Any]) -> str:
        """What to say of a state that comes from another kind of device; "" for nothing."""

    def state_parts(self) -> Mapping[str, SavesItself]:
        """What writes files of its own into the state."""
        return {}

    def load_state(self, state: RunState) -> None:
        """Put a saved state into place, its parts included."""
        self.load_state_dict(state.tree)
        self.reported = bool(state.tree.get("reported", True))  # newer than the first states

    def save_state(self) -> None:
        """Resumable state of this step, written atomically; older ones are removed.

        Raises NonFiniteError, and writes nothing, where training has diverged.
        """
        self.log.meters.check_finite()
        tree = {**self.state_dict(), "reported": self.reported}
        self.folder.save(self.steps_done, tree, self.state_parts())

    def resume(self, state: RunState) -> None:
        """Continue from a saved state."""
        with fitting(state):
            self.load_state(state)
            moved = self.moved(state.tree)
        state.tree.clear()  # its copies of everything are not needed any more
        self.log.print(f"resumed from {state.path} at step {self.steps_done}")
        if moved:
            self.log.print(f"note: {moved}")

    def report(self, evaluate_and_log: Callable[[], None], last: bool) -> None:
        """The end of a log interval: saved first, so that an evaluation that is killed or fails
        costs no training; it is then played again. Only the ``last`` one is saved as done.
        """
        if self.reported:
            self.reported = False
            self.save_state()
        evaluate_and_log()
        self.reported = True
        if last:
            self.save_state()

    def stop_if_asked(self) -> None:
        """After a signal (see ``GracefulStop``): save everything and leave."""
        if self.stop is not None and self.stop.requested:
            self.save_state()
            self._leave("")

    def leave_if_asked(self) -> None:
        """The same during an evaluation, before which everything was saved."""
        if self.stop is not None and self.stop.requested:
            self._leave(", in an evaluation")

    def _leave(self, where: str) -> None:
        assert self.stop is not None  # asked by the callers
        raise SystemExit(
            f"{self.stop.signal_name} at step {self.steps_done}{where}: state saved; "
            "the same command with --resume 1 continues"
        )

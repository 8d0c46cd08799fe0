"""Shared by the runs of both trainers: save the state, report at intervals, stop, continue."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from common_utils import ranks
from common_utils.logger import RunLogger
from common_utils.run_folder import RunFolder
from common_utils.run_state import GracefulStop, RunState, SavesItself, fitting
from networks.fast import choice


class ResumableRun(ABC):
    """Base of the trainers' workspaces.

    reported: False while the current step's evaluation is due or being played. A run resumed from
        such a state continues with that evaluation.
    """

    log: RunLogger
    folder: RunFolder
    stop: GracefulStop | None = None
    reported = True
    # ranks that learn of signals together: whether all of them stop at this step
    agreed: bool | None = None

    @property
    @abstractmethod
    def steps_done(self) -> int:
        """Training steps so far; states are named after them."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that changes while training, except :meth:`state_parts`."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""

    @abstractmethod
    def moved(self, state: dict[str, Any]) -> str:
        """The message if a state comes from another kind of device, else ""."""

    def state_parts(self) -> Mapping[str, SavesItself]:
        """Parts that write their own files into the state."""
        return {}

    def load_state(self, state: RunState) -> None:
        """Load a saved state and its parts."""
        self.load_state_dict(state.tree)
        self.reported = bool(state.tree.get("reported", True))  # absent in the oldest states

    def save_state(self) -> None:
        """Write a state of this step to resume from, atomically; older ones are removed. Of
        several ranks the first writes it.

        Raises NonFiniteError, and writes nothing, if training has diverged.
        """
        self.log.meters.check_finite()
        if not ranks.is_first():
            return
        tree = {
            **self.state_dict(),
            "reported": self.reported,
            "matrix_products": choice.current(),
        }
        self.folder.save(self.steps_done, tree, self.state_parts())

    def resume(self, state: RunState) -> None:
        """Continue from a saved state."""
        with fitting(state):
            changed = _multiply_as_in(state.tree)
            self.load_state(state)
            moved = self.moved(state.tree)
        state.tree.clear()  # its copies are no longer needed
        self.log.print(f"resumed from {state.path} at step {self.steps_done}")
        for note in filter(None, (moved, changed)):
            self.log.print(f"note: {note}")

    def align(self) -> None:
        """All ranks go on from the first one's state."""
        if ranks.world() == 1:
            return
        first = ranks.is_first()
        tree = {**self.state_dict(), "matrix_products": choice.current()} if first else None
        tree = ranks.shared(tree)
        if not first:
            on_gpus = tree["global_rng"]["cuda"]  # rank 0 draws from the first one's
            tree["global_rng"]["cuda"] = on_gpus[:1] * len(on_gpus)
            choice.use(tree["matrix_products"])
            self.load_state_dict(tree)

    def report(self, evaluate_and_log: Callable[[], None], last: bool) -> None:
        """End a log interval: save first, so that an evaluation that is killed or fails costs no
        training; it is then played again. Only the ``last`` one is saved as done.
        """
        if self.reported:
            self.reported = False
            self.save_state()
        evaluate_and_log()
        self.reported = True
        if last:
            self.save_state()

    @property
    def stop_asked(self) -> bool:
        """Whether a signal asks for the end (see ``GracefulStop``)."""
        if self.agreed is not None:
            return self.agreed
        return self.stop is not None and self.stop.requested

    def stop_if_asked(self) -> None:
        """After a signal, save everything and exit."""
        if self.stop_asked:
            self.save_state()
            if self.agreed:  # torchrun ends all when the first of them has left
                ranks.wait()
            self._leave("")

    def leave_if_asked(self) -> None:
        """After a signal during an evaluation, exit: everything was saved before it."""
        if self.stop is not None and self.stop.requested:
            self._leave(", in an evaluation")

    def _leave(self, where: str) -> None:
        assert self.stop is not None  # asked by the callers
        signal = self.stop.signal_name or "a signal to another rank"
        raise SystemExit(
            f"{signal} at step {self.steps_done}{where}: state saved; "
            "the same command with --resume 1 continues"
        )


def _multiply_as_in(tree: Mapping[str, Any]) -> str:
    """Multiply matrices by the libraries that the run has used, so that it computes the same bits;
    returns what changes by that, or by a choice that was named. Absent in older states.
    """
    found, here = tree.get("matrix_products"), choice.current()
    recorded = here if found is None else choice.completed(found)
    if recorded == here:
        return ""
    if choice.named() is not None:
        return "IBRL_GEMM names other matrix products than the run has used; bits may differ"
    choice.use(recorded)
    return "matrix products are computed as when the run began, not as measured now"

"""How each suite is evaluated: which episodes are played, when, and what counts.

The published protocols differ; this table is the one place that says how. Both trainers,
``evaluate.eval`` and the tools use it, and never compare suite names themselves. The number of
episodes is set by the run (``num_eval_episode``, ``num_final_episode``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from evaluate.rollout import EvalResult


class Games(NamedTuple):
    """Episodes ``seed .. seed + num - 1``."""

    seed: int
    num: int


def _fresh(epoch: int, num: int) -> int:
    """Every evaluation plays its own episodes, from 1 on."""
    return epoch * num + 1


def _scattered(epoch: int, num: int) -> int:
    """The Meta-World script's pseudo-random start."""
    return epoch * 1991991991 % 9997


def _same(epoch: int, num: int) -> int:
    """Every evaluation of Implicit BC plays the same episodes."""
    return 0


@dataclass(frozen=True)
class Protocol:
    """How runs on one suite are evaluated.

    by_return: the score, by which checkpoints are compared, is the mean return, not the share
        of successes. Episodes then continue after success, and so do demonstrations.
    topk: best checkpoints that a BC run keeps.
    first_seed: of a BC run's evaluation, by epoch (from 0) and number of episodes.
    long_every: epochs between the long evaluations of a BC run's newest weights (the last
        epoch has one too); 0: none.
    long_seed: first seed of long evaluations, that of the best weights included.
    rl_by_step: an RL run's evaluation starts at the seed of its environment step; otherwise
        evaluations play one after the other, from seed 0 on.
    """

    by_return: bool = False
    topk: int = 2
    first_seed: Callable[[int, int], int] = _fresh
    long_every: int = 5
    long_seed: int = 1
    rl_by_step: bool = False

    def score(self, result: EvalResult) -> float:
        """The number by which checkpoints are compared."""
        return result.mean_score if self.by_return else result.success_rate

    def report(self, result: EvalResult) -> dict[str, float]:
        """What is logged for an evaluation: its score and everything that was measured."""
        return {
            "score/score": self.score(result),
            "score/success": result.success_rate,
            "score/return": result.mean_score,
            **{f"score/{name}": value for name, value in result.mean_metrics.items()},
        }

    # ------------------------------------------------------------------------- BC

    def after_epoch(self, epoch: int, num: int) -> Games:
        """The evaluation after ``epoch`` (from 0)."""
        return Games(self.first_seed(epoch, num), num)

    def long_after_epoch(self, epoch: int, num_epoch: int, num: int) -> Games | None:
        """The long evaluation of the newest weights after ``epoch``, if one is due."""
        number = epoch + 1
        if not num or not self.long_every:
            return None
        due = number % self.long_every == 0 or number == num_epoch
        return self.of_best(num) if due else None

    def of_best(self, num: int) -> Games:
        """The evaluation of the best weights, a run's final number."""
        return Games(self.long_seed, num)

    # ------------------------------------------------------------------------- RL

    def after_pretraining(self, step: int, num: int) -> Games:
        """The evaluation after gradient step ``step`` of pretraining (RFT)."""
        return Games(step, num)

    def after_step(self, step: int, log_per_step: int, num: int) -> Games:
        """The evaluation after environment step ``step``, one in ``log_per_step``."""
        return Games(step if self.rl_by_step else step // log_per_step * num, num)


_IMPLICIT_BC = Protocol(first_seed=_same)

# suites that are not evaluated by the defaults of Protocol
PROTOCOLS = {
    "metaworld": Protocol(topk=3, first_seed=_scattered, long_every=0, rl_by_step=True),
    "particle": _IMPLICIT_BC,
    "block_pushing": _IMPLICIT_BC,
    "d4rl": Protocol(by_return=True, first_seed=_same),
}


def protocol_of(suite: str) -> Protocol:
    """How ``suite`` is evaluated: by its row, or by the defaults ("": nothing is played)."""
    return PROTOCOLS.get(suite, Protocol())

"""Where a recorded episode ends and what makes it a success: each suite states its own rule.

Only the suite knows (``env.factory.success_rule``) whether a reward of 1 is a success, ends the
episode, or is what every step earns. Readers of demonstration files apply its rule and print
:attr:`Endings.ends_at`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

TERMINATED, TRUNCATED = "terminated", "truncated"
AS_RECORDED = "the end of its recording"


@dataclass(frozen=True)
class Recorded:
    """What a file says about one episode of T steps.

    rewards  float [T]
    ended    "terminated" or "truncated" (by the time limit), "" if the file does not say
    success  the recorder's verdict, None if there is none
    infos    {key: float [T]} of the environment's info, as far as they were recorded
    """

    name: str
    rewards: np.ndarray
    ended: str = ""
    success: bool | None = None
    infos: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Ending:
    """The first ``length`` steps are the episode; a time limit ended it unless ``terminated``."""

    length: int
    success: bool
    terminated: bool


@dataclass(frozen=True)
class Endings:
    """``ends_at`` says where episodes end; ``note`` (or "") is a caveat. Both are for printing."""

    episodes: list[Ending]
    ends_at: str
    note: str = ""

    @property
    def num_success(self) -> int:
        """How many are successes."""
        return sum(e.success for e in self.episodes)


class SuccessRule(ABC):
    """One suite's rule. ``who`` names it in messages: the suite, or the option that sets it."""

    who: str

    @abstractmethod
    def endings(self, recorded: Sequence[Recorded], horizon: int) -> Endings:
        """Where each episode ends.

        horizon: the run's time limit in control steps, 0 if there is none. Raises ValueError
        naming an episode that the suite's files must not hold.
        """

    @property
    def info_key(self) -> str:
        """The key of ``Recorded.infos`` that the rule uses ("": none)."""
        return ""


def _ended(episode: Recorded, horizon: int) -> str:
    """How the recording ended; if the file does not say, reaching the limit means truncated."""
    if episode.ended:
        return episode.ended
    return TRUNCATED if 0 < horizon <= len(episode.rewards) else TERMINATED


def _whole(
    recorded: Sequence[Recorded], horizon: int, success: Callable[[Recorded], bool]
) -> list[Ending]:
    return [
        Ending(len(e.rewards), bool(success(e)), _ended(e, horizon) == TERMINATED) for e in recorded
    ]


def _cut(recorded: Sequence[Recorded], hits: Sequence[np.ndarray], horizon: int) -> list[Ending]:
    """Each up to its first hit, which ends it as a success; without one, whole and a failure."""
    whole = _whole(recorded, horizon, lambda e: False)
    return [
        Ending(int(steps[0]) + 1, True, True) if len(steps) else end
        for end, steps in zip(whole, hits, strict=True)
    ]


@dataclass(frozen=True)
class SparseReward(SuccessRule):
    """A reward of exactly 1 is success and ends the episode (docs/reference/ibrl.md#replay).

    A demonstration without one is refused.
    """

    who: str

    def endings(self, recorded: Sequence[Recorded], horizon: int) -> Endings:
        """See the class."""
        hits = [np.flatnonzero(e.rewards == 1) for e in recorded]
        for episode, steps in zip(recorded, hits, strict=True):
            if not len(steps):
                raise ValueError(
                    f"{episode.name}: no step has reward 1, so the demonstration is not a success "
                    f"(last reward {float(episode.rewards[-1]):g})"
                )
        return Endings(_cut(recorded, hits, horizon), f"its first reward of 1 ({self.who})")


@dataclass(frozen=True)
class RewardReached(SuccessRule):
    """A reward of at least 1 is success, in suites whose rewards may have any value.

    With ``ends`` it also ends the episode, if rewards before it are 0. If every step earns 1, or
    rewards are dense, that would cut episodes at random, so they stay whole.
    """

    who: str
    ends: bool

    def endings(self, recorded: Sequence[Recorded], horizon: int) -> Endings:
        """See the class."""
        hits = [np.flatnonzero(e.rewards >= 1) for e in recorded]
        if self.ends and self._sparse(recorded, hits):
            at = f"its first reward of at least 1 ({self.who})"
            return Endings(_cut(recorded, hits, horizon), at)
        whole = _whole(recorded, horizon, lambda e: bool((e.rewards >= 1).any()))
        note = ""
        if self.ends and any(len(steps) for steps in hits):
            note = (
                "a reward of at least 1 does not end the demonstrations, because rewards are not 0 "
                "before it; a played episode ends there, unless end_on_success is 0 or success is "
                f"something else ({self.who})"
            )
        return Endings(whole, f"{AS_RECORDED} ({self.who}: a reward of 1 is success)", note)

    @staticmethod
    def _sparse(recorded: Sequence[Recorded], hits: Sequence[np.ndarray]) -> bool:
        before = [e.rewards[: steps[0]] for e, steps in zip(recorded, hits, strict=True)
                  if len(steps)]  # fmt: skip
        # if all of them begin with it, every step earns it
        return any(len(b) for b in before) and not any(b.any() for b in before)


@dataclass(frozen=True)
class EndedBy(SuccessRule):
    """Success is how the episode ended: TERMINATED, by itself, or TRUNCATED, by lasting to the
    time limit."""

    who: str
    how: str

    def endings(self, recorded: Sequence[Recorded], horizon: int) -> Endings:
        """See the class."""
        whole = _whole(recorded, horizon, lambda e: self._success(e, horizon))
        return Endings(whole, f"{AS_RECORDED} ({self.who})")

    def _success(self, episode: Recorded, horizon: int) -> bool:
        lasted = 0 < horizon <= len(episode.rewards)
        return _ended(episode, horizon) == self.how or (self.how == TRUNCATED and lasted)


@dataclass(frozen=True)
class InfoSays(SuccessRule):
    """The environment's own verdict, ``info[key]``, where it was recorded.

    If it was not recorded, each recording counts as a success and stays whole.
    """

    who: str
    key: str
    ends: bool

    @property
    def info_key(self) -> str:
        """The key."""
        return self.key

    def endings(self, recorded: Sequence[Recorded], horizon: int) -> Endings:
        """See the class."""
        missing = [e.name for e in recorded if self.key not in e.infos]
        if missing:
            whole = _whole(recorded, horizon, lambda e: True)
            note = (
                f"'infos/{self.key}' is not in the file ({missing[0]}), so each of its "
                f"demonstrations counts as a success ({self.who})"
            )
            return Endings(whole, f"{AS_RECORDED} ({self.who})", note)
        hits = [np.flatnonzero(e.infos[self.key]) for e in recorded]
        if self.ends:
            at = f"its first success by infos/{self.key} ({self.who})"
            return Endings(_cut(recorded, hits, horizon), at)
        whole = _whole(recorded, horizon, lambda e: bool(e.infos[self.key].any()))
        return Endings(whole, f"{AS_RECORDED} ({self.who})")


@dataclass(frozen=True)
class AsRecorded(SuccessRule):
    """Rewards say nothing about success: a demonstration is one unless its recorder denies it."""

    who: str

    def endings(self, recorded: Sequence[Recorded], horizon: int) -> Endings:
        """See the class."""
        whole = _whole(recorded, horizon, lambda e: e.success is not False)
        return Endings(whole, f"{AS_RECORDED} ({self.who})")

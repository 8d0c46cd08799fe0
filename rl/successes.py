"""Collects the successes of a run, to be written as demonstrations while it is running."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common_utils import rela
from rl.replay_io import to_numpy, to_torch

# further data of one observation: arrays of a single step, always with the same keys; and strings,
# which become attributes of the episode
Record = Mapping[str, "np.ndarray | str"]


class SuccessWriter:
    """Collects ``folder/data{n}.h5`` of the last ``every`` successes, at every ``every``-th one.

    every: with 0 or less nothing is collected. It has no reference to the replay, which would
    keep the replay's memory until the garbage collector finds the circle.
    """

    def __init__(self, every: int, folder: str | None) -> None:
        if every > 0 and not folder:
            raise ValueError("ReplayBuffer: save_per_success needs save_dir")
        self.every, self.folder = every, Path(folder or "")
        self.num_success = 0
        self._records: dict[int, list[Record]] = {}  # of the running episodes, by lane
        self._recent: deque[tuple[rela.EpisodeData, list[Record]]] = deque(maxlen=max(1, every))

    def begin(self, record: Record | None, lane: int = 0) -> None:
        """Record the first observation of an episode, of which each lane plays one at a time."""
        self._records[lane] = [dict(record or {})] if self.every > 0 else []

    def step(self, record: Record | None, lane: int = 0) -> None:
        """Record the next observation."""
        if self.every > 0:
            self._records[lane].append(dict(record or {}))

    def end(
        self, episode: rela.EpisodeData, success: bool, lane: int = 0
    ) -> tuple[Path, list[dict[str, Any]]] | None:
        """End the episode; if a file is due, its path and its episodes: each is
        ``EpisodeData.to_dict()`` with its "records".
        """
        records = self._records.pop(lane, [])
        if not success or self.every <= 0:
            return None
        self._recent.append((episode, records))
        self.num_success += 1
        number, rest = divmod(self.num_success, self.every)
        return None if rest else (self.folder / f"data{number}.h5", self._episodes())

    def _episodes(self) -> list[dict[str, Any]]:
        return [e.to_dict() | {"records": records} for e, records in self._recent]

    def state_dict(self) -> dict[str, Any]:
        """State for resume: tensors, numbers and strings."""
        state = {"records": self._records, "recent": self._episodes()}
        return {"num_success": self.num_success, **to_torch(state)}

    def load_state_dict(self, state: Mapping[str, Any], nstep: int, gamma: float) -> None:
        """Inverse of :meth:`state_dict`; nstep and gamma are the replay's."""
        self.num_success = int(state["num_success"])
        records = to_numpy(state["records"])
        # a list: of versions with one lane
        self._records = {0: records} if isinstance(records, list) else records
        self._recent.clear()
        for e in to_numpy(state["recent"]):
            episode = rela.episode_from_arrays(
                e["obs"],
                e["action"],
                e["reward"],
                terminated=e["terminated"],
                truncated=e["truncated"],
                final_obs=e["has_final"],
                nstep=nstep,
                gamma=gamma,
            )
            self._recent.append((episode, e["records"]))

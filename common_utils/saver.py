"""The best weights of a run, under the file names of the published program."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common_utils.atomic import atomic_torch_save
from common_utils.finite import NonFiniteError, check_tensors


def portable_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """CPU copies that load anywhere; views get their own storage."""
    out: dict[str, Any] = {}
    for key, value in state_dict.items():
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            # torch.save writes a view's whole storage
            if value.untyped_storage().nbytes() != value.nbytes:
                value = value.clone()
        out[key] = value
    return out


def save_weights(state_dict: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write weights that load anywhere; NonFiniteError, naming the entry, if one is not finite."""
    check_tensors(state_dict, "", f"'{path}' is not written")
    atomic_torch_save(portable_state_dict(state_dict), path)


class TopkSaver:
    """Keeps the ``topk`` best weights as ``model{i}.pt`` and the newest as ``latest.pt``.

    Rule (docs/reference/ibrl.md#training): fill the k slots in order; then a new score replaces the
    lowest-scoring slot (the first of several) unless it is strictly lower than that.
    """

    def __init__(self, save_dir: str | os.PathLike[str], topk: int) -> None:
        if topk < 1:
            raise ValueError(f"TopkSaver: topk must be at least 1, got {topk}")
        self.save_dir = Path(save_dir)
        self.topk = topk
        self.perfs: list[float] = []

    def slot_path(self, slot: int) -> Path:
        return self.save_dir / f"model{slot}.pt"

    @property
    def latest_path(self) -> Path:
        return self.save_dir / "latest.pt"

    @property
    def best_path(self) -> Path | None:
        """File of the highest score kept (the first of several), None before the first save."""
        return self.slot_path(self.perfs.index(max(self.perfs))) if self.perfs else None

    def save(self, state_dict: Mapping[str, Any], perf: float, save_latest: bool = True) -> bool:
        """Offer weights with their score; True if they took a slot.

        Raises NonFiniteError if the score or a weight is not finite.
        """
        perf = float(perf)
        if not math.isfinite(perf):
            raise NonFiniteError(
                f"'{self.save_dir}': the score is {perf}, expected a finite number; no weights "
                "are written"
            )
        if save_latest:
            save_weights(state_dict, self.latest_path)
        if len(self.perfs) < self.topk:
            slot = len(self.perfs)
        else:
            slot = self.perfs.index(min(self.perfs))
            if perf < self.perfs[slot]:
                return False
        save_weights(state_dict, self.slot_path(slot))
        self.perfs[slot : slot + 1] = [perf]
        return True

    def state_dict(self) -> dict[str, Any]:
        """Scores only; the weights are already in their files."""
        return {"topk": self.topk, "perfs": list(self.perfs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["topk"] != self.topk:
            raise ValueError(f"TopkSaver: saved with topk {state['topk']}, now {self.topk}")
        self.perfs = [float(p) for p in state["perfs"]]

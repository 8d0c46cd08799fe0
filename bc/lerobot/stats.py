"""Statistics of episodes, in the form that lerobot normalises by (``meta/stats.json``).

Of each number of a feature: min, max, mean, std, quantiles; of pictures one of each per channel,
scaled to [0, 1]. ``count`` is the number of steps. As in lerobot, the quantiles of a dataset are
the mean of its episodes' quantiles, weighted by their lengths; all else is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Stats = dict[str, np.ndarray]
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
MOST_PICTURES = 100  # of an episode


def of_numbers(values: np.ndarray) -> Stats:
    """``values`` [T, ...] -> arrays [...]; of single numbers [1]."""
    values = np.asarray(values, np.float64)
    values = values.reshape(len(values), -1) if values.ndim == 1 else values
    return _stats(values, (0,)) | {"count": np.array([len(values)])}


def of_pictures(frames: np.ndarray) -> Stats:
    """``frames`` uint8 [T, 3, H, W], of which some are looked at -> arrays [3, 1, 1]."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, MOST_PICTURES).astype(int))
    found = _stats(frames[chosen] / 255.0, (0, 2, 3))
    return {k: v.reshape(-1, 1, 1) for k, v in found.items()} | {"count": np.array([len(chosen)])}


def _stats(values: np.ndarray, axes: tuple[int, ...]) -> Stats:
    out = {name: getattr(np, name)(values, axis=axes) for name in ("min", "max", "mean", "std")}
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=axes)
    return out | dict(zip(QUANTILES, quantiles, strict=True))


def together(parts: Sequence[Stats]) -> Stats:
    """The statistics of all episodes from those of each."""
    stacked = {name: np.stack([p[name] for p in parts]) for name in parts[0]}
    weights = stacked["count"].astype(np.float64)
    weights = weights.reshape(len(parts), *(1,) * (stacked["mean"].ndim - 1)) / weights.sum()
    mean = (stacked["mean"] * weights).sum(0)
    spread = stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2
    return {
        "min": stacked["min"].min(0),
        "max": stacked["max"].max(0),
        "mean": mean,
        "std": np.sqrt((spread * weights).sum(0)),
        **{name: (stacked[name] * weights).sum(0) for name in QUANTILES},
        "count": stacked["count"].sum(0),
    }

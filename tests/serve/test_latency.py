"""Percentiles equal numpy's to half a percent."""

from __future__ import annotations

import numpy as np
import pytest

from serve.latency import Latencies


def test_percentiles_are_numpys() -> None:
    durations = np.random.default_rng(0).lognormal(-5, 2, 5000)
    whole, parts = Latencies(), [Latencies(), Latencies()]
    for number, seconds in enumerate(durations):
        whole.add(seconds)
        parts[number % 2].add(seconds)
    parts[0].merge(parts[1])
    for percent in (1, 50, 95, 99, 100):
        want = np.percentile(durations, percent, method="inverted_cdf")
        assert whole.percentile(percent) == pytest.approx(want, rel=0.0025)
        assert parts[0].percentile(percent) == whole.percentile(percent)
    assert whole.report().startswith("5000 requests: p50 ")


def test_none_and_impossible_ones() -> None:
    empty = Latencies()
    assert empty.report() == "no requests"
    with pytest.raises(ValueError, match="no durations"):
        empty.percentile(50)
    empty.add(0.0)
    assert empty.percentile(50) == 1e-6

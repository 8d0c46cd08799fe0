"""Sweeps on a Ray cluster of two nodes on this machine, one of which is killed: pytest -m ray"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch import sweep
from tests.launch.tiny import RL, assert_as_by_hand, starts

pytestmark = pytest.mark.ray


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two raylets with a core each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield made
    finally:
        made.shutdown()


def test_trials_of_a_lost_node_end_as_if_nothing_had_happened(cluster: Any, tmp_path: Path) -> None:
    other = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    config, out = tmp_path / "rl.yaml", tmp_path / "out"
    longer = RL.replace("num_train_step: 24", "num_train_step: 360")
    config.write_text(longer.replace("log_per_step: 12", "log_per_step: 24"))
    names = [f"rl_seed{seed}" for seed in (0, 1)]
    killed = threading.Event()

    def kill_a_node() -> None:
        deadline = time.monotonic() + 100
        while not all((out / name / "metrics.jsonl").exists() for name in names):
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        cluster.remove_node(other, allow_graceful=False)
        killed.set()

    threading.Thread(target=kill_a_node, daemon=True).start()
    options = [f"--config_path={config}", "--seeds=0:2", f"--out={out}", "--engine=ray"]
    assert sweep.main([*options, f"--engine_option=address={cluster.address}"]) == 0
    assert killed.is_set()
    found = json.loads((out / "results.json").read_text())["trials"]
    assert [t["state"] for t in found] == ["finished", "finished"]
    assert sorted(starts(out, name) for name in names) == [1, 2]
    for name in names:
        assert_as_by_hand(out / name, tmp_path)

"""A Ray cluster of two nodes on this machine, whose second node can be killed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def two_nodes(cpus: int) -> Iterator[tuple[Any, Any]]:
    """The cluster and its second node, with ``cpus`` each; RAY_ADDRESS is the cluster's."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": cpus, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    before = os.environ.get("RAY_ADDRESS")
    try:
        other = made.add_node(num_cpus=cpus)
        made.wait_for_nodes()
        os.environ["RAY_ADDRESS"] = made.address
        yield made, other
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        if before is not None:
            os.environ["RAY_ADDRESS"] = before
        ray.shutdown()
        made.shutdown()

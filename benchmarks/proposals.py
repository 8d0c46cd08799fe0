"""Proposals of a policy over chunks: milliseconds for 16 candidates of one and of 256 observations.

    python -m benchmarks.proposals [--json FILE] [--quick]

Networks of 4 x 256 on 20 numbers of state (three steps), chunks of five steps of seven dimensions;
flow and diffusion make ten steps. The target is 2 ms for one observation with the flow. With 256,
as in an update whose proposals are not stored, distilled policies (one_step) cost a tenth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch

from bc.base import BasePolicy
from bc.explicit.mdn_policy import MdnPolicy, MdnPolicyConfig
from bc.generative.flow_policy import FlowPolicy, FlowPolicyConfig
from benchmarks import common
from common_utils.chunks import ChunkConfig
from common_utils.errors import run_program
from networks.flow import VelocityConfig
from networks.ibc.mlp import MDNConfig

STATE, STACK, ACTION, LENGTH, NUM = 20, 3, 7, 5, 16
INPUTS = "state", (STATE * STACK,), STACK, ACTION


def flow(**more: object) -> FlowPolicy:
    """A flow policy of the benchmark's sizes."""
    options = {"net": VelocityConfig(hidden_dim=256), "chunk": ChunkConfig(length=LENGTH), **more}
    return FlowPolicy(*INPUTS, FlowPolicyConfig(**options))  # type: ignore[arg-type]


def mdn() -> MdnPolicy:
    """A mixture of the same width."""
    net = MDNConfig(width=256)
    return MdnPolicy(*INPUTS, MdnPolicyConfig(net=net, chunk=ChunkConfig(length=LENGTH)))


POLICIES: dict[str, Callable[[], BasePolicy]] = {
    "flow": flow,
    "flow, relu": lambda: flow(net=VelocityConfig(hidden_dim=256, activation="relu")),
    "flow, one_step": lambda: flow(one_step=1),
    "flow, ddim": lambda: flow(process="ddim"),
    "flow, transformer": lambda: flow(net=VelocityConfig("transformer", 64, 2)),
    "mdn": mdn,
}


def proposals(report: common.Report, args: argparse.Namespace) -> None:
    """Measure every policy."""
    for name, make in POLICIES.items():
        policy = make().eval()
        for rows in (1, 256):
            obs = {"state": torch.randn(rows, STATE * STACK)}
            rng = torch.Generator().manual_seed(0)
            propose = partial(policy.propose, obs, NUM, horizon=LENGTH, generator=rng)
            timing = common.measure(propose, **common.timing_options(args))
            report.add_timing(f"{name}, {rows} observation(s)", timing)


if __name__ == "__main__":
    sys.exit(run_program(common.run, proposals, __doc__))

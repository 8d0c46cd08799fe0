"""The table of BC policies. A new policy is one file, and one row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from bc.base import BasePolicy, PolicyConfig, PolicyInputs
from bc.explicit.bc_policy import BcPolicy, BcPolicyConfig, StateBcPolicy, StateBcPolicyConfig
from bc.explicit.mdn_policy import MdnPolicy, MdnPolicyConfig
from bc.explicit.mse_policy import MsePolicy, MsePolicyConfig
from bc.explicit.mw_bc_policy import BcPolicy as MwBcPolicy
from bc.explicit.mw_bc_policy import BcPolicyConfig as MwBcPolicyConfig
from bc.generative.flow_policy import FlowPolicy, FlowPolicyConfig
from bc.ibc.autoregressive import build_ebm
from bc.ibc.ebm_policy import EbmPolicyConfig
from bc.remote import RemotePolicy, RemotePolicyConfig

# states, one camera's images, or those of any number of cameras
Reads = Literal["state", "camera", "cameras"]


@dataclass(frozen=True)
class PolicyKind:
    """One ``policy_type``."""

    config: type[PolicyConfig]
    # the policy class's ``build``
    build: Callable[[PolicyInputs, Any], BasePolicy]
    # what it can learn from; with two kinds, dataset.use_state chooses
    reads: tuple[Reads, ...]
    # its section in configurations
    section: str
    # whether it learns from demonstrations
    learns: bool = True

    def check_inputs(self, use_state: bool, num_cameras: int) -> str:
        """The message if the policy cannot read this, else ""."""
        if use_state and "state" not in self.reads:
            return "does not work with dataset.use_state 1, expected 0"
        if not use_state and self.reads == ("state",):
            return "does not work with dataset.use_state 0, expected 1"
        if not use_state and "cameras" not in self.reads and num_cameras != 1:
            return "with several cameras, expected one in dataset.rl_camera"
        return ""


POLICIES: dict[str, PolicyKind] = {
    # the published IBRL policies: a perceptron on states, ResNets on cameras, Meta-World's
    "state": PolicyKind(StateBcPolicyConfig, StateBcPolicy.build, ("state",), "state_policy"),
    "pixel": PolicyKind(BcPolicyConfig, BcPolicy.build, ("cameras",), "policy"),
    "metaworld": PolicyKind(MwBcPolicyConfig, MwBcPolicy.build, ("camera",), "mw_policy"),
    # Implicit BC's policies: explicit regression, a mixture density, an energy
    "mse": PolicyKind(MsePolicyConfig, MsePolicy.build, ("state", "camera"), "mse"),
    "mdn": PolicyKind(MdnPolicyConfig, MdnPolicy.build, ("state", "camera"), "mdn"),
    "ebm": PolicyKind(EbmPolicyConfig, build_ebm, ("state", "camera"), "ebm"),
    # samples of a learned flow or a diffusion
    "flow": PolicyKind(FlowPolicyConfig, FlowPolicy.build, ("state", "camera"), "flow"),
    # a policy that another process answers for
    "remote": PolicyKind(
        RemotePolicyConfig, RemotePolicy.build, ("state", "cameras"), "remote", learns=False
    ),
}

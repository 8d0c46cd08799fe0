"""The agents there are: one table. A new agent is one file, and one row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from rl.agent import Agent, AgentConfig, AgentInputs, Networks
from rl.q_agent import QAgent
from rl.q_agent_config import QAgentConfig

Reads = Literal["state", "camera"]


@dataclass(frozen=True)
class AgentKind:
    """One ``agent`` of ``train_rl.py``."""

    config: type[AgentConfig]
    # what builds it: the agent class's ``build``
    build: Callable[[AgentInputs, Any], Agent]
    # its networks alone, for an estimate of their memory; made without storage
    networks: Callable[[AgentInputs, Any], Networks]
    # what it can learn from; use_state chooses where there are two
    reads: tuple[Reads, ...]
    # its section in configurations
    section: str
    # has BC pretraining and the BC regulariser (see ``rl.agent.Agent``)
    rft: bool = False


AGENTS: dict[str, AgentKind] = {
    # IBRL, RLPD and RFT: an actor, an ensemble of critics, BC policies
    "q_agent": AgentKind(
        QAgentConfig, QAgent.build, QAgent.networks, ("state", "camera"), "q_agent", rft=True
    ),
}
# the one that configurations without the field ``agent`` mean
DEFAULT_AGENT = "q_agent"

"""The table of agents. A new agent is one file, and one row here."""

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
    # the agent class's ``build``
    build: Callable[[AgentInputs, Any], Agent]
    # builds only its networks, without storage, to estimate their memory
    networks: Callable[[AgentInputs, Any], Networks]
    # what it can learn from; with two kinds, use_state chooses
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
# the agent of configurations without the field ``agent``
DEFAULT_AGENT = "q_agent"

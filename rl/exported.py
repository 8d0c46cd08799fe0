"""The graphs of :class:`rl.q_agent.QAgent` that can be exported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from common_utils.specs import ArraySpec, Obs
from networks.exported import BATCH, Graph, Graphs, Port, action_graph, input_ports, statistics
from rl.selection import select_candidate

MEMBERS = "members"


class Exported(Protocol):
    """The part of a ``QAgent`` that is used here."""

    cfg: Any
    act_method: str
    horizon: int
    action_dim: int
    bc_policies: list[Any]
    actor: Any
    critic_target: Any
    _shapes: tuple[Any, ...]

    @property
    def input_keys(self) -> list[str]:
        """The observations that actor and critic read."""

    def features(self, obs: Obs, augment: bool) -> Obs:
        """What actor and critic see of them."""

    def _target_q(
        self, feats: Obs, actions: torch.Tensor, members: Sequence[int] | torch.Tensor | None
    ) -> torch.Tensor:
        """Values [B, N] of actions [B, N, A]."""


def graphs_of(agent: Exported) -> Graphs:
    """``action``: what the actor alone does; ``ibrl``: the best of its and the BC actions."""
    if agent.horizon > 1:
        return {"action": "an agent over chunks of actions has no graph to export"}
    if agent.cfg.residual or agent.cfg.distill:
        seen = "proposals" if agent.cfg.residual else "noise"
        return {"action": f"an agent whose actor sees {seen} has no graph to export"}
    if agent.act_method == "bc":
        return {"action": "an agent that only chooses among proposals has no graph to export"}
    return {"action": _actor(agent), "ibrl": _choice(agent)}


def _ports(agent: Exported) -> tuple[Port, ...]:
    _, obs_shape, prop_shape, _, camera = agent._shapes
    specs = {"state": ArraySpec(obs_shape)}
    if camera:
        specs = {camera: ArraySpec(obs_shape, "uint8"), "prop": ArraySpec(prop_shape)}
    norm = statistics(getattr(agent, "state_norm", None))
    return input_ports({key: specs[key] for key in agent.input_keys}, {"state": norm})


def _actor(agent: Any) -> Graph:
    def act(obs: Obs) -> torch.Tensor:
        return agent.actor(agent.features(obs, augment=False), 0.0).mean

    note = "the actor alone, without its noise"
    if agent.act_method != "rl":
        note += "; IBRL's choice between its and the BC policy's action is --graph ibrl"
    return action_graph(agent, act, _ports(agent), agent.action_dim, note)


def _proposals(agent: Exported) -> list[Graph] | str:
    """The graphs of the BC policies, or why there are none."""
    if agent.act_method == "rl" or not agent.bc_policies:
        return "the agent acts without a BC policy, expected action"
    found: list[Graph] = []
    for policy in agent.bc_policies:
        graph = policy.graphs().get("action")
        if policy.stochastic_eval or not isinstance(graph, Graph):
            kind = type(policy).__name__
            return f"the BC policy ({kind}) draws its proposals, a graph cannot; expected action"
        found.append(graph)
    return found


def _choice(agent: Any) -> Graph | str:
    proposals = _proposals(agent)
    if isinstance(proposals, str):
        return proposals
    ports = {port.name: port for graph in proposals for port in graph.inputs}
    ports |= {port.name: port for port in _ports(agent)}
    note = "the best of the actor's and the BC policies' actions by the target critic"
    about = {"chosen": "0: the actor's action; i: that of the i-th BC policy"}
    subset = agent.critic_target.draws_subset
    if subset:
        num_k, num_q = agent.cfg.state_critic.num_k, agent.cfg.state_critic.num_q
        ports[MEMBERS] = Port(MEMBERS, (num_k,), "int64")
        about[MEMBERS] = f"{num_k} different members of the critic, of 0 .. {num_q - 1}"
        note += f"; draw '{MEMBERS}' ({num_k} of {num_q}) anew for every call, as the agent does"
    if agent.act_method == "ibrl_soft":
        note += "; soft IBRL draws instead, and its greedy evaluation does this"

    def run(obs: Obs) -> tuple[torch.Tensor, ...]:
        feats = agent.features(obs, augment=False)
        own = agent.actor(feats, 0.0).mean
        candidates = torch.stack([own, *(graph.run(obs)[0] for graph in proposals)], dim=1)
        q = agent._target_q(feats, candidates, obs[MEMBERS] if subset else None)
        action, index = select_candidate(candidates, q)
        return action, index, candidates, q

    width, num = agent.action_dim, 1 + len(proposals)
    outputs = (
        Port("action", (BATCH, width)),
        Port("chosen", (BATCH,), "int64"),
        Port("candidates", (BATCH, num, width)),
        Port("q", (BATCH, num)),
    )
    parts = (agent, *agent.bc_policies)
    return Graph(run, tuple(ports.values()), outputs, parts, note, chooses=True, about=about)

"""RL updates on several ranks: the first plays, stores and draws, all compute.

Before an update the first rank sends each rank its rows of the batch, and all of them the state of
the generators that an update draws from. Every rank then calls the same ``agent.update``: it draws
for the whole batch (``common_utils.rows``), and its optimisers average the gradients before they
step, so that weights, targets and moments stay equal on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from common_utils import ranks, rows, run_config
from common_utils.rows import Rows
from common_utils.specs import Batch, EnvSpec
from networks.captured import joined, split
from networks.fast import choice
from rl.agent import Agent
from workspace.rl_config import MainConfig
from workspace.several_ranks import check_networks

Metrics = dict[str, torch.Tensor]


def tell_run(cfg: MainConfig, spec: EnvSpec) -> None:
    """The first rank: the run that all take part in (:func:`received_run` elsewhere)."""
    ranks.shared({"config": run_config.to_dict(cfg), "spec": spec.to_dict()})


def received_run(config_class: type[MainConfig]) -> tuple[MainConfig, EnvSpec]:
    """The other ranks: the first one's configuration, and what its environment delivers."""
    found = ranks.shared()
    cfg = run_config.from_dict(config_class, found["config"], "the first rank's configuration")
    return cfg, EnvSpec.from_dict(found["spec"])


class SharedUpdates:
    """An agent's updates, computed by all ranks; by one rank, the agent's own."""

    def __init__(self, agent: Agent) -> None:
        """Raises ConfigError for an agent whose results would depend on the number of ranks."""
        self.agent = agent
        self._ref_agent: Agent | None = None  # on other ranks than the first
        check_networks(agent)
        if ranks.world() > 1:
            for optimizer in agent.optimizers().values():
                optimizer.register_step_pre_hook(_average_gradients)

    # ------------------------------------------------------------- the first rank

    def begin(self, ref_agent: Agent | None = None) -> None:
        """All ranks go on from this one's agent (and RFT's reference): before the first of many
        updates, and whenever the agent has changed otherwise."""
        if ranks.world() == 1:
            return
        ref_state = None if ref_agent is None else ref_agent.state_dict()
        state = {"agent": self.agent.training_state(), "ref_agent": ref_state}
        ranks.shared({"do": "begin", "matrix_products": choice.current(), **state})

    def update(
        self,
        batch: Batch,
        stddev: float,
        update_actor: bool,
        bc_batch: Batch | None = None,
        ref_agent: Agent | None = None,
    ) -> Metrics:
        """``agent.update`` of the batch; metrics are its means."""
        if ranks.world() == 1:
            return self.agent.update(batch, stddev, update_actor, bc_batch, ref_agent)
        args = stddev, update_actor
        share, parts = self.send("update", [batch, bc_batch], args)
        return self._compute("update", share, parts, args, ref_agent)

    def pretrain(self, batch: Batch) -> Metrics:
        """``agent.pretrain_actor_with_bc`` of the batch."""
        if ranks.world() == 1:
            return self.agent.pretrain_actor_with_bc(batch)
        share, parts = self.send("pretrain", [batch])
        return self._compute("pretrain", share, parts)

    def end(self) -> None:
        """No more updates follow."""
        if ranks.world() > 1:
            ranks.shared({"do": "end"})

    def send(
        self, do: str, batches: list[Batch | None], args: tuple[Any, ...] = ()
    ) -> tuple[Rows | None, list[Batch | None]]:
        """Send each rank what it computes next; returns this rank's rows, and the batches' parts
        that they are."""
        (total,) = {len(b.action) for b in batches if b is not None}
        layouts = [None if b is None else vars(_rebuilt(b, _empty)) for b in batches]
        message = {"do": do, "args": args, "total": total, "batches": layouts}
        ranks.shared({**message, "generators": self._generators()})
        return ranks.split(total), [None if b is None else _scattered(b, total) for b in batches]

    def _generators(self) -> dict[str, torch.Tensor]:
        agent = self.agent
        states = {"rng": agent.rng.get_state(), "host_rng": agent.host_rng.get_state()}
        if agent.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(agent.device)
        return {**states, "torch": torch.get_rng_state()}

    # ------------------------------------------------------------- the other ranks

    def follow(self) -> None:
        """Compute what the first rank sends, until it ends."""
        while (message := ranks.shared())["do"] != "end":
            if message["do"] == "begin":
                self._begin_as(message)
                continue
            self._draw_as(message["generators"])
            total = message["total"]
            parts = [None if d is None else self._part(d, total) for d in message["batches"]]
            args = tuple(message["args"])
            self._compute(message["do"], ranks.split(total), parts, args, self._ref_agent)

    def _part(self, layout: dict[str, Any], total: int) -> Batch:
        here = _rebuilt(Batch(**layout), lambda t: t.to(self.agent.device))
        return _scattered(here, total)

    def _begin_as(self, message: dict[str, Any]) -> None:
        choice.use(message["matrix_products"])
        self.agent.load_training_state(message["agent"])
        if message["ref_agent"] is not None:
            self._ref_agent = self.agent.reference_copy()
            self._ref_agent.load_state_dict(message["ref_agent"])

    def _draw_as(self, states: dict[str, torch.Tensor]) -> None:
        self.agent.rng.set_state(states["rng"])
        self.agent.host_rng.set_state(states["host_rng"])
        torch.set_rng_state(states["torch"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self.agent.device)

    # ------------------------------------------------------------- all ranks

    def _compute(
        self,
        do: str,
        share: Rows | None,
        parts: list[Batch | None],
        args: tuple[Any, ...] = (),
        ref_agent: Agent | None = None,
    ) -> Metrics:
        """This rank's part of an update; its metrics are the means over the whole batch."""
        agent: Any = self.agent
        with rows.computing(share):
            if do == "update":
                metrics = agent.update(parts[0], *args, parts[1], ref_agent)
            else:
                metrics = agent.pretrain_actor_with_bc(parts[0])
        means = {name: metrics[name].detach().float().clone() for name in sorted(metrics)}
        ranks.average(list(means.values()), share)
        return means


def _average_gradients(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    ranks.average([p.grad for p in params if p.grad is not None], rows.current())


def _rebuilt(batch: Batch, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """The batch with each tensor changed."""
    tensors: list[torch.Tensor] = []
    split(batch, tensors)
    return joined(batch, iter([change(t) for t in tensors]))


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    """No rows, but their shape and type."""
    return torch.empty((0, *tensor.shape[1:]), dtype=tensor.dtype)


def _scattered(batch: Batch, total: int) -> Batch:
    """This rank's rows of the first one's batch; elsewhere ``batch`` has its layout."""
    tensors: list[torch.Tensor] = []
    split(batch, tensors)
    return joined(batch, iter(ranks.scattered(tensors, total)))

"""Autoregressive derivative-free optimisation: one energy per action dimension.

With many action dimensions the box is too large to sample. The paper (appendix B.2, not in its
published code) factorises the energy instead: network j scores dimension j given the observation
and the dimensions before it, f_j(o, a_1 .. a_j), and samplers search one dimension at a time.
Here

* training is InfoNCE for every dimension at once: the counter-examples share the demonstrated
  a_1 .. a_{j-1} and differ in a_j, so that sum_j f_j is the logarithm of a density by the chain
  rule (each f_j up to a function of o and a_1 .. a_{j-1});
* for that reason samples of dimension j compete only under the same a_1 .. a_{j-1}: one
  value is chosen (acting: the best; proposing: by probability) before the next dimension.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bc.base import PolicyInputs
from bc.ibc import losses, samplers
from bc.ibc.ebm_policy import MAX_ROWS, Draws, EbmPolicy, EbmPolicyConfig
from bc.ibc.samplers import Energy
from networks import categorical
from networks.exported import Graphs
from networks.ibc.energy import fast_score
from networks.ibc.energy_net import EnergyNet
from networks.ibc.mlp import MLPEBM, MLPConfig


class AutoregressiveEBM(nn.Module):
    """``nets[j]``: f_j(o, a_1 .. a_{j+1}), an MLPEBM over actions of j + 1 dimensions."""

    def __init__(self, obs_dim: int, action_dim: int, cfg: MLPConfig) -> None:
        super().__init__()
        self.nets = nn.ModuleList(MLPEBM(obs_dim, j + 1, cfg) for j in range(action_dim))


class _Conditional(Energy):
    """The energy of one dimension given those before it, prefix [B, j]."""

    def __init__(
        self, net: EnergyNet, encoded: torch.Tensor, prefix: torch.Tensor, cfg: EbmPolicyConfig
    ) -> None:
        super().__init__(net, encoded, cfg.precision, cfg.compile)
        self.prefix = prefix.unsqueeze(1)

    def logits(self, actions: torch.Tensor) -> torch.Tensor:
        """Values [B, N, 1] -> [B, N]."""
        prefix = self.prefix.expand(-1, actions.shape[1], -1)
        return super().logits(torch.cat([prefix, actions], dim=2))


class AutoregressivePolicy(EbmPolicy):
    """An EBM per action dimension, over states (``ebm.autoregressive``)."""

    def make_net(self) -> nn.Module:
        """The networks, which take states only."""
        if self.pixels:
            raise ValueError("autoregressive: 1, expected 0 without dataset.use_state 1")
        return AutoregressiveEBM(self.obs_shape[0], self.width, self.cfg.net)

    def graphs(self) -> Graphs:
        """See :class:`BasePolicy`."""
        why = "the search of an autoregressive policy alternates with its networks"
        return dict.fromkeys(("action", "energy"), f"{why}; it is not exported")

    def loss(self, batch: Any, draws: Draws | None = None) -> torch.Tensor:
        """Sum over dimensions of InfoNCE among values of that dimension, batch mean."""
        cfg, num = self.cfg, self.cfg.num_counter_examples
        inputs, _ = self._read(batch.obs)
        features = self.features(inputs)
        true = self.target(batch, features.device)
        uniform = draws.uniform if draws is not None else None
        if uniform is None:
            uniform = samplers.uniform(len(true), num, self.box_low, self.box_high, self.generator)
        total = true.new_zeros(())
        for j, net in enumerate(self.net.nets):
            values = torch.cat([uniform[:, :, j], true[:, j : j + 1]], dim=1).unsqueeze(2)
            prefix = true[:, None, :j].expand(-1, num + 1, -1)
            actions = torch.cat([prefix, values], dim=2)
            logits = fast_score(net, net.encode(features), actions, cfg.precision)
            each = losses.info_nce(logits, cfg.softmax_temperature, cfg.prob_clip)
            total = total + each.mean()
        self.metrics = {"ebm_loss": total.detach()}
        if cfg.compute_mse:
            self.metrics["mse_counter_examples"] = (uniform - true.unsqueeze(1)).square().mean()
        return total

    def _search(self, features: torch.Tensor, greedy: bool, rng: torch.Generator) -> torch.Tensor:
        """One action [B, A] for each row of features, found one dimension after another."""
        cfg = self.cfg
        # sampling needs probabilities that match the values
        dfo = cfg.dfo if greedy else replace(cfg.dfo, aligned=1)
        chosen = features.new_zeros(len(features), 0)
        for j, net in enumerate(self.net.nets):
            low, high = self.box_low[j : j + 1], self.box_high[j : j + 1]
            energy = _Conditional(net, net.encode(features), chosen, cfg)
            values = samplers.uniform(len(features), cfg.num_action_samples, low, high, rng)
            found = samplers.iterative_dfo(energy, values, low, high, dfo, generator=rng)
            if greedy:
                index = found.probs.argmax(1, keepdim=True)
            else:
                index = categorical.draw(found.probs, 1, rng)
            value = samplers.take_samples(found.actions, index).squeeze(1)
            chosen = torch.cat([chosen, value], dim=1)
        return chosen

    def _act_normalized(
        self, features: torch.Tensor, greedy: bool, rng: torch.Generator
    ) -> torch.Tensor:
        return torch.cat([self._search(part, greedy, rng) for part in self._in_chunks(features)])

    def _propose_normalized(
        self, features: torch.Tensor, n: int, rng: torch.Generator
    ) -> torch.Tensor:
        rows = features.repeat_interleave(n, dim=0)
        step = max(1, MAX_ROWS // self.cfg.num_action_samples)
        found = torch.cat([self._search(part, False, rng) for part in rows.split(step)])
        return found.view(len(features), n, -1)


def build_ebm(inputs: PolicyInputs, cfg: EbmPolicyConfig) -> EbmPolicy:
    """The policy of an ``ebm`` section: one energy, or one per action dimension."""
    kind = AutoregressivePolicy if cfg.autoregressive else EbmPolicy
    return kind(inputs.key, inputs.obs_shape, inputs.stack, inputs.action_dim, cfg)

"""The energy that an implicit policy gives to actions (Florence et al. 2021, equation 1)."""

from __future__ import annotations

import torch

from bc.normalized import NormalizedPolicy
from common_utils.specs import Obs

POINTS = 64  # per dimension


def has_one_energy(policy: object) -> bool:
    """Whether single, whole actions are scored: not chunks, dimension after dimension, or none."""
    cfg = getattr(policy, "cfg", None)
    if not isinstance(policy, NormalizedPolicy) or policy.chunked:
        return False
    return getattr(cfg, "autoregressive", None) == 0


@torch.no_grad()
def energies(policy: NormalizedPolicy, obs: Obs, actions: torch.Tensor) -> torch.Tensor:
    """Energies -f(o, a) float32 [N], on the CPU, of actions [N, A] in [-1, 1].

    ``obs`` is one observation, without a batch axis; ``policy`` has one energy.
    """
    device = policy.act_norm.offset.device
    seen = torch.as_tensor(obs[policy.obs_key]).unsqueeze(0).to(device)
    encoded = policy.net.encode(policy.features({policy.obs_key: seen}))
    normalized = policy.act_norm.normalize(actions.to(device))
    return -policy.net.score(encoded, normalized.unsqueeze(0))[0].float().cpu()


def plane(action: torch.Tensor, points: int, dims: tuple[int, int] = (0, 1)) -> torch.Tensor:
    """Actions [points * points, A] over two dimensions of [-1, 1]; the other ones are those of
    ``action`` [A]. The first of ``dims`` varies fastest; both rise.
    """
    grid = torch.linspace(-1, 1, points)
    second, first = torch.meshgrid(grid, grid, indexing="ij")
    actions = action.cpu().float().repeat(points**2, 1)
    actions[:, dims[0]], actions[:, dims[1]] = first.flatten(), second.flatten()
    return actions


def landscape(policy: NormalizedPolicy, obs: Obs, action: torch.Tensor) -> torch.Tensor | None:
    """See :class:`common_utils.specs.Decision`; None for policies without one energy over two
    dimensions."""
    if not has_one_energy(policy) or policy.action_dim < 2:
        return None
    values = energies(policy, obs, plane(action, POINTS))
    return values.reshape(POINTS, POINTS).flip(0)  # upwards

"""Random numbers and drawn members of an update or an action, as tensors drawn before it.

A graph (``networks.graphs``) cannot draw from generators. Its draws are made before, in the order
in which the plain code makes them where it needs them, so that both see the same numbers. None
means: drawn where it is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from rl.selection import ChoiceDraws


class UpdateDraws(NamedTuple):
    """Of one update with B rows, A action dimensions, K of the critic's members."""

    # int64 [B, 2]: shifts of the augmentation (pixels), of obs and of next_obs
    shifts: torch.Tensor | None = None
    next_shifts: torch.Tensor | None = None
    # [B, A], standard normal: of the action in the TD target
    noise: torch.Tensor | None = None
    # int64 [K]: the members that value the candidates, and those that value the chosen one
    members: torch.Tensor | None = None
    second: torch.Tensor | None = None
    # of the choice among the candidates
    choice: ChoiceDraws | None = None
    # [B, A], standard normal: of the actor's action
    actor_noise: torch.Tensor | None = None
    # RFT: int64 [B, 2], shifts of the demonstrations; [B, A], noise of the actor's action; two
    # int64 [K], the members that value the reference agent's and the actor's action
    bc_shifts: torch.Tensor | None = None
    bc_noise: torch.Tensor | None = None
    ratio_members: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)


DRAWN_LATER = UpdateDraws()


class ActDraws(NamedTuple):
    """Of one action for B observations."""

    # [B, A], standard normal
    noise: torch.Tensor | None = None
    # int64 [K]
    members: torch.Tensor | None = None
    choice: ChoiceDraws | None = None

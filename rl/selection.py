"""Choosing among candidate actions by their Q-values: the heart of IBRL (paper section 4).

One function serves acting and TD targets, hard and soft IBRL, and any number of
candidates: ``N = 2`` (the RL action and one BC action) is IBRL as published.
Column 0 is always the RL action, so a tie goes to it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch

from common_utils import rows

# keys of the share of each of several policies, N = 1, 2, ...
SHARES = {"train": "actor/bcN_train", "eval": "actor/bcN_eval"}


def select_candidate(
    actions: torch.Tensor,
    q: torch.Tensor,
    *,
    soft_beta: float | None = None,
    eps_greedy: float = 1.0,
    generator: torch.Generator | None = None,
    draws: ChoiceDraws | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pick one candidate per row.

    Args:
        actions: float [B, N, A].
        q: float [B, N], the candidates' values.
        soft_beta: None for hard IBRL (argmax, eq. 2 of the paper); a number for soft
            IBRL: sample from softmax(soft_beta * q).
        eps_greedy: probability of following that rule; otherwise a uniformly random
            candidate is taken.
        generator: source of the randomness, on ``q``'s device; None means torch's global one.
        draws: random numbers, instead of drawing.

    Returns:
        (action float [B, A], index int64 [B]).
    """
    if actions.dim() != 3 or q.shape != actions.shape[:2]:
        raise ValueError(
            f"candidates must be [B, N, A] with values [B, N], got {list(actions.shape)} "
            f"and {list(q.shape)}"
        )
    if draws is None:
        draws = draw_choice(q, soft_beta=soft_beta, eps_greedy=eps_greedy, generator=generator)
    index = choose(q, draws, soft_beta=soft_beta, eps_greedy=eps_greedy)
    return take(actions, index), index


class ChoiceDraws(NamedTuple):
    """The random numbers of one choice; None where the rule draws none."""

    # [B, N], exponentially distributed: soft IBRL
    exponential: torch.Tensor | None = None
    # [B], uniform in [0, 1): whether to follow the rule
    explore: torch.Tensor | None = None
    # int64 [B]: the candidate taken otherwise
    uniform: torch.Tensor | None = None


def draw_choice(
    q: torch.Tensor,
    *,
    soft_beta: float | None = None,
    eps_greedy: float = 1.0,
    generator: torch.Generator | None = None,
) -> ChoiceDraws:
    """What :func:`choose` needs for values of ``q``'s shape [B, N], dtype and device."""
    batch, num = q.shape
    exponential = explore = uniform = None
    if soft_beta is not None:
        exponential = rows.drawn(
            lambda shape: q.new_empty(shape).exponential_(generator=generator), q.shape
        )
    if eps_greedy < 1.0:
        options: dict[str, Any] = {"device": q.device, "generator": generator}
        explore = rows.drawn(partial(torch.rand, **options), (batch,))
        uniform = rows.drawn(partial(torch.randint, num, **options), (batch,))
    return ChoiceDraws(exponential, explore, uniform)


def choose(
    q: torch.Tensor,
    draws: ChoiceDraws,
    *,
    soft_beta: float | None = None,
    eps_greedy: float = 1.0,
) -> torch.Tensor:
    """The chosen columns int64 [B] of values [B, N], by the rules of :func:`select_candidate`.

    A sample of probabilities p is the argmax of p / e with exponential e. ``torch.multinomial``
    computes that too, but reads p on the host to check it, which would stall a GPU.
    """
    if soft_beta is None:
        index = q.argmax(dim=1)
    else:
        assert draws.exponential is not None  # drawn for this rule
        index = (torch.softmax(q * soft_beta, dim=1) / draws.exponential).argmax(dim=1)
    if draws.explore is not None and draws.uniform is not None:
        index = torch.where(draws.explore >= eps_greedy, draws.uniform, index)
    return index


def take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """values [B, N, ...] and index int64 [B] -> [B, ...], row by row."""
    return values[torch.arange(values.shape[0], device=values.device), index]


def act_metrics(
    candidates: torch.Tensor,
    q: torch.Tensor,
    index: torch.Tensor,
    eval_mode: bool,
    *,
    own: int = 1,
    policies: int = 1,
    eps_greedy: float = 1.0,
    soft_beta: float | None = None,
) -> dict[str, torch.Tensor]:
    """The metrics of a choice among candidates [B, N, A] with values [B, N]: scalars. The first
    ``own`` are the agent's, the others come from so many ``policies``, equally many from
    each."""
    chose_bc = (index >= own).float().mean()
    shares = partial(policy_shares, candidates.shape[1] - own, index - own, policies)
    if eval_mode:
        return {"actor/bc_eval": chose_bc, **shares("eval")}
    metrics = {"actor/bc_train": chose_bc, **shares("train"), **source_gap(q, own, policies)}
    if own:
        metrics["actor/anorm_rl"] = candidates[:, 0, :6].norm(dim=-1).mean()
    if own < candidates.shape[1]:
        metrics["actor/anorm_bc"] = candidates[:, own, :6].norm(dim=-1).mean()
    if eps_greedy < 1.0:
        metrics["actor/greedy"] = (index == q.argmax(1)).float().mean()
    if soft_beta is not None:
        metrics["actor/p_max"] = torch.softmax(q * soft_beta, dim=1).max(dim=1).values.mean()
        metrics["actor/bc_act"] = chose_bc
        best_rl, best_bc = (part.max(dim=1).values for part in (q[:, :own], q[:, own:]))
        metrics["actor/qrl-qbc"] = (best_rl - best_bc).mean()
    return metrics


def source_gap(q: torch.Tensor, own: int, policies: int) -> dict[str, torch.Tensor]:
    """How much better the best candidate of the best source (the agent, each policy) is than that
    of the second, by values [B, N]; nothing with one source."""
    parts = [q[:, :own], *q[:, own:].chunk(policies, dim=1)]
    best = [part.amax(dim=1) for part in parts if part.size(1)]
    if len(best) < 2:
        return {}
    two = torch.stack(best, dim=1).topk(2, dim=1).values
    return {"actor/gap": (two[:, 0] - two[:, 1]).mean()}


def policy_shares(
    num: int, index: torch.Tensor, policies: int, when: str
) -> dict[str, torch.Tensor]:
    """Shares of rows on which each of several policies was chosen, by the number [B] of the
    proposal among ``num``, -1 for another action; one policy has bc_train and bc_eval alone.
    ``when``: train or eval."""
    if policies < 2 or not num:
        return {}
    owner = index.div(num // policies, rounding_mode="floor")
    key = SHARES[when]
    return {key.replace("N", str(i + 1)): (owner == i).float().mean() for i in range(policies)}

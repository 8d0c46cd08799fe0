"""IBRL once more, slowly: numpy float64 loops over members.

Written from docs/reference/ibrl.md (acting, updates), not from the code under test.

Networks are read from an agent's ``state_dict`` (the official names), nothing is shared with
``rl/``. State agents only: FcActor and MultiFcQ without LayerNorm, dropout off.
"""

from __future__ import annotations

from itertools import combinations, product

import numpy as np

from rl.q_agent import QAgent

State = dict[str, np.ndarray]
EPS = 1e-6  # samples are clamped to [-1 + EPS, 1 - EPS]


def weights(agent: QAgent, module: str) -> State:
    """The module's parameters by name, copied to float64."""
    prefix = module + "."
    return {
        k[len(prefix) :]: v.detach().double().numpy().copy()
        for k, v in agent.state_dict().items()
        if k.startswith(prefix)
    }


def actor_mean(w: State, s: np.ndarray) -> np.ndarray:
    """FcActor: [Linear, Dropout, ReLU] x L, Linear, Tanh; s [B, S] -> [B, A]."""
    indices = sorted({int(k.split(".")[1]) for k in w})
    for i in indices:
        s = s @ w[f"net.{i}.weight"].T + w[f"net.{i}.bias"]
        s = np.tanh(s) if i == indices[-1] else np.maximum(s, 0)
    return s


def member_q(w: State, member: int, s: np.ndarray, a: np.ndarray) -> np.ndarray:
    """One member of MultiFcQ: s [B, S], a [B, A] -> [B]."""
    x = np.concatenate([s, a], axis=1)
    indices = sorted({int(k.split(".")[1]) for k in w})
    for i in indices:
        x = x @ w[f"net.{i}.weights"][member] + w[f"net.{i}.biases"][0, member]
        x = x if i == indices[-1] else np.maximum(x, 0)
    return x[:, 0]


def min_q(w: State, members: tuple[int, ...], s: np.ndarray, a: np.ndarray) -> np.ndarray:
    """min over the members, [B]."""
    values = [member_q(w, m, s, a) for m in members]
    return np.min(values, axis=0)


def sample(
    mean: np.ndarray, noise: np.ndarray, stddev: float, clip: float | None = None
) -> np.ndarray:
    """TruncatedNormal: mean + noise, the noise clipped first, the sum clamped."""
    n = noise * stddev
    if clip is not None:
        n = np.clip(n, -clip, clip)
    return np.clip(mean + n, -1 + EPS, 1 - EPS)


def best(
    w: State, members: tuple[int, ...], s: np.ndarray, candidates: list[np.ndarray]
) -> np.ndarray:
    """Row by row the candidate that these members value most; the first wins a tie. [B, A]."""
    scores = [min_q(w, members, s, c) for c in candidates]
    rows = []
    for b in range(len(s)):
        winner = int(np.argmax([score[b] for score in scores]))
        rows.append(candidates[winner][b])
    return np.stack(rows)


def subset_pairs(num_q: int, num_k: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every (choosing, valuing) pair of REDQ subsets."""
    subsets = list(combinations(range(num_q), num_k))
    return list(product(subsets, subsets))


def td_targets(
    w: State,
    next_state: np.ndarray,
    candidates: list[np.ndarray],
    reward: np.ndarray,
    bootstrap: np.ndarray,
    num_q: int,
    num_k: int,
) -> dict[tuple[tuple[int, ...], tuple[int, ...]], np.ndarray]:
    """The TD target [B] for every pair of subsets that the agent might have drawn."""
    subsets = combinations(range(num_q), num_k)
    actions = {c: best(w, c, next_state, candidates) for c in subsets}
    out = {}
    for choosing, valuing in subset_pairs(num_q, num_k):
        value = min_q(w, valuing, next_state, actions[choosing])
        out[choosing, valuing] = reward + bootstrap * value
    return out

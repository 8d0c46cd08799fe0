"""Candidate scoring, member selection, and the actors' and critics' options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rl.actor import Actor, ActorConfig, FcActor, FcActorConfig
from rl.critic import Critic, CriticConfig, MultiFcQ, MultiFcQConfig

B, N, A, P = 5, 4, 7, 6
REPR, PATCH = 25 * 16, 16


def feat() -> torch.Tensor:
    return torch.randn(B, 25, PATCH)


CRITICS = {
    "flat": CriticConfig(feature_dim=8, hidden_dim=16),
    "spatial": CriticConfig(hidden_dim=16, spatial_emb=12),
    "spatial_rows": CriticConfig(hidden_dim=16, spatial_emb=12, fuse_patch=0),
}


@pytest.mark.parametrize("prop_dim", [0, P])
@pytest.mark.parametrize("name", CRITICS)
def test_critic_scores_candidates_as_it_scores_actions(name: str, prop_dim: int) -> None:
    torch.manual_seed(0)
    critic = Critic(REPR, PATCH, prop_dim, A, CRITICS[name]).eval()
    f, prop, actions = feat(), torch.randn(B, P), torch.rand(B, N, A)
    feats = {"feat": f, "prop": prop}
    q = critic.q(feats, actions)
    assert q.shape == (B, N, 2)
    for n in range(N):
        one = critic(feats, actions[:, n])
        assert one.shape == (B, 2)
        torch.testing.assert_close(q[:, n], one)
    torch.testing.assert_close(critic.q(feats, actions, [1]), q[..., 1:])
    assert critic.draw_members(None) == [0, 1] and not critic.draws_subset


@pytest.mark.parametrize("name", CRITICS)
def test_critic_gradients_reach_everything(name: str) -> None:
    torch.manual_seed(0)
    critic = Critic(REPR, PATCH, P, A, CRITICS[name])
    f, prop, action = feat().requires_grad_(), torch.randn(B, P), torch.rand(B, A)
    action.requires_grad_()
    critic({"feat": f, "prop": prop}, action).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in critic.parameters())
    assert f.grad is not None and f.grad.any()
    assert action.grad is not None and action.grad.any(dim=1).all()


def test_critic_prop_may_be_absent_only_when_unused() -> None:
    f, action = feat(), torch.rand(B, A)
    without = Critic(REPR, PATCH, 0, A, CRITICS["spatial"])
    bare, full = {"feat": f}, {"feat": f, "prop": torch.randn(B, P)}
    assert torch.equal(without(bare, action), without(full, action))
    with pytest.raises(ValueError, match="prop=None"):
        Critic(REPR, PATCH, P, A, CRITICS["flat"])(bare, action)


def multi_q(**kwargs: int) -> MultiFcQ:
    torch.manual_seed(0)
    cfg = MultiFcQConfig(num_q=5, num_k=2, hidden_dim=16, **kwargs)
    net = MultiFcQ([9], A, cfg)
    for name, p in net.named_parameters():
        if "biases" in name:
            nn.init.normal_(p)
    return net


OPTIONS = [
    {},
    {"layer_norm": 1},
    {"append_action": 1},
    {"bias_per_unit": 1, "layer_norm": 1},
    {"append_action": 1, "bias_per_unit": 1, "orth": 1, "num_layer": 2},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_ensemble_scores_candidates_and_members(options: dict[str, int]) -> None:
    net = multi_q(**options)
    state, actions = torch.randn(B, 9), torch.rand(B, N, A)
    feats = {"state": state}
    q = net.q(feats, actions)
    assert q.shape == (B, N, 5)
    for n in range(N):
        one = net(feats, actions[:, n])
        assert one.shape == (B, 5)
        torch.testing.assert_close(q[:, n], one)
    some = net.q(feats, actions, members=[3, 1])
    torch.testing.assert_close(some, q[..., [3, 1]])


@pytest.mark.parametrize("options", OPTIONS)
def test_ensemble_member_equals_a_plain_network(options: dict[str, int]) -> None:
    """Member i, computed layer by layer on [state, action], without any sharing."""
    net = multi_q(**options)
    state, action = torch.randn(B, 9), torch.rand(B, A)
    q = net({"state": state}, action)
    for i in range(5):
        x = torch.cat([state, action], 1)
        for k, layer in enumerate(net.net):
            if hasattr(layer, "weights"):
                if k > 0 and options.get("append_action"):
                    x = torch.cat([x, action], 1)
                x = x @ layer.weights[i] + layer.biases[0, i]
            else:
                x = layer(x)
        torch.testing.assert_close(q[:, i], x[:, 0])


def test_scalar_hidden_biases_are_inert_under_layer_norm_and_units_are_not() -> None:
    for per_unit in (0, 1):
        net = multi_q(layer_norm=1, bias_per_unit=per_unit)
        net({"state": torch.randn(B, 9)}, torch.rand(B, A)).square().sum().backward()
        grad = net.net[0].biases.grad
        assert bool(grad.abs().max() > 1e-3) == bool(per_unit)


def test_draw_members() -> None:
    net = multi_q()
    rng = torch.Generator().manual_seed(0)
    draws = [net.draw_members(rng) for _ in range(300)]
    assert all(len(set(d)) == 2 for d in draws)
    counts = np.bincount(np.concatenate(draws), minlength=5)
    assert counts.min() > 80  # expected 120 each
    again = torch.Generator().manual_seed(0)
    assert [net.draw_members(again) for _ in range(300)] == draws
    all_members = MultiFcQ([9], A, MultiFcQConfig(num_q=3, num_k=3, hidden_dim=8))
    assert all_members.draw_members(None) == [0, 1, 2]
    with pytest.raises(ValueError, match="num_k: 3, expected at most num_q 2"):
        MultiFcQConfig(num_q=2, num_k=3)


@pytest.mark.parametrize("spatial_emb", [0, 12])
def test_actor_reads_prop_only_when_it_has_some(spatial_emb: int) -> None:
    cfg = ActorConfig(feature_dim=8, hidden_dim=16, spatial_emb=spatial_emb)
    actor = Actor(REPR, PATCH, 0, A, cfg)
    obs = {"feat": feat()}
    dist = actor(obs, 0.1)
    assert dist.mean.shape == (B, A)
    assert dist.mean.abs().max() <= 1
    assert torch.equal(dist.scale, torch.full((B, A), 0.1))
    with pytest.raises(KeyError, match="prop"):
        Actor(REPR, PATCH, P, A, cfg)(obs, 0.1)


def test_actor_norm_limit_needs_a_gripper() -> None:
    with pytest.raises(ValueError, match="max_action_norm"):
        Actor(REPR, PATCH, 0, 4, ActorConfig(max_action_norm=0.5))
    actor = Actor(REPR, PATCH, 0, A, ActorConfig(max_action_norm=0.5, hidden_dim=16, orth=0))
    dist = actor({"feat": feat()}, 1.0)
    for action in (dist.mean, dist.sample(), dist.sample(clip=0.3)):
        assert action[:, :6].norm(dim=1).max() <= 0.5 + 1e-5


def test_fc_actor() -> None:
    actor = FcActor([9], A, FcActorConfig(hidden_dim=16, orth=1))
    w = actor.net[0].weight
    torch.testing.assert_close(w.T @ w, torch.eye(9), atol=1e-5, rtol=0)
    assert actor({"state": torch.randn(B, 9)}, 0.0).mean.shape == (B, A)
    with pytest.raises(KeyError, match="state"):
        actor({"feat": feat()}, 0.0)

"""Updates: docs/reference/ibrl.md#updates, Hu et al. 2023, eq. 3, REDQ subsets, RFT."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from common_utils.specs import Batch
from rl import rft
from rl.heads import PixelHead
from rl.q_agent import QAgent
from tests.rl import naive
from tests.rl.agents import (
    CAMERA,
    A,
    LinearPolicy,
    make_batch,
    pixel_agent,
    state_agent,
    with_cache,
)

ALL = tuple(range(5))


def as_numpy(batch: Batch) -> dict[str, np.ndarray]:
    return {
        "s": batch.obs["state"].double().numpy(),
        "s2": batch.next_obs["state"].double().numpy(),
        "a": batch.action.double().numpy(),
        "r": batch.reward.double().numpy(),
        "boot": batch.bootstrap.double().numpy(),
    }


def next_noise(agent: QAgent, b: int) -> np.ndarray:
    """The standard normal noise that the agent's generator will give next."""
    copy = torch.Generator().set_state(agent.rng.get_state())
    return torch.randn(b, A, generator=copy).double().numpy()


def target_of(agent: QAgent, batch: Batch, stddev: float = 0.0) -> np.ndarray:
    with torch.no_grad():
        feats = agent.features(batch.next_obs, augment=False)
    return agent.compute_target_q(batch, feats, stddev)[0].numpy()


def snapshot(agent: QAgent) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in agent.state_dict().items()}


def changed(before: dict[str, torch.Tensor], agent: QAgent) -> set[str]:
    """Which networks (first part of the name) have other weights than before."""
    after = agent.state_dict()
    return {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}


# ------------------------------------------------------------------- TD target


@pytest.mark.parametrize(
    "act_method, bootstrap_method, uses_bc",
    [("rl", "", False), ("ibrl", "", True), ("rl", "ibrl", True), ("ibrl", "rl", False)],
)
def test_td_target_with_all_members(act_method: str, bootstrap_method: str, uses_bc: bool) -> None:
    agent = state_agent(num_k=5, act_method=act_method, bootstrap_method=bootstrap_method)
    for seed in range(2):
        agent.add_bc_policy(LinearPolicy(seed))
    batch = make_batch(32)
    x = as_numpy(batch)
    mean = naive.actor_mean(naive.weights(agent, "actor_target"), x["s2"])
    rl = naive.sample(mean, next_noise(agent, 32), 0.8, clip=0.3)
    bc = [p.act(batch.next_obs).detach().double().numpy() for p in agent.bc_policies]
    candidates = [rl, *bc] if uses_bc else [rl]
    w = naive.weights(agent, "critic_target")
    got = target_of(agent, batch, stddev=0.8)
    chosen = naive.best(w, ALL, x["s2"], candidates)
    want = x["r"] + x["boot"] * naive.min_q(w, ALL, x["s2"], chosen)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    if uses_bc:
        taken = (~np.isclose(chosen, rl).all(axis=1)).mean()
        assert 0 < taken < 1
        feats = agent.features(batch.next_obs, augment=False)
        metrics = agent.compute_target_q(batch, feats, 0.0)[1]
        assert 0 < float(metrics["actor/bootstrap_bc"]) < 1


@pytest.mark.parametrize("method", ["rl", "ibrl"])
def test_td_target_chooses_and_values_with_independent_random_subsets(method: str) -> None:
    """Every draw is explained by subsets of 2 of 5, and all pairs of subsets are equally likely."""
    agent = state_agent(num_k=2, bootstrap_method=method)
    agent.add_bc_policy(LinearPolicy(0))
    batch = with_cache(agent, make_batch(12))
    x = as_numpy(batch)
    rl = naive.actor_mean(naive.weights(agent, "actor_target"), x["s2"])
    bc = batch.next_bc_action[:, 0].double().numpy()  # type: ignore[index]
    candidates = [rl, bc] if method == "ibrl" else [rl]
    w = naive.weights(agent, "critic_target")
    args = (w, x["s2"], candidates, x["r"], x["boot"], 5, 2)
    possible = naive.td_targets(*args)
    pairs, targets = list(possible), np.stack(list(possible.values()))
    valued: Counter[tuple[int, ...]] = Counter()
    same, draws = 0.0, 400
    for _ in range(draws):
        got = target_of(agent, batch)
        close = np.isclose(targets, got, rtol=1e-4, atol=1e-5).all(axis=1)
        fits = [pairs[i] for i in np.flatnonzero(close)]
        assert fits, "no pair of subsets explains this target"
        values = {valuing for _, valuing in fits}
        assert len(values) == 1, "the test's batch must tell valuing subsets apart"
        valued[values.pop()] += 1
        # the share of explanations whose two subsets are the same set
        same += np.mean([choosing == valuing for choosing, valuing in fits])
    assert set(valued) == set(combinations(range(5), 2))
    expected = draws / 10
    chi2 = sum((n - expected) ** 2 / expected for n in valued.values())
    assert chi2 < 27.9  # 9 degrees of freedom, p = 0.001
    if method == "ibrl":  # one subset used twice would give 1 here, independence about 0.1
        assert same / draws < 0.35


def test_td_target_of_soft_ibrl_samples_by_value() -> None:
    agent = state_agent(num_k=5, bootstrap_method="ibrl_soft", soft_ibrl_beta=2.0)
    agent.add_bc_policy(LinearPolicy(0))
    one, n = with_cache(agent, make_batch(1)), 6000

    def repeat(t: torch.Tensor) -> torch.Tensor:
        return t.expand(n, *t.shape[1:])

    batch = Batch(
        {"state": repeat(one.obs["state"])},
        {"state": repeat(one.next_obs["state"])},
        repeat(one.action),
        torch.zeros(n),
        torch.ones(n),
        next_bc_action=repeat(one.next_bc_action),  # type: ignore[arg-type]
    )
    x = as_numpy(one)
    w = naive.weights(agent, "critic_target")
    rl = naive.actor_mean(naive.weights(agent, "actor_target"), x["s2"])
    bc = one.next_bc_action[:, 0].double().numpy()  # type: ignore[index]
    q = np.array([naive.min_q(w, ALL, x["s2"], c)[0] for c in (rl, bc)])
    p = np.exp(2 * q) / np.exp(2 * q).sum()
    got = target_of(agent, batch)
    is_bc = np.isclose(got, q[1], rtol=1e-4)
    assert (is_bc | np.isclose(got, q[0], rtol=1e-4)).all()
    assert is_bc.mean() == pytest.approx(p[1], abs=5 * np.sqrt(p[0] * p[1] / n))


def test_td_target_ignores_exploration() -> None:
    """eps-greedy is for acting: the target is always greedy (docs/reference/ibrl.md#updates)."""
    batch = make_batch(16)
    targets = []
    for eps in (1.0, 0.0):
        agent = state_agent(num_k=5, act_method="ibrl", ibrl_eps_greedy=eps)
        agent.add_bc_policy(LinearPolicy(0))
        targets.append(target_of(agent, batch))
    np.testing.assert_array_equal(*targets)


@pytest.mark.parametrize("pixels", [False, True])
def test_stored_bc_actions_give_the_target_of_recomputed_ones(pixels: bool) -> None:
    results = []
    for cached in (False, True):
        make = pixel_agent if pixels else state_agent
        agent = make(act_method="ibrl", num_bc_samples=2, dropout=0.5)
        agent.add_bc_policy(LinearPolicy(0, key="prop" if pixels else "state", spread=0.1))
        batch = make_batch(6, pixels=pixels)
        if cached:
            batch = with_cache(agent, batch)
        calls = agent.bc_policies[0].calls
        torch.manual_seed(2)
        metrics = agent.update(batch, 0.1, True)
        assert agent.bc_policies[0].calls - calls == (0 if cached else 1)
        results.append((float(metrics["train/critic_qt"]), snapshot(agent)))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(v, results[1][1][k]) for k, v in results[0][1].items())


def test_bootstrap_actions_see_dropout_and_the_target_critic_does_not() -> None:
    agent = state_agent(num_k=5, dropout=0.5, bootstrap_method="rl")
    batch = make_batch(8)
    torch.manual_seed(0)
    a, b = target_of(agent, batch), target_of(agent, batch)
    assert not np.array_equal(a, b)
    agent = pixel_agent(dropout=0.5)
    assert agent.actor_target.training
    assert not agent.critic_target.training


# ------------------------------------------------------------------- critic


def test_critic_loss_is_summed_over_members_and_averaged_over_the_batch() -> None:
    agent = state_agent(num_k=5)
    batch = make_batch(10)
    x = as_numpy(batch)
    w, wt = naive.weights(agent, "critic"), naive.weights(agent, "critic_target")
    a2 = naive.actor_mean(naive.weights(agent, "actor_target"), x["s2"])
    y = x["r"] + x["boot"] * naive.min_q(wt, ALL, x["s2"], a2)
    loss = np.mean([sum((naive.member_q(w, m, x["s"], x["a"])[b] - y[b]) ** 2 for m in ALL)
                    for b in range(10)])  # fmt: skip
    metrics = agent.update(batch, 0.0, False)
    assert float(metrics["train/critic_loss"]) == pytest.approx(loss, rel=1e-4)
    assert float(metrics["train/critic_qt"]) == pytest.approx(y.mean(), rel=1e-4)
    assert float(metrics["data/batch_R"]) == pytest.approx(x["r"].mean(), rel=1e-5)
    assert float(metrics["data/discount"]) == pytest.approx(x["boot"].mean(), rel=1e-5)
    assert not any(isinstance(v, torch.Tensor) and v.requires_grad for v in metrics.values())


def test_pixel_critic_loss_is_the_sum_of_both_heads() -> None:
    agent = pixel_agent()
    assert isinstance(agent.head, PixelHead)
    agent.head.aug = torch.nn.Identity()
    batch = make_batch(4, pixels=True)
    with torch.no_grad():
        feats = agent.features(batch.obs, augment=False)
        q1, q2 = agent.critic(feats, batch.action).unbind(1)
    y = torch.from_numpy(target_of(agent, batch))
    metrics = agent.update(batch, 0.0, False)
    want = torch.nn.functional.mse_loss(q1, y) + torch.nn.functional.mse_loss(q2, y)
    torch.testing.assert_close(metrics["train/critic_loss"], want)


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("update_actor", [False, True])
def test_an_update_moves_what_it_should(pixels: bool, update_actor: bool) -> None:
    agent = (pixel_agent if pixels else state_agent)(critic_target_tau=0.2)
    before = snapshot(agent)
    agent.update(make_batch(4, pixels=pixels), 0.1, update_actor)
    want = {"critic", "critic_target"} | ({"encoder"} if pixels else set())
    assert changed(before, agent) == want | ({"actor", "actor_target"} if update_actor else set())
    after = agent.state_dict()
    names = ["critic"] + (["actor"] if update_actor else [])
    for key in after:
        for name in names:
            if key.startswith(name + "_target."):
                online = after[key.replace("_target", "", 1)]
                want_t = 0.2 * online.double() + 0.8 * before[key].double()
                torch.testing.assert_close(after[key].double(), want_t, rtol=0, atol=1e-6)


@pytest.mark.parametrize("pixels", [False, True])
def test_the_actors_loss_trains_neither_critic_nor_encoder(pixels: bool) -> None:
    results = []
    for update_actor in (False, True):
        agent = (pixel_agent if pixels else state_agent)()
        torch.manual_seed(3)
        agent.update(make_batch(4, pixels=pixels), 0.1, update_actor)
        results.append(snapshot(agent))
        assert all(p.requires_grad for p in agent.critic.parameters())
    for key, value in results[0].items():
        if key.split(".")[0] in ("encoder", "critic", "critic_target"):
            assert torch.equal(value, results[1][key]), key


def test_two_views_of_a_transition_are_shifted_independently() -> None:
    agent = pixel_agent()
    seen: list[torch.Tensor] = []
    assert isinstance(agent.head, PixelHead)
    agent.head.aug.register_forward_hook(lambda m, args, out: seen.append(out))
    batch = make_batch(4, pixels=True)
    batch = replace(batch, next_obs=batch.obs)
    agent.update(batch, 0.1, False)
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])


# ------------------------------------------------------------------- actor, RFT


def actor_gradient(agent: QAgent, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(agent.actor.parameters())))


def test_actor_loss_is_the_minimum_over_all_members() -> None:
    agent = state_agent(num_k=2)  # the subset is for targets only
    batch = make_batch(10)
    x = as_numpy(batch)
    mean = naive.actor_mean(naive.weights(agent, "actor"), x["s"])
    noise = next_noise(agent, 10)
    a = naive.sample(mean, noise, 0.6, clip=0.3)
    want = -naive.min_q(naive.weights(agent, "critic"), ALL, x["s"], a).mean()
    metrics = agent.update_actor({"state": batch.obs["state"]}, 0.6)
    assert float(metrics["train/actor_loss"]) == pytest.approx(want, rel=1e-4)


def reference(agent: QAgent) -> QAgent:
    """Another actor, so that the critic sometimes prefers it."""
    ref = agent.reference_copy()
    with torch.no_grad():
        for i, p in enumerate(ref.actor.parameters()):
            gen = torch.Generator().manual_seed(i)
            p.add_(0.3 * torch.randn(p.shape, generator=gen))
    return ref


def rft_agent(num_k: int = 5, **options: Any) -> QAgent:
    return state_agent(num_k=num_k, bc_loss_coef=0.7, **options)


def test_rft_ratio_is_the_share_of_states_where_the_reference_is_valued_higher() -> None:
    agent = rft_agent(bc_loss_dynamic=1, dropout=0.5)
    ref = reference(agent)
    bc = make_batch(64, seed=5)
    s, w = as_numpy(bc)["s"], naive.weights(agent, "critic")
    q_ref, q_now = (
        naive.min_q(w, ALL, s, naive.actor_mean(naive.weights(a, "actor"), s)) for a in (ref, agent)
    )
    want = np.mean([float(x > y) for x, y in zip(q_ref, q_now, strict=True)])
    assert 0 < want < 1
    metrics = agent.update_actor_rft({"state": make_batch(8).obs["state"]}, 0.1, bc, ref)
    # means in eval mode, although both agents train with dropout; modes are put back
    assert float(metrics["rft/ratio"]) == pytest.approx(want)
    assert agent.actor.training
    assert ref.actor.training


def test_rft_ratio_draws_a_subset_for_each_action() -> None:
    agent = rft_agent(num_k=2, bc_loss_dynamic=1)
    ref = reference(agent)
    bc = make_batch(64, seed=6)
    s, w = as_numpy(bc)["s"], naive.weights(agent, "critic")
    acts = [naive.actor_mean(naive.weights(a, "actor"), s) for a in (ref, agent)]
    q = {m: [naive.min_q(w, m, s, a) for a in acts] for m in combinations(range(5), 2)}
    possible = {(i, j): np.mean(q[i][0] > q[j][1]) for i in q for j in q}
    same_only = {round(possible[i, i], 6) for i in q}
    seen = {round(float(rft.bc_ratio(agent, ref, bc.obs)), 6) for _ in range(100)}
    assert seen <= {round(v, 6) for v in possible.values()}
    assert not seen <= same_only, "both actions were always valued by one subset"


@pytest.mark.parametrize("dynamic", [0, 1])
def test_rft_loss_and_gradient(dynamic: int) -> None:
    agent = rft_agent(bc_loss_dynamic=dynamic)
    ref = reference(agent)
    batch, bc = make_batch(8), make_batch(16, seed=7)
    x = as_numpy(bc)
    mean = naive.actor_mean(naive.weights(agent, "actor"), x["s"])
    pred = np.clip(mean, -1 + naive.EPS, 1 - naive.EPS)
    bc_loss = np.mean([sum((pred[b] - x["a"][b]) ** 2) for b in range(16)])
    ratio = 1.0
    if dynamic:
        w = naive.weights(agent, "critic")
        other = naive.actor_mean(naive.weights(ref, "actor"), x["s"])
        ratio = np.mean(naive.min_q(w, ALL, x["s"], other) > naive.min_q(w, ALL, x["s"], mean))
    # the same loss by autograd on the agent's own networks
    q = agent.critic(batch.obs, agent.actor(batch.obs, 0.0).mean)
    regulariser = (agent.actor(bc.obs, 0.0).mean - bc.action).square().sum(1).mean()
    want = actor_gradient(agent, -q.min(1).values.mean() + 0.7 * float(ratio) * regulariser)

    metrics = agent.update_actor_rft(dict(batch.obs), 0.0, bc, ref)
    assert float(metrics["rft/bc_loss"]) == pytest.approx(bc_loss, rel=1e-4)
    assert float(metrics["rft/ratio"]) == pytest.approx(ratio)
    for p, g in zip(agent.actor.parameters(), want, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-4, atol=1e-6)


def test_the_regulariser_leaves_the_encoder_alone_and_the_ratio_sees_plain_images() -> None:
    results = []
    for bc_batch in (None, make_batch(4, seed=8, pixels=True)):
        agent = pixel_agent(bc_loss_dynamic=1)
        ref = agent.reference_copy()
        images: list[torch.Tensor] = []
        agent.encoder.register_forward_pre_hook(lambda m, args, to=images: to.append(args[0]))
        torch.manual_seed(3)
        agent.update(make_batch(4, pixels=True), 0.1, True, bc_batch, ref)
        results.append(snapshot(agent))
    for key, value in results[0].items():
        if key.startswith(("encoder.", "critic.", "critic_target.")):
            assert torch.equal(value, results[1][key]), key
    assert bc_batch is not None
    assert any(torch.equal(image, bc_batch.obs[CAMERA]) for image in images)


def test_pretraining_fits_encoder_and_actor_and_no_target() -> None:
    for pixels in (False, True):
        agent = (pixel_agent if pixels else state_agent)(lr=1e-2)
        batch = make_batch(4, pixels=pixels)
        before = snapshot(agent)
        losses = [float(agent.pretrain_actor_with_bc(batch)["pretrain/loss"]) for _ in range(12)]
        assert losses[-1] < 0.7 * losses[0]
        assert changed(before, agent) == {"actor"} | ({"encoder"} if pixels else set())


@pytest.mark.parametrize("sync", [0, 1])
def test_syncing_the_actors_target_after_pretraining_is_an_option(sync: int) -> None:
    agent = state_agent(sync_actor_target=sync)
    agent.pretrain_actor_with_bc(make_batch(8))
    before = snapshot(agent)
    agent.finish_pretraining()
    assert changed(before, agent) == ({"actor_target"} if sync else set())
    if sync:
        pairs = zip(agent.actor.parameters(), agent.actor_target.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert all(not p.requires_grad for p in agent.actor_target.parameters())


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="bc_loss_dynamic"):
        rft_agent(bc_loss_dynamic=1).update(make_batch(4), 0.1, True, make_batch(4))
    with pytest.raises(RuntimeError, match="add_bc_policy"):
        state_agent(bootstrap_method="ibrl").update(make_batch(4), 0.1, True)

"""Losses, samplers and policies of Implicit BC where the right answer is known by itself."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from bc.explicit.mdn_policy import MdnPolicy, MdnPolicyConfig
from bc.explicit.mse_policy import MsePolicy, MsePolicyConfig
from bc.ibc import losses, samplers
from bc.ibc.autoregressive import AutoregressivePolicy
from bc.ibc.ebm_policy import Draws, EbmPolicy, EbmPolicyConfig
from bc.ibc.losses import GradPenaltyConfig
from bc.ibc.samplers import Chain, DfoConfig, Energy, LangevinConfig
from bc.normalized import NormConfig
from common_utils import run_config
from common_utils.run_config import ConfigError
from common_utils.specs import Policy, SpecError
from networks import graphs
from networks.ibc.energy_net import EnergyNet
from networks.ibc.mlp import MDNConfig, MLPConfig
from networks.optim import KerasAdam, set_lr, warmup

NET = MLPConfig(width=32, depth=2, rate=0.0)
LOW, HIGH = torch.full((2,), -1.1), torch.full((2,), 1.1)


class Bowl(EnergyNet):
    """f = -sharpness |a - o|^2: the best action is the observation."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness

    def encode(self, obs: torch.Tensor) -> torch.Tensor:
        return obs

    def score(self, encoded: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return -self.sharpness * (actions - encoded.unsqueeze(1)).square().sum(2)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(states: torch.Tensor, actions: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(obs={"state": states}, action=actions)


# ------------------------------------------------------------------ losses


def test_info_nce_is_cross_entropy_and_saturates_as_kerass_does():
    logits = torch.randn(5, 9, dtype=torch.float64)
    target = torch.full((5,), 8)
    exact = nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(losses.info_nce(logits, prob_clip=0), exact)
    torch.testing.assert_close(losses.info_nce(logits), exact, atol=1e-4, rtol=0)
    hopeless = torch.tensor([[30.0, 0.0]], requires_grad=True)
    loss = losses.info_nce(hopeless)
    assert loss.item() == pytest.approx(-math.log(1e-7), abs=1e-4)
    loss.sum().backward()
    assert hopeless.grad is not None and float(hopeless.grad.abs().max()) < 1e-12
    exact_grad = torch.tensor([[30.0, 0.0]], requires_grad=True)
    losses.info_nce(exact_grad, prob_clip=0).sum().backward()
    assert exact_grad.grad is not None
    assert exact_grad.grad.tolist() == [pytest.approx([1, -1], abs=1e-6)]


def test_losses_refuse_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="n\\+1"):
        losses.ebm_loss("cd", torch.zeros(2, 4), torch.zeros(2, 4, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="copied_logits"):
        losses.ebm_loss("cd_kl", torch.zeros(2, 5), torch.zeros(2, 4, 3), torch.zeros(2, 3))


# ------------------------------------------------------------------ samplers


def test_drawn_indices_are_sorted_and_follow_the_probabilities():
    probs = torch.tensor([[0.1, 0.0, 0.6, 0.3], [0.0, 0.0, 0.0, 1.0]]).repeat_interleave(2000, 1)
    probs = probs / probs.sum(1, keepdim=True)
    index = samplers.draw_counts(probs, rng())
    assert bool((index[:, 1:] >= index[:, :-1]).all())
    share = [torch.bincount(row // 2000, minlength=4) / 8000 for row in index]
    np.testing.assert_allclose(share[0], [0.1, 0, 0.6, 0.3], atol=0.02)
    assert share[0][1] == 0 and share[1].tolist() == [0, 0, 0, 1]


def test_uniform_samples_fill_the_box_and_repeat():
    low, high = torch.tensor([-1.0, 2.0]), torch.tensor([0.0, 3.0])
    found = samplers.uniform(3, 500, low, high, rng(1))
    assert bool((found >= low).all() and (found <= high).all())
    torch.testing.assert_close(found.mean((0, 1)), (low + high) / 2, atol=0.05, rtol=0)
    assert torch.equal(found, samplers.uniform(3, 500, low, high, rng(1)))


def test_dfo_and_langevin_find_the_best_action():
    best = torch.tensor([[0.5, -0.25], [-1.0, 0.9]])
    start = samplers.uniform(2, 512, LOW, HIGH, rng())
    energy = Energy(Bowl(50.0), best)
    found = samplers.iterative_dfo(energy, start, LOW, HIGH, DfoConfig(aligned=1), generator=rng())
    greedy = found.actions[torch.arange(2), found.probs.argmax(1)]
    torch.testing.assert_close(greedy, best, atol=0.05, rtol=0)
    # aligned: the probabilities are those of the returned actions
    torch.testing.assert_close(found.probs, energy.probabilities(found.actions))
    cfg = LangevinConfig(num_iterations=100, noise_scale=0.0)
    ends = samplers.langevin(energy, start, LOW, HIGH, cfg, generator=rng())
    torch.testing.assert_close(ends, best.unsqueeze(1).expand_as(ends), atol=0.02, rtol=0)


def test_published_dfo_pairs_probabilities_with_other_actions():
    energy = Energy(Bowl(50.0), torch.zeros(1, 2))
    start = samplers.uniform(1, 256, LOW, HIGH, rng())
    found = samplers.iterative_dfo(energy, start, LOW, HIGH, DfoConfig(), generator=rng())
    assert not torch.allclose(found.probs, energy.probabilities(found.actions))


def test_langevin_respects_box_step_limit_and_records_its_chain():
    energy = Energy(Bowl(1000.0), torch.tensor([[5.0, -5.0]]))  # the best action lies outside
    start = torch.zeros(1, 3, 2)
    chain = Chain("2")
    cfg = LangevinConfig(num_iterations=30, delta_action_clip=0.1)
    samplers.langevin(energy, start, LOW, HIGH, cfg, generator=rng(), chain=chain)
    path = torch.stack([start, *chain.actions])
    assert float((path[1:] - path[:-1]).abs().max()) <= 0.1 * 1.1 + 1e-6
    assert float(path.abs().max()) <= 1.1 + 1e-6
    assert len(chain.actions) == len(chain.logits) == len(chain.grad_norms) == 30
    assert torch.equal(chain.before[0], start)
    torch.testing.assert_close(chain.logits[0], energy.logits(start))


@pytest.mark.parametrize(
    "config, options",
    [
        (DfoConfig, {"num_iterations": 0}),
        (DfoConfig, {"temperature": 0}),
        (LangevinConfig, {"sampler_stepsize_init": 0}),
        (LangevinConfig, {"noise_scale": -1}),
        (LangevinConfig, {"grad_clip": -1.0}),
        (LangevinConfig, {"sampler_stepsize_decay": -1.0}),
        (GradPenaltyConfig, {"grad_margin": -1}),
        (EbmPolicyConfig, {"fraction_dfo_samples": 0.6}),
        (EbmPolicyConfig, {"num_counter_examples": 0}),
        (EbmPolicyConfig, {"autoregressive": 1}),
        (EbmPolicyConfig, {"first_noise_scale": -1}),
        (EbmPolicyConfig, {"inference_langevin_noise_scale": -1}),
        (EbmPolicyConfig, {"uniform_boundary_buffer": -0.7}),
        (EbmPolicyConfig, {"uniform_boundary_buffer": float("nan")}),
        (NormConfig, {"num_samples": -1}),
        (NormConfig, {"min_std": -1}),
    ],
)
def test_impossible_configurations_are_named(config, options):
    field = next(iter(options))
    with pytest.raises(ConfigError, match=f"config: .*{field}"):
        run_config.from_dict(config, options)


# ------------------------------------------------------------------ optimiser


def test_keras_adam_is_the_formula_and_resumes():
    """lr * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + 1e-7), also where gradients are tiny."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(6, dtype=torch.float64))
    x, m, v = p.detach().clone(), torch.zeros(6).double(), torch.zeros(6).double()
    optim = KerasAdam([p], lr=1e-2)
    for t in range(1, 8):
        if t == 4:  # as a resumed run does
            state = copy.deepcopy(optim.state_dict())
            optim = KerasAdam([p], lr=123.0)
            optim.load_state_dict(state)
        lr = 1e-2 * 0.9**t
        grad = torch.randn(6).double() * torch.tensor([1, 1e-3, 1e-6, 1e-7, 1e-8, 0]).double()
        p.grad = grad
        set_lr(optim, lr)
        optim.step()
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        x = x - lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (v.sqrt() + 1e-7)
        torch.testing.assert_close(p.detach(), x, rtol=1e-9, atol=1e-12)


def test_warmup_begins_with_nothing_and_peaks_at_4000():
    assert warmup(1.0, 0) == 0
    assert warmup(1.0, 3999) < warmup(1.0, 4000) > warmup(1.0, 4001)


# ------------------------------------------------------------------ policies


def ebm(action_dim: int = 2, cls: type[EbmPolicy] = EbmPolicy, **kwargs) -> EbmPolicy:
    kwargs = {
        "num_counter_examples": 16,
        "num_action_samples": 256,
        "langevin": LangevinConfig(num_iterations=5),
        **kwargs,
    }
    torch.manual_seed(0)
    return cls("state", (6,), 2, action_dim, EbmPolicyConfig(net=NET, **kwargs))


def dfo_settings() -> dict:
    return {
        "fraction_langevin_samples": 0.0,
        "use_dfo": 1,
        "use_langevin": 0,
        "grad_penalty": GradPenaltyConfig(add_grad_penalty=0),
    }


def all_policies() -> dict[str, object]:
    torch.manual_seed(0)
    return {
        "langevin": ebm(),
        "dfo": ebm(**dfo_settings()),
        "autoregressive": ebm(cls=AutoregressivePolicy, autoregressive=1, **dfo_settings()),
        "mdn": MdnPolicy("state", (6,), 2, 2, MdnPolicyConfig(net=MDNConfig(width=32, rate=0.0))),
        "mse": MsePolicy("state", (6,), 2, 2, MsePolicyConfig(net=NET)),
    }


NAMES = list(all_policies())


def data(num: int = 64) -> SimpleNamespace:
    torch.manual_seed(1)
    states = torch.randn(num, 6)
    return batch_of(states, torch.tanh(states[:, :2]))


@pytest.mark.parametrize("name", NAMES)
def test_act_and_propose(name):
    policy = all_policies()[name]
    assert isinstance(policy, Policy)
    policy.fit([data()])
    obs = {"state": data(5).obs["state"]}
    with pytest.raises(RuntimeError, match="eval mode"):
        policy.act(obs)
    policy.eval()
    with pytest.raises(RuntimeError, match="eval mode"):
        policy.train().propose(obs, 2)
    policy.eval()
    action = policy.act(obs, generator=rng())
    assert action.shape == (5, 2) and action.dtype == torch.float32
    assert bool((action.abs() <= 1).all()) and not action.requires_grad
    single = {"state": obs["state"][2]}
    one = policy.act(single, generator=rng(7))
    assert one.shape == (2,) and torch.equal(one, policy.act(single, generator=rng(7)))
    found = policy.propose(obs, 4, generator=rng())
    assert found.shape == (5, 4, 2) and bool((found.abs() <= 1).all())
    if name == "mse":
        torch.testing.assert_close(found[:, 3], action)
        assert not policy.stochastic_eval
    else:
        assert policy.stochastic_eval and not torch.equal(found[:, 0], found[:, 1])
    with pytest.raises(ValueError, match="at least 1"):
        policy.propose(obs, 0)
    with pytest.raises(ValueError, match="batched"):
        policy.propose(single, 1)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_self_contained_and_draws_resume(name):
    policy, other = all_policies()[name], all_policies()[name]
    policy.fit([data()])
    policy.seed(3)
    policy.loss(data()).backward()
    other.load_state_dict(policy.state_dict())
    other.set_rng_state(policy.rng_state())
    a, b = policy.loss(data()), other.loss(data())
    assert torch.equal(a, b)
    obs = data(3).obs
    assert torch.equal(policy.eval().act(obs), other.eval().act(obs))
    copied = copy.deepcopy(policy)
    assert torch.equal(copied.act(obs, generator=rng()), policy.act(obs, generator=rng()))


@pytest.mark.parametrize("name", NAMES)
def test_global_generators_are_left_alone(name):
    policy = all_policies()[name]
    policy.fit([data()])
    policy.seed(0)
    batch = data()
    before = torch.get_rng_state()
    policy.loss(batch)
    policy.eval().act(batch.obs)
    policy.propose(batch.obs, 3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(name):
    policy = all_policies()[name]
    policy.fit([data(512)])
    policy.seed(0)
    optim = KerasAdam(policy.parameters(), lr=3e-3)
    for step in range(150):
        batch = data(512)
        rows = slice(64 * (step % 8), 64 * (step % 8) + 64)
        loss = policy.loss(batch_of(batch.obs["state"][rows], batch.action[rows]))
        optim.zero_grad()
        loss.backward()
        optim.step()
    batch = data(512)
    action = policy.eval().act({"state": batch.obs["state"][:100]}, generator=rng())
    error = float((action - batch.action[:100]).square().mean())
    assert error < 0.25 * float(batch.action.var()), error


def test_the_newest_step_goes_to_the_network_last():
    policy = MsePolicy("state", (6,), 2, 2, MsePolicyConfig(net=NET))
    states = torch.arange(12.0).view(2, 6)  # newest 0 1 2, before it 3 4 5
    assert policy.features({"state": states})[0].tolist() == [3, 4, 5, 0, 1, 2]


def test_proposals_are_weighted_by_the_energy():
    """Two equally good actions are proposed about equally often, bad ones hardly."""
    policy = ebm(**dfo_settings(), dfo=DfoConfig(num_iterations=1)).eval()

    class Bowls(EnergyNet):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(100.0))

        def encode(self, obs):
            return obs

        def score(self, encoded, actions):
            near = (actions.abs() - 0.5).square().sum(2)  # four corners
            return -self.scale * (near + (actions[:, :, 1] < 0))

    policy.net = Bowls()
    found = policy.propose({"state": torch.zeros(1, 6)}, 2000, generator=rng())[0]
    assert float((found[:, 1] > 0).float().mean()) > 0.99
    assert float((found[:, 0] > 0).float().mean()) == pytest.approx(0.5, abs=0.2)
    assert float((found.abs() - 0.5).abs().mean()) < 0.1


def test_counter_examples_come_in_the_configured_shares():
    draws = Draws(uniform=samplers.uniform(3, 10, LOW, HIGH, rng()))
    policy = ebm(num_counter_examples=10, fraction_dfo_samples=0.25, fraction_langevin_samples=0.5)
    policy.box_low.copy_(LOW)
    policy.box_high.copy_(HIGH)
    encoded = policy.net.encode(torch.zeros(3, 6))
    found = policy._counter_examples(encoded, draws, None)
    assert draws.uniform is not None
    # int(2.5) by DFO, 5 by chains, what rounding leaves is uniform: 3
    assert torch.equal(found[:, :3], draws.uniform[:, :3]) and found.shape == (3, 10, 2)
    assert not torch.isclose(found[:, 5:], draws.uniform[:, 5:]).all(-1).any()


@pytest.mark.parametrize("kind", ["info_nce", "cd", "clipped_cd", "soft_clipped_cd", "cd_kl"])
def test_every_loss_trains_with_and_without_penalty(kind):
    for penalty in (0, 1):
        cfg = GradPenaltyConfig(add_grad_penalty=penalty, grad_margin=0.0)
        policy = ebm(loss_type=kind, grad_penalty=cfg, compute_mse=1)
        policy.fit([data()])
        loss = policy.loss(data())
        loss.backward()
        # biases after the last relu shift all logits alike, which these losses do not see
        unseen = ("energy.bias", "trunk.blocks.0.w2.bias")
        grads = {k: p.grad for k, p in policy.net.named_parameters() if k not in unseen}
        assert torch.isfinite(loss)
        assert all(g is not None and bool((g != 0).any()) for g in grads.values())
        names = {"ebm_loss", "mse_counter_examples"} | ({"grad_penalty"} if penalty else set())
        assert set(policy.metrics) == names


def test_penalty_along_the_whole_chain_counts_all_its_points():
    cfg = GradPenaltyConfig(only_apply_final_grad_penalty=0, grad_margin=None)
    policy = ebm(grad_penalty=cfg)
    policy.fit([data()])
    policy.seed(0)
    policy.loss(data())
    assert float(policy.metrics["grad_penalty"]) > 0
    expected = _chain_penalty(policy)
    torch.testing.assert_close(policy.metrics["grad_penalty"], expected)
    # it teaches: the loss's gradient is not InfoNCE's alone
    grads = []
    for add in (1, 0):
        policy.cfg.grad_penalty.add_grad_penalty = add
        policy.seed(0)
        policy.zero_grad()
        policy.loss(data()).backward()
        grads.append(policy.net.trunk.blocks[0].w1.weight.grad.clone())
    assert float((grads[0] - grads[1]).norm()) > 1e-3 * float(grads[1].norm())


def test_a_penalty_along_chains_needs_chains():
    options = {"fraction_langevin_samples": 0.2, "num_counter_examples": 4}
    options |= {"grad_penalty.only_apply_final_grad_penalty": 0}
    with pytest.raises(ConfigError, match="grad_penalty.only_apply.* needs Langevin"):
        run_config.from_dict(EbmPolicyConfig, options)


def test_a_constant_first_dimension_is_no_box_for_the_others():
    actions = torch.stack([torch.full((20,), 0.3), torch.linspace(-0.9, 0.9, 20)], 1)
    batch = batch_of(torch.randn(20, 6), actions)
    with pytest.raises(SpecError, match="scalar_box: 1 .* 0.3 in all"):
        ebm().fit([batch])
    policy = ebm(scalar_box=0)
    policy.fit([batch])
    found = policy.eval().act({"state": torch.randn(8, 6)})
    torch.testing.assert_close(found[:, 0], torch.full((8,), 0.3))
    assert float(found[:, 1].std()) > 0


def _chain_penalty(policy: EbmPolicy) -> torch.Tensor:
    policy.seed(0)
    chain = Chain("inf")
    encoded = policy.net.encode(policy.features(data().obs))
    policy._counter_examples(encoded, Draws(), chain)
    return torch.stack(chain.grad_norms).square().mean()


def test_the_box_of_one_dimension_serves_all_by_default():
    actions = torch.stack([torch.linspace(-0.5, 0.5, 20), torch.linspace(-0.1, 0.9, 20)], 1)
    norm = NormConfig(min_max_actions=0)
    for scalar in (1, 0):
        policy = ebm(scalar_box=scalar, norm=norm)
        policy.fit([batch_of(torch.randn(20, 6), actions)])
        std = float(actions[:, 0].std(correction=0))
        low, high = policy.box_low.tolist(), policy.box_high.tolist()
        assert low[0] == pytest.approx(-0.55 / std, rel=1e-4)
        assert high[0] == pytest.approx(0.55 / std, rel=1e-4)
        assert high[1] == pytest.approx(high[0] if scalar else 0.55 / std, rel=1e-4)
    # widened by 5 % of the range, but not beyond what the environment takes
    policy = ebm(norm=norm, scalar_box=0)
    policy.fit([batch_of(torch.randn(20, 6), actions * 2 - torch.tensor([0.0, 0.8]))])
    highest = policy.act_norm.denormalize(policy.box_high)
    assert highest.tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_chains_leave_dropout_and_spectral_norm_alone():
    net = MLPConfig(width=32, depth=2, rate=0.0, dense_layer_type="spectral_norm")
    policy = EbmPolicy("state", (6,), 2, 2, EbmPolicyConfig(net=net, num_counter_examples=4))
    policy.fit([data()])
    before = policy.net.energy.u.clone()
    assert policy.net.training
    policy._counter_examples(policy.net.encode(torch.zeros(2, 6)), Draws(), None)
    assert policy.net.training and torch.equal(policy.net.energy.u, before)
    policy.net.trunk.blocks[0].w1.u.zero_().add_(1)
    old = policy.net.trunk.blocks[0].w1.u.clone()
    policy.loss(data())
    assert not torch.equal(policy.net.trunk.blocks[0].w1.u, old)


def test_images_are_read_and_normalised_by_colour():
    cfg = EbmPolicyConfig(num_counter_examples=4, num_action_samples=16, **dfo_settings())
    cfg.pixel.image.target_height, cfg.pixel.image.target_width = 16, 20
    cfg.pixel.value_width, cfg.pixel.value_blocks = 16, 1
    policy = EbmPolicy("rgb", (6, 32, 40), 2, 2, cfg)
    images = torch.randint(0, 256, (4, 6, 32, 40), dtype=torch.uint8)
    batch = SimpleNamespace(obs={"rgb": images}, action=torch.rand(4, 2) - 0.5)
    policy.fit([batch])
    frames = policy.net.frames
    expected = images.double().div(255).view(8, 3, -1)
    torch.testing.assert_close(frames.mean, expected.mean((0, 2)).float(), atol=1e-5, rtol=0)
    policy.loss(batch).backward()
    action = policy.eval().act({"rgb": images[0]}, generator=rng())
    assert action.shape == (2,) and policy.input_specs()["rgb"].dtype == "uint8"
    with pytest.raises(ValueError, match=r"obs\['rgb'\]"):
        policy.act({"rgb": images[0, :3]})


@pytest.mark.parametrize("min_std", [0.0, 0.02])
def test_dimensions_that_hardly_move_are_not_blown_up(min_std):
    norm = NormConfig(min_std=min_std, floor="published")
    policy = MsePolicy("state", (2,), 1, 2, MsePolicyConfig(norm=norm))
    states = torch.tensor([[0.0, 5.0], [2.0, 5.0001]])
    policy.fit([SimpleNamespace(obs={"state": states}, action=torch.rand(2, 2))])
    torch.testing.assert_close(policy.obs_norm.offset, states.mean(0))
    assert policy.obs_norm.scale[0] == 1
    expected = 0.02 if min_std else (states[1, 1] - states[0, 1]).item() / 2
    assert policy.obs_norm.scale[1].item() == pytest.approx(expected)


# ------------------------------------------------------------------ what does not move


def policy_with(kind: str, norm: NormConfig) -> MsePolicy | MdnPolicy | EbmPolicy:
    """A small policy over states of 3 dimensions and actions of 2."""
    if kind == "mse":
        return MsePolicy("state", (3,), 1, 2, MsePolicyConfig(net=NET, norm=norm))
    if kind == "mdn":
        net = MDNConfig(width=32, depth=2, rate=0.0)
        return MdnPolicy("state", (3,), 1, 2, MdnPolicyConfig(net=net, norm=norm, greedy_eval=1))
    cfg = EbmPolicyConfig(net=NET, norm=norm, num_counter_examples=16, num_action_samples=256)
    return EbmPolicy("state", (3,), 1, 2, cfg)


def trained(kind: str, norm: NormConfig, still: float = 1.0) -> MsePolicy | MdnPolicy | EbmPolicy:
    """Trained on states whose second dimension is ``still``."""
    torch.manual_seed(0)
    policy = policy_with(kind, norm)
    states = torch.rand(256, 3)
    states[:, 1] = still
    actions = torch.stack([states[:, 0], states[:, 2]], 1) * 1.6 - 0.8
    batch = batch_of(states, actions)
    policy.fit([batch])
    optim = torch.optim.Adam(policy.parameters(), lr=2e-3)
    for _ in range(60):
        optim.zero_grad()
        policy.loss(batch).backward()
        optim.step()
    return policy.eval()


def shift(policy: MsePolicy | MdnPolicy | EbmPolicy, still: float, other: float) -> float:
    """How far actions move when ``other`` comes in place of the still value."""
    torch.manual_seed(1)
    states = torch.rand(16, 3)
    found = []
    for value in (still, other):
        states[:, 1] = value
        found.append(policy.act({"state": states}, generator=rng()))
    return float((found[0] - found[1]).abs().max())


@pytest.mark.parametrize("kind", ["mse", "mdn", "ebm"])
def test_a_rounding_error_in_a_still_dimension_does_not_turn_the_action(kind):
    norm = {"min_max_actions": int(kind == "ebm")}
    safe = trained(kind, NormConfig(**norm))
    published = trained(kind, NormConfig(**norm, floor="published"))
    moved = shift(safe, 1.0, 1.000001)
    # an energy's best sample is one of many: the next best may take its place
    assert moved < (0.1 if kind == "ebm" else 1e-4)
    assert shift(published, 1.0, 1.000001) > max(0.2, 10 * moved)
    assert safe.notes == [
        "observation 'state': dimensions 1 do not move in the data: centred and not scaled "
        "(norm.floor published scales them as published)"
    ]
    assert "norm.floor published" in published.notes[0] and len(published.notes) == 1
    # a checkpoint holds what it was trained with, whatever the option says today
    again = policy_with(kind, NormConfig(**norm)).eval()
    again.load_state_dict(published.state_dict())
    assert shift(again, 1.0, 1.000001) == shift(published, 1.0, 1.000001)


def test_what_moves_is_scaled_as_published_to_the_bit():
    states, actions = torch.randn(64, 6) * torch.logspace(-4, 4, 6), torch.rand(64, 2) * 1e-3
    for min_max in (0, 1):
        for sqrt_std in (0, 1):
            both = []
            for floor in ("safe", "published"):
                norm = NormConfig(min_max_actions=min_max, use_sqrt_std=sqrt_std, floor=floor)
                policy = ebm(norm=norm)
                policy.fit([batch_of(states, actions)])
                assert policy.notes == []
                both.append(policy)
            for a, b in zip(both[0].buffers(), both[1].buffers(), strict=True):
                assert torch.equal(a, b)


def test_large_still_values_and_still_colours_are_small_numbers():
    policy = MsePolicy("state", (3,), 1, 2, MsePolicyConfig(net=NET))
    states = torch.tensor([[5e8, 0.1, 0.0], [5e8 + 64, 0.1, 1.0]])
    policy.fit([batch_of(states, torch.rand(2, 2))])
    assert policy.notes[0].startswith("observation 'state': dimensions 0-1 do not move")
    assert policy.obs_norm.scale.tolist() == [pytest.approx(5e8), 1, 0.5]
    pixels = MsePolicy("rgb", (3, 16, 16), 1, 2)
    images = torch.randint(0, 255, (4, 3, 16, 16), dtype=torch.uint8)
    images[:, 1] = 0
    pixels.fit([SimpleNamespace(obs={"rgb": images}, action=torch.rand(4, 2))])
    assert pixels.notes[0].startswith("observation 'rgb': colours 1 do not move")
    assert pixels.net.net.frames.std[1] == 1


def test_still_actions_stay_and_later_ones_are_no_giants():
    actions = torch.stack([torch.linspace(-0.9, 0.9, 20), torch.full((20,), 0.3)], 1)
    for min_max in (0, 1):
        policy = ebm(norm=NormConfig(min_max_actions=min_max))
        policy.fit([batch_of(torch.randn(20, 6), actions)])
        assert policy.notes[0].startswith("action: dimensions 1 do not move")
        # sampled where it was, though the first dimension's box serves all that move
        found = policy.eval().act({"state": torch.randn(8, 6)})
        torch.testing.assert_close(found[:, 1], torch.full((8,), 0.3))
        assert float(found[:, 0].std()) > 0
        # a gripper that closes in samples the statistics have not seen
        assert float(policy.target(batch_of(None, torch.ones(1, 2)), "cpu").abs().max()) < 5


@pytest.mark.parametrize("name", ["langevin", "dfo", "autoregressive"])
def test_compiled_evaluations_change_no_action(name, monkeypatch):
    monkeypatch.setattr(graphs, "BACKEND", "aot_eager")
    policy = all_policies()[name].eval()
    batch = data(3)
    acted, compared = [], []
    for how in ("off", "default"):
        policy.cfg.compile = how
        acted.append(policy.act(batch.obs, generator=torch.Generator().manual_seed(2)))
        policy.train().seed(5)
        compared.append(policy.loss(batch).item())
        policy.eval()
    torch.testing.assert_close(*acted, rtol=1e-3, atol=1e-3)
    assert compared[0] == pytest.approx(compared[1], rel=1e-3)
    torch._dynamo.reset()


def test_images_have_no_compiled_chains():
    with pytest.raises(ValueError, match="compile: max is for networks over states, expected off"):
        EbmPolicyConfig(compile="max").check(pixels=True)

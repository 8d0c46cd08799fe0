"""Losses, samplers, training steps and policies of Implicit BC against the official program."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bc.dataset import BcBatch
from bc.ibc import losses, samplers
from bc.ibc.ebm_policy import Draws, EbmPolicy, EbmPolicyConfig, sampling_box
from bc.ibc.losses import GradPenaltyConfig
from bc.ibc.samplers import Chain, DfoConfig, Energy, LangevinConfig
from bc.normalized import FrameStatistics, NormConfig
from common_utils.stacking import gather_stack
from networks.ibc import energy
from networks.ibc.energy import fast_score_and_action_grad
from networks.ibc.mlp import MLPEBM, MLPConfig
from networks.normalizer import AffineNormalizer
from networks.optim import KerasAdam, exponential_decay, set_lr, warmup
from tests.parity import ibc_recipes as ibc
from tests.parity.ibc_recipes import assert_close, cases
from tests.parity.recipes import Fixture


@pytest.fixture(params=["float32", "bfloat16x3"], autouse=True)
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How energy networks multiply: both precisions at the same tolerances."""
    choose = energy.choose
    monkeypatch.setattr(energy, "choose", lambda _, *sizes: choose(request.param, *sizes))


LONG_CHAIN_ATOL = 1e-4  # chains longer than 20 steps
BOX = 1.1  # the sampling box of the fixtures: [-1, 1] and 5 % of its width on each side


def tensors(case: Fixture) -> dict[str, torch.Tensor]:
    """All arrays of a case as tensors."""
    return {k: torch.from_numpy(np.asarray(v)) for k, v in case.arrays.items()}


def make_net(case: Fixture, action_dim: int) -> MLPEBM:
    """The fixture's MLPEBM with its weights, in eval mode."""
    net = MLPEBM(ibc.flat_dim(case.spec["dims"]), action_dim, MLPConfig(**case.spec["net"]))
    ibc.load_weights(net, case.spec["weights"])
    return net.eval()


def newest_first(flat: torch.Tensor, steps: int) -> torch.Tensor:
    """Oldest first, as the original stacks, to what an environment delivers: [B, T * D]."""
    return flat.unflatten(1, (steps, -1)).flip(1).flatten(1)


def num_steps(case: Fixture) -> int:
    """T."""
    return next(iter(case.spec["dims"].values()))[0]


# ------------------------------------------------------------------ losses


@cases("losses_")
def test_losses(case: Fixture) -> None:
    a = tensors(case)
    logits, actions, true = a["predictions"], a["counter_examples"], a["true_action"].squeeze(1)
    for temperature in (0.5, 1.0, 2.0):
        loss = losses.ebm_loss("info_nce", logits, actions, true, temperature=temperature)
        assert_close(loss, case.arrays[f"info_nce_T{temperature}"], f"info_nce {temperature}")
    leaf = logits.clone().requires_grad_()
    losses.info_nce(leaf).mean().backward()
    assert leaf.grad is not None
    assert_close(leaf.grad, case.arrays["info_nce_T1.0_grad_of_mean"], "gradient")
    for kind in ("cd", "clipped_cd", "soft_clipped_cd"):
        assert_close(losses.ebm_loss(kind, logits, actions, true), case.arrays[kind], kind)
    copied = a["predictions_copy"][:, :-1]
    kl = losses.kl_part(copied, actions).mean()
    assert_close(kl, case.arrays["cd_kl_klpart_mean"], "kl part")
    loss = losses.ebm_loss("cd_kl", logits, actions, true, copied_logits=copied)
    assert_close(loss, case.arrays["cd_kl"], "cd_kl")


@cases("grad_penalty")
def test_grad_penalty(case: Fixture) -> None:
    a = tensors(case)
    obs = ibc.flat_obs(case.arrays)
    actions = a["actions"].view(case.spec["B"], -1, a["actions"].shape[-1])
    net = make_net(case, actions.shape[-1])
    for name in [k for k in case.arrays if k.startswith("pen_")]:
        kind, margin, square = name.split("_")[1:]
        cfg = GradPenaltyConfig(
            grad_norm_type=kind,  # type: ignore[arg-type]
            grad_margin=None if margin == "mNone" else float(margin[1:]),
            square_grad_penalty=int(square[2:]),
        )
        net.zero_grad()
        _, grad = fast_score_and_action_grad(net, net.encode(obs), actions)
        penalty = losses.grad_penalty(grad, cfg)
        assert_close(penalty, case.arrays[name], name, rtol=1e-5)
        penalty.mean().backward()
        grads = [p.grad.double().square().sum() for p in net.parameters() if p.grad is not None]
        norm = torch.stack(grads).sum().sqrt()
        assert_close(norm, case.arrays[name.replace("pen", "wgradnorm")], name, rtol=1e-5)


# ------------------------------------------------------------------ schedules


@cases("schedules")
def test_schedules(case: Fixture) -> None:
    a = case.arrays
    for i, poly in enumerate(case.spec["poly"]):
        cfg = LangevinConfig(
            num_iterations=poly["num_iterations"],
            sampler_stepsize_init=poly["init"],
            sampler_stepsize_final=poly["final"],
            sampler_stepsize_power=poly["power"],
        )
        np.testing.assert_allclose(cfg.step_sizes(), a[f"poly_{i}"], atol=1e-8)
    cfg = LangevinConfig(schedule="exponential", sampler_stepsize_decay=0.8)
    np.testing.assert_allclose(cfg.step_sizes(), a["exp_init0.1_decay0.8"], atol=1e-8)
    for name in [k for k in a if k.startswith("lr_")]:
        lr, decay_steps = map(float, name.split("_")[1:])
        steps = (0, 1, 50, 100, 101, 1000, 10000, 50000)
        ours = [exponential_decay(lr, s, decay_steps) for s in steps]
        np.testing.assert_allclose(ours, a[name], rtol=1e-5, atol=1e-12)
    ours = [warmup(1e-3, s) for s in (1, 50, 100, 1000, 4000, 10000)]
    np.testing.assert_allclose(ours, a["warmup_lr1e-3"], rtol=1e-5)


# ------------------------------------------------------------------ samplers


def langevin_config(kwargs: dict[str, Any], iterations: int) -> LangevinConfig:
    """Our config from the original's arguments."""
    kwargs = {k: v for k, v in kwargs.items() if k != "grad_norm_type"}
    polynomial = kwargs.pop("use_polynomial_rate", True)
    schedule = "polynomial" if polynomial else "exponential"
    return LangevinConfig(num_iterations=iterations, schedule=schedule, **kwargs)


@cases("langevin_")
def test_langevin(case: Fixture) -> None:
    a, spec = tensors(case), case.spec
    shape = (spec["B"], spec["n"], a["actions0"].shape[-1])
    net = make_net(case, shape[-1])
    energy = Energy(net, net.encode(ibc.flat_obs(case.arrays)))
    chain = Chain(spec["kwargs"].get("grad_norm_type", "inf"))
    cfg = langevin_config(spec["kwargs"], spec["iters"])
    atol = ibc.ATOL if spec["iters"] <= 20 else LONG_CHAIN_ATOL
    final = samplers.langevin(
        energy, a["actions0"].view(shape), a["min_actions"], a["max_actions"], cfg,
        noise=a["noise"].view(-1, *shape), chain=chain,
    )  # fmt: skip
    for name, ours in (
        ("final_actions", final.flatten(0, 1)),
        ("chain_actions", torch.stack(chain.actions).flatten(1, 2)),
        ("chain_energies", torch.stack(chain.logits).flatten(1)),
        ("chain_grad_norms", torch.stack(chain.grad_norms).flatten(1)),
        ("probabilities", energy.probabilities(final).flatten()),
    ):
        assert_close(ours, case.arrays[name], name, atol=atol)


@cases("dfo_")
def test_dfo(case: Fixture) -> None:
    a, spec = tensors(case), case.spec
    shape = (spec["B"], spec["n"], a["actions0"].shape[-1])
    net = make_net(case, shape[-1])
    energy = Energy(net, net.encode(ibc.flat_obs(case.arrays)))
    low = torch.full(shape[-1:], -BOX)
    cfg = DfoConfig(
        temperature=spec["temperature"],
        num_iterations=spec["iters"],
        iteration_std=spec["iteration_std"],
    )
    noise = a["noise"].view(-1, *shape)
    found = samplers.iterative_dfo(
        energy, a["actions0"].view(shape), low, -low, cfg,
        counts=a["resample_counts"], noise=noise,
    )  # fmt: skip
    assert_close(found.actions.flatten(0, 1), case.arrays["final_actions"], "actions")
    assert_close(found.probs.flatten(), case.arrays["final_probs"], "probs")


# ------------------------------------------------------------------ training


def train_config(case: Fixture) -> EbmPolicyConfig:
    """Our config from the original's."""
    spec, given = case.spec, dict(case.spec["agent"])
    given.pop("run_full_chain_under_gradient", None)  # without effect on the numbers
    cfg = EbmPolicyConfig(
        num_counter_examples=spec["num_counter_examples"],
        fraction_langevin_samples=given.pop("fraction_langevin_samples", 1.0),
        softmax_temperature=given.pop("softmax_temperature", 1.0),
        compute_mse=1,
        langevin=LangevinConfig(num_iterations=max(spec["langevin_iterations"], 1)),
    )
    given.pop("compute_mse", None)
    if spec.get("net", {}).get("dense_layer_type") == "spectral_norm":
        # recorded with the chain of the one published configuration that has spectral norm
        cfg.langevin.sampler_stepsize_init = cfg.langevin.delta_action_clip = 0.5
        cfg.langevin.noise_scale = 0.5
    for name, value in given.items():
        setattr(cfg.grad_penalty, name, value if isinstance(value, str) else int(value))
    return cfg


def check_losses(
    policy: EbmPolicy,
    batch: BcBatch,
    draws: Draws,
    arrays: dict[str, np.ndarray],
    prefix: str,
    atol: float = ibc.ATOL,
) -> None:
    """The loss's parts in eval mode, which updates nothing."""
    policy.eval()
    ours = {"ebm_total_loss": policy.loss(batch, draws)}  # the penalty is in it
    for name, key in (("grad_loss", "grad_penalty"), ("mse_counter_examples",) * 2):
        if f"{prefix}{name}" in arrays:
            ours[name] = policy.metrics[key]
    for name, value in ours.items():
        assert_close(value, arrays[f"{prefix}{name}"], name, rtol=1e-5, atol=atol)
    policy.train()


def check_chain(
    policy: EbmPolicy, batch: BcBatch, draws: Draws, arrays: dict[str, np.ndarray], prefix: str
) -> None:
    """Averages over the chain that starts from all uniform samples."""
    if draws.uniform is None or f"{prefix}overall_energies_avg" not in arrays:
        return
    policy.eval()
    encoded = policy.net.encode(policy.features(batch.obs))  # type: ignore[operator]
    chain = Chain(policy.cfg.grad_penalty.grad_norm_type)
    samplers.langevin(
        Energy(policy.net, encoded), draws.uniform, policy.box_low, policy.box_high,
        policy.cfg.langevin, noise=draws.langevin_noise, chain=chain,
    )  # fmt: skip
    policy.train()
    for name, values in (("energies", chain.logits), ("grad_norms", chain.grad_norms)):
        stacked = torch.stack(values)
        for part, value in (
            ("overall", stacked.mean()),
            ("first", stacked[0].mean()),
            ("final", stacked[-1].mean()),
        ):
            key = f"{part}_{name}_avg"
            assert_close(value, arrays[prefix + key], key, rtol=1e-5)


@cases("train_")
def test_training(case: Fixture) -> None:
    if "rgb" in case.arrays:
        check_pixel_step(case)
    else:
        check_three_steps(case)


def check_pixel_step(case: Fixture) -> None:
    """One step of a late-fusion EBM: loss and gradients."""
    a, spec = tensors(case), case.spec
    cfg = train_config(case)
    cfg.pixel.image.target_height, cfg.pixel.image.target_width = spec["target"]
    cfg.pixel.value_width, cfg.pixel.value_blocks = spec["value_width"], 1
    images = a["rgb"].permute(0, 1, 4, 2, 3).flip(1).flatten(1, 2)  # newest first, channels first
    policy = EbmPolicy("rgb", images.shape[1:], a["rgb"].shape[1], a["action"].shape[1], cfg)
    ibc.load_weights(policy.net, spec["weights"], optional=("frames.mean", "frames.std"))
    policy.box_low.fill_(-BOX)
    policy.box_high.fill_(BOX)
    batch = BcBatch({"rgb": images}, a["action"])
    shape = a["uniform"].shape
    draws = Draws(a["uniform"], a["noise"].view(-1, *shape))
    # these weights make logits of 100 to 4000, whose differences are rounded accordingly
    with torch.no_grad():
        logits = policy.net(policy.features(batch.obs), a["uniform"])
    atol = ibc.ATOL + 4 * torch.finfo(torch.float32).eps * float(logits.abs().max())
    check_losses(policy, batch, draws, case.arrays, "evalmode_", atol)
    loss = policy.loss(batch, draws)
    assert_close(loss, case.arrays["loss"], "loss", atol=atol)
    loss.backward()
    check_gradients(policy, below(case.arrays, "grad/"), atol)


def below(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def check_gradients(
    policy: EbmPolicy, expected: dict[str, np.ndarray], atol: float = ibc.ATOL
) -> None:
    """Every gradient recorded, and none besides."""
    parameters = dict(policy.net.named_parameters())
    grads = ibc.to_torch(policy.net, expected)
    assert grads.keys() == parameters.keys()
    for name, grad in grads.items():
        ours = parameters[name].grad
        assert ours is not None, name
        # relative to the tensor's largest entry: sums over a batch cancel
        largest = float(grad.abs().max())
        assert_close(ours, grad.numpy(), name, atol=atol * max(1.0, largest))


def check_three_steps(case: Fixture) -> None:
    """Three steps of an MLPEBM: losses, chains, gradients, weights after Adam."""
    a, spec = tensors(case), case.spec
    cfg = train_config(case)
    cfg.net = MLPConfig(**spec["net"])
    steps, action_dim = num_steps(case), a["step0/action"].shape[1]
    policy = EbmPolicy("state", (ibc.flat_dim(spec["dims"]),), steps, action_dim, cfg)
    ibc.load_weights(policy.net, spec["weights"])
    policy.box_low.fill_(-BOX)
    policy.box_high.fill_(BOX)
    optim = KerasAdam(policy.parameters(), lr=1e-3)
    for step in range(3):
        arrays = below(case.arrays, f"step{step}/")
        uniform, noise = (a.get(f"step{step}/{k}") for k in ("uniform", "noise"))
        assert uniform is not None
        draws = Draws(uniform, None if noise is None else noise.view(-1, *uniform.shape))
        obs = newest_first(ibc.flat_obs(arrays), steps)
        batch = BcBatch({"state": obs}, a[f"step{step}/action"])
        check_losses(policy, batch, draws, arrays, "evalmode_")
        check_chain(policy, batch, draws, arrays, "evalmode_")
        loss = policy.loss(batch, draws)
        assert_close(loss, arrays["loss"], "loss", rtol=1e-5)
        optim.zero_grad()
        loss.backward()
        check_gradients(policy, below(arrays, "grad/"))
        # Adam divides by |gradient|: where that is rounding noise, so is the step. The recorded
        # gradients tell whether the update is right; ours have just been compared with them.
        for name, grad in ibc.to_torch(policy.net, below(arrays, "grad/")).items():
            policy.net.get_parameter(name).grad = grad
        set_lr(optim, exponential_decay(1e-3, step, 100))
        optim.step()
        state = policy.net.state_dict()
        for name, value in ibc.to_torch(policy.net, below(arrays, "after/")).items():
            assert_close(state[name], value.numpy(), f"step{step}/{name}")


# ------------------------------------------------------------------ policies


@cases("policy_")
def test_policy(case: Fixture) -> None:
    a, spec = tensors(case), case.spec
    dfo = case.name.startswith("policy_dfo")
    cfg = EbmPolicyConfig(
        net=MLPConfig(**spec["net"]),
        num_action_samples=spec["n"],
        use_dfo=int(dfo),
        use_langevin=int(not dfo),
        optimize_again=int(spec["optimize_again"]),
        again_stepsize_init=spec["again_stepsize_init"],
        again_stepsize_final=spec["again_stepsize_final"],
        inference_langevin_noise_scale=spec["inference_langevin_noise_scale"],
        langevin=LangevinConfig(num_iterations=max(spec["iters"], 1)),
    )
    steps, action_dim = num_steps(case), a["act_vmin"].shape[0]
    policy = EbmPolicy("state", (ibc.flat_dim(spec["dims"]),), steps, action_dim, cfg).eval()
    ibc.load_weights(policy.net, spec["weights"])
    set_statistics(policy, a)
    flat = newest_first(ibc.flat_obs(case.arrays), steps)
    for b in range(len(flat)):
        shape = (1, spec["n"], action_dim)
        encoded = policy.net.encode(policy.features({"state": flat[b : b + 1]}))  # type: ignore[operator]
        noise = a["noise"][b].view(-1, *shape)
        iters = 2 if dfo else spec["iters"]
        draws = Draws(
            langevin_noise=noise[:iters],
            dfo_noise=noise,
            dfo_counts=a["resample_counts"][b] if dfo else None,
        )
        found = policy.improve(
            Energy(policy.net, encoded), a["init"].view(-1, *shape)[b], draws=draws,
            again_noise=noise[iters:],
        )  # fmt: skip
        actions = policy.act_norm.denormalize(found.actions[0])
        assert_close(actions, case.arrays["samples_denormalized"][b], "samples")
        assert_close(found.probs[0], case.arrays["probs"][b], "probs")
        greedy = actions[found.probs[0].argmax()]
        assert_close(greedy, case.arrays["greedy_action"][b], "greedy action")


def set_statistics(policy: EbmPolicy, a: dict[str, torch.Tensor]) -> None:
    """The fixture's normalisers, and its sampling box."""
    keys = sorted(k.removeprefix("obs_mean/") for k in a if k.startswith("obs_mean/"))
    mean, std = (torch.cat([a[f"obs_{s}/{k}"] for k in keys]) for s in ("mean", "std"))
    assert policy.obs_norm is not None
    policy.obs_norm.set(mean, std, floor="published")
    actions = torch.stack([a["act_vmin"], a["act_vmax"]])
    policy.act_norm.fit_min_max(actions, floor="published")
    policy.box_low.fill_(-BOX)
    policy.box_high.fill_(BOX)


# ------------------------------------------------------------------ data


@cases("normalizers")
def test_normalizers(case: Fixture) -> None:
    a, spec = tensors(case), case.spec
    actions = a["actions"]
    low, high = spec["env_action_bounds"]
    frames = torch.cat([a[f"obs/{k}"] for k in spec["keys"]], dim=-1)
    for name, bound in zip(("min", "max"), sampling_box(actions, 0.05, low, high), strict=True):
        assert_close(bound, case.arrays[f"{name}_actions"], name)
    for min_max in (0, 1):
        for sqrt_std in (0, 1):
            name = f"minmax{min_max}_sqrt{sqrt_std}/"
            norm = NormConfig(min_max_actions=min_max, use_sqrt_std=sqrt_std, floor="published")
            policy = EbmPolicy(
                "state", (2 * frames.shape[-1],), 2, actions.shape[1], EbmPolicyConfig(norm=norm)
            )
            policy.fit([BcBatch({"state": frames[i : i + 10].flatten(1)}, actions[i : i + 10])
                        for i in range(0, len(frames), 10)])  # fmt: skip
            assert policy.obs_norm is not None
            ours = policy.obs_norm(frames)
            theirs = [case.arrays[f"{name}norm_obs/{k}"] for k in spec["keys"]]
            assert_close(ours, np.concatenate(theirs, -1), f"{name}norm_obs", rtol=1e-5)
            ours = policy.act_norm(actions)
            assert_close(ours, case.arrays[f"{name}norm_act"], f"{name}norm_act", rtol=1e-5)
            back = policy.act_norm.denormalize(ours)
            assert_close(back, case.arrays[f"{name}denorm_of_norm"], f"{name}denorm")
            for buffer in (0.0, 0.05):
                box = sampling_box(actions, buffer, low, high)
                for side, bound in zip(("min", "max"), box, strict=True):
                    first = policy.act_norm.normalize(bound)[0]
                    key = f"{name}sampling_{side}_buf{buffer}"
                    assert_close(first, case.arrays[key], key, rtol=1e-5)


@cases("normalizers")
def test_statistics_do_not_depend_on_the_batches(case: Fixture) -> None:
    obs = tensors(case)["obs/b"].flatten(1)
    whole, parts, direct = FrameStatistics(), FrameStatistics(), AffineNormalizer(3)
    whole.add(obs, 2)
    for i in range(0, len(obs), 7):
        parts.add(obs[i : i + 7], 2)
    direct.fit_standard(obs.view(-1, 3))
    for ours, theirs in zip(whole.mean_and_std(), parts.mean_and_std(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(whole.mean_and_std()[0].float(), direct.offset)
    torch.testing.assert_close(whole.mean_and_std()[1].float(), direct.scale)


@cases("windows")
def test_windows(case: Fixture) -> None:
    kinds = case.arrays["step_type"]
    rows = np.arange(len(kinds))
    first = np.maximum.accumulate(np.where(kinds == 0, rows, 0))
    for length in (1, 2, 3, 4):
        expected = case.arrays[f"windows_len{length}"]
        last = expected[:, -1]
        frames = rows[:, None]
        ours = gather_stack(frames, last, first[last], length, "repeat")
        np.testing.assert_array_equal(ours[:, ::-1], expected)  # ours are newest first

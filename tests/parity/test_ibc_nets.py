"""IBC's networks against the official program: same weights, same outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from networks.ibc_mlp import MLPEBM, MLPMDN, MLPMSE, MDNConfig, MLPConfig
from tests.parity import ibc_recipes
from tests.parity.ibc_recipes import assert_close, cases, flat_dim, flat_obs
from tests.parity.recipes import Fixture, make_config


def mlpebm(case: Fixture, action_dim: int) -> MLPEBM:
    cfg = make_config(MLPConfig, case.spec["config"])
    net = MLPEBM(flat_dim(case.spec["dims"]), action_dim, cfg)
    ibc_recipes.load_weights(net, case.spec["weights"])
    return net.eval()


@cases("mlpebm_")
def test_mlpebm(case: Fixture) -> None:
    arrays = case.arrays
    assert case.spec["concat_order"] == sorted(case.spec["dims"])
    obs, actions = flat_obs(arrays), torch.from_numpy(arrays["action"]).unsqueeze(1)
    net = mlpebm(case, actions.size(-1))
    actions.requires_grad_()
    f = net(obs, actions)
    assert_close(f.squeeze(1), arrays["energy_eval"], "energy_eval")
    (gradient,) = torch.autograd.grad(-f.sum(), actions, create_graph=True)
    gradient = gradient.squeeze(1)
    assert_close(gradient, arrays["neg_dE_daction"], "neg_dE_daction")
    for order in (1, 2, np.inf):
        norm = torch.linalg.vector_norm(gradient, order, dim=-1)
        assert_close(norm, arrays[f"grad_norm_{order}"], f"grad_norm_{order}")
    (exp_gradient,) = torch.autograd.grad(-f.exp().sum(), actions)
    assert_close(exp_gradient.squeeze(1), arrays["neg_dexpE_daction"], "neg_dexpE_daction")
    if "energy_train_call1" in arrays:
        check_training_calls(net, obs, actions.detach(), arrays)


def check_training_calls(net: MLPEBM, obs: Any, actions: Any, arrays: dict[str, Any]) -> None:
    """Two calls in training mode move the power iteration's vectors; an eval call does not."""
    net.train()
    for call in ("energy_train_call1", "energy_train_call2"):
        assert_close(net(obs, actions).squeeze(1), arrays[call], call)
    net.eval()
    assert_close(net(obs, actions).squeeze(1), arrays["energy_eval_after"], "energy_eval_after")
    prefix = "u_after/"
    after = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    state = net.state_dict()
    for name, value in ibc_recipes.to_torch(net, after).items():
        assert_close(state[name], value.numpy(), name)


@cases("mlp_mse_mdn_")
def test_mlp_mse_and_mdn(case: Fixture) -> None:
    spec, arrays = case.spec, case.arrays
    obs, action = flat_obs(arrays), torch.from_numpy(arrays["action"])
    mean, std = torch.from_numpy(arrays["denorm_mean"]), torch.from_numpy(arrays["denorm_std"])
    trunk = {k: spec[k] for k in ("layers", "width", "depth")}
    mse = MLPMSE(obs.size(1), action.size(1), MLPConfig(rate=0.0, **trunk))
    ibc_recipes.load_weights(mse, spec["mse_weights"])
    out = mse(obs)
    assert_close(out, arrays["mse_out_train"], "mse_out_train")
    loss = (out - action).square().mean(-1)
    assert_close(loss, arrays["mse_per_example_loss"], "mse_per_example_loss")
    acted = mse.eval()(obs) * std + mean
    assert_close(acted, arrays["mse_out_eval_denormalized"], "mse_out_eval_denormalized")

    mixture = ("num_components", "training_temperature", "test_temperature")
    mixture += ("test_variance_exponent",)
    cfg = MDNConfig(rate=0.0, **trunk, **{k: spec[k] for k in mixture})
    mdn = MLPMDN(obs.size(1), action.size(1), cfg)
    ibc_recipes.load_weights(mdn, spec["mdn_weights"])
    train, acting = mdn(obs), mdn.eval()(obs).affine(std, mean)
    for mode, dist in (("train", train), ("eval", acting)):
        expected = {k.removeprefix(f"mdn_{mode}_"): v for k, v in arrays.items()}
        assert_close(dist.loc, expected["loc"], "loc")
        assert_close(dist.scale, expected["scale_diag"], "scale_diag")
        assert_close(dist.logits, expected["logits"], "logits")
        assert_close(-dist.log_prob(action), expected["neg_log_prob"], "neg_log_prob")
    assert_close(acting.mean, arrays["mdn_eval_mean"], "mdn_eval_mean")

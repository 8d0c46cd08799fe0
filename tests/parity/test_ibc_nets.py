"""IBC's networks against the official program: same weights, same outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from networks.ibc.mlp import MLPEBM, MLPMDN, MLPMSE, MDNConfig, MLPConfig
from networks.ibc.pixel import (
    ConvMDNConfig,
    ConvMLPConfig,
    ConvMLPMDN,
    ConvMLPMSE,
    DenseResnetValue,
    ImageConfig,
    PixelEBM,
    PixelEBMConfig,
    SpatialAttentionEncoder,
    SpatialSoftmax,
)
from networks.mixture import GaussianMixture
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

    fields = ["num_components", "training_temperature", "test_temperature"]
    fields += ["test_variance_exponent"]
    cfg = MDNConfig(rate=0.0, **trunk, **{k: spec[k] for k in fields})
    mdn = MLPMDN(obs.size(1), action.size(1), cfg)
    ibc_recipes.load_weights(mdn, spec["mdn_weights"])
    train, dist = mdn(obs), mdn.eval()(obs)
    acting = GaussianMixture(dist.logits, dist.loc * std + mean, dist.scale * std)
    for mode, dist in (("train", train), ("eval", acting)):
        expected = {k.removeprefix(f"mdn_{mode}_"): v for k, v in arrays.items()}
        assert_close(dist.loc, expected["loc"], "loc")
        # scales reach 43, where the next float32 is 4e-6 away: who multiplies matrices decides
        # the last bits (absolute differences of 2e-5 on AMD, 4e-7 of the value)
        assert_close(dist.scale, expected["scale_diag"], "scale_diag", rtol=1e-6)
        assert_close(dist.logits, expected["logits"], "logits")
        assert_close(-dist.log_prob(action), expected["neg_log_prob"], "neg_log_prob")
    assert_close(acting.mean, arrays["mdn_eval_mean"], "mdn_eval_mean")


@cases("dense_resnet_value")
def test_dense_resnet_value(case: Fixture) -> None:
    x, arrays = torch.from_numpy(case.arrays["x"]), case.arrays
    net = DenseResnetValue(x.size(-1), case.spec["width"], case.spec["num_blocks"])
    ibc_recipes.load_weights(net, case.spec["weights"])
    assert_close(net(x), arrays["y"], "y")


# image normalisers, which the fixtures leave out: our fresh ones are the identity
NORMALIZERS = tuple(f"{place}frames.{b}" for place in ("", "net.") for b in ("mean", "std"))


@cases("pixel_nets")
def test_pixel_nets(case: Fixture) -> None:
    spec, arrays = case.spec, case.arrays
    images = torch.from_numpy(arrays["rgb"]).permute(0, 1, 4, 2, 3)
    frames, (height, width) = images.size(1), spec["target"]
    image = ImageConfig(target_height=height, target_width=width)
    action = torch.from_numpy(arrays["action"])
    value = {"value_width": spec["value_width"], "value_blocks": spec["value_blocks"]}
    ebm = PixelEBM(frames, action.size(-1), PixelEBMConfig(image=image, **value))
    ibc_recipes.load_weights(ebm, spec["weights"]["ebm"], NORMALIZERS)
    preprocessed = ebm.frames(images).permute(0, 2, 3, 1)
    assert_close(preprocessed, arrays["preprocessed"], "preprocessed")
    assert_close(ebm.features(images), arrays["encoding"], "encoding")
    actions = action.view(len(images), spec["samples_per_image"], -1)
    assert_close(ebm(images, actions).flatten(), arrays["energy"], "energy")
    as_float = ebm(images / 255.0, actions)
    assert_close(as_float.flatten(), arrays["energy"], "energy of float images")

    trunk: dict[str, Any] = {**spec["conv_mse"], "image": image, "rate": 0.0}
    mse = ConvMLPMSE(frames, action.size(-1), ConvMLPConfig(**trunk))
    ibc_recipes.load_weights(mse, spec["weights"]["mse"], NORMALIZERS)
    assert_close(mse(images), arrays["conv_mse_out"], "conv_mse_out")

    # recorded with the temperatures and the exponent of the published pixel configuration
    components, power = arrays["conv_mdn_train_logits"].shape[1], 4.0
    cfg = ConvMDNConfig(num_components=components, training_temperature=2.0, **trunk)
    cfg.test_temperature, cfg.test_variance_exponent = 2.0, power
    mdn = ConvMLPMDN(frames, action.size(-1), cfg)
    ibc_recipes.load_weights(mdn, spec["weights"]["mdn"], NORMALIZERS)
    train, acting = mdn(images), mdn.eval()(images)
    assert_close(train.loc, arrays["conv_mdn_train_loc"], "loc")
    assert_close(train.logits, arrays["conv_mdn_train_logits"], "logits")
    # scales reach 1e9: what the network gave is their logarithm before the power
    recorded = np.log(arrays["conv_mdn_eval_scale"]) / power
    assert_close(acting.scale.log() / power, recorded, "log scale")


@cases("spatial_encoder")
def test_spatial_encoder(case: Fixture) -> None:
    arrays = {k: torch.from_numpy(v) for k, v in case.arrays.items()}
    shapes = dict(case.spec["weights"]["keys"])
    blocks = sum(name.endswith("/conv0/kernel") for name in shapes)
    filters, heads = shapes["conv1/kernel"][2:]
    x = arrays["x"].permute(0, 3, 1, 2)
    net = SpatialAttentionEncoder(x.size(1), filters, blocks, heads)
    ibc_recipes.load_weights(net, case.spec["weights"], ("softmax.temperature",))
    assert_close(net(x), case.arrays["y"], "y")
    features = arrays["ss_features"].permute(0, 3, 1, 2)
    assert_close(SpatialSoftmax()(features), case.arrays["ss_out"], "ss_out")

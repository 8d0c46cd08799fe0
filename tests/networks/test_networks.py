"""Encoders, trunks, normaliser: shapes, refusals, and the configurations that used to crash."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from common_utils import run_config
from common_utils.run_config import ConfigError
from common_utils.specs import SpecError
from networks import fast
from networks.encoder import (
    DrQEncoder,
    ResNet96Encoder,
    ResNet96EncoderConfig,
    ResNetEncoder,
    ResNetEncoderConfig,
    VitEncoder,
    VitEncoderConfig,
)
from networks.fast import plain
from networks.mlp import _MultiLinear
from networks.normalizer import Normalizer
from networks.resnet import make_norm

SHAPE = (3, 96, 96)
ENCODERS = {
    "vit1": lambda: VitEncoder(SHAPE, VitEncoderConfig(depth=1, embed_dim=16)),
    "vit2": lambda: VitEncoder(SHAPE, VitEncoderConfig(depth=1, embed_style="embed2")),
    "resnet": lambda: ResNetEncoder(SHAPE, ResNetEncoderConfig(shallow=1)),
    "resnet96": lambda: ResNet96Encoder(SHAPE),
    "drq": lambda: DrQEncoder(SHAPE),
}


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return ENCODERS[request.param]()


def images(n: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8)


def test_encoder_shapes_and_uint8_equals_float(encoder: nn.Module) -> None:
    obs = images(2)
    with torch.no_grad():
        patch, flat = encoder(obs, flatten=False), encoder(obs)
        assert torch.equal(patch, encoder(obs.float(), flatten=False))
    assert patch.shape == (2, encoder.num_patch, encoder.patch_repr_dim)
    assert flat.shape == (2, encoder.repr_dim)
    assert encoder.repr_dim == encoder.num_patch * encoder.patch_repr_dim
    convolutional = not isinstance(encoder, VitEncoder)
    reordered = patch.transpose(1, 2) if convolutional else patch
    assert torch.equal(flat, reordered.flatten(1))


def test_scaled_images_are_refused_but_dark_ones_are_not(encoder: nn.Module) -> None:
    with pytest.raises(ValueError, match="scaled already"):
        encoder(torch.rand(2, *SHAPE))
    assert torch.isfinite(encoder(torch.zeros(1, *SHAPE, dtype=torch.uint8))).all()


def test_encoder_is_left_in_training_mode_with_gradients_everywhere(encoder: nn.Module) -> None:
    assert encoder.training
    encoder(images(2)).square().sum().backward()
    missing = [k for k, p in encoder.named_parameters() if p.grad is None]
    assert not missing


@pytest.mark.parametrize("name", ["resnet", "drq", "vit1"])
def test_stacked_frames(name: str) -> None:
    shape = (9, 96, 96)
    nets = {
        "resnet": lambda: ResNetEncoder(shape, ResNetEncoderConfig(shallow=1)),
        "drq": lambda: DrQEncoder(shape),
        "vit1": lambda: VitEncoder(shape, VitEncoderConfig(depth=1)),
    }
    net = nets[name]()
    assert net(images(1, shape)).shape == (1, net.repr_dim)


@pytest.mark.parametrize("use_1x1", [0, 1])
@pytest.mark.parametrize("shallow", [0, 1])
def test_resnet96_every_configuration_works(use_1x1: int, shallow: int) -> None:
    net = ResNet96Encoder(SHAPE, ResNet96EncoderConfig(use_1x1=use_1x1, shallow=shallow))
    assert net(images(1), flatten=False).shape == (1, 144, 256)


def test_group_count_is_honoured_only_when_asked() -> None:
    def groups(fixed: int) -> int:
        norm = make_norm("gn16", bool(fixed))(64)
        assert isinstance(norm, nn.GroupNorm)
        return norm.num_groups

    assert groups(0) == 64
    assert groups(1) == 16
    cfg = ResNetEncoderConfig(norm_layer="gn16", shallow=1, group_norm_k_fixed=1)
    norms = [m for m in ResNetEncoder(SHAPE, cfg).modules() if isinstance(m, nn.GroupNorm)]
    assert {m.num_groups for m in norms} == {16}


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (ResNetEncoderConfig, {"norm_layer": "layer"}),
        (ResNetEncoderConfig, {"norm_layer": "gn3", "group_norm_k_fixed": 1}),
        (ResNetEncoderConfig, {"stem": "big"}),
        (ResNetEncoderConfig, {"downsample": "x"}),
        (VitEncoderConfig, {"embed_style": "embed3"}),
        (VitEncoderConfig, {"embed_dim": 10}),
    ],
)
def test_impossible_configurations_are_named(config, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"config: {next(iter(options))}"):
        run_config.from_dict(config, options)


def test_a_transformer_needs_square_images() -> None:
    with pytest.raises(ValueError, match="square"):
        VitEncoder((3, 96, 84))


def test_batch_norm_statistics_are_untouched_by_construction() -> None:
    net = ResNetEncoder(SHAPE, ResNetEncoderConfig(norm_layer="bn", shallow=1))
    tracked = {k: v for k, v in net.state_dict().items() if "running_mean" in k}
    assert tracked
    assert all(bool((v == 0).all()) for v in tracked.values())


@pytest.mark.parametrize("orth", [False, True])
def test_each_ensemble_member_starts_like_a_single_layer(orth: bool) -> None:
    torch.manual_seed(0)
    n_in, n_out = 64, 48
    ensemble = _MultiLinear(6, n_in, n_out)
    if orth:
        ensemble.orth_init()
        for w in ensemble.weights:
            torch.testing.assert_close(w.T @ w, torch.eye(n_out), atol=1e-5, rtol=0)
    else:
        bound = 1 / math.sqrt(n_in)
        single = nn.Linear(n_in, n_out)  # torch's default is this same uniform distribution
        for w in ensemble.weights:
            assert w.abs().max() <= bound
            assert w.abs().max() > 0.98 * bound
            assert w.std().item() == pytest.approx(single.weight.std().item(), rel=0.05)
            assert abs(w.mean().item()) < 4 * bound / math.sqrt(3 * n_in * n_out)
    flat = ensemble.weights.flatten(1)
    correlation = torch.corrcoef(flat) - torch.eye(6)
    assert correlation.abs().max() < 0.1  # and members differ from one another
    assert not ensemble.biases.any()


def test_ensemble_member_selection() -> None:
    layer = _MultiLinear(4, 3, 2, bias_per_unit=True)
    nn.init.normal_(layer.biases)
    as_layer = fast.Layer(layer.weights, layer.biases)
    w, b = as_layer.of(slice(1, 3))
    assert torch.equal(w, layer.weights[1:3])
    assert b is not None and torch.equal(b, layer.biases[0, 1:3])
    assert w.untyped_storage().data_ptr() == layer.weights.untyped_storage().data_ptr()  # no copy
    assert as_layer.of(slice(0, 4))[0] is layer.weights
    single = fast.Layer(nn.Linear(3, 2).weight, None)
    assert single.of(slice(0, 1))[0].shape == (1, 3, 2)


@pytest.mark.parametrize("members", [[2, 0], [0, 1, 3], [1, 2], [3], None])
@pytest.mark.parametrize("per_member", [False, True])
def test_some_members_in_plain_torch(members: list[int] | None, per_member: bool) -> None:
    """Runs of neighbours are computed together, in the order in which they are named."""
    ensemble = [_MultiLinear(4, 3, 5, bias_per_unit=True), _MultiLinear(4, 5, 1)]
    layers = [
        fast.Layer(m.weights, nn.init.normal_(m.biases), hidden=i == 0)
        for i, m in enumerate(ensemble)
    ]
    wanted = [0, 1, 2, 3] if members is None else members
    x = torch.randn(len(wanted), 6, 3) if per_member else torch.randn(6, 3)
    got = plain.perceptron(x, layers, members)
    for i, m in enumerate(wanted):
        h = x[i] if per_member else x
        h = torch.relu(h @ ensemble[0].weights[m] + ensemble[0].biases[0, m])
        expected = h @ ensemble[1].weights[m] + ensemble[1].biases[0, m]
        torch.testing.assert_close(got[i], expected)


def test_normalizer_fits_floors_and_travels_with_the_weights() -> None:
    data = torch.randn(500, 3) * torch.tensor([2.0, 1.0, 0.0]) + torch.tensor([5.0, 0.0, 1.0])
    norm = Normalizer(3)
    assert torch.equal(norm(data), data)
    norm.fit(data)
    y = norm(data)
    torch.testing.assert_close(y.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.std(0, correction=0)[:2], torch.ones(2), atol=1e-4, rtol=0)
    assert norm.std[2].item() == pytest.approx(0.02)
    other = Normalizer(3)
    other.load_state_dict(norm.state_dict())
    assert torch.equal(other(data), y)
    for bad in (torch.zeros(0, 3), torch.zeros(4, 2), torch.full((4, 3), float("nan"))):
        with pytest.raises(SpecError, match="Normalizer"):
            norm.fit(bad)

"""IBC's networks: initialisation, spectral norm, split first layers, mixtures, image handling."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import distributions, nn

from common_utils import run_config
from common_utils.run_config import ConfigError
from networks.ibc.mlp import (
    MLPEBM,
    MLPMDN,
    MLPMSE,
    BatchNorm,
    Dense,
    MDNConfig,
    MLPConfig,
    SpectralNormDense,
    Trunk,
)
from networks.ibc.pixel import (
    ConvMaxpoolEncoder,
    ConvMDNConfig,
    ConvMLPConfig,
    ConvMLPMDN,
    ConvMLPMSE,
    CoordConv,
    FrameStack,
    ImageConfig,
    PixelEBM,
    PixelEBMConfig,
    SpatialSoftmax,
    stack_frames,
)
from networks.mixture import GaussianMixture

LAYERS = ("MLPDropout", "ResNetOrig", "ResNetPreActivation")
SMALL = ImageConfig(target_height=18, target_width=24)


def tiny(**values: Any) -> MLPConfig:
    return MLPConfig(**{"width": 8, "depth": 4, "rate": 0.0, **values})


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# ------------------------------------------------------------------------------- vectors


def test_dense_layers_start_normal() -> None:
    layer = Dense(400, 300)
    for parameter in (layer.weight, layer.bias):
        assert abs(parameter.std().item() - 0.05) < 0.006
        assert abs(parameter.mean().item()) < 0.01
    u = SpectralNormDense(3, 4000).u
    assert u.shape == (1, 4000) and abs(u.std().item() - 1) < 0.05


KINDS = list(itertools.product(LAYERS, ("regular", "spectral_norm"), (None, "Layer", "Batch")))


@pytest.mark.parametrize(("layers", "kind", "norm"), [k for k in KINDS if k[0] != LAYERS[0]])
def test_split_first_layer_is_the_whole_layer(layers: Any, kind: Any, norm: Any) -> None:
    cfg = tiny(layers=layers, dense_layer_type=kind, normalizer=norm)
    net = MLPEBM(5, 2, cfg).eval()
    obs, actions = torch.randn(3, 5), torch.randn(3, 4, 2)
    both = torch.cat([obs.unsqueeze(1).expand(-1, 4, -1), actions], dim=-1)
    expected = net.energy(net.trunk(both)).squeeze(-1)
    torch.testing.assert_close(net(obs, actions), expected, rtol=1e-5, atol=1e-5)
    assert net(obs, actions).shape == (3, 4)


def test_dropout_trunk_and_parameter_counts() -> None:
    net = MLPEBM(5, 2, tiny(layers="MLPDropout"))
    obs, actions = torch.randn(3, 5), torch.randn(3, 4, 2)
    x = torch.cat([obs.unsqueeze(1).expand(-1, 4, -1), actions], dim=-1)
    for layer in (net.trunk.first, *net.trunk.hidden):
        assert isinstance(layer, Dense)
        x = F.relu(layer(x))
    torch.testing.assert_close(net(obs, actions), net.energy(x).squeeze(-1))
    dense = {
        k: sum(isinstance(m, Dense) for m in Trunk(3, tiny(layers=k)).modules()) for k in LAYERS
    }
    assert dense == {"MLPDropout": 4, "ResNetOrig": 5, "ResNetPreActivation": 5}


@pytest.mark.parametrize("layers", LAYERS)
def test_dropout_only_in_training(layers: Any) -> None:
    net = MLPMSE(5, 2, tiny(width=64, layers=layers, rate=0.5))
    obs = torch.randn(3, 5)
    assert not torch.equal(net(obs), net(obs))
    net.eval()
    assert torch.equal(net(obs), net(obs))


def test_spectral_norm_divides_by_the_largest_singular_value() -> None:
    layer = SpectralNormDense(6, 9)
    for _ in range(300):
        sigma = layer.sigma()
    torch.testing.assert_close(sigma, torch.linalg.matrix_norm(layer.weight, 2))
    x = torch.randn(2, 6)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight / sigma, layer.bias))


def test_power_iteration_is_stored_once_per_scoring_in_training() -> None:
    net = MLPEBM(5, 2, tiny(dense_layer_type="spectral_norm", depth=2))
    obs, actions = torch.randn(3, 5), torch.randn(3, 4, 2)

    def vectors() -> list[torch.Tensor]:
        return [m.u.clone() for m in net.modules() if isinstance(m, SpectralNormDense)]

    before = vectors()
    encoded = net.encode(obs)
    assert all(map(torch.equal, before, vectors()))
    first = net.score(encoded, actions)
    moved = vectors()
    assert not any(map(torch.equal, before[:-1], moved[:-1]))  # the output unit's u is a sign
    # the graph of the first call survives the second
    (first.sum() + net.score(encoded, actions).sum()).backward()
    assert not any(map(torch.equal, moved[:-1], vectors()[:-1]))
    net.eval()
    moved = vectors()
    net(obs, actions)
    assert all(map(torch.equal, moved, vectors()))


def test_gradients_flow_through_sigma() -> None:
    layer = SpectralNormDense(3, 4).double().eval()
    x, u = torch.randn(2, 3).double(), layer.u.double()

    def output(weight: torch.Tensor) -> torch.Tensor:
        replaced = {"weight": weight, "bias": layer.bias.detach(), "u": u}
        return torch.func.functional_call(layer, replaced, (x,))

    assert torch.autograd.gradcheck(output, layer.weight.detach().clone().requires_grad_())


@pytest.mark.parametrize("norm", [None, "Layer", "Batch"])
@pytest.mark.parametrize("kind", ["regular", "spectral_norm"])
def test_gradient_penalty_is_differentiable(kind: Any, norm: Any) -> None:
    cfg = tiny(width=4, depth=2, activation="swish", dense_layer_type=kind, normalizer=norm)
    net = MLPEBM(2, 2, cfg).double()
    net.eval()
    obs, actions = torch.randn(2, 2).double(), torch.randn(2, 3, 2).double().requires_grad_()
    weight = net.trunk.first.weight

    def penalty() -> torch.Tensor:
        f = net(obs, actions)
        (slope,) = torch.autograd.grad(f.sum(), actions, create_graph=True)
        return slope.square().sum()

    (gradient,) = torch.autograd.grad(penalty(), weight)
    step = 1e-6
    for index in ((0, 0), (3, 3)):
        with torch.no_grad():
            weight[index] += step
        high = penalty().item()
        with torch.no_grad():
            weight[index] -= 2 * step
        low = penalty().item()
        with torch.no_grad():
            weight[index] += step
        assert gradient[index].item() == pytest.approx(
            (high - low) / (2 * step), rel=1e-5, abs=1e-8
        )


def test_batch_norm_is_kerass() -> None:
    ours, theirs = BatchNorm(6), nn.BatchNorm1d(6, eps=1e-3, momentum=0.01)
    x = torch.randn(5, 4, 6) * 3 + 1
    torch.testing.assert_close(ours(x).flatten(0, 1), theirs(x.flatten(0, 1)))
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    population = 0.99 + 0.01 * x.flatten(0, 1).var(0, correction=0)
    torch.testing.assert_close(ours.running_var, population)
    scaled = (x - ours.running_mean) / (ours.running_var + 1e-3).sqrt()
    torch.testing.assert_close(ours.eval()(x), scaled)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"layers": "Transformer"}, "layers"),
        ({"dense_layer_type": "weight_norm"}, "dense_layer_type"),
        ({"activation": "gelu"}, "activation"),
        ({"normalizer": "Group"}, "normalizer"),
        ({"normalizer": "Layer", "layers": "MLPDropout"}, "expected null with MLP"),
        ({"width": 0}, "width"),
        ({"rate": 1.0}, "rate"),
        ({"depth": 3}, "even"),
        ({"depth": 0, "layers": "MLPDropout"}, "at least 1"),
    ],
)
def test_impossible_trunks_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run_config.from_dict(MLPConfig, {"width": 8, "depth": 4, "rate": 0.0, **values})


def test_wrong_shapes_are_refused() -> None:
    net = MLPEBM(5, 2, tiny())
    with pytest.raises(ValueError, match="obs must have 2 axes, the last of size 5"):
        net(torch.randn(3, 4), torch.randn(3, 4, 2))
    with pytest.raises(ValueError, match="actions must have 3 axes, the last of size 2"):
        net(torch.randn(3, 5), torch.randn(3, 2))
    with pytest.raises(ValueError, match="obs"):
        MLPMSE(5, 2, tiny())(torch.randn(5))


# ------------------------------------------------------------------------------ mixtures


def mixture(batch: int = 3, k: int = 4, dim: int = 2) -> GaussianMixture:
    return GaussianMixture(
        torch.randn(batch, k), torch.randn(batch, k, dim), torch.rand(batch, k, dim) + 0.1
    )


def test_mixture_density_is_torchs() -> None:
    ours = mixture()
    normal = distributions.Independent(distributions.Normal(ours.loc, ours.scale), 1)
    weights = distributions.Categorical(logits=ours.logits)
    theirs = distributions.MixtureSameFamily(weights, normal)
    action, many = torch.randn(3, 2), torch.randn(3, 6, 2)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.mean, theirs.mean)
    expected = torch.stack([theirs.log_prob(a) for a in many.unbind(1)], dim=1)
    torch.testing.assert_close(ours.log_probs(many), expected)


def test_mixture_samples() -> None:
    dist = mixture()
    samples = dist.sample(40000)
    assert samples.shape == (3, 40000, 2) and not samples.requires_grad
    torch.testing.assert_close(samples.mean(1), dist.mean, rtol=0, atol=0.03)
    weights = dist.logits.softmax(-1).unsqueeze(-1)
    second = (weights * (dist.scale.square() + dist.loc.square())).sum(1)
    torch.testing.assert_close(samples.square().mean(1), second, rtol=0.05, atol=0.03)
    draws = [dist.sample(5, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_mixture_greedy_takes_the_densest_centre() -> None:
    # two close components beat a single one of more weight
    loc = torch.tensor([[[0.0], [1.0], [1.01]]])
    dist = GaussianMixture(torch.tensor([[0.4, 0.3, 0.3]]).log(), loc, torch.full((1, 3, 1), 0.1))
    assert dist.greedy().item() in (1.0, pytest.approx(1.01))
    narrow = GaussianMixture(
        torch.tensor([[0.5, 0.5]]).log(), loc[:, :2], torch.tensor([[[1.0], [0.1]]])
    )
    assert narrow.greedy().item() == 1.0


def test_a_mixture_refuses_other_shapes() -> None:
    dist = mixture()
    with pytest.raises(ValueError, match="needs logits"):
        GaussianMixture(dist.logits, dist.loc, dist.scale[:, :2])


def test_mdn_modes() -> None:
    cfg = MDNConfig(8, 2, 0.0, num_components=3, training_temperature=1.0, test_temperature=2.0)
    cfg.test_variance_exponent = 3.0
    net, obs = MLPMDN(5, 2, cfg), torch.randn(4, 5)
    train, test = net(obs), net.eval()(obs)
    torch.testing.assert_close(test.logits, train.logits / 2)
    torch.testing.assert_close(test.scale, train.scale**3)
    torch.testing.assert_close(test.loc, train.loc)
    for bad in ({"num_components": 0}, {"training_temperature": 0.0}, {"test_temperature": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            run_config.from_dict(MDNConfig, bad)


# -------------------------------------------------------------------------------- images


def frames(batch: int = 2, height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 2, 3, height, width), dtype=torch.uint8)


def test_stack_orders() -> None:
    images = frames()
    memory = np.ascontiguousarray(images.numpy().transpose(0, 1, 3, 4, 2))  # [B, T, H, W, C]
    scrambled = memory.reshape(2, 24, 32, 6).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(stack_frames(images, "scrambled").numpy(), scrambled)
    channels = stack_frames(images, "channels")
    assert torch.equal(channels, images.flatten(1, 2))
    assert channels.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="stack_order"):
        stack_frames(images, "rows")  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["scrambled", "channels"])
def test_normalising_last_is_normalising_first(order: Any) -> None:
    images = frames()
    plain = FrameStack(2, 3, dataclasses.replace(SMALL, stack_order=order))
    net = FrameStack(2, 3, dataclasses.replace(SMALL, stack_order=order))
    net.mean.copy_(torch.tensor([0.2, 0.5, 0.7]))
    net.std.copy_(torch.tensor([0.1, 0.3, 0.6]))
    first = (images / 255.0 - net.mean.view(3, 1, 1)) / net.std.view(3, 1, 1)
    torch.testing.assert_close(net(images), plain(first), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net(images), net(images / 255.0), rtol=1e-5, atol=1e-5)
    assert plain(images).shape == (2, 6, 18, 24)
    assert set(net.state_dict()) == {"mean", "std"}  # the normaliser is in the checkpoint
    with pytest.raises(ValueError, match="images must be"):
        net(images[:, :1])


def test_resize_has_no_antialiasing() -> None:
    images = torch.zeros(1, 1, 1, 32, 32)
    images[..., 5, 5] = 1  # halfway pixel centres of a resize by 4 are 1.5, 5.5, ...
    net = FrameStack(1, 1, ImageConfig(target_height=8, target_width=8))
    out = net(images)
    assert out[0, 0, 1, 1].item() == 0.25 and out.sum().item() == 0.25


def test_convolutions_start_glorot() -> None:
    conv = ConvMaxpoolEncoder(6).get_submodule("conv3")
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    bound = (6 / (9 * (64 + 128))) ** 0.5
    assert conv.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert conv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not conv.bias.any()


def test_pooling_before_relu_changes_nothing() -> None:
    net, x = ConvMaxpoolEncoder(3).double(), torch.randn(2, 3, 19, 33).double()

    def original(x: torch.Tensor) -> torch.Tensor:
        for conv in net.children():
            x = F.max_pool2d(F.relu(conv(x)), 2)
        return x.mean((2, 3))

    weights = list(net.parameters())
    for ours, theirs in ((net(x).double(), original(x)),):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
        gradients = [torch.autograd.grad(y.square().sum(), weights) for y in (ours, theirs)]
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="16x16"):
        net(x[..., :15])


def test_coordinates_and_spatial_softmax() -> None:
    x = CoordConv()(torch.zeros(1, 1, 3, 5))
    assert x[0, 1, :, 0].tolist() == [-1, 0, 1] and x[0, 2, 0].tolist() == [-1, -0.5, 0, 0.5, 1]
    peak = torch.zeros(1, 2, 3, 5)
    peak[0, 0, 2, 1], peak[0, 1, 0, 4] = 100, 100
    torch.testing.assert_close(SpatialSoftmax()(peak), torch.tensor([[1.0, -0.5, -1.0, 1.0]]))
    softmax = SpatialSoftmax(2.0)
    softmax(peak / 50).sum().backward()
    assert softmax.temperature.grad is not None and softmax.temperature.grad.abs() > 0
    with pytest.raises(ValueError, match="temperature"):
        SpatialSoftmax(0.0)


@pytest.mark.parametrize("encoder", ["conv_maxpool", "spatial_attention"])
def test_pixel_ebm_encodes_once(encoder: Any) -> None:
    cfg = PixelEBMConfig(SMALL, encoder, filters=8, num_blocks=1, num_heads=5, value_width=16)
    net, images, actions = PixelEBM(2, 2, cfg), frames(), torch.randn(2, 4, 2)
    code = net.features(images)
    assert code.shape == (2, 256 if encoder == "conv_maxpool" else 10)
    both = torch.cat([code.unsqueeze(1).expand(-1, 4, -1), actions], dim=-1)
    torch.testing.assert_close(net(images, actions), net.value(both).squeeze(-1))
    actions.requires_grad_()
    (slope,) = torch.autograd.grad(net(images, actions).sum(), actions, create_graph=True)
    slope.square().sum().backward()
    used = {n for n, p in net.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert {"value.dense0.weight", "value.blocks.0.dense1.weight"} <= used


def test_explicit_pixel_networks() -> None:
    trunk: dict[str, Any] = {"width": 8, "depth": 2, "rate": 0.0, "image": SMALL}
    mse = ConvMLPMSE(2, 3, ConvMLPConfig(**trunk))
    assert mse(frames()).shape == (2, 3)
    plain = ConvMLPMSE(2, 3, ConvMLPConfig(coord_conv=0, **trunk))
    widths = [m.net.encoder.get_submodule("conv1").in_channels for m in (mse, plain)]
    assert widths == [8, 6]
    keypoints = {"encoder": "spatial_attention", "filters": 8, "num_blocks": 1, "num_heads": 5}
    attentive = ConvMLPMSE(2, 3, ConvMLPConfig(**trunk, **keypoints))
    assert attentive(frames()).shape == (2, 3)
    # coordinates are appended once, by the encoder
    assert attentive.net.encoder.get_submodule("conv0").in_channels == 8
    mdn = ConvMLPMDN(2, 3, ConvMDNConfig(num_components=4, **trunk))
    assert mdn(frames()).loc.shape == (2, 4, 3)


def test_bfloat16_convolutions_stay_close() -> None:
    images, actions = frames(), torch.randn(2, 4, 2)
    nets = [
        PixelEBM(2, 2, PixelEBMConfig(dataclasses.replace(SMALL, conv_precision=p), value_width=16))
        for p in ("float32", "bfloat16")
    ]
    nets[1].load_state_dict(nets[0].state_dict())
    codes = [n.features(images) for n in nets]
    assert codes[1].dtype is torch.float32 and not torch.equal(*codes)
    torch.testing.assert_close(codes[1], codes[0], rtol=0.05, atol=0.01)
    assert nets[1](images, actions).dtype is torch.float32
    nets[1](images, actions).sum().backward()
    assert all(p.grad.dtype is torch.float32 for p in nets[1].parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "options, field",
    [
        ({"value_width": 6}, "value_width"),
        ({"filters": 6}, "filters"),
        ({"encoder": "resnet"}, "encoder"),
        ({"image.conv_precision": "float16"}, "image.conv_precision"),
        ({"image.target_height": 0}, "image.target_height"),
        ({"image.target_width": 15}, "image.target_height: 180 and image.target_width 15"),
    ],
)
def test_impossible_pixel_networks_are_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=f"config: {field}"):
        run_config.from_dict(PixelEBMConfig, options)


@pytest.mark.parametrize(
    "kind", [MLPConfig, MDNConfig, PixelEBMConfig, ConvMLPConfig, ConvMDNConfig]
)
def test_configs_are_read_and_documented(kind: Any) -> None:
    assert run_config.from_dict(kind, run_config.to_dict(kind())) == kind()
    assert all(doc for *_, doc in run_config.describe(kind))


def test_config_values_are_checked() -> None:
    cfg = run_config.from_dict(MLPConfig, {"normalizer": "Layer", "width": 64})
    assert cfg.normalizer == "Layer" and cfg.width == 64
    with pytest.raises(run_config.ConfigError, match="normalizer"):
        run_config.from_dict(MLPConfig, {"normalizer": "Group"})

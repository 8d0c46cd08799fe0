"""Convolutions and normalised channels by every back end, against torch's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import fast
from networks.conv import Conv2d
from networks.fast import choice, table
from networks.optim import Adam, soft_update_params
from networks.resnet import ResNet
from networks.resnet_rl import ResNet96

LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


@pytest.fixture
def by_onednn() -> Iterator[None]:
    before = choice.current()
    choice.use({**choice.UNMEASURED, "convolution": {"of one picture": "onednn"}})
    yield
    choice.use(before)


def norm_of(channels: int) -> nn.GroupNorm:
    norm = nn.GroupNorm(channels, channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm.requires_grad_(False)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("shape", [(1, 64, 24, 24), (3, 70, 3, 3), (2, 5, 1, 7), (1, 512, 3, 3)])
def test_channel_norm(
    isa: str, shape: tuple[int, ...], with_residual: bool, relu: bool, layout: str
) -> None:
    torch.manual_seed(0)
    x, more = (
        (3 + 2 * torch.randn(shape)).contiguous(memory_format=LAYOUTS[layout]) for _ in range(2)
    )
    residual, norm = more if with_residual else None, norm_of(shape[1])
    with torch.no_grad():
        assert table.who("channel_norm", x, norm, residual, relu) == "cpu"
        found = fast.channel_norm(x, norm, residual, relu)
        double = F.group_norm(
            x.double(), shape[1], norm.weight.double(), norm.bias.double(), norm.eps
        )
        expected = double + (0.0 if residual is None else residual.double())
        expected = expected.relu() if relu else expected
    assert found.stride() == x.stride()
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def test_channel_norm_keeps_nan() -> None:
    x, norm = torch.randn(1, 4, 3, 3), norm_of(4)
    x[0, 1, 0, 0] = torch.nan
    with torch.no_grad():
        for layout in LAYOUTS.values():
            y = fast.channel_norm(x.contiguous(memory_format=layout), norm)
            assert y[0, 1].isnan().all() and not y[0, [0, 2, 3]].isnan().any()


def test_what_the_kernel_does_not_take_is_computed_by_torch() -> None:
    x = torch.randn(2, 4, 3, 3)
    for norm in (nn.BatchNorm2d(4).eval(), nn.GroupNorm(2, 4), nn.GroupNorm(4, 4, affine=False)):
        assert table.who("channel_norm", x, norm, None, True) == "plain"
        with torch.no_grad():
            assert torch.equal(fast.channel_norm(x, norm, x), F.relu(norm(x) + x))
    norm = norm_of(4).requires_grad_()  # it is being trained
    assert table.who("channel_norm", x, norm, None, True) == "plain"
    (gradient,) = torch.autograd.grad(fast.channel_norm(x, norm).sum(), norm.weight)
    assert gradient.shape == (4,)


CONVOLUTIONS = [(3, 64, 4, 2, 0), (64, 64, 3, 1, 1), (64, 128, 1, 2, 0), (32, 32, 3, 1, 0)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("sizes", CONVOLUTIONS)
@pytest.mark.usefixtures("by_onednn")
def test_conv2d(sizes: tuple[int, int, int, int, int], frozen: bool, layout: str) -> None:
    torch.manual_seed(0)
    conv = Conv2d(*sizes).requires_grad_(not frozen)
    for pictures in (1, 5):
        x = torch.randn(pictures, sizes[0], 12, 12).contiguous(memory_format=LAYOUTS[layout])
        operands = (x, conv.weight, conv.bias, conv.step, conv.margin)
        assert table.who("conv2d", *operands) == "products"
        expected = F.conv2d(x, conv.weight, conv.bias, sizes[3], sizes[4])
        torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("by_onednn")
def test_conv2d_has_gradients() -> None:
    torch.manual_seed(0)
    conv, x = Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 5, requires_grad=True)
    inputs = (x, conv.weight, conv.bias)
    dy = torch.randn(2, 6, 5, 5)
    found = torch.autograd.grad(conv(x), inputs, dy)
    expected = torch.autograd.grad(F.conv2d(x, conv.weight, conv.bias, 1, 1), inputs, dy)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("by_onednn")
def test_frozen_weights_that_change_are_noticed() -> None:
    torch.manual_seed(0)
    conv, other = Conv2d(4, 6, 3).requires_grad_(False), Conv2d(4, 6, 3)
    x, larger = torch.randn(1, 4, 5, 5), torch.randn(1, 4, 9, 7)

    def check() -> None:
        for picture in (x, larger, x):
            expected = F.conv2d(picture, conv.weight, conv.bias)
            torch.testing.assert_close(conv(picture), expected, rtol=1e-4, atol=1e-5)

    check()
    conv.weight.mul_(2.0)
    check()
    conv.load_state_dict(other.state_dict())
    check()
    conv.weight.data = torch.randn(6, 4, 3, 3)
    check()


@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize("kind", ["resnet", "resnet, shallow", "resnet bn", "resnet96"])
def test_networks_are_their_modules_one_by_one(kind: str) -> None:
    """A frozen network differs from float64 about as much as torch's own float32 does."""
    torch.manual_seed(0)
    if kind == "resnet96":
        net: nn.Module = ResNet96(3, 0, 0)
    else:
        norm = "bn" if kind.endswith("bn") else "gnn"
        net = ResNet(3, "default", "default", norm, shallow=int("shallow" in kind))
    net.eval().requires_grad_(False)
    x = torch.randn(1, 3, 96, 96)
    found = net(x)
    torchs = net.requires_grad_()(x).detach()
    expected = net.double()(x.double()).detach()
    assert (found - expected).abs().max() < 4 * (torchs - expected).abs().max() < 1e-3


@pytest.mark.usefixtures("by_onednn")
def test_kernels_that_write_weights_say_so() -> None:
    """Adam's step and the soft update write to addresses, which torch does not see."""
    torch.manual_seed(0)
    conv, x = Conv2d(4, 6, 3), torch.randn(1, 4, 5, 5)
    target = copy.deepcopy(conv).requires_grad_(False)
    optim = Adam(conv.parameters(), lr=0.1)
    for _ in range(3):
        optim.zero_grad()
        conv(x).sum().backward()
        optim.step()
        soft_update_params(list(conv.parameters()), list(target.parameters()), 0.5)
        expected = F.conv2d(x, target.weight, target.bias)
        torch.testing.assert_close(target(x), expected, rtol=1e-4, atol=1e-5)
        before = conv.weight._version
    optim.step()
    assert conv.weight._version > before

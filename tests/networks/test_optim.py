"""Adam and soft updates by the C++ kernels against torch's."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from common_utils import kernels
from networks import fast
from networks.optim import Adam, soft_update_params

SHAPES = ((7,), (300, 41), (5, 64, 33), (), (1, 1))


def weights(seed: int = 0) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=rng)) for s in SHAPES]


def walk(opt: torch.optim.Optimizer, params: list[nn.Parameter], steps: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=rng) * 10 ** float(
                torch.randn(1, generator=rng)
            )
        opt.step()


@pytest.mark.parametrize("isa", ["base", "v3", "v4"])
def test_steps_are_torchs(isa: str) -> None:
    before = kernels.isa()
    try:
        kernels.use(isa)
    except ValueError:
        pytest.skip(f"this CPU has no {isa}")
    try:
        ours, theirs = weights(), weights()
        walk(Adam(ours, 3e-3), ours, 20, 1)
        walk(torch.optim.Adam(theirs, 3e-3), theirs, 20, 1)
    finally:
        kernels.use(before)
    for a, b, start in zip(ours, theirs, weights(), strict=True):
        assert not torch.equal(a, start)
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)  # they moved by up to 0.06


def test_the_kernel_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    params = weights()
    opt = Adam(params, 1e-3)
    walk(opt, params, 1, 0)  # the first makes the state
    monkeypatch.setattr(torch.optim.Adam, "step", None)
    walk(opt, params, 1, 1)


def test_bits_depend_on_no_number_of_threads() -> None:
    runs = []
    try:
        for threads in (1, 2, 3):
            fast.use_threads(threads)
            params = [
                nn.Parameter(p.detach().repeat(9, *[1] * (p.dim() - 1))) for p in weights()[:3]
            ]
            walk(Adam(params, 1e-3), params, 5, 2)
            target = [torch.zeros_like(p) for p in params]
            soft_update_params(params, target, 0.3)
            runs.append([*params, *target])
    finally:
        fast.use_threads(0)
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_state_is_torchs_and_comes_back() -> None:
    params = weights()
    opt = Adam(params, 1e-3)
    walk(opt, params, 3, 0)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    again = [nn.Parameter(p.detach().clone()) for p in params]
    other = Adam(again, 1.0)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.optim.Adam(copy.deepcopy(again)).load_state_dict(opt.state_dict())
    walk(opt, params, 2, 5)
    walk(other, again, 2, 5)
    assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))


def test_what_the_kernel_does_not_cover_torch_does() -> None:
    double = nn.Parameter(torch.ones(4, dtype=torch.float64))
    strided = nn.Parameter(torch.ones(6, 4).t())
    idle = nn.Parameter(torch.ones(3))
    for p in (double, strided):
        opt = Adam([p, idle], 0.1)
        for _ in range(2):
            p.grad = torch.ones_like(p)
            opt.step()
        torch.testing.assert_close(p.detach(), torch.full_like(p, 0.8))
    assert torch.equal(idle, torch.ones(3))  # had no gradient


def test_parameters_that_started_later_keep_their_own_count() -> None:
    results = []
    for cls in (Adam, torch.optim.Adam):
        a, b = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
        opt = cls([a, b], lr=0.1)
        for step in range(4):
            a.grad = torch.full((4,), 1.0 + step)
            b.grad = torch.full((4,), 2.0 - step) if step > 1 else None
            opt.step()
        results.append((a.detach(), b.detach()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


def test_two_groups_with_rates_of_their_own() -> None:
    results = []
    for cls in (Adam, torch.optim.Adam):
        a, b = nn.Parameter(torch.ones(40)), nn.Parameter(torch.ones(40))
        opt = cls([a], lr=0.1)
        opt.add_param_group({"params": [b], "lr": 0.01})
        walk(opt, [a, b], 6, 3)
        results.append((a.detach(), b.detach()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)


def test_a_closure_is_torchs_business() -> None:
    p = nn.Parameter(torch.ones(3))
    opt = Adam([p], 0.1)

    def closure() -> float:
        p.grad = torch.ones(3)
        return 5.0

    assert opt.step(closure) == 5.0
    assert opt.step(closure) == 5.0
    torch.testing.assert_close(p.detach(), torch.full((3,), 0.8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_soft_update(dtype: torch.dtype) -> None:
    net = [p.detach().to(dtype) for p in weights(1)]
    target = [p.detach().to(dtype) for p in weights(2)]
    expected = [0.25 * n + 0.75 * t for n, t in zip(net, target, strict=True)]
    soft_update_params(net, target, 0.25)
    torch.testing.assert_close(target, expected)
    with pytest.raises(ValueError, match="5 parameters against 4"):
        soft_update_params(net, target[:4], 0.5)

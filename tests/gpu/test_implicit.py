"""Energies, samplers and training of Implicit BC on a device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bc.ibc.samplers import (
    DfoConfig,
    Energy,
    LangevinConfig,
    draw_counts,
    iterative_dfo,
    langevin,
    uniform,
)
from benchmarks import ibc
from networks.ibc.mlp import MLPEBM, MLPConfig
from tests.rl.test_no_host_reads import NoReads

BATCH, NUM, OBS, DIM = 5, 32, 6, 3


def energies(device: str) -> tuple[Energy, Energy]:
    """The same energy on the CPU and on the device."""
    torch.manual_seed(0)
    net = MLPEBM(OBS, DIM, MLPConfig(width=32, depth=2)).eval()
    obs = torch.randn(BATCH, OBS)
    here = Energy(net, net.encode(obs))
    there = net.to(device)
    return here, Energy(there, there.encode(obs.to(device)))


def box(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return -torch.ones(DIM, device=device), torch.ones(DIM, device=device)


def test_langevin(device: str) -> None:
    here, there = energies(device)
    cfg = LangevinConfig(num_iterations=10)
    actions, noise = uniform(BATCH, NUM, *box("cpu")), torch.randn(10, BATCH, NUM, DIM)
    want = langevin(here, actions, *box("cpu"), cfg, noise=noise)
    got = langevin(there, actions.to(device), *box(device), cfg, noise=noise.to(device))
    torch.testing.assert_close(got.cpu(), want, rtol=0, atol=1e-4)


def test_derivative_free(device: str) -> None:
    here, there = energies(device)
    cfg = DfoConfig()
    actions = uniform(BATCH, NUM, *box("cpu"))
    noise = torch.randn(cfg.num_iterations - 1, BATCH, NUM, DIM)
    index = torch.randint(NUM, (cfg.num_iterations, BATCH, NUM))
    counts = torch.nn.functional.one_hot(index, NUM).sum(2)
    want = iterative_dfo(here, actions, *box("cpu"), cfg, counts=counts, noise=noise)
    got = iterative_dfo(
        there, actions.to(device), *box(device), cfg,
        counts=counts.to(device), noise=noise.to(device),
    )  # fmt: skip
    torch.testing.assert_close(got.actions.cpu(), want.actions, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.probs.cpu(), want.probs, rtol=1e-3, atol=1e-6)


def test_draws_follow_the_probabilities_and_repeat(device: str) -> None:
    probs = torch.tensor([[0.5, 0.0, 0.3, 0.2], [0.0, 1.0, 0.0, 0.0]], device=device)
    generator = torch.Generator(device).manual_seed(1)
    drawn = torch.cat([draw_counts(probs, generator) for _ in range(500)], dim=1)
    assert drawn.device.type == device
    shares = torch.nn.functional.one_hot(drawn.cpu(), 4).float().mean(1)
    torch.testing.assert_close(shares, probs.cpu(), rtol=0, atol=0.05)
    again = torch.Generator(device).manual_seed(1)
    assert torch.equal(draw_counts(probs, again), drawn[:, :4])


def test_samplers_read_nothing(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each read makes the host wait. Computed by torch alone, as there."""
    monkeypatch.setenv("IBC_KERNELS", "off")
    _, energy = energies(device)
    generator = torch.Generator(device).manual_seed(1)
    low, high = box(device)
    with NoReads():
        actions = uniform(BATCH, NUM, low, high, generator)
        chain = langevin(energy, actions, low, high, LangevinConfig(), generator=generator)
        found = iterative_dfo(energy, actions, low, high, DfoConfig(), generator=generator)
    assert chain.isfinite().all() and found.probs.isfinite().all()


@pytest.mark.parametrize(
    "case", ["particle/mlp_mse", "particle/mlp_ebm_langevin", "pushing_states/mlp_ebm"]
)
def test_released_configurations_train_and_act(case: str, device: str, tmp_path: Path) -> None:
    work = ibc.make_workspace(case, "float32", tmp_path, batch_size=8, device=device)
    work.log = ibc.Log()  # type: ignore[assignment]
    try:
        work.policy.train()
        work._train_step()
        work.log.meters.check_finite()
        work.policy.eval()
        obs = {k: v[0] for k, v in work.data.batch_at(torch.arange(2).numpy()).obs.items()}
        action = work.policy.act(obs)  # type: ignore[operator]
        assert (action.device.type, action.shape) == ("cpu", (2,)) and action.isfinite().all()
    finally:
        work.close()

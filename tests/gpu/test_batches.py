"""Batches on a device are those of the CPU, bit for bit, drawn ahead or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bc.dataset import DatasetConfig, RobomimicDataset
from common_utils.ahead import Ahead
from common_utils.specs import Batch
from rl.replay import ReplayBuffer
from tests.bc.test_dataset import write_robomimic
from tests.replay.test_buffer import FakeTask, drive, make


def tensors(batch: Batch) -> list[torch.Tensor]:
    found = [*batch.obs.values(), *batch.next_obs.values(), batch.action, batch.reward]
    return [*found, batch.bootstrap, batch.bc_action, batch.next_bc_action]


def busy(device: str) -> None:
    """Work that takes the device longer than the host needs to draw a batch."""
    x = torch.rand(2048 if device == "cuda" else 8, 2048 if device == "cuda" else 8, device=device)
    for _ in range(20):
        x = x @ x
        x = x / x.norm()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_replay(prefetch: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ahead, "on_cpu", True)
    ours, plain = make(prefetch=prefetch), make()
    tasks = FakeTask(0), FakeTask(0)
    ahead = Ahead[Batch](ours, torch.device(device))

    def draw(buffer: ReplayBuffer, where: str) -> Batch:
        return buffer.sample_rl_bc(64, 32, where)

    for buffer, task in zip((ours, plain), tasks, strict=True):
        drive(buffer, task, 60, draw=False)
    for _ in range(20):
        for _ in range(5):
            got, want = ahead.take(draw, ours, device), draw(plain, "cpu")
            busy(device)
            ahead.prepare(draw, ours, device)
            for a, b in zip(tensors(got), tensors(want), strict=True):
                assert a.device.type == device
                assert torch.equal(a.cpu(), b)
        for buffer, task in zip((ours, plain), tasks, strict=True):
            drive(buffer, task, 9, draw=False)


def test_resident_replay(device: str) -> None:
    where = torch.device(device)
    ours, plain = make(resident=where, replay_size=4), make(replay_size=4)
    tasks = FakeTask(0), FakeTask(0)
    for _ in range(20):
        for buffer, task in zip((ours, plain), tasks, strict=True):
            drive(buffer, task, 11, draw=False)
        if plain.size(bc=True) == 0:
            continue
        for _ in range(3):
            got, want = ours.sample_rl_bc(64, 32, device), plain.sample_rl_bc(64, 32)
            busy(device)
            for a, b in zip(tensors(got), tensors(want), strict=True):
                assert a.device.type == device
                assert torch.equal(a.cpu(), b)


def test_demonstrations(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ahead, "on_cpu", True)
    file = write_robomimic(tmp_path / "data.hdf5", size=8)
    ours, plain = (RobomimicDataset(DatasetConfig(path=str(file), use_state=1)) for _ in range(2))
    ahead = Ahead[Any](ours, torch.device(device))
    for _ in range(10):
        got, want = ahead.take(ours.sample_bc, 16, device), plain.sample_bc(16)
        busy(device)
        ahead.prepare(ours.sample_bc, 16, device)
        assert got.action.device.type == device
        assert torch.equal(got.obs["state"].cpu(), want.obs["state"])
        assert torch.equal(got.action.cpu(), want.action)

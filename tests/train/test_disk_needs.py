"""What a run will write is counted before it writes, and compared with what it then writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import train_bc
from bc.dataset import DatasetConfig
from common_utils import resources
from common_utils.resources import Need, ResourceError
from tests.bc.ibc_data import write_particle
from workspace.disk_needs import disk_needs


def test_networks_moments_and_kept_weights_are_counted() -> None:
    net = nn.Linear(9, 10)  # 100 numbers, 400 bytes
    needs = disk_needs(net, 3, Need(1000, "replay_buffer_size"))
    assert needs["networks in states"].bytes == 2 * 3 * 400
    assert needs["weights"].bytes == (3 + 2) * 400
    assert needs["replay in states"] == Need(2000, "replay_buffer_size")
    assert disk_needs(net.requires_grad_(False), 1)["networks in states"].bytes == 2 * 400


def config(folder: Path) -> train_bc.MainConfig:
    dataset = DatasetConfig(path=str(write_particle(folder / "d.hdf5")), use_state=1)
    run = str(folder / "run")
    cfg = train_bc.MainConfig(dataset=dataset, save_dir=run, num_epoch=2, epoch_len=2)
    cfg.batch_size, cfg.num_eval_episode, cfg.state_policy.hidden_dim = 4, 0, 400
    return cfg


def test_a_bc_run_writes_no_more_than_it_said(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    work = train_bc.run(cfg)
    needs = disk_needs(work.policy, work.protocol.topk)
    run = tmp_path / "run"
    weights = sum(path.stat().st_size for path in run.glob("*.pt"))
    states = sum(path.stat().st_size for path in run.glob("state/*/tree.pt"))
    assert 0.5 * needs["weights"].bytes < weights <= needs["weights"].bytes
    assert 0.7 * needs["networks in states"].bytes < states
    assert states <= 1.1 * needs["networks in states"].bytes
    assert all(torch.isfinite(p).all() for p in work.policy.parameters())


def test_a_bc_run_that_does_not_fit_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 1 << 20
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda _: usage)
    said = (
        r"MiB of disk \(.*run\) \(networks in states .*, weights .*\), but 1\.0 MiB are available"
    )
    with pytest.raises(ResourceError, match=f"{said}; free some, or choose another folder"):
        train_bc.run(config(tmp_path))
    assert not (tmp_path / "run").exists()

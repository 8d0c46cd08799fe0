"""Networks that cannot fit are refused by the field's name, before anything is made or written."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train_bc
import train_rl
from common_utils import run_config
from common_utils.resources import ResourceError
from common_utils.run_config import ConfigError
from common_utils.specs import ArraySpec, EnvSpec
from networks.encoder import DrQEncoder, ResNet96Encoder, ResNetEncoder, VitEncoder
from networks.encoder import ResNetEncoderConfig as ResNetConfig
from networks.encoder import VitEncoderConfig as VitConfig
from workspace.build_policy import build_policy
from workspace.network_memory import agent_footprint, check_agent, check_policy, policy_footprint
from workspace.prepare_rl import check_storage

STATE = ["--dataset.use_state", "1", "--device", "cpu"]
SPEC = EnvSpec(
    "particle", "none",
    {"state": ArraySpec((8,)), "eye": ArraySpec((3, 96, 96), "uint8"), "prop": ArraySpec((4,))},
    action_dim=2, horizon=50, cameras=("eye",),
)  # fmt: skip


def bc(*args: str, shape: tuple[int, ...] = (8,)) -> train_bc.MainConfig:
    cfg = run_config.parse_args(train_bc.MainConfig, args)
    cfg.obs_shape, cfg.action_dim, cfg.device = list(shape), 2, "cpu"
    return cfg


def spec_of(cfg: train_rl.MainConfig) -> EnvSpec:
    size = cfg.rl_image_size
    return replace(
        SPEC, observations={**SPEC.observations, "eye": ArraySpec((3, size, size), "uint8")}
    )


def rl(*args: str) -> train_rl.MainConfig:
    options = ["--rl_camera", "eye", "--q_agent.device", "cpu", *args]
    return run_config.parse_args(train_rl.MainConfig, options)


@pytest.mark.parametrize(
    "args, field",
    [
        (["--policy_type", "state", "--state_policy.hidden_dim", "16384",
          "--state_policy.num_layer", "64"], "state_policy.hidden_dim: 16384"),
        (["--policy_type", "state", "--batch_size", "1048576", "--state_policy.hidden_dim",
          "4096", "--state_policy.num_layer", "16"], "batch_size: 1048576"),
        (["--policy_type", "ebm", "--ebm.num_counter_examples", "1000000"],
         "ebm.num_counter_examples: 1000000"),
        (["--policy_type", "ebm", "--ebm.net.width", "16384", "--ebm.net.depth", "256"],
         "ebm.net.width: 16384"),
    ],
)  # fmt: skip
def test_a_policy_that_cannot_fit(
    args: list[str], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workspace.network_memory.available_memory", lambda: 16 * 2**30)
    with pytest.raises(ResourceError) as error:
        check_policy(bc(*STATE, *args))
    assert str(error.value).startswith(f"{field}, expected less (default ")
    assert "16.0 GiB of memory are available" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "args, field",
    [
        (["--use_state", "1", "--q_agent.state_critic.num_q", "1000",
          "--q_agent.state_critic.num_layer", "5"],
         "q_agent.state_critic.num_q: 1000"),
        (["--use_state", "1", "--batch_size", "1048576"], "batch_size: 1048576"),
        (["--rl_image_size", "4096"], "rl_image_size: 4096"),
        (["--q_agent.vit.depth", "64", "--q_agent.vit.embed_dim", "8192"],
         "q_agent.vit.embed_dim: 8192"),
        (["--replay_prefetch", "64", "--batch_size", "16384", "--q_agent.enc_type", "resnet96"],
         "batch_size: 16384"),
    ],
)  # fmt: skip
def test_an_agent_that_cannot_fit(
    args: list[str], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workspace.network_memory.available_memory", lambda: 16 * 2**30)
    with pytest.raises(ResourceError) as error:
        check_agent(rl(*args), spec_of(rl(*args)))
    assert str(error.value).startswith(f"{field}, expected less (default ")


def test_the_published_networks_fit_and_the_count_is_that_of_the_real_ones() -> None:
    for args in (["--use_state", "1"], ["--q_agent.enc_type", "resnet"], []):
        check_agent(rl(*args), SPEC)
        assert agent_footprint(rl(*args), SPEC, 0).total < 2 * 2**30
    before = torch.random.get_rng_state()
    for kind, shape in (("state", (8,)), ("ebm", (8,)), ("pixel", (3, 96, 96)),
                        ("ebm", (3, 96, 96)), ("metaworld", (3, 96, 96))):  # fmt: skip
        cfg = bc("--policy_type", kind, *(STATE if len(shape) == 1 else []), shape=shape)
        found = policy_footprint(cfg)
        assert torch.equal(torch.random.get_rng_state(), before), "seeds count from here on"
        check_policy(cfg)
        real = build_policy(cfg)
        torch.random.set_rng_state(before)
        assert found.weights == 16 * sum(p.numel() for p in real.parameters())
        assert found.total < 2**32


def test_it_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    cfg = rl(
        *["--suite", "particle", "--task_name", "PARTICLE_2d", "--use_state", "1"],
        *["--q_agent.state_critic.hidden_dim", "16384", "--q_agent.state_critic.num_q", "1000"],
        *["--save_dir", str(tmp_path / "run")],
    )
    with pytest.raises(ResourceError, match=r"q_agent.state_critic.hidden_dim: 16384"):
        train_rl.run(cfg)
    assert not (tmp_path / "run" / "cfg.yaml").exists()


@pytest.mark.parametrize(
    "make, least",
    [
        (lambda shape: ResNetEncoder(shape), 36),
        (lambda shape: ResNetEncoder(shape, ResNetConfig(norm_layer="bn")), 4),
        (lambda shape: ResNet96Encoder(shape), 9),
        (lambda shape: VitEncoder(shape), 8),
        (lambda shape: VitEncoder(shape, VitConfig(embed_style="embed2")), 16),
        (lambda shape: DrQEncoder(shape), 1),
    ],
)
def test_the_least_image_is_reported_and_works(make: Any, least: int) -> None:
    assert make((3, least, least)).repr_dim > 0
    if least > 1:
        with pytest.raises(ValueError, match=f"expected at least {least} x {least}"):
            make((3, least - 1, least - 1))


def test_small_images_are_refused_by_name() -> None:
    cfg = bc("--policy_type", "pixel", shape=(3, 32, 32))
    with pytest.raises(ConfigError, match=r"rl_image_size: 32 x 32, expected at least 3. x 3. for"):
        build_policy(cfg)
    cfg = rl("--q_agent.enc_type", "resnet", "--rl_image_size", "24")
    with pytest.raises(ConfigError, match=r"^rl_image_size: 24 x 24, expected at least .* q_agent"):
        check_agent(cfg, spec_of(cfg))


def test_the_folder_of_a_replay_can_be_made_or_is_refused(tmp_path: Path) -> None:
    check_storage(str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()  # other options may still be refused
    (tmp_path / "file").touch()
    missing, long = tmp_path / "none" / "new", tmp_path / ("x" * 300)
    for path in ("", str(missing), str(tmp_path / "file"), str(long)):
        with pytest.raises(
            ConfigError, match="^replay_storage: '.*', expected ram, cuda or a folder"
        ):
            check_storage(path)
    if os.getuid():
        (tmp_path / "new").mkdir(0o500)
        with pytest.raises(ConfigError, match="replay_storage: .*Permission denied"):
            check_storage(str(tmp_path / "new"))

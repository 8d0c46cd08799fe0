"""Values that make no sense are refused by name: the ones that once passed, and ranges for all."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import pytest

import train_bc
import train_rl
from common_utils import run_config
from common_utils.config_kinds import every_kind
from common_utils.config_types import is_switch
from common_utils.run_config import ConfigError, field_types
from tests.fuzz.configs import PROGRAMS, is_numeric, kinds_of, plain_kind

RL: dict[str, list[Any]] = {
    "seed": [-1],
    "stddev_max": [-1, "inf"],
    "stddev_min": ["nan", -1],
    "stddev_step": [0, -5],
    "env_reward_scale": [0, -1, "nan"],
    "end_on_success": [7, -3],
    "use_bc": [7, -3],
    "rl_image_size": [-5],
    "replay_threads": [1000, 0],
    "torch_threads": [100000, -1],
    "kernel_threads": [100000, -1],
    "discount": [0, 1.5, "nan"],
    "mix_rl_rate": [-0.5, 2, "nan"],
    "q_agent.critic.hidden_dim": [0, -8],
    "q_agent.state_critic.num_layer": [-1],
    "q_agent.state_actor.dropout": [-1, 1],
    "q_agent.vit.depth": [-1],
    "q_agent.vit.patch_size": [1000, 0],
}
BC: dict[str, list[Any]] = {
    "seed": [-1],
    "ema": [-5, 2, "nan", "inf"],
    "lr": [0, -1, "nan", "inf"],
    "kernel_threads": [100000, -1],
    "save_per": [-2],
}
NET = [-1, "nan", "[1]", "1e9", "word", "{}", "inf"]
# in the units of the file; that low is below high is checked
ANY_NUMBER = {"dataset.action_low", "dataset.action_high"}


def refused(config_class: Any, options: list[str], name: str, value: object) -> None:
    with pytest.raises(ConfigError) as error:
        run_config.parse_args(config_class, [*options, f"--{name}={value}"])
    text = str(error.value)
    assert f"{name}: expected " in text and "\n" not in text and str(value).strip("[]") in text


@pytest.mark.parametrize("name", RL)
def test_of_train_rl(name: str) -> None:
    for value in RL[name]:
        refused(train_rl.MainConfig, [], name, value)


@pytest.mark.parametrize("name", BC)
def test_of_train_bc(name: str) -> None:
    for value in BC[name]:
        refused(train_bc.MainConfig, [], name, value)


@pytest.mark.parametrize("kind", ["ebm", "mdn", "mse"])
def test_of_networks(kind: str) -> None:
    own = every_kind(train_bc.MainConfig)[kind]
    names = [name for name in field_types(own) if name.startswith(f"{kind}.net.")]
    assert len(names) >= 5
    for name in names:
        for value in NET:
            refused(own, ["--policy_type", kind], name, value)


@pytest.mark.parametrize("rate, batch", [(0.01, 8), (0.0, 256), (0.003, 256)])
def test_a_share_that_rounds_to_nothing(rate: float, batch: int) -> None:
    options = ["--mix_rl_rate", str(rate), "--batch_size", str(batch), "--preload_num_data", "3"]
    message = rf"mix_rl_rate: {rate}, expected at least one transition of batch_size {batch}"
    with pytest.raises(ConfigError, match=message):
        run_config.parse_args(train_rl.MainConfig, options)


def declares_a_range(kind: Any) -> bool:
    inner, limits = plain_kind(kind)
    if get_origin(inner) is list:
        return declares_a_range(get_args(inner)[0]) or bool(limits)
    return is_switch(kind) or get_origin(inner) is Literal or bool(limits)


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_number_declares_a_range(program: str) -> None:
    """A bare int or float would make any value legal, for the other generated tests too."""
    for own, _ in kinds_of(PROGRAMS[program]):
        numbers = {n: kind for n, kind in field_types(own).items() if is_numeric(kind)}
        bare = {name for name, kind in numbers.items() if not declares_a_range(kind)}
        assert bare <= ANY_NUMBER
    assert not declares_a_range(float) and not declares_a_range(list[int])

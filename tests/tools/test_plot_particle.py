"""tools.plot_particle: the images are of what was played, the energies are the network's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bc.ibc.ebm_policy import EbmPolicy, EbmPolicyConfig
from bc.ibc.landscape import energies
from bc.normalized import NormConfig
from common_utils.errors import run_program
from env.factory import make_env
from networks.ibc.mlp import MLPConfig
from tools.plot_particle import energy_landscape, main, play


@pytest.fixture
def policy() -> EbmPolicy:
    torch.manual_seed(0)
    cfg = EbmPolicyConfig(
        net=MLPConfig(width=16, depth=2, rate=0.0),
        norm=NormConfig(min_max_actions=1),
        num_action_samples=8,
        use_langevin=0,
        use_dfo=1,
    )
    policy = EbmPolicy("state", (16,), 2, 2, cfg)
    policy.fit_actions(torch.tensor([[-0.5, -0.8], [0.9, 0.7]]))
    return policy.eval()


def size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as picture:
        assert len(set(picture.convert("L").tobytes())) > 10  # not blank
        return picture.size


def test_energies_are_the_networks(policy: EbmPolicy) -> None:
    rng = np.random.default_rng(0)
    obs = {"state": torch.from_numpy(rng.standard_normal(16).astype(np.float32))}
    actions = torch.from_numpy(rng.uniform(-1, 1, (5, 2)).astype(np.float32))
    oldest_first = obs["state"].view(2, 8).flip(0).reshape(1, 16)
    normalized = policy.act_norm.normalize(actions)
    wanted = -policy.net(oldest_first, normalized[None])[0]
    torch.testing.assert_close(energies(policy, obs, actions), wanted.detach())


def test_an_implicit_policys_episode_and_landscape(policy: EbmPolicy, tmp_path: Path) -> None:
    env = make_env({"suite": "particle", "task": "PARTICLE_2d", "state_stack": 2})
    episode = play(env, 3, policy)
    assert episode.path.shape == (501, 2) and episode.actions.shape == (50, 2)
    np.testing.assert_allclose(episode.setpoints, (episode.actions + 1) / 2, atol=1e-6)
    again = play(env, 3, policy)  # its draws follow from the seed
    np.testing.assert_array_equal(episode.actions, again.actions)
    path = energy_landscape(policy, episode, [0, 20], tmp_path / "energy.png", resolution=11)
    width, height = size(path)
    assert width > height > 200


@pytest.mark.parametrize("task", ["PARTICLE_2d", "PARTICLE_3d"])
def test_oracle_from_the_command_line(task: str, tmp_path: Path, capsys) -> None:
    assert run_program(main, ["--task", task, "--num", "2", "--out", str(tmp_path / "plots")]) == 0
    path = tmp_path / "plots" / "trajectories.png"
    assert str(path) in capsys.readouterr().out
    width, height = size(path)
    assert width > height


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--task", "PARTICLE_0d"], "PARTICLE_0d"),
        (["--task", "PARTICLE_2d", "--energy"], "implicit (EBM) policy"),
        (["--weight", "no/model0.pt"], "no/model0.pt"),
    ],
)
def test_what_cannot_be_drawn_is_reported(options: list[str], says: str, capsys) -> None:
    assert run_program(main, options) == 2
    assert says in capsys.readouterr().err

"""PixelMetaWorld: the original program's constructor and tuples."""

from __future__ import annotations

import numpy as np
import torch

from env.metaworld_wrapper import PixelMetaWorld


def test_constructor_tuples_and_scripted_action():
    options = dict(rl_image_size=96, device="cpu", camera_names=[], rl_camera="corner2")
    env = PixelMetaWorld("CoffeePush", ["Sawyer"], 100, 2, 1, 1, use_state=True, **options)
    assert env.observation_shape == (39,) and env.prop_shape == (4,) and env.action_dim == 4
    obs, images = env.reset()
    assert obs["state"].dtype == torch.float32 and images == {}
    assert torch.equal(obs["prop"], obs["state"][:4])
    steps, terminal = 0, False
    while not terminal:
        action = env.get_heuristic_action(clip=True)
        assert np.abs(action).max() <= 1
        move = torch.from_numpy(action) if steps % 2 else action  # both kinds are taken
        obs, reward, terminal, success, _ = env.step(move)
        steps += 1
        assert reward == float(success) == float(terminal)
    assert 20 <= steps <= 40
    first, second = env.reset()[0]["state"], env.reset()[0]["state"]
    assert not torch.equal(first, second), "episodes follow each other's seeds"
    assert torch.equal(env.reset(seed=1)[0]["state"], first)
    _, total, _, _, _ = env.step(np.zeros((3, 4), np.float32))  # open loop
    assert total == 0.0
    env.close()

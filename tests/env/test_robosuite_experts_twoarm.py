"""The scripted expert of TwoArmTransport, in the real simulation."""

from __future__ import annotations

import numpy as np
import pytest

from env.robosuite.control import Noise, body_pose
from env.robosuite.experts import task_expert
from env.robosuite.sim import TASKS, make_sim, reset_sim, step_sim

TASK = "TwoArmTransport"


@pytest.fixture(scope="module")
def env():
    return make_sim(TASK)


@pytest.mark.parametrize(("seed", "head_here"), [(1, False), (4, True)])
def test_the_hammer_is_handed_over_whichever_way_it_lies(env, seed, head_here):
    reset_sim(env, seed)
    expert = task_expert(TASK, env, seed, Noise.of(0.1))
    axis = body_pose(env, env.transport.payload.root_body)[1][:, 2]  # of the handle, to the head
    assert (axis[1] < 0) == head_here
    phases: list[str] = []
    success = False
    for _ in range(TASKS[TASK].horizon):
        action = expert.act()
        assert action.dtype == np.float32 and action.shape == (14,)
        assert np.abs(action).max() <= 1
        phases += [p for p in expert.phase.split("/") if p not in phases]
        success = step_sim(env, action)
        if success:
            break
    assert success, f"ended in {expert.phase}"
    assert phases[:2] == ["over_lid", "over_trash"]
    assert phases.index("offer") < phases.index("hold") < phases.index("retreat")
    assert env.transport.payload_in_target_bin and env.transport.trash_in_trash_bin


def test_the_episode_follows_from_its_seeds(env):
    def actions(expert_seed: int) -> np.ndarray:
        reset_sim(env, 3)
        expert = task_expert(TASK, env, expert_seed, Noise.of(0.2))
        out = []
        for _ in range(10):
            out.append(expert.act())
            step_sim(env, out[-1])
        return np.array(out)

    one = actions(1)
    np.testing.assert_array_equal(one, actions(1))
    assert np.abs(one - actions(2)).max() > 0.1
    assert np.abs(one[:, :6] - one[:, 7:13]).max() > 0.1  # each arm has its own noise

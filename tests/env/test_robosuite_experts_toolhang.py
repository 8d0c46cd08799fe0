"""The scripted expert of ToolHang, in the real simulation."""

from __future__ import annotations

import numpy as np
import pytest

from env.robosuite.control import Noise, body_pose
from env.robosuite.experts import task_expert
from env.robosuite.sim import TASKS, make_sim, reset_sim, step_sim

TASK = "ToolHang"
STAGES = ["frame grasped", "frame inserted", "tool grasped"]


@pytest.fixture(scope="module")
def env():
    return make_sim(TASK)


def play(env, expert, until=None) -> bool:
    """Whether the task was solved within its limit, or before the phase ``until``."""
    for _ in range(TASKS[TASK].horizon):
        action = expert.act()
        assert action.dtype == np.float32 and action.shape == (7,)
        assert np.abs(action).max() <= 1
        if expert.phase == until:
            return False
        if step_sim(env, action):
            return True
    return False


@pytest.mark.parametrize(("seed", "noise"), [(0, 0.0), (3, 0.1)])
def test_the_frame_is_inserted_and_the_tool_hung(env, seed, noise):
    reset_sim(env, seed)
    expert = task_expert(TASK, env, seed, Noise.of(noise))
    assert body_pose(env, "frame_root")[1][2, 2] == pytest.approx(0, abs=0.1)  # the rod lies flat
    assert play(env, expert), f"ended in {expert.phase}, achieved {list(expert.achieved)}"
    assert list(expert.achieved) == STAGES
    assert expert.phase in ("release_tool", "leave_tool")
    # nothing holds it up but the hook: it still hangs there a second later
    for _ in range(20):
        hangs = step_sim(env, expert.act())
    assert hangs
    assert body_pose(env, "frame_root")[1][2, 2] > 0.99
    assert body_pose(env, "tool_root")[1][2, 0] < -0.9  # the handle points down


def test_a_frame_taken_from_the_hand_is_picked_up_again(env):
    reset_sim(env, 1)
    expert = task_expert(TASK, env, 1, Noise())
    start = env.sim.data.get_joint_qpos("frame_joint0").copy()
    assert not play(env, expert, until="turn_frame")
    env.sim.data.set_joint_qpos("frame_joint0", start)
    env.sim.data.set_joint_qvel("frame_joint0", np.zeros(6))
    env.sim.forward()
    expert.act()
    assert expert.phase == "over_frame"
    assert not play(env, expert, until="bring_tool")
    assert list(expert.achieved) == STAGES
    assert env._check_frame_assembled()


def test_stages_are_counted_only_when_they_are_seen(env):
    reset_sim(env, 2)
    expert = task_expert(TASK, env, 2, Noise())
    far = np.array([-0.3, 0.35, 0.83, 1, 0, 0, 0])
    env.sim.data.set_joint_qpos("tool_joint0", far)
    env.sim.forward()
    assert not play(env, expert, until="over_tool")
    assert list(expert.achieved) == STAGES[:2]

"""The control loop in C++ against robosuite's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from env.robosuite import sim as robosuite_sim
from env.robosuite.fast import FastLoop, fits
from env.robosuite.sim import make_sim, reset_sim, sim_state, step_sim


def actions(number: int, dim: int, scale: float = 1.0) -> np.ndarray:
    moves = np.random.default_rng(0).uniform(-scale, scale, (number, dim))
    moves[1, :6] = 0  # robosuite 1.5 re-anchors the orientation at zero rotation
    return moves


def differences(ours: Any, theirs: Any, moves: np.ndarray) -> np.ndarray:
    """Largest difference of the simulators' states after each step, ours fast, theirs not."""
    out = []
    for move in moves:
        step_sim(ours, move)
        theirs.step(move)
        out.append(np.abs(sim_state(ours) - sim_state(theirs)).max())
    return np.array(out)


@pytest.mark.parametrize(
    "task, tolerance",
    [("Lift", 1e-12), ("PickPlaceCan", 1e-12), ("ToolHang", 1e-12), ("TwoArmTransport", 1e-9)],
)
def test_steps_agree_to_rounding(task, tolerance):
    """Contacts amplify any difference (Transport's objects touch from the start), so it is the
    first steps that are compared."""
    ours, theirs = make_sim(task), make_sim(task)
    assert fits(ours)
    for seed in (0, 1):
        reset_sim(ours, seed)
        reset_sim(theirs, seed)
        found = differences(ours, theirs, actions(4, ours.action_dim))
        assert found[0] < 1e-12 and found.max() < tolerance, found
        assert ours.cur_time == theirs.cur_time and ours.timestep == theirs.timestep == 4


def test_steps_agree_with_absolute_actions_and_after_hard_resets():
    ours, theirs = (make_sim("Lift", delta=False, hard_reset=True) for _ in range(2))
    for seed in (0, 1):
        reset_sim(ours, seed)
        reset_sim(theirs, seed)
        hand = ours.sim.data.site_xpos[ours.robots[0].eef_site_id["right"]]
        move = np.concatenate([hand + (0.03, -0.02, -0.04), [3.1, 0.1, 0.0], [1.0]])
        found = differences(ours, theirs, np.repeat(move[None], 8, axis=0))
        assert found.max() < 1e-12, found


def test_without_the_module_steps_are_robosuites(monkeypatch):
    ours, theirs = make_sim("Lift"), make_sim("Lift")
    monkeypatch.setattr(robosuite_sim, "fits", lambda env: False)
    reset_sim(ours, 0)
    reset_sim(theirs, 0)
    assert differences(ours, theirs, actions(3, 7)).max() == 0.0


def test_a_singular_arm_gets_finite_torques():
    sim = make_sim("Lift")
    reset_sim(sim, 0)
    arm = sim.robots[0]
    step_sim(sim, np.zeros(7))
    sim.sim.data.qpos[arm._ref_joint_pos_indexes] = 0.0  # stretched out: no inverse
    sim.sim.data.qvel[:] = 0.0
    sim.sim.forward()
    FastLoop(sim).step(sim, np.array([0.5, 0, 0.5, 0, 0, 0, 0]), 1)
    torques = sim.sim.data.ctrl[arm._ref_actuators_indexes_dict["right"]]
    limits = sim.sim.model.actuator_ctrlrange[arm._ref_actuators_indexes_dict["right"]]
    assert np.isfinite(torques).all()
    assert (limits[:, 0] <= torques).all() and (torques <= limits[:, 1]).all()

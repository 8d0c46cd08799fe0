"""The scripted robosuite experts and their control law, in the real simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from env.core import EnvError
from env.robosuite.control import CLOSE, OPEN, Arm, ArmExpert, Goal, Noise, body_pose, wrapped
from env.robosuite.experts import task_expert
from env.robosuite.sim import TASKS, make_sim, reset_sim, step_sim


@pytest.fixture(scope="module")
def sims():
    """Simulations by task, each made once."""
    made: dict = {}

    def get(task: str, seed: int):
        if task not in made:
            made[task] = make_sim(task)
        reset_sim(made[task], seed)
        return made[task]

    return get


def play(env, expert, limit: int) -> tuple[int, list[np.ndarray], list[str]]:
    """(steps to success or -1, actions, phases gone through)."""
    actions: list[np.ndarray] = []
    phases: list[str] = []
    for _ in range(limit):
        actions.append(expert.act())
        if not phases or phases[-1] != expert.phase:
            phases.append(expert.phase)
        if step_sim(env, actions[-1]):
            return len(actions), actions, phases
    return -1, actions, phases


# ---------------------------------------------------------------- control law


def test_the_action_is_the_way_to_the_goal_in_the_controllers_units(sims):
    arm = Arm(sims("Lift", 0))
    turn = Rotation.from_rotvec([0.0, 0.1, -0.2]).as_matrix()
    goal = Goal(arm.position + [0.01, -0.02, 0.03], turn @ arm.rotation, CLOSE)
    expected = [0.2, -0.4, 0.6, 0.0, 0.2, -0.4, 1.0]
    np.testing.assert_allclose(arm.action(goal), expected, atol=1e-9)


def test_beyond_one_step_the_direction_is_kept(sims):
    arm = Arm(sims("Lift", 0))
    turn = Rotation.from_rotvec([0.0, 0.8, -1.6]).as_matrix()
    goal = Goal(arm.position + [0.1, -0.2, 0.4], turn @ arm.rotation, OPEN)
    expected = [0.25, -0.5, 1.0, 0.0, 0.5, -1.0, -1.0]
    np.testing.assert_allclose(arm.action(goal), expected, atol=1e-9)


@pytest.mark.parametrize("yaw", [-2.5, -1.0, 0.0, 0.7, 1.6, 3.0])
def test_tool_down_rotations(sims, yaw):
    arm = Arm(sims("Lift", 0))
    rotation = arm.down(yaw)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(rotation[:, 2], [0, 0, -1], atol=1e-12)
    # fingers open along the asked direction: a wrist turn of at most 90 degrees (and the tilt)
    axis = rotation @ arm.rotation.T @ arm.opening_axis
    assert abs(axis @ [np.cos(yaw), np.sin(yaw), 0]) > 0.99
    angle = Rotation.from_matrix(rotation @ arm.rotation.T).magnitude()
    assert angle < np.pi / 2 + 0.2


@pytest.mark.parametrize("number", [0, 1])
def test_an_arm_reaches_its_target(sims, number):
    """Both arms of TwoArmTransport, whose bases are turned by +90 and -90 degrees."""
    env = sims("TwoArmTransport", 3)
    arm = Arm(env, number)
    # the same pose at every step: a goal of its own, not relative to the moving hand
    goal = Goal(arm.position + [0.06, 0.05, -0.08], arm.down(0.3), OPEN)
    assert arm.errors(goal)[0] > 0.1
    for _ in range(60):
        action = np.zeros(14)
        action[7 * number : 7 * number + 7] = arm.action(goal)
        step_sim(env, action)
    distance, angle = arm.errors(goal)
    assert distance < 0.02 and angle < 0.05  # in this pose the arm creeps for the last 2 cm


def test_noise_spares_the_gripper_and_stays_in_range(sims):
    class Still(ArmExpert):
        def hover(self) -> Goal:
            return Goal(self.arm.position, self.arm.rotation, CLOSE)

    env = sims("Lift", 0)
    quiet = Still(env, 5, Noise()).act()
    np.testing.assert_allclose(quiet, [0, 0, 0, 0, 0, 0, 1], atol=1e-6)
    expert = Still(env, 5, Noise(0.2))
    noisy = np.array([expert.act() for _ in range(2000)])
    assert noisy.dtype == np.float32 and (noisy[:, 6] == 1).all()
    np.testing.assert_allclose(noisy.std(0)[:6], [0.2] * 3 + [0.1] * 3, rtol=0.08)
    wild = Still(env, 5, Noise(2.0))
    assert max(np.abs(wild.act()).max() for _ in range(50)) == 1


def test_jitter_follows_the_noise():
    assert [Noise.of(s).jitter for s in (0.0, 0.1, 0.2, 0.4)] == pytest.approx(
        [0, 0.015, 0.03, 0.03]
    )


def test_wrapped():
    assert wrapped(3 * np.pi / 2) == pytest.approx(-np.pi / 2)
    assert wrapped(np.pi * 0.6, np.pi / 2) == pytest.approx(np.pi * 0.1)


# ---------------------------------------------------------------- experts


@pytest.mark.parametrize(
    ("task", "seeds"),
    [("Lift", range(6)), ("PickPlaceCan", range(3)), ("NutAssemblySquare", range(3))],
)
def test_experts_succeed_within_the_time_limit(sims, task, seeds):
    for seed in seeds:
        env = sims(task, seed)
        steps, actions, _ = play(env, task_expert(task, env, 7, Noise.of(0.1)), TASKS[task].horizon)
        assert steps > 0, f"{task}, seed {seed}"
        assert actions[0].dtype == np.float32 and actions[0].shape == (7,)
        assert np.abs(actions).max() <= 1


def test_the_episode_follows_from_its_seeds(sims):
    def actions(expert_seed: int) -> np.ndarray:
        env = sims("Lift", 4)
        return np.array(play(env, task_expert("Lift", env, expert_seed, Noise.of(0.2)), 15)[1])

    np.testing.assert_array_equal(actions(1), actions(1))
    assert np.abs(actions(1) - actions(2)).max() > 0.1


def put(env, joint: str, pos, quat=(1, 0, 0, 0)) -> None:
    """Place a free body somewhere, at rest."""
    env.sim.data.set_joint_qpos(joint, np.array([*pos, *quat], np.float64))
    env.sim.data.set_joint_qvel(joint, np.zeros(6))
    env.sim.forward()


def test_a_lost_can_is_fetched_again(sims):
    env = sims("PickPlaceCan", 1)
    expert = task_expert("PickPlaceCan", env, 7, Noise())
    while expert.phase != "carry":
        step_sim(env, expert.act())
    put(env, "Can_joint0", [0.05, -0.2, 0.87])  # back into the bin it came from
    steps, _, phases = play(env, expert, 200)
    assert steps > 0 and phases[:2] == ["hover", "descend"]


def test_a_can_that_lies_on_its_side_is_grasped_across(sims):
    env = sims("PickPlaceCan", 2)
    place = body_pose(env, "Can_main")[0]
    put(
        env,
        "Can_joint0",
        [*place[:2], 0.84],
        Rotation.from_euler("y", 90, degrees=True).as_quat(scalar_first=True),
    )
    for _ in range(5):  # it may roll a little
        step_sim(env, np.zeros(7))
    assert abs(body_pose(env, "Can_main")[1][2, 2]) < 0.3
    steps, _, _ = play(env, task_expert("PickPlaceCan", env, 7, Noise()), 200)
    assert steps > 0


def test_a_lost_nut_is_fetched_again(sims):
    env = sims("NutAssemblySquare", 1)
    expert = task_expert("NutAssemblySquare", env, 7, Noise())
    while expert.phase != "carry":
        step_sim(env, expert.act())
    put(env, "SquareNut_joint0", [-0.11, 0.17, 0.83])
    steps, _, phases = play(env, expert, 300)
    assert steps > 0 and phases[0] == "hover"


def test_a_task_without_expert_is_reported(sims):
    with pytest.raises(EnvError, match="no scripted expert for robosuite task 'Door'"):
        task_expert("Door", sims("Lift", 0), 0, Noise())

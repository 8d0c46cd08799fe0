"""robosuite tasks: seeded, exact, as robosuite 1.4 gave them, without OpenGL."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from common_utils.robomimic_keys import STATE_DIMS
from common_utils.specs import SpecError
from env.config import EnvConfig
from env.core import EnvError
from env.factory import make_env
from env.robosuite.env import RobosuiteEnv
from env.robosuite.obs import observe, state_vector
from env.robosuite.sim import TASKS, make_sim, reset_sim, sim_state, step_sim
from env.robosuite_wrapper import PixelRobosuite

PAPER = ("Lift", "PickPlaceCan", "NutAssemblySquare", "TwoArmTransport", "ToolHang")
# the names of robosuite 1.5, in the order of 1.4's "object-state"
OBJECT_ORDER = {
    "Lift": ["cube_pos", "cube_quat", "gripper_to_cube_pos"],
    "PickPlaceCan": ["Can_pos", "Can_quat", "Can_to_robot0_eef_pos", "Can_to_robot0_eef_quat"],
    "NutAssemblySquare": [
        f"SquareNut_{x}" for x in ("pos", "quat", "to_robot0_eef_pos", "to_robot0_eef_quat")
    ],
    "TwoArmTransport": [
        *(f"{thing}_{x}" for thing in ("payload", "trash", "lid_handle") for x in ("pos", "quat")),
        *("target_bin_pos", "trash_bin_pos", "gripper0_to_payload", "gripper0_to_lid_handle"),
        *("gripper1_to_payload", "gripper1_to_trash"),
        *("payload_in_target_bin", "trash_in_trash_bin"),
    ],
    "ToolHang": [
        *(
            f"{thing}_{x}"
            for thing in ("base", "frame", "tool")
            for x in ("pos", "quat", "to_robot0_eef_pos", "to_robot0_eef_quat")
        ),
        *("frame_is_assembled", "tool_on_frame"),
    ],
}


@pytest.fixture(scope="module")
def sims() -> dict[str, Any]:
    """One raw simulation of each task, made once."""
    return {task: make_sim(task) for task in PAPER}


def make(task: str = "Lift", **options: Any) -> RobosuiteEnv:
    env = make_env(EnvConfig(suite="robosuite", task=task, **{"use_state": 1, **options}))
    assert isinstance(env, RobosuiteEnv)
    return env


@pytest.fixture(scope="module")
def lift() -> RobosuiteEnv:
    return make(state_stack=3, prop_stack=2, episode_length=30)


def actions(number: int, dim: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (number, dim))


@pytest.mark.parametrize("task", PAPER)
def test_observations_are_those_of_robosuite_1_4(sims, task):
    sim = sims[task]
    reset_sim(sim, 5)
    for action in actions(4, sim.action_dim):
        sim.step(action)
    obs, theirs = observe(sim), sim._get_observations()
    for key in obs.keys() - {"object"}:
        np.testing.assert_array_equal(obs[key], theirs[key], err_msg=key)
    # 1.5's relative poses lag one reading: the second of two is the present one
    sim._get_observations(force_update=True)
    theirs = sim._get_observations(force_update=True)
    parts = [np.atleast_1d(theirs[name]) for name in OBJECT_ORDER[task]]
    if task == "Lift":  # 1.4: from the cube to the hand
        parts[2] = -parts[2]
    np.testing.assert_array_equal(obs["object"], np.concatenate(parts))
    assert state_vector(task, obs).shape == (STATE_DIMS[task],)
    assert STATE_DIMS[task] == dict(zip(PAPER, (19, 23, 23, 59, 53), strict=True))[task]
    assert TASKS[task].action_dim == sim.action_dim == (14 if "TwoArm" in task else 7)


@pytest.mark.parametrize("task", PAPER)
def test_an_episode_follows_from_its_seed(sims, task):
    """Whatever was played before, and whatever the global generator holds."""
    sim = sims[task]
    reset_sim(sim, 7)
    want = [sim_state(sim)]
    for action in actions(3, sim.action_dim):
        step_sim(sim, action)
        want.append(sim_state(sim))
    shown = observe(sim)["object"]
    reset_sim(sim, 8)
    assert np.abs(sim_state(sim) - want[0]).max() > 1e-3
    step_sim(sim, np.ones(sim.action_dim))
    np.random.seed(123)
    reset_sim(sim, 7)
    np.testing.assert_array_equal(sim_state(sim), want[0])
    for action, state in zip(actions(3, sim.action_dim), want[1:], strict=True):
        step_sim(sim, action)
        np.testing.assert_array_equal(sim_state(sim), state)
    np.testing.assert_array_equal(observe(sim)["object"], shown)


def _model_fields(sim: Any) -> dict[str, np.ndarray]:
    model = sim.sim.model._model
    fields = {n: getattr(model, n) for n in dir(model) if not n.startswith("_")}
    arrays = {n: np.array(v) for n, v in fields.items() if isinstance(v, np.ndarray)}
    arrays |= {n: np.array(getattr(model.stat, n)) for n in ("meaninertia", "extent", "center")}
    del arrays["mesh_polynormal"]  # differs from one compilation to the next
    return arrays


@pytest.mark.parametrize(
    "task, tolerance",
    [("Lift", 0.0), ("PickPlaceCan", 1e-12), ("TwoArmTransport", 0.0), ("NutAssemblySquare", 0.0)],
)
def test_fast_resets_are_robosuites_own(sims, task, tolerance):
    """The model that a hard reset compiles (Lift's cube, the hammer), and the same episode."""
    hard, soft = make_sim(task, hard_reset=True), sims[task]
    for seed in (1, 2) if task == "Lift" else (1,):
        reset_sim(hard, seed)
        reset_sim(soft, seed)
        theirs, ours = _model_fields(hard), _model_fields(soft)
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array, err_msg=name)
        np.testing.assert_array_equal(sim_state(soft), sim_state(hard))
        for action in actions(3, soft.action_dim):
            step_sim(soft, action)
            step_sim(hard, action)
        assert np.abs(sim_state(soft) - sim_state(hard)).max() <= tolerance


def test_cubes_differ_by_episode(sims):
    sizes = set()
    for seed in range(4):
        reset_sim(sims["Lift"], seed)
        sizes.add(tuple(sims["Lift"].cube.size))
    assert len(sizes) == 4
    assert all(0.020 <= x <= 0.022 for size in sizes for x in size)


@pytest.mark.parametrize("task", ["Lift", "NutAssemblySquare", "TwoArmTransport"])
def test_resuming_an_episode_is_exact(task):
    env = make(task, state_stack=3, episode_length=40)
    env.reset(seed=3)
    moves = actions(20, env.spec.action_dim)
    for action in moves[:12]:
        env.step(action)
    saved = env.state_dict()
    want = [env.step(action)[0] for action in moves[12:]]
    env.reset(seed=4)
    env.step(moves[0])
    env.load_state_dict(saved)
    for action, obs in zip(moves[12:], want, strict=True):
        got = env.step(action)[0]
        for key in obs:
            np.testing.assert_array_equal(got[key], obs[key])


def test_spec_stacks_and_time_limit(lift):
    assert lift.spec.horizon == 30 and lift.spec.action_dim == 7 and lift.spec.cameras == ()
    shapes = {k: (s.shape, s.dtype) for k, s in lift.spec.observations.items()}
    assert shapes == {"prop": ((18,), "float32"), "state": ((57,), "float32")}
    first, info = lift.reset(seed=1)
    assert info == {"success": False}
    assert not first["state"][19:].any() and first["state"][:19].any()
    np.testing.assert_array_equal(first["prop"][:9], first["state"][:9])
    second = lift.step(np.zeros(7))[0]
    np.testing.assert_array_equal(second["state"][19:38], first["state"][:19])
    for number in range(2, 31):
        _, reward, terminated, truncated, _ = lift.step(np.zeros(7))
        assert (reward, terminated, truncated) == (0.0, False, number == 30)
    with pytest.raises(EnvError, match="no episode is running"):
        lift.step(np.zeros(7))


def _raise_cube(env: RobosuiteEnv) -> None:
    joint = env._sim.cube.joints[0]
    pose = env._sim.sim.data.get_joint_qpos(joint).copy()
    pose[2] += 0.3
    env._sim.sim.data.set_joint_qpos(joint, pose)


@pytest.mark.parametrize("end_on_success", [0, 1])
def test_success_ends_the_episode_when_asked(end_on_success):
    env = make(end_on_success=end_on_success, env_reward_scale=2.0)
    env.reset(seed=0)
    assert env.step(np.zeros(7))[1:4] == (0.0, False, False)
    _raise_cube(env)
    _, reward, terminated, truncated, info = env.step(np.zeros(7))
    assert (reward, terminated, truncated) == (2.0, bool(end_on_success), False)
    assert info["success"]


def test_absolute_actions_are_poses_in_the_world():
    env = make(ctrl_delta=0, episode_length=60)
    env.reset(seed=2)
    hand = env.raw_obs["robot0_eef_pos"]
    site = env._sim.robots[0].eef_site_id["right"]
    rotation = env._sim.sim.data.site_xmat[site].reshape(3, 3)
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_matrix(rotation).as_rotvec()
    assert np.abs(turn).max() > 1  # not an action in [-1, 1]
    target = hand + (0.06, -0.08, 0.05)
    for _ in range(30):
        env.step(np.concatenate([target, turn, [-1.0]]))
    np.testing.assert_allclose(env.raw_obs["robot0_eef_pos"], target, atol=0.01)
    with pytest.raises(EnvError, match="7 finite numbers"):
        env.step(np.full(7, np.nan))


def test_sim_state_is_recorded_with_the_observation():
    env = make(record_sim_state=1)
    _, info = env.reset(seed=2)
    _, _, _, _, later = env.step(np.ones(7) * 0.1)
    model = env._sim.sim.model
    assert info["sim_state"].shape == (1 + model.nq + model.nv,)
    assert later["sim_state"][0] == pytest.approx(0.05)
    np.testing.assert_array_equal(later["sim_state"], sim_state(env._sim))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"task": "Stack"}, "task 'Stack' is unknown; expected one of Lift, PickPlaceCan"),
        (
            {"task": "Lift", "cameras": ["corner2"]},
            "camera 'corner2' does not exist in Lift; expected one of frontview, .*eye_in_hand",
        ),
        ({"task": "Lift", "action_repeat": 2}, "action_repeat: 2, expected 1 for robosuite"),
    ],
)
def test_bad_configs_are_refused(options, message):
    with pytest.raises(EnvError, match=message):
        make_env(EnvConfig(suite="robosuite", **options))


def test_bad_actions_are_refused(lift):
    lift.reset(seed=0)
    with pytest.raises(EnvError, match="7 finite numbers"):
        lift.step(np.zeros(14))
    with pytest.raises(EnvError, match=r"must lie in \[-1, 1\]"):
        lift.step(np.full(7, 1.5))


def test_the_originals_class():
    env = PixelRobosuite(
        "Lift",
        ["Panda"],
        episode_length=3,
        use_state=True,
        camera_names=[],
        prop_stack=3,
        state_stack=2,
        cond_action=2,
        device="cpu",
        end_on_success=False,
        seed=4,
    )
    assert env.observation_shape == (38,) and env.prop_shape == (27,) and env.action_dim == 7
    obs, images = env.reset()
    assert images == {} and not obs["past_action"].any()
    moves = actions(4).astype(np.float32)
    obs, reward, terminal, success, images = env.step(moves[:2])
    assert (reward, terminal, success) == (0.0, False, False)
    np.testing.assert_allclose(obs["past_action"], moves[1::-1].ravel())
    obs, _, terminal, _, _ = env.step(moves[2:])  # the limit comes before the fourth
    assert terminal and len(env.env.state_dict()["actions"]) == 3
    again = make(prop_stack=3, state_stack=2)
    want, _ = again.reset(seed=4)
    for action in moves[:3]:
        want = again.step(action)[0]
    np.testing.assert_array_equal(obs["state"], want["state"])
    with pytest.raises(EnvError, match=r"robots: \['Sawyer'\]"):
        PixelRobosuite("Lift", ["Sawyer"], 3)
    with pytest.raises(EnvError, match="reward_shaping"):
        PixelRobosuite("Lift", ["Panda"], 3, reward_shaping=True)


def test_policies_and_demonstrations_of_other_tasks_are_reported(tmp_path):
    from bc.dataset import read_demos
    from bc.explicit.bc_policy import StateBcPolicy, StateBcPolicyConfig
    from common_utils.demo_file import Recording, write_demos
    from common_utils.success_rule import SparseReward

    spec = make("TwoArmTransport").spec
    policy = StateBcPolicy([19], 7, StateBcPolicyConfig(hidden_dim=8))
    with pytest.raises(SpecError, match="bc: action dimension 7, but robosuite/TwoArmTransport"):
        spec.check_provides(policy.input_specs(), 7, "bc")
    with pytest.raises(SpecError, match=r"'state' must be float32\[19\], but .* float32\[59\]"):
        spec.check_provides(policy.input_specs(), 14, "bc")
    recording = Recording()
    for _ in range(3):
        recording.append({"state": np.zeros(19)}, np.zeros(5), np.zeros(7), 1.0)
    path = write_demos(tmp_path, [recording], [], {"suite": "robosuite", "env_name": "Lift"})
    with pytest.raises(SpecError, match="robosuite/Lift, but.*robosuite/TwoArmTransport"):
        list(read_demos(path, rule=SparseReward("robosuite"), use_state=True, spec=spec))


NO_GL = """
import os, sys
import numpy as np
from env.config import EnvConfig
from env.factory import make_env
env = make_env(EnvConfig(suite="robosuite", task="Lift", use_state=1))
env.reset(seed=0)
env.step(np.zeros(7))
assert os.environ["MUJOCO_GL"] == "disabled", "robosuite changed the environment"
assert not [m for m in sys.modules if m.startswith("OpenGL")], "OpenGL was loaded"
assert "cv2" not in sys.modules and "torch" not in sys.modules
try:
    make_env(EnvConfig(suite="robosuite", task="Lift", cameras=["agentview"]))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_states_need_no_graphics_at_all(python: Callable[..., Any], tmp_path):
    """Without libGL OpenCV does not load; robosuite prints nothing; pixels give an error."""
    broken = tmp_path / "cv2"
    broken.mkdir()
    (broken / "__init__.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file')\n"
    )
    head = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    done = python("-c", head + NO_GL)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("EnvError images are asked for, but OpenGL rendering is not")
    assert "libegl1" in done.stdout


def test_closing_frees_the_simulation() -> None:
    env = RobosuiteEnv(EnvConfig(suite="robosuite", task="Lift"))
    env.reset(seed=1)
    simulation = weakref.ref(env._sim)
    env.close()
    env.close()
    assert simulation() is None

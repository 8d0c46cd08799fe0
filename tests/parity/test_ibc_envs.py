"""The IBC environments and oracles against recorded rollouts (fixtures/ibc/README.md)."""

from __future__ import annotations

import numpy as np
import pytest

from env.block_pushing import normalized
from env.block_pushing.env import BlockPushEnv
from env.block_pushing.oracles import MultimodalOracle, block_oracle
from env.config import EnvConfig
from env.particle.env import ParticleEnv
from env.particle.oracle import ParticleOracle
from env.particle.sim import ParticleParams, ParticleSim
from tests.parity import recipes
from tests.parity.ibc_recipes import CLAIMED, cases
from tests.parity.recipes import Fixture

ATOL = 1e-5
PARTICLE_COLUMNS = ("pos_agent", "vel_agent", "pos_first_goal", "pos_second_goal")


def assert_close(actual: object, expected: np.ndarray, name: str, atol: float = ATOL) -> None:
    value = np.asarray(actual)
    assert value.shape == expected.shape, f"{name}: {value.shape}, recorded {expected.shape}"
    np.testing.assert_allclose(value, expected, rtol=0, atol=atol, err_msg=name)


def particle_params(case: Fixture) -> ParticleParams:
    kwargs = {k: v for k, v in case.spec.get("env_kwargs", {}).items() if k != "hide_velocity"}
    return ParticleParams(n_dim=case.spec["n_dim"], **kwargs)


@cases("particle_", "particle_env_")
def test_particle_rollout(case: Fixture) -> None:
    sim, recorded = ParticleSim(particle_params(case)), case.arrays
    sim.reset(np.random.RandomState(case.spec["reset_seed"]))
    for goal, key in enumerate(("pos_first_goal", "pos_second_goal")):
        assert_close(sim.goals[goal], recorded[key], key)
    position, velocity, distances = [sim.position], [sim.velocity], []
    for action in recorded["actions"]:
        sim.step(action)
        position.append(sim.position)
        velocity.append(sim.velocity)
        distances.append(sim.min_distances)
    assert_close(position, recorded["pos"], "pos")
    assert_close(velocity, recorded["vel"], "vel")
    assert_close(np.array(distances)[:, 0], recorded["min_dist_first"], "min_dist_first")
    assert_close(np.array(distances)[:, 1], recorded["min_dist_second"], "min_dist_second")
    assert_close(sim.path, recorded["pos_200hz"], "pos_200hz")
    assert sim.succeeded == bool(recorded["succeeded"])


@cases("particle_", "particle_env_")
def test_particle_behind_the_interface(case: Fixture) -> None:
    """The same through [-1, 1] actions: states, rewards at the last step, end, success."""
    params, recorded = particle_params(case), case.arrays
    hide = bool(case.spec.get("env_kwargs", {}).get("hide_velocity"))
    env = ParticleEnv(EnvConfig(suite="particle", hide_velocity=int(hide)), params)
    obs, _ = env.reset(seed=case.spec["reset_seed"])
    for t, action in enumerate(recorded["actions"]):
        parts = [recorded["pos"][t], recorded["pos_first_goal"], recorded["pos_second_goal"]]
        parts += [] if hide else [recorded["vel"][t]]
        assert_close(obs["state"], np.concatenate(parts), f"state {t}")
        # recorded actions may lie outside the box that policies are clipped to
        native = env.from_native(action)
        if np.abs(native).max() > 1:
            return
        obs, reward, terminated, truncated, info = env.step(native)
        assert reward == recorded["reward"][t]
        assert (terminated or truncated) == bool(recorded["done"][t])
    assert info["success"] == bool(recorded["succeeded"])
    assert_close(info["metrics"]["min_dist_first_goal"], recorded["min_dist_first"][-1], "first")


@cases("particle_", "particle_resets")
def test_particle_resets(case: Fixture) -> None:
    for name, recorded in case.arrays.items():
        dims, seed = (int(part[1:]) for part in name.split("_"))
        sim, rng = ParticleSim(ParticleParams(n_dim=dims)), np.random.RandomState(seed)
        for number, draws in enumerate(recorded):
            sim.reset(rng)
            assert_close([sim.position, *sim.goals], draws, f"{name}, reset {number}")


@cases("particle_", "particle_oracle_")
def test_particle_oracle(case: Fixture) -> None:
    spec, recorded = case.spec, case.arrays
    env = ParticleEnv(EnvConfig(suite="particle"), particle_params(case))
    oracle = ParticleOracle(
        env,
        wait_at_first_goal=spec["wait_at_first_goal"],
        goal_threshold=spec["goal_threshold"],
    )
    env.reset(seed=spec["reset_seed"])
    oracle.reset(np.random.default_rng(0))
    for t in range(len(recorded["actions"])):
        values = env.sim.observation()
        columns = np.concatenate([values[k] for k in PARTICLE_COLUMNS])
        assert_close(columns, recorded["obs"][t], f"obs {t}")
        action = oracle.act()
        assert_close(env.to_native(action), recorded["actions"][t], f"action {t}")
        if t < len(recorded["rewards"]):
            _, reward, _, _, info = env.step(action)
            assert reward == recorded["rewards"][t]
    assert info["success"] == spec["succeeded"]


# ----------------------------------------------------------------- block pushing


def rollouts() -> pytest.MarkDecorator:
    """Recorded episodes of every block task."""
    found = [f for f in recipes.all_fixtures("ibc") if "first_block_motion_row" in f.spec]
    CLAIMED.update(f.name for f in found)
    return pytest.mark.parametrize("case", found, ids=lambda c: c.name)


def block_env(case: Fixture) -> BlockPushEnv:
    cfg = EnvConfig(
        suite="block_pushing",
        task=case.spec["task"],
        use_state=1,
        goal_tolerance=case.spec["goal_dist_tolerance"],
    )
    return BlockPushEnv(cfg)


def recorded_obs(case: Fixture, row: int) -> dict[str, np.ndarray]:
    """The observation dict of one row, as the recording program's policies saw it."""
    columns = case.spec["obs_columns"]
    values = case.arrays["obs_f32"][row].astype(np.float64)
    return {
        key: values[[i for i, c in enumerate(columns) if c == key]]
        for key in dict.fromkeys(columns)
    }


@rollouts()
def test_block_rollout_before_contact(case: Fixture) -> None:
    """Tight until a block moves; from there on contact is chaotic."""
    env, recorded = block_env(case), case.arrays
    rows = case.spec["first_block_motion_row"] or len(recorded["actions"]) + 1
    obs, _ = env.reset(seed=case.spec["seed"])
    assert_close(obs["state"], recorded["obs_f32"][0], "state 0", 2e-5)
    for t in range(rows - 1):
        # past the border, so that recorded actions are executed as they are
        env.sim.move(recorded["actions"][t])
        reward, reached = env.rules.advance(env.sim)
        state = np.concatenate([v for _, v in sorted(env.observation().items())])
        assert_close(state, recorded["obs_f64"][t + 1], f"state {t + 1}", 2e-5)
        assert_close(reward, recorded["reward"][t], f"reward {t}", 2e-5)
        assert (reached and env.rules.succeeded(env.sim)) == bool(recorded["succeeded"][t + 1])
    env.close()


@rollouts()
def test_block_start_poses(case: Fixture) -> None:
    env, recorded = block_env(case), case.arrays
    env.reset(seed=case.spec["seed"])
    p, client = env.sim.bullet, env.sim.client
    for i, block in enumerate(env.sim.blocks):
        pose = np.concatenate(p.getBasePositionAndOrientation(block, physicsClientId=client))
        assert_close(pose, recorded["block_pose"][0][i], f"block {i}", 2e-5)
    for i, target in enumerate(env.sim.targets):
        pose = np.concatenate(p.getBasePositionAndOrientation(target, physicsClientId=client))
        assert_close(pose, recorded["target_pose"][0][i], f"target {i}", 2e-5)
    tool = np.concatenate(p.getBasePositionAndOrientation(env.sim.tool, physicsClientId=client))
    assert_close(tool, recorded["tool_pose"][0], "tool", 2e-5)
    env.close()


@rollouts()
def test_block_oracle(case: Fixture) -> None:
    """From the recorded observations, the whole episode: every action and phase."""
    spec, actions = case.spec, case.arrays["actions"]
    if not spec["phase_after_action"]:
        return  # random actions
    noisy = spec["oracle_action_noise_std"] > 0
    oracle = block_oracle(spec["task"])
    if isinstance(oracle, MultimodalOracle):
        order = tuple(tuple(pair) for pair in spec["goal_order"])
        oracle.reset(np.random.default_rng(0), order)
    else:
        oracle.reset(np.random.default_rng(0))
    for t, action in enumerate(actions):
        delta = oracle.delta(recorded_obs(case, t))
        if noisy:  # whose draws were not recorded; phases do not depend on them
            assert np.linalg.norm(action) < 0.035 + ATOL
        else:
            assert_close(delta, action, f"action {t}")
        assert oracle.phase == spec["phase_after_action"][t], f"phase {t}"


@cases("block_", "block_camera")
def test_block_camera(case: Fixture) -> None:
    recorded = case.arrays
    cfg = {"suite": "block_pushing", "task": "PUSH", "cameras": ["rgb"], "rl_image_size": 240}
    env = BlockPushEnv(EnvConfig(use_state=1, **cfg))
    assert_close(env._camera.view, recorded["view_matrix"], "view")
    assert_close(env._camera.projection, recorded["proj_matrix"], "projection")
    for seed in case.spec["seeds"]:
        obs, _ = env.reset(seed=seed)
        assert_close(obs["state"], recorded[f"state_seed{seed}"], "state")
        picture = obs["rgb"].transpose(1, 2, 0).astype(int)
        assert picture.shape == recorded[f"rgb_seed{seed}"].shape
        differs = np.abs(picture - recorded[f"rgb_seed{seed}"]).max(-1)
        # the tool's outline is authored again: a few pixels of it, nothing else
        assert (differs > 2).mean() < 5e-4 and differs.max() < 64
    env.close()


@cases("block_", "block_normalized_env")
def test_block_normalized(case: Fixture) -> None:
    recorded = case.arrays
    keys = {"block_orientation": [0], "block_translation": [1, 2], "target_orientation": [7]}
    keys |= {"effector_target_translation": [3, 4], "target_translation": [8, 9]}
    for raw, wanted in zip(recorded["raw"], recorded["normalized"], strict=True):
        obs = normalized.normalize_observation({k: raw[i] for k, i in keys.items()})
        state = np.concatenate([obs[k] for k in case.spec["norm_columns"]])
        assert_close(state, wanted, "normalized")
    actions = recorded["actions"]
    assert_close(normalized.normalize_action(actions), recorded["norm_actions"], "norm")
    assert_close(normalized.unnormalize_action(actions), recorded["unnorm_actions"], "unnorm")

"""The IBC environments and oracles against recorded rollouts (fixtures/ibc/README.md)."""

from __future__ import annotations

import numpy as np

from env.factory import EnvConfig
from env.particle import ParticleEnv, ParticleOracle, ParticleParams, ParticleSim
from tests.parity.ibc_recipes import cases
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
    oracle = ParticleOracle(env, spec["wait_at_first_goal"], spec["goal_threshold"])
    env.reset(seed=spec["reset_seed"])
    oracle.reset(np.random.default_rng(0))
    for t in range(len(recorded["actions"])):
        values = env.sim.observation()
        columns = np.concatenate([values[k] for k in PARTICLE_COLUMNS])
        assert_close(columns, recorded["obs"][t], f"obs {t}")
        action = oracle.action()
        assert_close(env.to_native(action), recorded["actions"][t], f"action {t}")
        if t < len(recorded["rewards"]):
            _, reward, _, _, info = env.step(action)
            assert reward == recorded["rewards"][t]
    assert info["success"] == spec["succeeded"]

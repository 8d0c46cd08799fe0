"""Block pushing: what evaluation, resume, images and demonstrations need of it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from env.block_pushing import make_assets, sim
from env.block_pushing.camera import resize
from env.block_pushing.env import BlockPushEnv, task_name
from env.block_pushing.oracles import MultimodalOracle, quarter_turn
from env.config import EnvConfig
from env.core import EnvError
from env.experts import make_expert
from env.factory import make_env
from evaluate.multi_process_eval import run_eval_mp
from evaluate.rollout import run_eval

STATE_SIZES = {"REACH": 10, "PUSH": 10, "INSERT": 10, "PUSH_DISCONTINUOUS": 13,
               "PUSH_MULTIMODAL": 16, "PUSH_NORMALIZED": 10, "REACH_NORMALIZED": 10}  # fmt: skip


def block_env(task: str = "PUSH", **kwargs: object) -> BlockPushEnv:
    cfg = {"suite": "block_pushing", "task": task, "use_state": 1, "episode_length": 1000}
    return make_env(cfg | kwargs)


def play_oracle(env: BlockPushEnv, seed: int, **options: object) -> tuple[dict, list[float]]:
    oracle = make_expert(env, **options)
    env.reset(seed=seed)
    oracle.reset(np.random.default_rng(seed))
    done, rewards = False, []
    while not done:
        _, reward, terminated, truncated, info = env.step(oracle.act())
        done = terminated or truncated
        rewards.append(reward)
    return info, rewards


class Drift:
    """Moves on by the state alone: deterministic, batched or not."""

    stochastic_eval = False

    def act(self, obs: dict, **options: object) -> torch.Tensor:
        return torch.tanh(obs["state"][..., 1:3] - obs["state"][..., 3:5])


@pytest.mark.parametrize("task", STATE_SIZES)
def test_states_seeds_and_limits(task: str) -> None:
    env = block_env(task)
    assert env.spec.observations["state"].shape == (STATE_SIZES[task],)
    first, _ = env.reset(seed=3)
    for _ in range(3):
        env.step(np.array([0.2, 0.1]))
    other, _ = env.reset(seed=4)
    again, info = env.reset(seed=3)
    np.testing.assert_array_equal(first["state"], again["state"])
    assert (first["state"] != other["state"]).any() and info == {"success": False}
    limit = {"PUSH": 100, "PUSH_DISCONTINUOUS": 200, "PUSH_MULTIMODAL": 200}
    assert env.spec.horizon == limit.get(task.removesuffix("_NORMALIZED"), 50)
    env.close()


@pytest.mark.parametrize(
    ("task", "seeds", "wins"),
    [("REACH", 5, 5), ("PUSH", 5, 5), ("PUSH_NORMALIZED", 3, 3), ("PUSH_DISCONTINUOUS", 3, 3),
     ("PUSH_MULTIMODAL", 3, 3)],
)  # fmt: skip
def test_oracle_succeeds(task: str, seeds: int, wins: int) -> None:
    env = block_env(task)
    outcomes = [play_oracle(env, seed) for seed in range(seeds)]
    env.close()
    assert sum(info["success"] for info, _ in outcomes) == wins
    scale = 100 if task.endswith("NORMALIZED") else 1
    assert all(rewards[-1] == scale for _, rewards in outcomes)
    # progress never shrinks
    assert all((np.diff(rewards) >= 0).all() for _, rewards in outcomes)
    assert all(info["metrics"] for info, _ in outcomes)


def test_success_of_the_discontinuous_task_needs_the_second_target() -> None:
    env = block_env("PUSH_DISCONTINUOUS")
    env.reset(seed=0)
    env.rules._nearest = [0.01, 0.01]  # both visited ...
    *_, terminated, _, info = env.step(np.zeros(2))
    env.close()
    assert terminated and not info["success"]  # ... but the block is at neither


def test_multimodal_pairing_is_free() -> None:
    env, seen = block_env("PUSH_MULTIMODAL"), set()
    oracle = MultimodalOracle()
    for seed in range(20):
        oracle.reset(np.random.default_rng(seed))
        seen.add(oracle.order)
    assert len(seen) == 4
    env.reset(seed=0)
    for targets in ((0, 1), (1, 0)):
        for block, target in enumerate(targets):
            env.sim.place_block(block, *env.sim.target_poses[target])
        assert env.rules.succeeded(env.sim)
    for block in range(2):
        env.sim.place_block(block, *env.sim.target_poses[0])
    assert not env.rules.succeeded(env.sim)
    env.close()


def test_oracle_waits_where_it_should() -> None:
    env = block_env("PUSH_DISCONTINUOUS")
    for wait in (0, 6):
        info, _ = play_oracle(env, 0, wait=wait)
        still = [a == [0.0, 0.0] for a in env.state_dict()["actions"]]
        assert info["success"] and sum(still) == wait
    env.close()


def test_unknown_oracle_options_are_reported() -> None:
    env = block_env()
    with pytest.raises(EnvError, match="patience"):
        make_expert(env, patience=3)
    env.close()


def test_goal_tolerance_and_no_end_at_success() -> None:
    env = block_env(goal_tolerance=0.02)
    _, rewards = play_oracle(env, 0)
    strict = block_env()
    assert len(rewards) < len(play_oracle(strict, 0)[1])
    endless = block_env(goal_tolerance=1.0, end_on_success=0, episode_length=5)
    info, rewards = play_oracle(endless, 0)
    assert len(rewards) == 5 and info["success"]
    for e in (env, strict, endless):
        e.close()


def test_episode_resumes_by_replay() -> None:
    """Also in contact, also after other episodes, also with images in the stack."""
    kwargs = {"cameras": ["rgb"], "rl_image_size": 24, "obs_stack": 2, "render_quality": "fast"}
    env, again = block_env(**kwargs), block_env(**kwargs)
    oracle = make_expert(env)
    env.reset(seed=1)
    oracle.reset(np.random.default_rng(0))
    for _ in range(25):
        obs = env.step(oracle.act())[0]
    again.reset(seed=7)
    again.step(np.ones(2))
    other = again.load_state_dict(env.state_dict())
    for key, value in obs.items():
        np.testing.assert_array_equal(value, other[key])
    action = oracle.act()
    np.testing.assert_array_equal(env.step(action)[0]["state"], again.step(action)[0]["state"])
    env.close()
    again.close()


def test_what_was_played_before_does_not_matter() -> None:
    """Two blocks touch where they are loaded, which a restored simulation remembered."""
    fresh, used = block_env("PUSH_MULTIMODAL"), block_env("PUSH_MULTIMODAL")
    for seed in range(4):
        for before in range(2):
            used.reset(seed=1000 + seed)
            for _ in range(4 + before):
                used.step(np.array([0.3, -0.2]))
        want, got = fresh.reset(seed=seed)[0]["state"], used.reset(seed=seed)[0]["state"]
        np.testing.assert_array_equal(want, got)
        fresh.close()
        fresh = block_env("PUSH_MULTIMODAL")
    fresh.close()
    used.close()


def test_pool_and_process_agree() -> None:
    cfg = EnvConfig(suite="block_pushing", task="PUSH", use_state=1, episode_length=12)
    env = make_env(cfg)
    alone = run_eval(env, Drift(), 3, 0)
    env.close()
    pooled = run_eval_mp(asdict(cfg), Drift(), 2, 3, 0, one_by_one=True)
    np.testing.assert_array_equal(alone.scores, pooled.scores)
    name = "final_goal_distance"
    np.testing.assert_array_equal(alone.metrics[name], pooled.metrics[name])


def test_pictures() -> None:
    env = block_env(cameras=["rgb"], rl_image_size=60, image_size=120, obs_stack=2)
    obs, _ = env.reset(seed=0)
    assert obs["rgb"].shape == (6, 60, 80) == env.spec.observations["rgb"].shape
    assert (obs["rgb"][3:] == 0).all() and env.render().shape == (120, 160, 3)
    # the red block and the green ring are there
    picture = env.render().astype(int)
    assert ((picture[..., 0] > 150) & (picture[..., 1] < 120)).sum() > 20
    assert ((picture[..., 1] > 150) & (picture[..., 0] < 120)).sum() > 20
    with pytest.raises(EnvError, match="agentview"):
        env.render("agentview")
    env.close()


def test_fast_pictures_show_the_same_view() -> None:
    env = block_env(cameras=["rgb"], rl_image_size=60)
    fast = block_env(cameras=["rgb"], rl_image_size=60, render_quality="fast")
    one, two = (e.reset(seed=0)[0]["rgb"].astype(int) for e in (env, fast))
    env.close()
    fast.close()
    assert np.abs(one - two).mean() < 6


def test_resize_is_bilinear_with_half_pixel_centres() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    for height, width in ((9, 12), (12, 16), (30, 40)):
        wanted = torch.nn.functional.interpolate(
            tensor, (height, width), mode="bilinear", align_corners=False, antialias=False
        )
        wanted = wanted[0].permute(1, 2, 0).numpy()
        assert np.abs(resize(image, height, width) - wanted).max() <= 0.5 + 1e-3


def test_assets_are_what_the_generator_writes() -> None:
    for name, mesh in make_assets.MESHES.items():
        assert (make_assets.ASSETS / name).read_text() == make_assets.obj_text(*mesh)


def test_quarter_turn() -> None:
    for angle, folded in ((0.3, 0.3), (np.pi / 2 + 0.3, 0.3), (-np.pi - 0.1, -0.1), (0.9, 0.9)):
        want = (folded + np.pi / 4) % (np.pi / 2) - np.pi / 4
        assert quarter_turn(angle) == pytest.approx(want)
    assert abs(quarter_turn(0.9)) < np.pi / 4


@pytest.mark.parametrize(
    ("given", "name"),
    [("push", "PUSH"), ("BlockPush-v0", "PUSH"), ("BlockPushMultimodal-v0", "PUSH_MULTIMODAL"),
     ("BlockPushNormalized-v0", "PUSH_NORMALIZED"), ("BlockReachRgb-v0", "REACH"),
     ("PUSH_DISCONTINUOUS", "PUSH_DISCONTINUOUS")],
)  # fmt: skip
def test_task_names(given: str, name: str) -> None:
    assert str(task_name(given)) == name


@pytest.mark.parametrize(
    ("kwargs", "names"),
    [({"task": "SHOVE"}, ["SHOVE", "PUSH_MULTIMODAL"]),
     ({"task": "PUSH_MULTIMODAL_NORMALIZED"}, ["PUSH_MULTIMODAL_NORMALIZED"]),
     ({"cameras": ["agentview"]}, ["agentview", "rgb"]),
     ({"shared_memory": 1}, ["shared_memory", "pybullet_utils.runServer"])],
)  # fmt: skip
def test_bad_configurations_are_reported(kwargs: dict, names: list[str]) -> None:
    with pytest.raises(EnvError) as error:
        block_env(**kwargs)
    assert all(name in str(error.value) for name in names)


SERVER = """
import sys, pybullet
pybullet.connect(pybullet.SHARED_MEMORY_SERVER, key=int(sys.argv[1]))
print("serving", flush=True)
sys.stdin.read()
"""


def test_a_running_server_shows_the_same_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    key = 20000 + os.getpid() % 10000
    monkeypatch.setattr(sim, "SERVER_KEY", key)
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(key)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        while "serving" not in server.stdout.readline():
            assert server.poll() is None
        shown, alone = block_env(shared_memory=1), block_env()
        for env in (shown, alone):
            env.reset(seed=0)
        action = np.array([0.1, 0.2])
        states = [env.step(action)[0]["state"] for env in (shown, alone)]
        np.testing.assert_array_equal(*states)
        shown.close()
        alone.close()
    finally:
        server.stdin.close()
        server.wait(timeout=60)


def test_the_memory_of_a_killed_server_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = tmp_path / "shm"
    table.write_text(
        "key shmid perms size cpid lpid nattch\n  77 5 666 8425624 9 9 1\n 78 6 666 8425624 9 9 0\n"
    )
    monkeypatch.setattr(sim, "SHARED_MEMORY_TABLE", table)
    sim._check_not_left_behind(77)
    sim._check_not_left_behind(79)
    with pytest.raises(EnvError, match="ipcrm -m 6"):
        sim._check_not_left_behind(78)


def test_missing_pybullet_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pybullet", None)
    with pytest.raises(EnvError, match=r"pip install pybullet.*3\.12"):
        sim.import_pybullet()


def test_import_prints_nothing() -> None:
    code = "from env.block_pushing.sim import import_pybullet; import_pybullet()"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout == "" and done.stderr == ""

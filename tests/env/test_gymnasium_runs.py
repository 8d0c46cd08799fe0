"""Whole runs in gymnasium environments, and images that gymnasium itself renders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common_utils.gl import best_backend
from common_utils.run_config import parse_args
from train_rl import MainConfig, rl_env_config

HERE = Path(__file__).parent
REPO = HERE.parents[1]
needs_gl = pytest.mark.skipif(
    best_backend() == "disabled", reason="no OpenGL back end renders on this machine"
)


def options(save_dir: Path, **more: object) -> list[str]:
    base = {
        "suite": "gymnasium",
        "q_agent.act_method": "rl",
        "stddev_max": 0.5,
        "num_warm_up_episode": 5,
        "num_eval_episode": 2,
        "save_dir": save_dir,
    }
    return [f"--{k}={v}" for k, v in {**base, **more}.items()]


def metrics(save_dir: Path) -> list[dict]:
    return [json.loads(x) for x in (save_dir / "metrics.jsonl").read_text().splitlines()]


def test_states_of_a_third_party_environment_train_and_evaluate(forked, tmp_path):
    run = options(
        tmp_path / "run",
        task_name="InvertedPendulum-v5",
        use_state=1,
        episode_length=40,
        num_train_step=200,
        log_per_step=100,
        batch_size=32,
        mp_eval=1,
        **{
            "gym.success_key": "truncated",
            "q_agent.state_critic.hidden_dim": 32,
            "q_agent.state_actor.hidden_dim": 32,
        },
    )
    done = forked("train_rl.py", *run)
    assert done.returncode == 0, done.stderr
    lines = metrics(tmp_path / "run")
    assert [x["step"] for x in lines] == [100, 200]
    assert all(0 <= x["score/score"] <= 1 and x["train/critic_loss"] > 0 for x in lines)
    # falling over is an end without success: episodes are shorter than the time limit
    assert 1 < lines[-1]["data/episode_len"] <= 40
    command = ["-m", "evaluate.eval", "--mp", "0", "--num_game", "2"]
    done = forked(*command, "--weight", str(tmp_path / "run" / "model0.pt"))
    assert done.returncode == 0, done.stderr


def test_pixels_of_the_documented_example_train(forked, tmp_path):
    run = options(
        tmp_path / "run",
        task_name="my/Reach-v0",
        rl_camera="top",
        rl_image_size=32,
        episode_length=20,
        num_train_step=40,
        log_per_step=40,
        batch_size=8,
        num_warm_up_episode=2,
        **{
            "gym.module": "my_tasks",
            "gym.prop_key": "joints",
            "gym.success_key": "reached",
            "q_agent.use_prop": 1,
            "q_agent.enc_type": "drq",
            "q_agent.actor.hidden_dim": 32,
            "q_agent.critic.hidden_dim": 32,
        },
    )
    done = forked("train_rl.py", *run, PYTHONPATH=f"{REPO}:{HERE}")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run")[-1]["train/critic_loss"] >= 0


def test_the_documented_example_is_this_one():
    text = (REPO / "docs" / "environments.md").read_text()
    program = (HERE / "my_tasks.py").read_text().split('"""\n\n', 1)[1]
    assert program in text


def test_options_reach_the_environment():
    args = options(Path("x"), task_name="Pusher-v5", use_state=1)
    more = ["--gym.state_key=a+b", "--gym.prop_key=c", "--gym.success_key=d", "--gym.module=e"]
    cfg = rl_env_config(parse_args(MainConfig, args + more))
    assert (cfg.suite, cfg.task, cfg.cameras) == ("gymnasium", "Pusher-v5", [])
    keys = (cfg.gym_state_key, cfg.gym_prop_key, cfg.gym_success_key, cfg.gym_module)
    assert keys == ("a+b", "c", "d", "e")


RENDERED = """
import sys
import gymnasium, numpy as np
from env.config import EnvConfig
from env.factory import make_env

def make(task, **more):
    more = {"rl_image_size": 64, "image_size": 96, "episode_length": 9, **more}
    return make_env(EnvConfig(suite="gymnasium", task=task, **more))

pixel = make("Pusher-v5", cameras=["render"], obs_stack=2, use_state=1)
state = make("Pusher-v5", use_state=1)
arm = make_env(EnvConfig(suite="metaworld", task="Assembly", cameras=["corner2"],
                         render_quality="fast", image_size=64))
arm.reset(seed=1)
beside = arm.render()
moves = np.random.default_rng(0).uniform(-1, 1, (4, 7))
for env in (pixel, state):
    first = env.reset(seed=3)[0]
    for move in moves:
        obs = env.step(move)[0]
    if env is pixel:
        stack, picture = obs["render"], env.render()
        pixel_state, start = obs["state"], first["render"]
assert np.array_equal(pixel_state, obs["state"]), "drawing changed the physics"
assert stack.shape == (6, 64, 64) and start[:3].any() and not start[3:].any()
# asked for a picture for the first time in the middle of its episode
assert state._sim.render_mode is None
assert np.array_equal(state.render(), picture), "made again with rendering, at the same state"
assert state._sim.render_mode == "rgb_array"
assert np.array_equal(state.step(moves[0])[0]["state"], pixel.step(moves[0])[0]["state"])
# Meta-World's pictures beside it, and after gymnasium freed its OpenGL context
assert np.array_equal(arm.render(), beside)
again = make("Pusher-v5", cameras=["render"], obs_stack=2, use_state=1)
again.load_state_dict(pixel.state_dict())
assert np.array_equal(again.render(), pixel.render())
for env in (pixel, state, again):
    env.close()
assert np.array_equal(arm.render(), beside)
arm.close()
np.savez(sys.argv[1], picture=picture)
"""


@needs_gl
def test_rendered_pictures(python, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(RENDERED)
    done = python(str(script), str(tmp_path / "out.npz"), gl=best_backend())
    assert done.returncode == 0, done.stderr
    picture = np.load(tmp_path / "out.npz")["picture"]
    assert picture.shape == (96, 96, 3) and picture.std() > 10


def test_rendering_without_opengl_is_refused(python):
    code = (
        "from env.factory import make_env; from env.core import EnvError\n"
        "try: make_env(dict(suite='gymnasium', task='Pusher-v5', cameras=['render']))\n"
        "except EnvError as error: print(error)"
    )
    done = python("-c", code)
    assert "task 'Pusher-v5' cannot render here" in done.stdout, done.stderr

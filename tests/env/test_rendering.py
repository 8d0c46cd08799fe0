"""Images: upright, the same whoever draws beside them, and the same in worker processes."""

from __future__ import annotations

import numpy as np
import pytest

from common_utils.gl import BACKENDS, best_backend, probe

pytestmark = pytest.mark.skipif(
    best_backend() == "disabled", reason="no OpenGL back end renders on this machine"
)

HEAD = """
import sys
import numpy as np
from env.config import EnvConfig
from env.factory import make_env

def make(task, size=64, **options):
    options = {"cameras": ["corner2"], "rl_image_size": size, "image_size": size,
               "render_quality": "fast", **options}
    env = make_env(EnvConfig(suite="metaworld", task=task, **options))
    env.reset(seed=3)
    return env
"""

SIDE_BY_SIDE = (
    HEAD
    + """
alone = make("Assembly")
want = {"first": alone.render()}
other, twin, big = make("CoffeePush"), make("Assembly"), make("Assembly", 128)
assert np.array_equal(alone.render(), want["first"]), "a second renderer changed the first"
assert np.array_equal(twin.render(), want["first"]), "the same model drawn beside it differs"
want["other"], want["big"] = other.render(), big.render()
assert not np.array_equal(want["other"], want["first"])
small = want["big"].reshape(64, 2, 64, 2, 3).mean((1, 3))
assert np.abs(small - want["first"]).mean() < 6, "another size is another picture"
for env, name in ((other, "other"), (big, "big"), (alone, "first"), (twin, "first")):
    assert np.array_equal(env.render(), want[name]), name
other.close()
big.close()
assert np.array_equal(alone.render(), want["first"]), "closing a renderer damaged another"
late = make("CoffeePush")
assert np.array_equal(late.render(), want["other"]), "made after one was closed"
np.savez(sys.argv[1], **want)
"""
)

WORKERS = (
    HEAD
    + """
import multiprocessing

def picture(task):
    env = make(task)
    drawn = env.render()
    env.close()
    return drawn

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        first, other = pool.map(picture, ["Assembly", "CoffeePush"], chunksize=1)
    np.savez(sys.argv[1], first=first, other=other)
"""
)


def run(python, tmp_path, program: str, backend: str) -> dict[str, np.ndarray]:
    out, script = tmp_path / f"{backend}.npz", tmp_path / "program.py"
    script.write_text(program)
    done = python(str(script), str(out), gl=backend)
    assert done.returncode == 0, done.stderr
    return dict(np.load(out))


@pytest.mark.parametrize("backend", BACKENDS)
def test_side_by_side_and_in_workers(python, tmp_path, backend):
    works, message = probe(backend)
    if not works:
        pytest.skip(message)
    here = run(python, tmp_path, SIDE_BY_SIDE, backend)
    there = run(python, tmp_path, WORKERS, backend)
    np.testing.assert_array_equal(there["first"], here["first"])
    np.testing.assert_array_equal(there["other"], here["other"])


UPRIGHT = (
    HEAD
    + """
env = make("Assembly")
picture = env.render().astype(float)
# the wooden table fills the lower right, the floor's flat grey the top: red exceeds blue on wood
wood = picture[..., 0] - picture[..., 2]
np.savez(sys.argv[1], bottom=wood[48:, 32:].mean(), top=wood[:8, 40:].mean(),
         stack=env.reset(seed=3)[0]["corner2"], big=env.render())
plain = make("Assembly", cameras=[], use_state=1)
pixel = make("Assembly", use_state=1, obs_stack=3)
states = []
for one in (plain, pixel):
    one.reset(seed=5)
    for t in range(4):
        obs = one.step(np.full(4, 0.1 * t))[0]
    states.append(obs["state"])
assert np.array_equal(*states), "drawing changed the physics"
again = make("Assembly", use_state=1, obs_stack=3)
assert np.array_equal(again.load_state_dict(pixel.state_dict())["corner2"], obs["corner2"])
one, two = (pixel.reset(seed=5)[0]["corner2"], pixel.step(np.ones(4))[0]["corner2"])
assert one.shape == (9, 64, 64) and not one[3:].any(), "zeros before the start"
assert np.array_equal(two[3:6], one[:3]) and not two[6:].any(), "newest first"
"""
)


def test_upright_stacked_and_without_effect_on_physics(python, tmp_path):
    seen = run(python, tmp_path, UPRIGHT, best_backend())
    assert seen["bottom"] > 20 and abs(seen["top"]) < 10, "table below, background above"
    assert seen["stack"].dtype == np.uint8
    np.testing.assert_array_equal(seen["stack"], seen["big"].transpose(2, 0, 1))


def test_unknown_camera_names_the_cameras(python):
    code = (
        "from env.factory import make_env; from env.core import EnvError\n"
        "cfg = dict(suite='metaworld', task='Assembly', cameras=['corner9'])\n"
        "try: make_env(cfg)\n"
        "except EnvError as error: print(error)"
    )
    done = python("-c", code, gl=best_backend())
    assert "camera 'corner9' does not exist; this model has topview, corner, corner2" in done.stdout


REFERENCE = (
    HEAD
    + """
import time
import mujoco

fast, faithful = make("Assembly"), make("Assembly", render_quality="faithful")
def cpu(env):
    env.render()
    start = time.process_time()
    for _ in range(5):
        env.render()
    return time.process_time() - start
samples = [next(iter(e._renderers.values()))._context.offSamples for e in (fast, faithful)]
own = faithful.render()
model, data = faithful._sim.model, faithful._sim.data
theirs = mujoco.Renderer(model, 64, 64)
theirs.update_scene(data, camera="corner2")
reference = theirs.render()[::-1, ::-1]  # this camera hangs upside down
assert np.array_equal(faithful.render(), own), "another program's renderer disturbed ours"
np.savez(sys.argv[1], samples=samples, times=[cpu(fast), cpu(faithful)], own=own,
         fast=fast.render(), reference=reference, model=model.vis.quality.offsamples)
"""
)


def test_faithful_is_mujocos_own_picture_and_fast_is_cheaper(python, tmp_path):
    seen = run(python, tmp_path, REFERENCE, best_backend())
    np.testing.assert_array_equal(seen["own"], seen["reference"])
    assert seen["samples"][0] == 0 and seen["model"] > 0, "the model keeps its setting"
    assert seen["times"][0] < 0.5 * seen["times"][1]
    difference = np.abs(seen["fast"].astype(int) - seen["own"]).mean()
    assert 0.5 < difference < 20


MIXED = (
    HEAD
    + """
from env.metaworld_wrapper import PixelMetaWorld

env = PixelMetaWorld("CoffeePush", ["Sawyer"], 20, 2, 1, 2, rl_image_size=48, device="cpu",
                     camera_names=["corner2", "corner3"], render_quality="fast", image_size=96)
obs, images = env.reset(seed=2)
assert env.observation_shape == (6, 48, 48) == tuple(obs["obs"].shape)
assert set(obs) == {"obs", "corner3", "prop"} and set(images) == {"corner2", "corner3"}
obs, reward, terminal, success, images = env.step(env.get_heuristic_action())
assert images["corner2"].shape == (3, 96, 96) and not terminal and reward == 0.0
np.savez(sys.argv[1], big=images["corner3"].transpose(1, 2, 0),
         small=obs["corner3"][:3].numpy().transpose(1, 2, 0))
"""
)


def test_the_originals_class_delivers_pictures(python, tmp_path):
    seen = run(python, tmp_path, MIXED, best_backend())
    shrunk = seen["big"].reshape(48, 2, 48, 2, 3).mean((1, 3))
    assert np.abs(shrunk - seen["small"]).mean() < 8

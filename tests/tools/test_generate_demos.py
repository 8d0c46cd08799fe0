"""Generated robosuite demonstrations: real episodes, whole files, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import mujoco
import numpy as np
import pytest

from bc.dataset import RobomimicDataset, read_demos
from common_utils import run_config
from common_utils.run_config import ConfigError
from common_utils.success_rule import SparseReward
from env.config import EnvConfig
from env.core import EnvError
from env.factory import make_env
from env.robosuite.robomimic_args import model_xml
from env.robosuite.sim import make_sim, reset_sim
from tests import forkserver, runs
from tools.demo_recorder import Settings
from tools.generate_demos import MainConfig, generate
from tools.recording import Job, Parts, disk_reported, play
from train_bc import MainConfig as BcConfig

REPO = Path(__file__).resolve().parents[2]


def config(folder: Path, **options) -> MainConfig:
    return MainConfig(
        **{"task": "Lift", "num": 3, "cameras": [], "workers": 0, "out": str(folder)} | options
    )


def contents(path: Path) -> dict[str, object]:
    """Everything in a dataset file."""
    found: dict[str, object] = {}

    def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
        found.update({f"{name}@{k}": v for k, v in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            found[name] = item[()].tobytes()

    with h5py.File(path) as file:
        file.visititems(note)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Three demonstrations of Lift, recorded in this process."""
    return generate(config(tmp_path_factory.mktemp("demos")))


def command(folder: Path, *more: str) -> list[str]:
    options = ["--task", "Lift", "--num", "3", "--cameras", "[]", "--workers", "0"]
    return ["-m", "tools.generate_demos", *options, "--out", str(folder), *more]


# ---------------------------------------------------------------- what is written


def assert_same_model(xml: str, model: mujoco.MjModel) -> None:
    """The recorded XML compiles to the simulation's model (Lift draws the cube's size)."""
    recorded = mujoco.MjModel.from_xml_string(xml)
    for name in ("body_pos", "body_quat", "body_mass", "body_inertia", "geom_size", "geom_pos"):
        np.testing.assert_allclose(getattr(recorded, name), getattr(model, name), atol=1e-9)


@pytest.mark.parametrize("task", ["NutAssemblySquare", "TwoArmTransport"])
def test_the_recorded_model_is_the_episodes(task):
    env = make_sim(task)
    reset_sim(env, 5)
    assert_same_model(model_xml(env), env.sim.model._model)


def test_layout_and_replay(made):
    assert made.name == "processed_data96.hdf5"
    args = json.loads((made.parent / "env_cfg.json").read_text())
    assert args["env_name"] == "Lift" and args["type"] == 1
    assert args["env_kwargs"]["robots"] == ["Panda"]
    assert args["env_kwargs"]["controller_configs"]["control_delta"] is True
    assert args["expert"] == {"noise": 0.1, "jitter": 0.015, "seed": 1, "num": 3}
    env = make_env(
        EnvConfig(
            suite="robosuite", task="Lift", use_state=1, episode_length=200, record_sim_state=1
        )
    )
    with h5py.File(made) as file:
        data = file["data"]
        assert sorted(data) == ["demo_0", "demo_1", "demo_2"]
        assert json.loads(data.attrs["env_args"]) == args
        assert data.attrs["total"] == sum(d.attrs["num_samples"] for d in data.values())
        for demo in data.values():
            steps = int(demo.attrs["num_samples"])
            shapes = {k: v.shape for k, v in demo["obs"].items()}
            assert shapes == {
                "robot0_eef_pos": (steps, 3),
                "robot0_eef_quat": (steps, 4),
                "robot0_gripper_qpos": (steps, 2),
                "object": (steps, 10),
            }
            assert demo["actions"].shape == (steps, 7) and np.abs(demo["actions"]).max() <= 1
            np.testing.assert_array_equal(demo["rewards"], [0.0] * (steps - 1) + [1.0])
            np.testing.assert_array_equal(demo["dones"], [0] * (steps - 1) + [1])
            # what is stored is what the environment does for that seed and those actions
            obs, info = env.reset(seed=int(demo.attrs["seed"]))
            assert_same_model(demo.attrs["model_file"], env.sim.sim.model._model)
            keys = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
            for t in range(steps):
                np.testing.assert_array_equal(info["sim_state"], demo["states"][t])
                stored = np.concatenate([demo["obs"][k][t] for k in keys])
                np.testing.assert_array_equal(obs["state"], stored.astype(np.float32))
                obs, *_, info = env.step(demo["actions"][t])
            assert info["success"]
    env.close()
    assert not (made.parent / ".parts").exists()


def test_policies_and_replays_read_it(made):
    cfg = run_config.load(BcConfig, str(REPO / "release/cfgs/robomimic_bc/can_state.yaml")).dataset
    cfg.path, cfg.num_data = str(made), 2
    dataset = RobomimicDataset(cfg)
    assert (dataset.suite, dataset.task_name, dataset.robots) == ("robosuite", "Lift", ["Panda"])
    assert dataset.sample_bc(5).obs["state"].shape == (5, 3 * 19)
    demos = list(read_demos(made, rule=SparseReward("robosuite"), use_state=True))
    assert len(demos) == 3 and all(d.rewards[-1] == 1 for d in demos)


def test_the_file_names_that_the_release_configurations_expect():
    for path in sorted((REPO / "release/cfgs").glob("robomimic_*/*.yaml")):
        tree = run_config.read_yaml(path)
        data = tree.get("preload_datapath") or tree["dataset"]["path"]
        camera = tree.get("rl_camera") or tree.get("dataset", {}).get("rl_camera")
        small = Path(data).parent.name == "lift_pixel"  # its comment says --obs_size 64
        cfg = MainConfig(out=str(Path(data).parent), obs_size=64 if small else 96)
        assert str(cfg.file) == data, path
        assert camera is None or camera in cfg.cameras, path


def test_pictures_are_the_environments(tmp_path):
    from common_utils.gl import best_backend

    camera = "robot0_eye_in_hand"
    script = (
        "import sys, h5py, numpy as np\n"
        "from tools.generate_demos import MainConfig, generate\n"
        "from env.config import EnvConfig\n"
        "from env.factory import make_env\n"
        f"names = ['agentview', '{camera}']\n"
        "cfg = MainConfig(task='Lift', num=1, cameras=names, image_size=64, obs_size=32,\n"
        "    render_quality='fast', workers=0, out=sys.argv[1])\n"
        "path = generate(cfg)\n"
        "assert path.name == 'processed_data32.hdf5', path\n"
        "env = make_env(EnvConfig(suite='robosuite', task='Lift', cameras=names, image_size=64,\n"
        "    rl_image_size=32, render_quality='fast', episode_length=200))\n"
        "with h5py.File(path) as file:\n"
        "    demo = file['data/demo_0']\n"
        "    obs, _ = env.reset(seed=int(demo.attrs['seed']))\n"
        "    for t, action in enumerate(demo['actions'][:6]):\n"
        "        for name in names:\n"
        "            stored = demo[f'obs/{name}_image'][t]\n"
        "            assert stored.shape == (3, 32, 32) and stored.dtype == np.uint8\n"
        "            np.testing.assert_array_equal(stored, obs[name])\n"
        "        obs = env.step(action)[0]\n"
        "env.close()\n"
    )
    env = runs.env() | {"MUJOCO_GL": best_backend()}
    done = forkserver.run("-c", script, tmp_path, variables=env, timeout=600)
    assert done.returncode == 0, done.stderr
    cfg = BcConfig().dataset
    cfg.path, cfg.rl_camera, cfg.prop_stack = str(tmp_path / "processed_data32.hdf5"), camera, 3
    batch = RobomimicDataset(cfg).sample_bc(4)
    assert batch.obs[camera].shape == (4, 3, 32, 32) and batch.obs["prop"].shape == (4, 27)
    assert batch.obs[camera].float().std() > 5  # an image of something


# ------------------------------------------------- interruptions, workers, wrong use


def test_workers_and_a_kill_leave_no_trace_in_the_file(made, tmp_path, capsys):
    """Killed after its first episode, and gone on with by two workers: the same file."""
    process = forkserver.Program(command(tmp_path), runs.env())
    parts = tmp_path / ".parts"
    deadline = time.monotonic() + 300
    while not list(parts.glob("[0-9]*.hdf5")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (tmp_path / made.name).exists()
    kept = {p.name: p.stat().st_mtime_ns for p in parts.glob("[0-9]*.hdf5")}
    assert kept
    # a half-written part, as a kill in the middle of a write leaves it
    (parts / ".tmp-0123456789ab-000002.hdf5").write_bytes(b"half")
    generate(config(tmp_path, workers=2))
    printed = capsys.readouterr().out
    assert f"continuing: {len(kept)} of 3 demonstrations exist" in printed
    assert "0 of 3 episodes failed" in printed
    assert contents(tmp_path / made.name) == contents(made)
    assert not parts.exists()


def test_a_worker_that_dies_costs_no_episode(tmp_path, capsys):
    settings = Settings("Lift", 0.1, 0.015, 200)
    played = play(settings, (_job(tmp_path, n) for n in range(2)), 1)
    job, outcome = next(played)
    assert job.number == 0 and outcome.success
    worker = next(p for p in _children() if "env.worker" in _cmdline(p))
    os.kill(worker, signal.SIGKILL)
    assert [job.number for job, _ in played] == [1]
    said = " ".join(capsys.readouterr().out.split())
    assert "recording worker 0" in said and "another worker takes its place" in said
    (tmp_path / "here").mkdir()
    list(play(settings, [_job(tmp_path / "here", 1)], 0))
    assert contents(tmp_path / "000001.hdf5") == contents(tmp_path / "here/000001.hdf5")


def test_the_program_reports_what_stopped_it_and_continues(made, tmp_path):
    """It is interrupted, or the disk is full: one message, nothing lost."""
    # so many that it cannot end before the signal, however slowly this process gets its turn
    many = command(tmp_path / "many", "--workers", "1", "--num", "1000")
    process = forkserver.Program(many, runs.env())
    parts = tmp_path / "many/.parts"
    deadline = time.monotonic() + 300
    while not list(parts.glob("[0-9]*.hdf5")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    # Python drops an interrupt that comes while it deletes an object: as a user would, try again
    for _ in range(4):
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
    assert process.returncode == 130
    (printed,) = process.done(1).stderr.splitlines()
    assert re.match(r"\d+ finished episodes are kept in '.*'; the same command continues", printed)
    assert list(parts.glob("[0-9]*.hdf5"))
    limit = made.stat().st_size // 2  # too little for the dataset
    # The shell sets the limit, not preexec_fn: that would fork the whole test process, which a
    # machine with little memory left refuses.
    limited = ["bash", "-c", f'ulimit -f {limit // 1024}; exec "$@"', "limited"]
    full = subprocess.run(
        [*limited, sys.executable, *command(tmp_path / "out")], cwd=REPO, env=runs.env(), text=True,
        capture_output=True,
    )  # fmt: skip
    assert full.returncode == 2
    assert "error: the file size limit is reached while writing '" in full.stderr
    assert "3 finished episodes are kept in" in full.stderr and "Traceback" not in full.stderr
    assert contents(generate(config(tmp_path / "out"))) == contents(made)


def _children(pid: int | None = None) -> list[int]:
    pid = pid or os.getpid()
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _cmdline(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_a_full_disk_is_reported_and_what_is_recorded_kept(made, tmp_path):
    said = "the file size limit is reached while writing"
    cfg = config(tmp_path)
    with runs.file_size_limit(20_000), pytest.raises(EnvError, match=f"{said} '.*000000.hdf5'"):
        generate(cfg)  # not one episode
    assert not list((tmp_path / ".parts").glob("*.hdf5"))
    enough_for_one = made.stat().st_size // 2
    with runs.file_size_limit(enough_for_one), pytest.raises(EnvError, match=f"{said} '.*96.hdf5'"):
        generate(cfg)  # the episodes, but not the dataset
    assert len(list((tmp_path / ".parts").glob("0*.hdf5"))) == 3
    assert not list(tmp_path.glob("*.hdf5")) and not list(tmp_path.rglob(".tmp-*"))
    assert contents(generate(cfg)) == contents(made)


def test_a_really_full_device():
    with pytest.raises(EnvError, match=r"the disk is full while writing 'x.hdf5'"):
        with disk_reported("x.hdf5"), open("/dev/full", "wb") as handle:
            handle.write(b"0" * 100_000)


def test_existing_data(made):
    before = made.stat().st_mtime_ns
    assert generate(config(made.parent)) == made  # the same options: nothing to do
    with pytest.raises(
        ConfigError, match=r"processed_data96.hdf5' exists, made with other options"
    ):
        generate(config(made.parent, noise=0.2))
    assert made.stat().st_mtime_ns == before


def test_an_unfinished_run_with_other_options(tmp_path):
    with pytest.raises(ConfigError, match="failed within episode_length 4"):
        generate(config(tmp_path, episode_length=4))
    assert len(list((tmp_path / ".parts").glob("*.failed"))) == 20
    with pytest.raises(
        ConfigError, match=r"other options \(episode_length: 4 -> 200; seed: 1 -> 2\)"
    ):
        generate(config(tmp_path, seed=2))
    path = generate(config(tmp_path, seed=2, num=1, overwrite=1))
    assert len(list(read_demos(path, rule=SparseReward("robosuite"), use_state=True))) == 1


def test_a_damaged_part_is_reported(tmp_path):
    played = play(Settings("Lift", 0.1, 0.015, 200), [_job(tmp_path, 0)], 0)
    assert [o.success for _, o in played] == [True]
    cfg = config(tmp_path, num=1)
    with pytest.raises(ConfigError, match=r"'.*000000.hdf5' is damaged; delete it"):
        (tmp_path / ".parts").mkdir()
        (tmp_path / ".parts/000000.hdf5").write_bytes(b"no recording")
        generate(cfg)


def _job(folder: Path, number: int) -> Job:
    return Job(number, number, number, str(folder / f"{number:06d}.hdf5"))


def test_attempts_are_chosen_by_number_not_by_who_was_first(tmp_path):
    parts = Parts(tmp_path)
    for number, success in ((2, True), (0, True), (3, False)):
        parts.add(number, success)
    assert parts.chosen(2) is None  # attempt 1 is not over
    parts.add(1, True)
    assert parts.chosen(2) == [0, 1] and parts.chosen(3) == [0, 1, 2]
    assert parts.chosen(4) is None
    again = Parts(tmp_path)  # failures are remembered on disk, recordings are files
    assert again.lost == {3} and again.won == set()
    assert next(iter(again.missing())) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "Door"}, "task: 'Door', expected one of Lift, "),
        ({"num": 0}, "num: expected an integer of at least 1, got 0"),
        ({"noise": -1.0}, r"noise: expected a number within \[0, 2\], got -1"),
        ({"jitter": 1.0}, r"jitter: expected -1 or a number within \[0, 0.1\], got 1"),
        ({"workers": -2}, "workers: .*got -2"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        run_config.from_dict(MainConfig, options)


def test_no_folder_and_a_wrong_camera(tmp_path):
    with pytest.raises(ConfigError, match="out: ''"):
        generate(config(tmp_path, out=""))
    with pytest.raises(EnvError, match=r"camera 'side' does not exist in Lift; expected one of"):
        generate(config(tmp_path, cameras=["side"]))


def test_two_runs_into_one_folder(tmp_path):
    import fcntl

    (tmp_path / ".parts").mkdir()
    with open(tmp_path / ".parts/lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another process is writing to"):
            generate(config(tmp_path))

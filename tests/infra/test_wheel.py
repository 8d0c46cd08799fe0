"""A wheel of the program, installed into clean environments: it needs nothing of the checkout."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import forkserver

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def needed_by(names: set[str]) -> list[importlib.metadata.Distribution]:
    """The installed packages ``names``, and all that they need."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        found[name] = importlib.metadata.distribution(name)
        needs = [Requirement(text) for text in found[name].requires or []]
        chosen = {r.name.lower() for r in needs if not r.marker or r.marker.evaluate({"extra": ""})}
        waiting |= chosen - set(found)
    return list(found.values())


def make_environment(folder: Path, wheel: Path, packages: Path) -> Path:
    """A virtual environment with the wheel, and with the packages in a folder; its ``bin``."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install")
    done = run(folder, *pip, "--no-deps", "--no-index", str(wheel))
    assert done.returncode == 0, done.stderr
    # the packages come after the environment's own
    (site,) = folder.glob("lib/python3.*/site-packages")
    (site / "packages.pth").write_text(f"{packages}\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # from a copy: other tests search the checkout at the same time
    copy, folder = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    objects = str(ROOT / "common_utils" / "build")  # what make has compiled here counts
    done = run(copy, "env", f"OUT={objects}", *pip, "-w", str(folder), str(copy))
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("ibrl-*.whl")
    return path


@pytest.fixture(scope="module")
def base(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """torch and numpy alone, with all that they need."""
    packages = tmp_path_factory.mktemp("packages")
    for package in needed_by({"torch", "numpy"}):
        tops = {f.parts[0] for f in package.files or [] if f.parts[0] not in ("..", "__pycache__")}
        for top in tops:
            if not (packages / top).exists():  # nvidia/ belongs to several
                (packages / top).symlink_to(str(package.locate_file(top)))
    return make_environment(tmp_path_factory.mktemp("base"), wheel, packages)


@pytest.fixture(scope="module")
def full(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every package of this environment."""
    packages = Path(sysconfig.get_path("purelib"))
    return make_environment(tmp_path_factory.mktemp("full"), wheel, packages)


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, without the checkout in the path."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"OMP_NUM_THREADS": "1", "MUJOCO_GL": "disabled"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


TRAIN_BY_HAND = """
import sys
import numpy as np
import torch
from common_utils.specs import ArraySpec
from rl.q_agent import QAgent
from rl.q_agent_config import QAgentConfig
from rl.replay import ReplayBuffer

replay = ReplayBuffer({"state": ArraySpec((6,), "float32")}, 3, nstep=3, gamma=0.99,
                      max_episode_length=20, replay_size=10, seed=1)
generator = np.random.default_rng(0)
for _ in range(4):
    replay.new_episode({"state": generator.random(6, np.float32)})
    for step in range(20):
        obs = {"state": generator.random(6, np.float32)}
        action = generator.uniform(-1, 1, 3).astype(np.float32)
        replay.add(obs, action, float(step == 19), step == 19, False, True)
agent = QAgent(True, (6,), (0,), 3, "", QAgentConfig(device="cpu", act_method="rl"), seed=1)
before = [p.clone() for p in agent.critic.parameters()]
metrics = agent.update(replay.sample(32), stddev=0.1, update_actor=True)
assert torch.isfinite(metrics["train/critic_loss"]), metrics
assert not all(torch.equal(a, b) for a, b in zip(before, agent.critic.parameters()))
absent = ("h5py", "yaml", "pyrallis", "rich", "gymnasium", "mujoco")
for name in absent:
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} is installed: this environment proves nothing")
print(sys.modules["rl.q_agent"].__file__)
"""


def test_an_agent_and_a_replay_need_torch_and_numpy_alone(base: Path, tmp_path: Path) -> None:
    done = run(tmp_path, str(base / "python"), "-c", TRAIN_BY_HAND)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(base.parent))


def test_a_program_names_the_extra_that_it_needs(base: Path, tmp_path: Path) -> None:
    done = run(tmp_path, str(base / "ibrl"), "--help")
    assert (done.returncode, "ibrl train-rl" in done.stdout) == (0, True), done.stderr
    done = run(tmp_path, str(base / "ibrl"), "train-rl", "--save_dir", "x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ibrl train-rl: the package 'pyrallis' is not installed")
    assert done.stderr.endswith("pip install 'ibrl[train]'\n")
    done = run(tmp_path, str(base / "ibrl"), "doctor")
    assert (done.returncode, done.stderr) == (1, "")
    assert "pip install 'ibrl[sim]'" in done.stdout


# prints at its end where modules were loaded from
IBRL = """
import atexit, sys
def tell():
    print([m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)])
atexit.register(tell)
from ibrl.commands import program
sys.exit(program())
"""
IN_ROOT = f"{Path(sys.prefix)}/"  # the environment may be inside of the checkout


def test_it_trains_from_released_configurations_in_any_folder(full: Path, tmp_path: Path) -> None:
    cfgs = "release/cfgs/metaworld"
    steps = {
        "demos metaworld": f"{cfgs}/quickstart_demos.yaml --num_episodes 3 --output_path demos",
        "train-bc": f"{cfgs}/quickstart_bc.yaml --dataset.path demos/dataset.hdf5 --save_dir bc"
        " --num_epoch 1 --epoch_len 10 --num_eval_episode 0 --num_final_episode 1",
        "train-rl": f"{cfgs}/quickstart_rl.yaml --preload_datapath demos/dataset.hdf5"
        " --bc_policy bc/latest.pt --num_warm_up_episode 1 --num_train_step 10"
        " --log_per_step 10 --num_eval_episode 1 --episode_length 20 --save_dir rl",
    }
    (site,) = full.parent.glob("lib/*/site-packages")
    variables = os.environ | {"PYTHONPATH": str(site), "MUJOCO_GL": "disabled"}

    def ibrl(*words: str) -> None:
        """The program of the wheel, without loading the packages that it needs again."""
        done = forkserver.run("-c", IBRL, *words, variables=variables, folder=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr
        modules = done.stdout.splitlines()[-1]
        assert str(site / "ibrl") in modules and f"{ROOT}/" not in modules.replace(IN_ROOT, "")

    for words, options in steps.items():
        ibrl(*words.split(), "--config_path", *options.split())
    done = run(tmp_path, str(full / "ibrl"), "eval", "--weight", "rl/latest.pt", "--num_game", "1")
    assert done.returncode == 0, done.stderr
    assert "success" in done.stdout
    # nothing of the checkout was used
    assert str(ROOT) not in (tmp_path / "rl" / "cfg.yaml").read_text()


def test_it_has_every_configuration_and_no_test(wheel: Path, full: Path) -> None:
    (site,) = full.parent.glob("lib/*/site-packages")
    inside = site / "common_utils" / "release" / "cfgs"
    ours = ROOT / "release" / "cfgs"
    listing = {p.relative_to(ours) for p in ours.rglob("*.yaml")}
    assert {p.relative_to(inside) for p in inside.rglob("*.yaml")} == listing
    assert (site / "env" / "block_pushing" / "assets" / "tool.urdf").is_file()
    assert {p.name for p in (site / "tools" / "reporting").glob("page.*")} >= {
        "page.css",
        "page.js",
    }
    assert not (site / "tests").exists()
    assert not (site / "setup.py").exists()

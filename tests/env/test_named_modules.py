"""A file's word is not enough to import a module: checkpoints, demonstrations, Minari's data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest

import train_bc
import train_rl
from common_utils import run_config
from common_utils.errors import run_program
from common_utils.run_config import ConfigError
from env.config import EnvConfig
from env.named_modules import module_names, settle_modules
from evaluate import eval as eval_cli
from mw_main import train_bc_mw
from tests import forkserver
from tools import convert_minari, held_out_energy, plot_particle

REPO = Path(__file__).resolve().parents[2]

# leaves one line per process that runs it
PLANTED = """
import os
with open(os.environ["PLANTED_LOG"], "a") as log:
    log.write(f"{os.getpid()}\\n")
import gymnasium
from gymnasium.envs.classic_control import Continuous_MountainCarEnv as Car
gymnasium.register("Planted-v0", entry_point=Car)
"""
SMALL = [
    *("--suite", "gymnasium", "--use_state", "1", "--episode_length", "5"),
    *("--num_warm_up_episode", "1", "--num_train_step", "4", "--log_per_step", "4"),
    *("--num_eval_episode", "1", "--batch_size", "4", "--q_agent.act_method", "rl"),
    *("--q_agent.state_critic.hidden_dim", "8", "--q_agent.state_actor.hidden_dim", "8"),
]


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of a module "planted" that lies in the path of every program."""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "planted.py").write_text(PLANTED)
    monkeypatch.setenv("PLANTED_LOG", str(tmp_path / "ran"))
    monkeypatch.setenv("PYTHONPATH", f"{REPO}{os.pathsep}{folder}")
    monkeypatch.syspath_prepend(folder)
    return tmp_path / "ran"


def program(*args: str) -> subprocess.CompletedProcess[str]:
    return forkserver.run(*args, variables=os.environ, timeout=300)


@pytest.fixture
def refused(
    planted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Checks that a program does not run the module, and says how to allow it."""

    def check(main: Callable[[], int], source: str, *args: str) -> None:
        monkeypatch.setattr(sys, "argv", ["program", *args])
        assert run_program(main) == 2
        said = capsys.readouterr().err
        assert source in said and "names the module 'planted'" in said
        assert "--trust_module planted" in said and len(said.splitlines()) == 1
        assert not planted.exists(), "the module was run"

    return check


def evaluate() -> int:
    return eval_cli.main(sys.argv[1:])


def test_checkpoints_do_not_import_what_they_name(
    planted: Path, refused: Callable[..., None], tmp_path: Path
) -> None:
    # what the user names is imported
    named = ["--task_name", "Planted-v0", "--gym.module", "planted"]
    done = program("train_rl.py", *SMALL, "--save_dir", str(tmp_path / "run"), *named)
    assert done.returncode == 0 and planted.exists(), done.stdout + done.stderr
    planted.unlink()
    weight = tmp_path / "run" / "model0.pt"
    command = ["--weight", str(weight), "--num_game", "2", "--mp", "2"]
    refused(evaluate, "cfg.yaml", *command)
    with pytest.raises(ConfigError, match="trust_module='planted'"):
        train_rl.load_model(str(weight), "cpu")
    # a file cannot trust itself, and naming the module by its task is no other matter
    text = weight.with_name("cfg.yaml").read_text()
    for old, new in (
        ("trust_module: ''", "trust_module: planted"),
        ("task_name: Planted-v0", "task_name: planted:Planted-v0"),
        ("module: planted", "module: ''"),
    ):
        assert old in text
        text = text.replace(old, new, 1)
        weight.with_name("cfg.yaml").write_text(text)
        refused(evaluate, "cfg.yaml", *command)
    # with the user's word it is imported, here and in every worker
    done = program("-m", "evaluate.eval", *command, "--trust_module", "planted")
    assert done.returncode == 0, done.stderr
    assert len(set(planted.read_text().split())) == 3


def demonstrations(path: Path, env_name: str) -> Path:
    """Two recordings of a task with states [2], actions [1]."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"suite": "gymnasium", "env_name": env_name})
        for number in range(2):
            demo = data.create_group(f"demo_{number}")
            demo["actions"] = np.zeros((4, 1), np.float32)
            demo["rewards"] = np.float32([0, 0, 0, 1])
            demo["obs/state"] = np.zeros((4, 2), np.float32)
    return path


def test_demonstrations_do_not_import_what_they_name(
    planted: Path, refused: Callable[..., None], tmp_path: Path
) -> None:
    data = demonstrations(tmp_path / "demos.hdf5", "planted:Planted-v0")
    small = [
        *("--dataset.path", str(data), "--dataset.use_state", "1", "--num_epoch", "1"),
        *("--dataset.eval_episode_len", "5", "--epoch_len", "2", "--batch_size", "4"),
        *("--num_eval_episode", "1", "--num_final_episode", "0", "--mp_eval", "1"),
        *("--save_dir", str(tmp_path / "bc"), "--state_policy.hidden_dim", "8"),
    ]
    refused(train_bc.main, "demos.hdf5", *small)
    done = program("train_bc.py", *small, "--trust_module", "planted")
    assert done.returncode == 0 and planted.exists(), done.stderr
    planted.unlink()
    # the policy's cfg.yaml names it now: to those who evaluate it, and to RL, which takes its task
    weight = str(tmp_path / "bc" / "model0.pt")
    refused(evaluate, "cfg.yaml", "--weight", weight)
    rl = [*SMALL, "--save_dir", str(tmp_path / "rl"), "--bc_policy", weight, "--task_name", ""]
    refused(train_rl.main, "cfg.yaml", *rl)
    # by whatever suite the policy says it is of
    cfg = tmp_path / "bc" / "cfg.yaml"
    cfg.write_text(cfg.read_text().replace("suite: gymnasium", "suite: robosuite"))
    refused(train_rl.main, "model0.pt", *rl)
    data = demonstrations(tmp_path / "held_out.hdf5", "Planted-v0")
    cfg.write_text(cfg.read_text().replace("suite: robosuite", "suite: gymnasium"))
    tool = ["--weight", weight, "--data", str(data)]
    refused(lambda: held_out_energy.main(sys.argv[1:]), "cfg.yaml", *tool)
    refused(lambda: plot_particle.main(sys.argv[1:]), "cfg.yaml", *tool[:2])


def test_what_the_registry_knows_needs_no_module(capsys: pytest.CaptureFixture[str]) -> None:
    env = EnvConfig(suite="gymnasium", task="Pendulum-v1", gym_module="no_such_a")
    assert settle_modules(env, (), "cfg").gym_module == ""
    assert "note: cfg: module 'no_such_a' is not imported" in capsys.readouterr().out
    env = EnvConfig(suite="gymnasium", task="no_such_b:Pendulum")
    assert settle_modules(env, (), "cfg").task == "Pendulum"
    # already imported by this program: a worker may import it again
    env = EnvConfig(suite="gymnasium", task="Pendulum-v1", gym_module="json")
    assert settle_modules(env, (), "cfg") == env
    # no other suite imports by name
    env = EnvConfig(suite="metaworld", task="no_such_c:Reach", gym_module="no_such_c")
    assert settle_modules(env, (), "cfg") == env


@pytest.mark.parametrize("task", ["a.b:New-v0", "a.b:my/New-v0", "a.b:", "a.b:c:d"])
def test_trust_is_of_a_module_and_what_lies_in_it(task: str) -> None:
    env = EnvConfig(suite="gymnasium", task=task)
    assert module_names("a+b.c") == module_names(["a", "b.c"]) == ("a", "b.c")
    for trust in ("a", "x+a.b", ["a.b"]):
        assert settle_modules(env, trust, "cfg") == env
    for trust in ("", "a.b.c", "a.", "b", ["aa"]):
        with pytest.raises(ConfigError, match=r"cfg: names the module 'a.b'.*--trust_module a.b"):
            settle_modules(env, trust, "cfg")


@pytest.mark.parametrize("trainer", [train_bc, train_rl, train_bc_mw])
def test_training_programs_take_several(trainer: Any) -> None:
    cfg = run_config.parse_args(trainer.MainConfig, ["--trust_module", "a+b"])
    assert module_names(cfg.trust_module) == ("a", "b")
    if trainer is not train_bc_mw:  # and a run may be resumed with more of them
        assert "trust_module" in trainer.RESUMABLE_CHANGES


def test_minari_does_not_import_what_a_dataset_names(
    planted: Path, refused: Callable[..., None], tmp_path: Path
) -> None:
    folder = tmp_path / "minari" / "mine" / "data"
    folder.mkdir(parents=True)
    wrapper = {"name": "W", "entry_point": "planted:Wrapper", "kwargs": {}}
    spec = {"id": "Pendulum-v1", "kwargs": {}, "additional_wrappers": [wrapper]}
    spec["entry_point"] = gymnasium.registry["Pendulum-v1"].entry_point
    for changes in ({}, {"id": "Planted-v0", "entry_point": "planted:Env"}):
        metadata = {"env_spec": json.dumps(spec | changes), "data_format": "hdf5"}
        (folder / "metadata.json").write_text(json.dumps(metadata))
        command = ["--dataset", "mine", "--root", str(tmp_path / "minari"), "--out", str(tmp_path)]
        trust = [] if changes else ["--trust_module", "gymnasium"]
        refused(convert_minari.main, "dataset: 'mine'", *command, *trust)
    done = program("-m", "tools.convert_minari", *command, "--trust_module", "planted")
    assert done.returncode == 2 and planted.exists(), done.stderr  # it has no Env

"""What the programs say when they cannot run: one message, exit status 2, no traceback."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import forkserver

REPO = Path(__file__).resolve().parents[2]
MW = ["--suite=metaworld", "--task_name=Assembly", "--use_state=1", "--action_repeat=2"]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"MUJOCO_GL": "disabled", "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)  # entry scripts find the repository themselves
    return forkserver.run(*args, variables=env)


def assert_refused(args: list[str], *said: str) -> None:
    done = run(*args)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    for text in said:
        assert text in errors[0]


@pytest.mark.parametrize(
    "args, said",
    [
        (["--batch_sise=32"], ("batch_sise", "unknown option", "batch_size")),
        (["--q_agent.lr=fast"], ("q_agent.lr", "expected a number", "fast")),
        (["--q_agent.act_method=demo"], ("q_agent.act_method", "ibrl_soft", "demo")),
        (["--mix_rl_rate=0.5"], ("mix_rl_rate", "preload_num_data")),
        (["--add_bc_loss=1"], ("add_bc_loss", "preload_num_data")),
        (["--q_agent.ibrl_eps_greedy=2"], ("q_agent", "ibrl_eps_greedy", "[0, 1]")),
        (["--q_agent.device=gpu", *MW], ("device", "gpu", "cuda")),
        (["--config_path=release/cfgs/none.yaml"], ("config_path", "release/cfgs/none.yaml")),
    ],
    ids=lambda x: x[0].split("=")[0] if isinstance(x, list) else "",
)
def test_train_rl_refuses(args: list[str], said: tuple[str, ...], tmp_path: Path) -> None:
    assert_refused(["train_rl.py", f"--save_dir={tmp_path / 'run'}", *args], *said)


@pytest.mark.parametrize(
    "program, args, said",
    [
        ("train_bc.py", ["--dataset.use_stat=1"], ("dataset.use_stat", "dataset.use_state")),
        ("train_bc.py", ["--lr=-1"], ("lr", "-1")),
        ("train_bc.py", ["--save_dir="], ("save_dir: ''", "folder of the run")),
        ("train_rl.py", ["--save_dir="], ("save_dir: ''", "folder of the run")),
        ("quickstart.py", ["--save_dir="], ("save_dir: ''", "folder of the run")),
        ("tools/implicit_ibrl.py", ["--save_dir="], ("save_dir: ''", "folder of the run")),
        ("tools/particle_dimensions.py", ["--save_dir= "], ("save_dir: ' '", "folder of the run")),
        ("tools/coordinate_regression.py", ["--out="], ("out: ''", "expected a folder")),
        ("tools/collect_oracle.py", ["--out=README.md"], ("out: 'README.md' is a file",)),
        ("train_rl.py", ["--overwrite=1", "--resume=1"], ("overwrite: 1", "resume is 1")),
        ("mw_main/train_bc_mw.py", ["--policy.hidden_dim=big"], ("policy.hidden_dim", "integer")),
        ("mw_main/train_rl_mw.py", ["--nsteps=3"], ("nsteps", "nstep")),
        ("mw_main/generate_metaworld_dataset.py", ["--num_episodes=x"], ("num_episodes",)),
        ("mw_main/generate_metaworld_dataset.py", ["--output_path="], ("output_path: ''",)),
    ],
)
def test_the_other_programs_refuse(program: str, args: list[str], said: tuple[str, ...]) -> None:
    assert_refused([program, *args], *said)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("q_agent:\n  learning_rate: 0.1\n")
    assert_refused(
        ["train_rl.py", f"--config_path={config}"], str(config), "q_agent.learning_rate", "unknown"
    )


NO_DATA = "no/such/metaworld/Assembly_frame_stack_1/dataset.hdf5"
DEMO_COMMAND = "python mw_main/generate_metaworld_dataset.py --env_cfg.env_name Assembly"


@pytest.mark.parametrize(
    "args, said",
    [
        (
            ["train_rl.py", *MW, "--preload_num_data=3", f"--preload_datapath={NO_DATA}"],
            ("preload_datapath", NO_DATA, DEMO_COMMAND),
        ),
        (
            # a BC policy given by file says nothing about demonstrations
            [
                "mw_main/train_rl_mw.py",
                "--bc_policy=no/model0.pt",
                "--preload_num_data=3",
            ],
            ("preload_datapath: empty", "python mw_main/generate_metaworld_dataset.py"),
        ),
        (
            ["mw_main/train_bc_mw.py", f"--dataset.path={NO_DATA}"],
            (NO_DATA, DEMO_COMMAND),
        ),
        (
            ["train_rl.py", *MW, "--bc_policy=no/robomimic/can_state/model0.pt"],
            (
                "bc_policy",
                "no/robomimic/can_state/model0.pt",
                "python train_bc.py --config_path release/cfgs/robomimic_bc/can_state.yaml "
                "--save_dir no/robomimic/can_state --use_wb 0",
            ),
        ),
        (
            [
                "mw_main/train_rl_mw.py",
                "--bc_policy=no/pathBoxClose_num_data3_num_epoch2_seed1/model1.pt",
            ],
            (
                "bc_policy",
                "python mw_main/train_bc_mw.py --dataset.path BoxClose --save_dir no/pathBoxClose",
            ),
        ),
        (
            ["train_rl.py", *MW, "--load_pretrained_agent=no/robomimic/square_pretrain/model0.pt"],
            (
                "load_pretrained_agent",
                "no/robomimic/square_pretrain/model0.pt",
                "python train_rl.py --config_path release/cfgs/robomimic_rl/square_rft.yaml",
                "--pretrain_num_epoch 10",
            ),
        ),
        (
            ["train_rl.py", *MW, "--load_pretrained_agent=no/mine/model0.pt"],
            ("load_pretrained_agent", "python train_rl.py", "--save_dir no/mine"),
        ),
    ],
    ids=[
        "rl data",
        "no rl data",
        "bc data",
        "bc policy",
        "metaworld bc policy",
        "pretrained agent",
        "own pretrained agent",
    ],
)
def test_missing_files_are_named_with_the_command_that_makes_them(
    args: list[str], said: tuple[str, ...], tmp_path: Path
) -> None:
    save_dir = tmp_path / "run"
    assert_refused([*args, f"--save_dir={save_dir}"], *said)
    assert not save_dir.exists(), "a refused run must leave no folder behind"


def test_ibrl_without_a_bc_policy_is_refused(tmp_path: Path) -> None:
    args = ["train_rl.py", *MW, "--q_agent.act_method=ibrl", f"--save_dir={tmp_path / 'run'}"]
    assert_refused(args, "q_agent.act_method", "ibrl", "bc_policy")


def test_help_lists_the_options_and_succeeds() -> None:
    done = run("train_rl.py", "--help")
    assert done.returncode == 0
    assert "--q_agent.soft_ibrl_beta" in done.stdout
    assert "inverse temperature" in done.stdout

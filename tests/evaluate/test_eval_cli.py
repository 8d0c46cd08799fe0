"""``python -m evaluate.eval`` on real checkpoints in the real Meta-World, from states."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import train_bc
import train_rl
from bc.dataset import DatasetConfig
from common_utils import run_config
from common_utils.errors import run_program
from common_utils.kept_weights import keep, originals
from evaluate import eval as eval_cli
from evaluate.protocol import protocol_of
from evaluate.rollout import EvalResult
from tests import runs

ROOT = Path(__file__).resolve().parents[2]


def bc_checkpoint(folder: Path, *names: str, seed: int = 0) -> Path:
    """A run folder with random policies on Assembly states; returns the first weight file."""
    cfg = train_bc.MainConfig(
        dataset=DatasetConfig(path="gone.hdf5", use_state=1, eval_episode_len=12),
        save_dir=str(folder),
        obs_shape=[39],
        action_dim=4,
    )
    cfg.env.suite, cfg.env.task = "metaworld", "Assembly"
    cfg.env.use_state, cfg.env.episode_length, cfg.env.action_repeat = 1, 12, 2
    run_config.dump(cfg, folder / "cfg.yaml")
    for number, name in enumerate(names):
        torch.manual_seed(seed + number)
        torch.save(train_bc.build_policy(cfg).state_dict(), folder / name)
    return folder / names[0]


def run(capsys, *args: str) -> tuple[int, str, str]:
    status = run_program(eval_cli.main, [*args, "--device", "cpu"])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_one_weight_in_process_and_in_workers(tmp_path, capsys):
    weight = bc_checkpoint(tmp_path / "run", "model0.pt")
    args = ["--weight", str(weight), "--num_game", "3", "--seed", "5"]
    status, here, _ = run(capsys, *args, "--mp", "0")
    assert status == 0
    assert re.findall(r"seed (\d+):", here) == ["5", "6", "7"]
    assert f"{weight}: success 0.000 [0.000, 0.5" in here and "(n=3)" in here
    status, there, _ = run(capsys, *args, "--mp", "2", "--one_by_one", "1")
    assert status == 0 and sorted(there.splitlines()) == sorted(here.splitlines())
    status, quiet, _ = run(capsys, *args, "--mp", "0", "--verbose", "0", "--repeat", "2")
    assert "(n=6)" in quiet and "seed 5" not in quiet


def test_folder_is_ranked(tmp_path, capsys):
    bc_checkpoint(tmp_path / "seed1", "model0.pt", "latest.pt")
    bc_checkpoint(tmp_path / "seed2", "model0.pt", seed=7)
    (tmp_path / "seed2" / "state").mkdir()
    torch.save({}, tmp_path / "seed2" / "state" / "tree.pt")
    args = ["--folder", str(tmp_path), "--num_game", "2", "--mp", "1"]
    status, out, _ = run(capsys, *args, "--include", "model", "--verbose", "0")
    assert status == 0 and "average over 2 checkpoints" in out
    assert "seed1/model0.pt" in out and "latest" not in out and "tree.pt" not in out
    assert "95 % interval" in out and "\nmax: " in out
    assert "per episode seed" in out


def test_an_unusable_checkpoint_does_not_hide_the_others(tmp_path, capsys):
    bc_checkpoint(tmp_path / "run", "model0.pt")
    torch.save({"net.0.weight": torch.zeros(3, 3)}, tmp_path / "run" / "model1.pt")
    args = ["--folder", str(tmp_path), "--num_game", "1", "--mp", "0"]
    status, out, err = run(capsys, *args)
    assert status == 2 and "model1.pt" in err and "size mismatch" in err
    assert "average over 1 checkpoints" in out


def test_table_ranks_and_combines():
    def result(*successes: int) -> EvalResult:
        wins = np.array(successes, bool)
        return EvalResult(wins.astype(float), wins, np.full(len(wins), 9), np.arange(len(wins)))

    root = Path("runs")
    text = eval_cli.table(
        {
            root / "a.pt": result(1, 0, 0, 0),
            root / "b.pt": result(0, 1, 1, 0),
            root / "c.pt": result(0, 0, 0, 0),
        },
        root,
        protocol_of("robosuite"),
    )
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["b.pt", "a.pt", "c.pt"]
    assert lines[4] == "average over 3 checkpoints: 0.250"
    assert lines[5] == "max: 0.500 (b.pt)"
    assert "0.750 [0.301, 0.954] (n=4)" in lines[6]


def test_copies_that_runs_keep_are_no_checkpoints(tmp_path):
    for folder in ("run", "bc_policy/run"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("cfg.yaml", "model0.pt"):
            (tmp_path / folder / name).write_text("x")
    keep(tmp_path / "run", originals([str(tmp_path / "bc_policy/run/model0.pt")]))
    assert (tmp_path / "run/bc_policy/0/model.pt").is_file()
    found = [str(p.relative_to(tmp_path)) for p in eval_cli.find_weights(tmp_path)]
    assert found == ["bc_policy/run/model0.pt", "run/model0.pt"]


def test_returns_rank_where_they_count():
    def result(score: float, success: bool) -> EvalResult:
        return EvalResult(np.array([score]), np.array([success]), np.array([9]), np.array([0]))

    results = {Path("a.pt"): result(1.5, True), Path("b.pt"): result(3.0, False)}
    lines = eval_cli.table(results, Path(), protocol_of("d4rl")).splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["b.pt", "a.pt"]
    assert lines[3:5] == ["average over 2 checkpoints: 2.250", "max: 3.000 (b.pt)"]
    ranked = eval_cli.table(results, Path(), protocol_of("particle")).splitlines()
    assert ranked[1].startswith("a.pt")


def test_an_rl_checkpoint(tmp_path, capsys):
    args = ["--suite", "metaworld", "--task_name", "Assembly", "--use_state", "1"]
    args += ["--episode_length", "12", "--action_repeat", "2", "--q_agent.device", "cpu"]
    cfg = run_config.parse_args(train_rl.MainConfig, [*args, "--save_dir", str(tmp_path)])
    run_config.dump(cfg, tmp_path / "cfg.yaml")
    work = train_rl.Workspace(cfg)
    torch.save(work.agent.state_dict(), tmp_path / "model0.pt")
    work.close()
    weight = str(tmp_path / "model0.pt")
    status, out, _ = run(capsys, "--weight", weight, "--num_game", "2", "--mp", "0")
    assert status == 0 and "(n=2)" in out
    status, _, err = run(capsys, "--mode", "bc", "--weight", weight)
    assert status == 2 and err.startswith("error: --mode: bc, but these are RL weights (")


def test_the_kind_is_read_from_the_run(tmp_path, capsys):
    weight = bc_checkpoint(tmp_path, "model0.pt")
    command = ["--weight", str(weight), "--num_game", "1", "--mp", "0", "--verbose", "0"]
    status, out, _ = run(capsys, *command)
    assert status == 0 and run(capsys, "--mode", "bc", *command)[:2] == (0, out)
    wrong = f"BC weights (of {tmp_path / 'cfg.yaml'}); expected --mode bc, or no --mode"
    for where in (["--weight", str(weight)], ["--folder", str(tmp_path)]):
        status, _, err = run(capsys, "--mode", "rl", *where)
        assert status == 2 and err.count("\n") == 1
        assert f"--mode: rl, but these are {wrong}" in err
    (tmp_path / "cfg.yaml").write_text("seed: 1\n")
    status, _, err = run(capsys, "--weight", str(weight))
    assert status == 2 and "cfg.yaml: cannot decide between BC and RL weights; expected" in err


@pytest.mark.parametrize("mp", ["0", "1"])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("state_stack", 2, "observation 'state' must be float32[39], but metaworld/assembly-v3"),
        ("use_state", 0, "needs observation 'state'"),
        pytest.param(
            "task", "no\x1b[2J\nx\ny\nz", "Meta-World has no task 'no\\x1b[2J\n", id="task"
        ),
    ],
)
def test_a_config_whose_environment_does_not_fit(tmp_path, capsys, mp, field, value, message):
    weight = bc_checkpoint(tmp_path / "run", "model0.pt")
    cfg = run_config.load(train_bc.MainConfig, weight.parent / "cfg.yaml")
    setattr(cfg.env, field, value)
    cfg.env.cameras = []
    run_config.dump(cfg, weight.parent / "cfg.yaml")
    status, _, err = run(capsys, "--weight", str(weight), "--num_game", "1", "--mp", mp)
    assert status == 2 and len(err.splitlines()) == (3 if field == "task" else 1)
    assert str(weight.parent) in err and message in err


def test_weights_without_their_config(tmp_path, capsys):
    weight = bc_checkpoint(tmp_path / "run", "model0.pt")
    (weight.parent / "cfg.yaml").unlink()
    status, _, err = run(capsys, "--weight", str(weight))
    assert status == 2 and f"error: cannot read '{weight.parent / 'cfg.yaml'}'" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--weight", "nowhere/model0.pt"], "no file 'nowhere/model0.pt'"),
        (["--weight", "tests"], "'tests' is a folder, expected a weight file"),
        (["--folder", "nowhere"], "no folder 'nowhere'"),
    ],
)
def test_missing_checkpoints(capsys, args, message):
    status, _, err = run(capsys, *args)
    assert status == 2 and message in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--weight", "x.pt", "--num_game", "0"],
            "--num_game: expected an integer of at least 1, got '0'",
        ),
        (
            ["--weight", "x.pt", "--engine", "ray", "--mp", "0"],
            "--engine ray needs --mp of at",
        ),
        (["--weight", "x.pt", "--record_dir", "v"], "--record_dir needs --mp 0"),
        (["--weight", "x.pt", "--include", "a"], "--include goes with --folder"),
        (["--weight", "x.pt", "--folder", "y"], "not allowed with"),
    ],
)
def test_impossible_commands(capsys, args, message):
    with pytest.raises(SystemExit) as stop:
        run_program(eval_cli.main, args)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_help_and_exit_status():
    done = runs.program("-m", "evaluate.eval", "--help")
    assert done.returncode == 0 and "--record_dir" in done.stdout

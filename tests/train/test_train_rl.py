"""Whole training runs on real Meta-World states, through the command line.

One small run is the reference; the others must reproduce it bit for bit: again with the
same seed, resumed after SIGKILL at a random step, resumed after SIGTERM.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import train_rl
from common_utils.kept_weights import originals
from common_utils.run_folder import RunFolder
from common_utils.run_state import latest_state
from networks.fast.choice import WAYS
from tests import forkserver
from tests.docs.metrics_page import undocumented
from tests.runs import REPO, assert_same_run, env, metrics, weights
from workspace import build_agent

STEPS = 400


def python(*args: str) -> subprocess.CompletedProcess[str]:
    return forkserver.run(*args, variables=env(), timeout=600)


@pytest.fixture(scope="module")
def bc_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three demonstrations and a small BC policy, made by the documented programs."""
    root = tmp_path_factory.mktemp("assembly")
    made = python(
        "mw_main/generate_metaworld_dataset.py",
        f"--output_path={root / 'demos'}",
        "--num_episodes=3",
        "--env_cfg.camera_names=[]",
        "--env_cfg.end_on_success=1",
        "--env_cfg.frame_stack=1",
    )
    assert made.returncode == 0, made.stderr
    trained = python(
        "mw_main/train_bc_mw.py",
        f"--dataset.path={root / 'demos' / 'dataset.hdf5'}",
        "--dataset.use_state=1",
        "--state_policy.hidden_dim=64",
        "--num_epoch=1",
        "--epoch_len=200",
        "--num_eval_episode=2",
        f"--save_dir={root / 'bc'}",
    )
    assert trained.returncode == 0, trained.stderr
    return root


def command(root: Path, save_dir: Path, *more: str) -> list[str]:
    options = {
        "suite": "metaworld",
        "task_name": "",
        "action_repeat": 0,
        "use_state": 1,
        "rl_camera": "corner2",
        "episode_length": 60,
        "bc_policy": root / "bc" / "model0.pt",
        "preload_num_data": 3,
        "preload_datapath": root / "demos" / "dataset.hdf5",
        "num_warm_up_episode": 3,
        "num_train_step": STEPS,
        "log_per_step": 100,
        "num_eval_episode": 1,
        "batch_size": 32,
        "q_agent.act_method": "ibrl",
        "q_agent.norm_state": 1,
        "q_agent.state_critic.hidden_dim": 32,
        "q_agent.state_actor.hidden_dim": 32,
        "replay_prefetch": 2,
        "kernel_threads": 2,
        "save_dir": save_dir,
    }
    return ["train_rl.py", *(f"--{k}={v}" for k, v in options.items()), *more]


@pytest.fixture(scope="module")
def reference(bc_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    save_dir = tmp_path_factory.mktemp("reference") / "run"
    done = python(*command(bc_run, save_dir))
    assert done.returncode == 0, done.stderr
    return save_dir


def test_reference_run_is_complete(reference: Path) -> None:
    for name in ("cfg.yaml", "train.log", "metrics.jsonl", "model0.pt", "latest.pt"):
        assert (reference / name).stat().st_size > 0, name
    assert [m["step"] for m in metrics(reference)] == list(range(100, STEPS + 1, 100))
    assert metrics(reference)[-1]["other/train_step"] == STEPS / 2
    last = json.loads((reference / "metrics.jsonl").read_text().splitlines()[-1])
    shares = {k: v for k, v in last.items() if k.startswith("time/")}
    assert {"time/env", "time/update", "time/evaluate"} <= shares.keys()
    assert sum(shares.values()) == pytest.approx(1)
    assert undocumented(reference) == set()
    state = latest_state(reference / "state")
    # the one before the last evaluation, and the one after it
    assert state is not None and state.name == f"step_{STEPS:09d}_1"


def wait_for_step(save_dir: Path, step: int, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 900  # seconds; a busy machine is slow
    while time.monotonic() < deadline:
        file = save_dir / "metrics.jsonl"
        if file.exists() and f'"step": {step},' in file.read_text():
            return
        assert process.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.02)
    raise AssertionError(f"step {step} not reached in 900 s")


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_resumed_run_is_the_uninterrupted_one(
    sig: signal.Signals, bc_run: Path, reference: Path, tmp_path: Path
) -> None:
    save_dir = tmp_path / "run"
    # prefetch and threads change nothing but time
    more = ["--replay_prefetch=0", "--kernel_threads=1"] if sig == signal.SIGTERM else []
    process = forkserver.Program(command(bc_run, save_dir, *more), env())
    wait_for_step(save_dir, random.choice([100, 200]), process)
    time.sleep(random.random() * 0.5)
    process.send_signal(sig)
    process.done(120)
    assert process.returncode != 0
    resumed = python(*command(bc_run, save_dir, *more, "--resume=1"))
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(reference, save_dir)


WHERE_KEPT = "from networks.fast import measure; print(measure.cache_file())"


def test_a_resumed_run_multiplies_as_before(
    bc_run: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is measured now, on another machine for example."""
    save_dir = tmp_path / "run"
    begun = python(*command(bc_run, save_dir, "--num_train_step=200"))
    assert begun.returncode == 0, begun.stderr
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = Path(python("-c", WHERE_KEPT).stdout.strip())
    assert tmp_path in file.parents
    file.parent.mkdir()
    table = {kind: {part: w[-1] for part, w in parts.items()} for kind, parts in WAYS.items()}
    file.write_text(json.dumps({"times": {}, "table": table}))
    other = python(*command(bc_run, tmp_path / "other", "--num_train_step=200"))
    assert other.returncode == 0, other.stderr
    mine, theirs = weights(save_dir), weights(tmp_path / "other")
    assert any(not torch.equal(mine[k], theirs[k]) for k in mine)  # it would make a difference
    resumed = python(*command(bc_run, save_dir, "--resume=1"))
    assert resumed.returncode == 0, resumed.stderr
    assert "matrix products are computed as when the run began" in resumed.stdout
    assert_same_run(reference, save_dir)


RFT = (
    "--q_agent.act_method=rl",
    "--pretrain_num_epoch=2",
    "--pretrain_epoch_len=300",
    "--pretrain_only=0",
    "--add_bc_loss=1",
    "--q_agent.bc_loss_dynamic=1",
    "--num_train_step=100",
)


def test_rft_killed_while_pretraining_is_the_uninterrupted_one(
    bc_run: Path, tmp_path: Path
) -> None:
    whole, save_dir = tmp_path / "whole", tmp_path / "killed"
    done = python(*command(bc_run, whole, *RFT))
    assert done.returncode == 0, done.stderr
    process = forkserver.Program(command(bc_run, save_dir, *RFT), env())
    wait_for_step(save_dir, 0, process)
    process.kill()
    process.done(60)
    # as if killed just before its next state: a record of that state's own step is there already
    with open(save_dir / "metrics.jsonl", "a") as log:
        log.write('{"step": 0, "wall": 9999.0, "pretrain/step": 600}\n')
    resumed = python(*command(bc_run, save_dir, *RFT, "--resume=1"))
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from" in resumed.stdout
    assert_same_run(whole, save_dir)


def test_resume_refuses_another_config(bc_run: Path, reference: Path) -> None:
    refused = python(*command(bc_run, reference, "--resume=1", "--discount=0.9"))
    assert refused.returncode == 2
    assert "discount" in refused.stderr and "0.9" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_run_is_not_overwritten(bc_run: Path, reference: Path) -> None:
    refused = python(*command(bc_run, reference))
    assert refused.returncode == 2 and "--resume" in refused.stderr


def test_a_run_that_lost_its_state_is_not_wiped(
    bc_run: Path, reference: Path, tmp_path: Path
) -> None:
    left = ("cfg.yaml", "metrics.jsonl", "model0.pt")
    (tmp_path / "run").mkdir()
    for name in left:
        shutil.copy(reference / name, tmp_path / "run")
    for more in ([], ["--resume=1"]):
        refused = python(*command(bc_run, tmp_path / "run", *more))
        assert refused.returncode == 2 and "--overwrite 1" in refused.stderr
    assert {p.name for p in (tmp_path / "run").iterdir()} == set(left)


def test_two_runs_in_one_folder_are_refused(bc_run: Path, tmp_path: Path) -> None:
    with RunFolder(str(tmp_path / "run"), resume=False, overwrite=False):
        refused = python(*command(bc_run, tmp_path / "run"))
    assert refused.returncode == 2
    assert f"is in use by process {os.getpid()}" in refused.stderr


def test_load_model_after_moving_the_run(reference: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(reference, tmp_path / "elsewhere")
    agent, eval_env, params = train_rl.load_model(str(moved / "model0.pt"), "cpu")
    obs, _ = eval_env.reset(seed=3)
    action = agent.act({k: torch.from_numpy(v) for k, v in obs.items()}, eval_mode=True)
    assert action.shape == (eval_env.spec.action_dim,)
    assert params["suite"] == "metaworld" and params["task"]
    eval_env.close()


def bc_outputs(run: Path) -> list[float]:
    """What the BC policy of a run proposes somewhere."""
    agent, eval_env, _ = train_rl.load_model(str(run / "model0.pt"), "cpu")
    obs, _ = eval_env.reset(seed=3)
    eval_env.close()
    return agent.propose({k: torch.from_numpy(v)[None] for k, v in obs.items()}).tolist()


def test_a_run_holds_its_bc_policy(
    bc_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a result nor a resumed run may hang on a file elsewhere."""
    bc, run = shutil.copytree(bc_run / "bc", tmp_path / "bc"), tmp_path / "run"
    policy = f"--bc_policy={bc / 'model0.pt'}"
    done = python(*command(bc_run, run, policy, "--num_train_step=100"))
    assert done.returncode == 0, done.stderr
    before = bc_outputs(run)
    zeros = {k: torch.zeros_like(v) for k, v in torch.load(bc / "model0.pt").items()}
    torch.save(zeros, bc / "model0.pt")
    assert bc_outputs(run) == before
    assert "has changed since the run began; the run's copy is used" in capsys.readouterr().out
    more = (policy, "--num_train_step=120", "--resume=1")
    moved = run.rename(tmp_path / "moved")
    done = python(*command(bc_run, moved, *more))
    assert done.returncode == 0 and "has changed since the run began" in done.stdout
    copies = (moved / "bc_policy").rename(tmp_path / "aside")
    refused = python(*command(bc_run, moved, *more))
    assert refused.returncode == 2 and "are not the weights that" in refused.stderr
    shutil.copy(bc_run / "bc" / "model0.pt", bc)  # as in runs of earlier versions
    capsys.readouterr()
    assert bc_outputs(moved) == before
    assert f"bc_policy: '{moved}' keeps no copy of it" in capsys.readouterr().out
    copies.rename(moved / "bc_policy")
    shutil.rmtree(bc)
    assert bc_outputs(moved) == before
    relative = os.path.relpath(bc / "model0.pt", REPO)
    done = python(
        *command(bc_run, moved, f"--bc_policy={relative}", "--num_train_step=120", "--resume=1")
    )
    assert done.returncode == 0, done.stderr
    assert f"bc_policy: {bc / 'model0.pt'}\n" in (moved / "cfg.yaml").read_text()


def test_the_same_weights_by_another_path_go_on(bc_run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(bc_run / "bc", tmp_path / "bc") / "model0.pt"
    same = train_rl.MainConfig(bc_policy=str(other))
    kept = originals([str(bc_run / "bc" / "model0.pt")])
    assert build_agent.same_weights(same, kept)
    torch.save({}, other)
    assert not build_agent.same_weights(same, kept)
    other.unlink()
    assert not build_agent.same_weights(same, kept)


@pytest.mark.parametrize(
    "more",
    [
        ["--q_agent.act_method=rl", "--mix_rl_rate=0.5"],  # RLPD
        [*RFT[:-1]],  # RFT
        ["--q_agent.act_method=ibrl_soft", "--q_agent.num_bc_samples=2", "--mp_eval=1"],
        ["--bootstrap_truncated=1", "--episode_length=30"],
    ],
    ids=["rlpd", "rft", "ibrl_soft", "bootstrap_truncated"],
)
def test_methods_train(more: list[str], bc_run: Path, tmp_path: Path) -> None:
    short = ["--num_train_step=120", "--log_per_step=120", *more]
    done = python(*command(bc_run, tmp_path / "run", *short))
    assert done.returncode == 0, done.stderr
    assert undocumented(tmp_path / "run") == set()
    last = metrics(tmp_path / "run")[-1]
    assert last["step"] == 120 and last["train/critic_loss"] > 0
    if "--add_bc_loss=1" in more:
        assert 0 <= last["rft/ratio"] <= 1 and last["rft/bc_loss"] > 0

"""``--dry_run 1`` builds the run, says what it costs, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

import train_bc
import train_rl
from common_utils import run_config
from common_utils.run_config import ConfigError
from common_utils.run_folder import RunFolder
from tests.train.test_non_finite import bc_options, rl_options, write
from workspace import dry_run


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "SECONDS", 0.05)


def rl(*options: str) -> None:
    args = rl_options(Path("run"), "--dry_run=1", *options)
    train_rl.run(run_config.parse_args(train_rl.MainConfig, args))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, in which ``run`` is the save_dir."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_rl(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = here / "replay"
    rl(f"--replay_storage={storage}", "--save_per_success=1")
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0].startswith("ibrl ") and " on cpu (" in lines[0] and "kernels: " in lines[0]
    assert "QAgent: " in said and "networks in training: at least weights" in said
    assert "disk (run): " in said and "replay " in said
    assert "120 environment steps with 0.5 updates each" in said
    # 2 episodes of 10 steps; 3 evaluations of 2 episodes
    assert "warm-up, at most: 20 x" in said and "evaluation, at most: 60 x" in said
    assert "training: 120 x" in said and "in all about " in lines[-1]
    assert list(here.iterdir()) == []


def test_bc(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demos = write(here, 1.0)
    before = sorted(here.rglob("*"))
    args = bc_options(Path("run"), demos, "--dry_run=1", "--num_eval_episode=2")
    cfg = run_config.parse_args(train_bc.MainConfig, args)
    train_bc.run(cfg)
    said = capsys.readouterr().out
    assert "StateBcPolicy: " in said and "steps per second" in said and "in all about " in said
    assert f"{cfg.num_epoch * cfg.epoch_len} x" in said and "evaluation, at most: " in said
    assert sorted(here.rglob("*")) == before


def test_a_run_in_the_folder_is_left_alone(here: Path) -> None:
    """Even one that is running, and with ``overwrite``."""
    with RunFolder("run", resume=False, overwrite=False):
        (here / "run/cfg.yaml").write_text("seed: 3\n")
        before = {p.name: p.read_text() for p in (here / "run").iterdir()}
        rl("--overwrite=1")
        assert {p.name: p.read_text() for p in (here / "run").iterdir()} == before


def test_what_would_be_refused_is_refused(here: Path) -> None:
    with pytest.raises(ConfigError, match="^dry_run: 1, expected 0 with resume 1"):
        rl("--resume=1")
    with pytest.raises(ConfigError, match="^bc_policy: no file 'gone.pt'"):
        rl("--bc_policy=gone.pt")
    assert list(here.iterdir()) == []


def test_long_runs_are_given_in_plain_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    stages = [dry_run.Stage("training", 20_000, 53.5), dry_run.Stage("evaluation", 3, 0.01234)]
    dry_run.print_stages(stages)
    assert capsys.readouterr().out.splitlines() == [
        "  training: 20,000 x 53,500 ms = 297 h 13 min",
        "  evaluation: 3 x 12.3 ms = 0 s",
        "in all about 297 h 13 min (297.22 h)",
    ]

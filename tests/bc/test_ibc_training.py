"""Implicit BC trained by the one BC loop: runs, resuming, evaluation, refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from ibc_data import write_particle

import train_bc
from bc.dataset import RobomimicDataset
from bc.demos import DatasetError
from bc.explicit.mdn_policy import MdnPolicy
from bc.explicit.mse_policy import MsePolicy
from bc.ibc.ebm_policy import EbmPolicy
from common_utils import run_config
from common_utils.demo_file import Recording, write_demos
from common_utils.errors import run_program
from common_utils.finite import NonFiniteError
from common_utils.records import read_metrics
from common_utils.run_config import ConfigError
from env.factory import make_env
from evaluate.multi_process_eval import run_eval_mp
from evaluate.rollout import run_eval
from tests.docs.metrics_page import undocumented
from workspace import build_agent, rl_config

RELEASE = Path(__file__).resolve().parents[2] / "release" / "cfgs" / "ibc" / "particle"
SMALL = {
    "ebm": ["--ebm.net.width", "16", "--ebm.langevin.num_iterations", "3"]
    + ["--ebm.num_action_samples", "32"],
    "mse": ["--mse.net.width", "16"],
    "mdn": ["--mdn.net.width", "16", "--policy_type", "mdn"],
}
FILES = {"ebm": "mlp_ebm_langevin", "mse": "mlp_mse", "mdn": "mlp_mse"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_particle(tmp_path_factory.mktemp("data") / "particle.hdf5")


def config(kind: str, save_dir: Path, data: Path, *more: str) -> train_bc.MainConfig:
    args = ["--config_path", str(RELEASE / f"{FILES[kind]}.yaml"), "--save_dir", str(save_dir)]
    args += ["--dataset.path", str(data), "--dataset.action_low", "[0]"]
    args += ["--dataset.action_high", "[1]", "--device", "cpu", "--batch_size", "16"]
    args += ["--epoch_len", "10", "--num_epoch", "2", "--num_eval_episode", "0"]
    return run_config.parse_args(train_bc.MainConfig, [*args, *SMALL[kind], *more])


@pytest.mark.parametrize("kind, cls", [("ebm", EbmPolicy), ("mse", MsePolicy), ("mdn", MdnPolicy)])
def test_a_run_trains_plays_and_is_loaded_again(tmp_path, data, kind, cls):
    cfg = config(kind, tmp_path / "run", data, "--num_eval_episode", "1")
    work = train_bc.run(cfg)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert {"train/loss", "score/score", "score/return", "score/final_dist_second_goal"} <= set(
        rows[-1]
    )
    assert undocumented(tmp_path / "run") == set()
    (tmp_path / "run").rename(tmp_path / "moved")
    policy, loaded = train_bc.load_policy(tmp_path / "moved" / "latest.pt", "cpu")
    assert isinstance(policy, cls) and loaded.obs_shape == [16]
    assert (loaded.env.suite, loaded.env.state_stack, loaded.env.stack_pad) == (
        "particle", 2, "repeat",
    )  # fmt: skip
    for key, value in work.policy.state_dict().items():
        assert torch.equal(policy.state_dict()[key], value)
    # statistics came from the data: actions are not the identity's
    assert float((policy.act_norm.scale - 1).abs().max()) > 0.01
    # the learning rate has decayed, continuously
    assert work.optim.param_groups[0]["lr"] == pytest.approx(1e-3 * 0.99 ** (19 / 100))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "latest.pt", weights_only=True)


@pytest.mark.parametrize("kind", ["ebm", "mdn"])
def test_resuming_repeats_the_uninterrupted_run(tmp_path, data, kind):
    train_bc.run(config(kind, tmp_path / "whole", data))
    train_bc.run(config(kind, tmp_path / "parts", data, "--num_epoch", "1"))
    half = weights(tmp_path / "parts")
    train_bc.run(config(kind, tmp_path / "parts", data, "--resume", "1"))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert any(not torch.equal(whole[k], half[k]) for k in whole)


def test_an_episode_is_the_same_alone_and_in_a_pool(tmp_path, data):
    train_bc.run(config("ebm", tmp_path / "run", data))
    policy, _, params = train_bc.load_model(tmp_path / "run" / "latest.pt", "cpu")
    env = make_env(params)
    alone = run_eval(env, policy, 3, 0)
    env.close()
    together = run_eval_mp(params, policy, 2, 3, 0)
    assert alone.mean_metrics == together.mean_metrics
    assert alone.scores.tolist() == together.scores.tolist()
    assert alone.seeds.tolist() == [0, 1, 2]


def test_an_infinite_loss_ends_the_run_and_says_where(tmp_path, data):
    with pytest.raises(NonFiniteError, match=r"step \d+: train/\w+ is (nan|inf)"):
        train_bc.run(config("mse", tmp_path / "run", data, "--lr", "1e30"))


@pytest.mark.parametrize(
    "more, match",
    [
        (["--weight_decay", "0.1"], "weight_decay"),
        (["--lr_decay_steps", "0"], "lr_decay_steps"),
        (["--grad_clip", "-1"], "grad_clip"),
        (
            ["--dataset.use_state", "0", "--dataset.rl_camera", "a+b"],
            "expected one in dataset.rl_camera",
        ),
        (["--ebm.num_action_samples", "0"], "num_action_samples"),
        (["--ebm.net.depth", "3"], "even"),
        (
            ["--ebm.precision", "bfloat16", "--ebm.net.rate", "0.1"],
            "precision.*expected float32 unless",
        ),
        (
            ["--ebm.precision", "bfloat16", "--dataset.use_state", "0"],
            "precision.*ebm.pixel.image.conv_precision",
        ),
    ],
)
def test_impossible_runs_are_refused(tmp_path, data, more, match):
    with pytest.raises(ConfigError, match=match):
        train_bc.run(config("ebm", tmp_path / "run", data, *more))
    assert not (tmp_path / "run").exists(), "a refused run must leave no folder behind"


def test_actions_without_a_range_are_refused_before_anything_is_written(tmp_path):
    rng, recording = np.random.default_rng(0), Recording()
    for _ in range(10):
        state = rng.standard_normal(8).astype(np.float32)
        action = np.array([0.5, rng.uniform()], np.float32)
        recording.append({"state": state}, np.zeros(1), action, 0.0)
    env_args = {"suite": "particle", "env_name": "particle", "env_kwargs": {}}
    path = write_demos(tmp_path / "data", [recording], [], env_args)
    with pytest.raises(DatasetError, match="dataset.hdf5.*ebm.scalar_box: 1 .* in all of the data"):
        train_bc.run(config("ebm", tmp_path / "run", path))
    assert not (tmp_path / "run").exists(), "a refused run must leave no folder behind"


@pytest.mark.parametrize("kind", ["ebm", "mse"])
def test_data_that_are_not_finite_are_refused_by_the_normaliser(tmp_path, data, kind):
    """The reader refuses such files already."""
    cfg = config(kind, tmp_path / "run", data)
    broken = RobomimicDataset(cfg.dataset)
    broken._actions[3] = np.nan
    train_bc.fill_in(cfg, broken)
    with pytest.raises(DatasetError, match="particle.hdf5.*Normalizer: the data hold NaN"):
        train_bc.Workspace(cfg, broken)
    assert not (tmp_path / "run").exists()


def test_a_damaged_state_is_reported_not_raised(tmp_path, data, capsys):
    cfg = config("mse", tmp_path / "run", data, "--num_epoch", "1")
    train_bc.run(cfg)
    _, last = sorted((tmp_path / "run" / "state").glob("*/COMPLETE"))
    last.write_text("{")
    cfg.resume = 1
    with pytest.warns(UserWarning, match="trying the state before it"):
        assert train_bc.run(cfg).epoch == 1
    for marker in (tmp_path / "run" / "state").glob("*/COMPLETE"):
        marker.write_text("{")
    with pytest.warns(UserWarning, match="COMPLETE cannot be read"):
        assert run_program(train_bc.main, lambda: cfg) == 2
    assert capsys.readouterr().err.startswith("error: no usable state: ")


def test_averaged_weights_of_d4rl_compete_by_their_returns(tmp_path):
    """Returns are below zero there, so a success rate among them would always win."""
    rng, recording = np.random.default_rng(0), Recording()
    for _ in range(10):
        obs = {"state": rng.standard_normal(39).astype(np.float32)}
        recording.append(obs, np.zeros(1), rng.uniform(-1, 1, 28).astype(np.float32), 0.0)
    env_args = {"suite": "d4rl", "env_name": "door-human-v0"}
    path = write_demos(tmp_path / "door-human-v0", [recording], [], env_args)
    cfg = run_config.load(train_bc.MainConfig, RELEASE.parent / "d4rl" / "mlp_mse_best.yaml")
    cfg.dataset.path, cfg.save_dir = str(path), str(tmp_path / "run")
    cfg.mse.net.width, cfg.epoch_len, cfg.num_epoch, cfg.ema = 16, 2, 1, 0.5
    cfg.num_eval_episode, cfg.num_final_episode, cfg.dataset.eval_episode_len = 1, 1, 10
    train_bc.run(cfg)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for name in ("score", "ema_score", "last_ckpt_score"):
        assert rows[0][f"score/{name}"] < 0
    assert rows[1]["score/best_ckpt_score"] < 0


def test_rl_refuses_a_policy_that_repeats_the_first_step(tmp_path, data):
    """RL's histories begin with zeros, which such a policy has never seen."""
    for pad in ("repeat", "zeros"):
        train_bc.run(config("mse", tmp_path / pad, data, "--dataset.stack_pad", pad))
    options = ["--bc_policy", str(tmp_path / "zeros" / "model0.pt"), "--q_agent.device", "cpu"]
    (policy,), cameras = build_agent.load_bc_policies(
        run_config.parse_args(rl_config.MainConfig, options)
    )
    assert isinstance(policy, MsePolicy) and cameras == []
    options[1] = str(tmp_path / "repeat" / "model0.pt")
    with pytest.raises(ConfigError, match="repeat.*histories of 2 steps.*stack_pad zeros"):
        build_agent.load_bc_policies(run_config.parse_args(rl_config.MainConfig, options))


def test_without_games_no_score_is_made_up(tmp_path, data, capsys):
    work = train_bc.run(config("mse", tmp_path / "run", data, "--ema", "0.1"))
    assert "no games are played, the newest weights are kept" in capsys.readouterr().out
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 2 and not any(k.startswith("score/") for row in rows for k in row)
    latest = torch.load(tmp_path / "run" / "latest.pt", weights_only=True)
    assert all(torch.equal(v, work.policy.state_dict()[k]) for k, v in latest.items())


def test_a_dimension_that_does_not_move_is_reported_once(tmp_path, capsys):
    path = write_particle(tmp_path / "still.hdf5", lengths=(12,))  # one game: fixed goals
    log = tmp_path / "run" / "train.log"
    train_bc.run(config("mse", tmp_path / "run", path, "--num_epoch", "1"))
    line = f"warning: {path}: observation 'state': dimensions 2-7 do not move in the data"
    assert log.read_text().count(line) == 1
    train_bc.run(config("mse", tmp_path / "run", path, "--resume", "1"))
    assert log.read_text().count(line) == 1

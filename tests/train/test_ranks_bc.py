"""BC on two ranks: the run of a single process up to rounding, and one program to the user."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bc"))

from test_dataset import write_robomimic

import train_bc
from bc.dataset import RobomimicDataset
from common_utils import ranks, run_config
from common_utils.errors import UserError
from common_utils.run_config import ConfigError
from tests.pair import pair
from tests.runs import assert_same_run, metrics, program, weights

STATES = ["--dataset.use_state", "1"]
SMALL = ["--policy.encoder.resnet.shallow", "1", "--policy.encoder.feat_dim", "16"]
SMALL += ["--policy.encoder.resnet.stem", "patch", "--policy.hidden_dim", "16", "--batch_size", "3"]
EBM = ["--policy_type", "ebm", "--ebm.num_counter_examples", "8", "--ebm.net.width", "32"]
EBM += ["--ebm.langevin.num_iterations", "3", "--ebm.norm.num_samples", "0"]
CASES: dict[str, list[str]] = {
    "states, dropout, an average": [*STATES, "--ema", "0.1", "--state_policy.hidden_dim", "32"],
    "mse": [*STATES, "--policy_type", "mse", "--mse.net.width", "32", "--lr_schedule", "warmup"],
    "ebm": [*STATES, *EBM, "--ebm.net.rate", "0", "--optimizer", "keras_adam"],
    "ebm, dropout, dfo": [
        *STATES, *EBM, "--ebm.net.rate", "0.1", "--ebm.fraction_langevin_samples", "0.5",
        "--ebm.fraction_dfo_samples", "0.5", "--ebm.compute_mse", "1",
        "--dataset.sampling", "epochs",
    ],
    "pixels, ResNets": [
        *SMALL, "--dataset.rl_camera", "agentview", "--epoch_len", "5",
        "--policy.use_prop", "1", "--policy.prop_noise", "0.1", "--policy.dropout", "0.1",
        "--policy.encoder.dropout", "0.1",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_robomimic(tmp_path_factory.mktemp("data") / "data.hdf5", size=36)


@pytest.fixture(autouse=True)
def rounding_stays_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger epsilon: Adam makes whole steps of gradients that are zero but for rounding errors
    (InfoNCE does not change with a constant that is added to all energies)."""
    build = train_bc.build_optimizer

    def built(*args: Any) -> Any:
        optim = build(*args)
        for group in optim.param_groups:
            group["eps"] = 1e-2
            group |= {"keras_eps": 1e-2} if "keras_eps" in group else {}
        return optim

    monkeypatch.setattr(train_bc, "build_optimizer", built)


def options(data: Path, save_dir: Path, *more: str) -> list[str]:
    args = ["--dataset.path", str(data), "--save_dir", str(save_dir), "--device", "cpu"]
    args += ["--num_epoch", "2", "--epoch_len", "50", "--num_eval_episode", "0", "--use_wb", "0"]
    return [*args, "--batch_size", "7", *more]


def train(args: list[str], interrupt: int = 0) -> dict[str, np.ndarray]:
    """The program as each rank runs it; returns its weights. ``interrupt``: rank 1 gets a signal
    before that step."""
    kept: list[Any] = []
    step = train_bc.Workspace._train_step

    def watched(work: train_bc.Workspace) -> None:
        kept[:] = [work.policy]
        if interrupt and work.step == interrupt and ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        step(work)

    train_bc.Workspace._train_step = watched
    try:
        train_bc.main(lambda: run_config.parse_args(train_bc.MainConfig, args))
    except SystemExit:
        if not interrupt:
            raise
    finally:
        train_bc.Workspace._train_step = step
    return {k: v.numpy() for k, v in kept[0].state_dict().items()} if kept else {}


def assert_close(found: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    """Equal but for rounding; other random numbers would differ by 1e-3 and more."""
    assert found.keys() == want.keys()
    for key in want:
        torch.testing.assert_close(found[key], want[key], rtol=1e-5, atol=2e-6, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one_run(name, data, tmp_path):
    alone, two = tmp_path / "alone", tmp_path / "two"
    train(options(data, alone, *CASES[name]))
    first, second = pair(train, options(data, two, *CASES[name]))
    assert first.keys() == second.keys()
    assert [k for k in first if not np.array_equal(first[k], second[k])] == []  # bit for bit
    assert_close(weights(two), weights(alone))
    found, want = metrics(two), metrics(alone)
    assert [r["step"] for r in found] == [r["step"] for r in want] and len(want) == 2
    for a, b in zip(found, want, strict=True):
        assert a.keys() == b.keys()
        assert a == pytest.approx(b, rel=1e-4)


def test_another_number_of_ranks_resumes(data, tmp_path):
    """Two ranks, then one, then two: the run of one."""
    more, mixed, alone = [*STATES, "--lr", "1e-3"], tmp_path / "mixed", tmp_path / "alone"
    first = options(data, mixed, *more, "--num_epoch", "1", "--epoch_len", "20")
    pair(train, first)
    for epochs, run in ((2, train), (3, lambda args: pair(train, args))):
        run([*first, "--num_epoch", str(epochs), "--resume", "1"])
    train(options(data, alone, *more, "--num_epoch", "3", "--epoch_len", "20"))
    assert_close(weights(mixed), weights(alone))
    assert [r["step"] for r in metrics(mixed)] == [20, 40, 60]


def test_a_signal_to_any_rank_ends_all_at_one_step(data, tmp_path, capfd):
    run, alone = tmp_path / "run", tmp_path / "alone"
    args = options(data, run, *STATES, "--epoch_len", "20")
    found = pair(train, args, 13)
    assert [k for k in found[0] if not np.array_equal(found[0][k], found[1][k])] == []
    assert max(p.name for p in (run / "state").iterdir()) == "step_000000014"
    pair(train, [*args, "--resume", "1"])
    pair(train, options(data, alone, *STATES, "--epoch_len", "20"))
    assert_same_run(run, alone)
    assert "resumed from" in capfd.readouterr().out


def test_errors_end_all_ranks_with_one_message(data, tmp_path, capfd):
    found = pair(train, options(data, tmp_path / "a", *STATES, "--batch_size", "1"))
    assert isinstance(found[0], ConfigError) and isinstance(found[1], SystemExit)
    assert str(found[0]) == "batch_size: 1, expected at least 2 with 2 ranks (torchrun)"
    assert found[1].code == 2
    for more, message in (
        (["--compile", "default"], "compile: default, expected off with 2 ranks"),
        (["--dry_run", "1"], "dry_run: 1, expected 0 with 2 ranks"),
    ):
        found = pair(train, options(data, tmp_path / "a", *STATES, *more))
        assert str(found[0]).startswith(message) and found[1].code == 2
    more = ["--policy.encoder.resnet.norm_layer", "bn"]
    found = pair(train, options(data, tmp_path / "a", *SMALL, *more))
    assert "init_downsample.1 is a batch normalisation" in str(found[0]) and found[1].code == 2
    assert not (tmp_path / "a").exists()

    def fails_on_rank_1(error: BaseException | int) -> Any:
        sample = RobomimicDataset.sample_bc

        def failing(*args: Any) -> Any:
            if ranks.rank() == 1:
                if isinstance(error, int):
                    os.kill(os.getpid(), error)
                raise error
            return sample(*args)

        RobomimicDataset.sample_bc = failing
        return train(options(data, tmp_path / "b", *STATES, "--overwrite", "1"))

    found = pair(fails_on_rank_1, UserError("a file is gone"))
    assert str(found[0]) == "rank 1: a file is gone" and found[1].code == 2
    assert "error: rank 1: a file is gone" in (tmp_path / "b" / "train.log").read_text()
    found = pair(fails_on_rank_1, int(signal.SIGKILL))
    assert str(found[0]).startswith("another rank of the 2 has ended without a word (killed")


def test_torchrun(data, tmp_path, monkeypatch):
    """The command of the documentation: one log, no remark of a second rank."""
    args = options(data, tmp_path / "two", *STATES, "--num_epoch", "1")
    done = program("-m", "torch.distributed.run", "--nproc_per_node", "2", "train_bc.py", *args)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 50") == 1 and done.stderr == ""
    assert "train longer: torchrun --nproc_per_node 2 train_bc.py" in done.stdout
    monkeypatch.undo()  # Adam as the program has it
    train(options(data, tmp_path / "alone", *STATES, "--num_epoch", "1"))
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "alone"))

"""Seeds, grids and needs become trials; what cannot be run is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from common_utils.errors import ConfigError
from launch.sweep_file import entry_of, read_entries, split_values
from launch.trial import Trial
from launch.trials import expand

RL = "suite: particle\ntask_name: PARTICLE_2d\nuse_state: 1\nq_agent: {act_method: rl}\n"
BC = "dataset: {use_state: 1}\npolicy_type: mse\nepoch_len: 7\nnum_epoch: 3\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rl.yaml").write_text(RL)
    (tmp_path / "bc.yaml").write_text(BC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def from_options(folder: Path, seeds: str, *grid: str, fixed: tuple[str, ...] = ()) -> list[Trial]:
    return expand([entry_of("rl.yaml", "", seeds, fixed, grid)], folder / "out")


def from_file(folder: Path, text: str) -> list[Trial]:
    (folder / "sweep.yaml").write_text(text)
    return expand(read_entries("sweep.yaml"), folder / "out")


def test_seeds_and_grids_are_combined(folder: Path) -> None:
    grid = ("q_agent.lr=1e-4,3e-4", "task_name=PARTICLE_1d,PARTICLE_2d")
    trials = from_options(folder, "0:2,7", *grid, fixed=("num_train_step=123",))
    assert len(trials) == 2 * 2 * 3
    first = trials[0]
    assert first.name == "rl_q_agent.lr=1e-4_task_name=PARTICLE_1d_seed0"
    assert first.options == (
        f"--config_path={folder}/rl.yaml", "--num_train_step=123", "--q_agent.lr=1e-4",
        "--task_name=PARTICLE_1d", "--seed=0", f"--save_dir={folder}/out/{first.name}",
    )  # fmt: skip
    assert (first.program, first.steps, first.needs) == ("train_rl", 123, ())
    assert [t.seed for t in trials[:4]] == [0, 1, 7, 0]
    # tasks are pooled, learning rates are compared
    assert {t.group for t in trials} == {"rl q_agent.lr=1e-4", "rl q_agent.lr=3e-4"}
    assert len({t.digest for t in trials}) == len(trials)


def test_without_seeds_the_configuration_s_is_taken(folder: Path) -> None:
    (trial,) = from_options(folder, "")
    assert (trial.name, trial.seed) == ("rl_seed1", 1)


def test_the_digest_is_of_the_values_not_of_their_spelling(folder: Path) -> None:
    one = from_options(folder, "0", fixed=("q_agent.lr=1e-4",))[0]
    assert one.digest == from_options(folder, "0", fixed=("q_agent.lr=0.0001",))[0].digest
    assert one.digest != from_options(folder, "0", fixed=("q_agent.lr=2e-4",))[0].digest


def test_values_may_be_lists() -> None:
    assert split_values("[0, 1],[2],a", "x") == ["[0, 1]", "[2]", "a"]


NEEDS = """
seeds: [0, 1]
options: {num_eval_episode: 3}
trials:
  rl:
    config: rl.yaml
    needs: {bc_policy: [bc, bc/latest.pt]}
    grid: {q_agent: {lr: [1e-4, 3e-4]}}
    group: IBRL
  bc: {config: bc.yaml}
"""


def test_a_trial_gets_the_weights_of_its_seed(folder: Path) -> None:
    trials = from_file(folder, NEEDS)
    assert [t.name for t in trials[:2]] == ["bc_seed0", "bc_seed1"], "needed ones come first"
    assert (trials[0].program, trials[0].steps) == ("train_bc", 21)
    last = trials[-1]
    assert (last.name, last.needs) == ("rl_q_agent.lr=3e-4_seed1", ("bc_seed1",))
    out = folder / "out"
    assert f"--bc_policy={out}/bc_seed1/model0.pt+{out}/bc_seed1/latest.pt" in last.options
    assert last.group == "IBRL q_agent.lr=3e-4"
    assert all("--num_eval_episode=3" in t.options for t in trials)


def test_grids_of_both_are_matched(folder: Path) -> None:
    text = """
trials:
  bc: {config: bc.yaml, grid: {lr: [1e-3, 2e-3]}, seeds: [5]}
  more:
    config: bc.yaml
    grid: {lr: [1e-3], ema: [0.1, 0.2]}
    seeds: "0:2"
    needs: {load_model: bc}
"""
    trials = from_file(folder, text)
    assert len(trials) == 2 + 4
    assert {t.needs for t in trials[2:]} == {("bc_lr=1e-3_seed5",)}


@pytest.mark.parametrize(
    ("seeds", "grid", "fixed", "message"),
    [
        ("5:5", (), (), r"--seeds: '5:5', expected seeds such as 0:5 \(0 to 4\) or 0,3,7"),
        ("x", (), (), "--seeds: 'x', expected seeds"),
        ("0,0", (), (), "--seeds: '0,0', expected each seed once"),
        ("9999999999", (), (), "--seeds: '9999999999', expected seeds"),
        ("", ("lr",), (), "--grid: 'lr', expected NAME=VALUE"),
        ("", ("q_agent.lr=1,,2",), (), "--grid: q_agent.lr: '1,,2', expected values"),
        ("", ("q_agent.lr=1e-4,1e-4",), (), "grid: q_agent.lr: 1e-4, 1e-4, expected different"),
        ("", ("nstep=1", "nstep=2"), (), "--grid: nstep: given twice"),
        ("", ("nstep=1",), ("nstep=2",), "nstep: given twice"),
        ("", ("q_agent.rl=1e-4",), (), "--q_agent.rl: unknown option"),
        ("", ("q_agent.lr=fast",), (), "rl_q_agent.lr=fast_seed1: .*q_agent.lr: expected a number"),
        ("", ("seed=1,2",), (), "seed: not a field to set, expected in the seeds"),
        ("", (), ("save_dir=x",), "save_dir: not a field to set, each trial has a folder"),
        ("", ("nstep=1,2,0",), (), "rl_nstep=0_seed1: .*nstep: expected an integer"),
        ("", ("rl_camera=a b,a/b",), (), "rl_rl_camera=a-b_seed1: 2 trials have this name"),
        ("", (), ("preload_num_data=1", "preload_datapath=no.hdf5"), "no file 'no.hdf5'"),
    ],
)
def test_options_that_cannot_be_run(
    seeds: str, grid: tuple[str, ...], fixed: tuple[str, ...], message: str, folder: Path
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        from_options(folder, seeds, *grid, fixed=fixed)
    assert str(error.value).count("\n") <= 2
    assert not (folder / "out").exists()


BOTH = "trials: {a: {config: bc.yaml, needs: %s}, b: {config: bc.yaml, needs: %s}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "sweep.yaml: trials: nothing, expected"),
        ("trials: {a: 1}", "trials.a: 1, expected fields such as config"),
        (
            "trials: {a: {seeds: [1]}}",
            "trials.a: no configuration and no program, expected",
        ),
        ("trials: {a: {program: train}}", "trials.a: 'train', expected a program, one of train_rl"),
        ("trials: {a: {confg: bc.yaml}}", "trials.a: confg: unknown field; did you mean config"),
        ("trials: {a: {config: no.yaml}}", "trials.a: cannot read '.*no.yaml'"),
        ("trials: {a/b: {config: bc.yaml}}", "'a/b', expected up to 60 letters"),
        ("trials: {a: {config: sweep.yaml}}", "may be of an RL or a BC run; expected a program"),
        ("seeds: 1:4\ntrials: {a: {config: bc.yaml}}", "seeds: 64, expected a list such as"),
        ("trials: {a: {config: bc.yaml, seeds: [x]}}", r"trials.a: seeds: '\['x'\]', expected"),
        ("trials: {a: {config: bc.yaml, grid: {lr: 1}}}", "grid: lr: 1, expected a list of values"),
        (BOTH % ("{load_model: c}", "{}"), "trials.a: needs: load_model: 'c', expected one of"),
        (BOTH % ("{lr: b}", "{}"), "trials.a: needs: lr, expected a field of a file"),
        (BOTH % ("{load_model: [1]}", "{}"), r"load_model: \[1\], expected the name of a trial"),
        (BOTH % ("{load_model: b/../x}", "{}"), "expected TRIAL or TRIAL/FILE"),
        (BOTH % ("{load_model: b}", "{load_model: a}"), "needs: a circle, a needs b needs a"),
        (BOTH % ("{load_model: a}", "{}"), "needs: a circle, a needs a"),
        (
            "trials: {b: {config: bc.yaml, seeds: [1, 2]}, "
            "a: {config: bc.yaml, seeds: [3], needs: {load_model: b}}}",
            "trials.a: needs: b has no seed 3, expected one of 1, 2",
        ),
        (
            "trials: {b: {config: bc.yaml, grid: {lr: [1, 2]}}, "
            "a: {config: bc.yaml, needs: {load_model: b}}}",
            r"trials.a: needs: b has a grid of lr \(1, 2\); expected a grid of lr",
        ),
    ],
)
def test_files_that_cannot_be_run(text: str, message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        from_file(folder, text)
    assert str(error.value).count("\n") <= 2
    assert not (folder / "out").exists()

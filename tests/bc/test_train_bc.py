"""The BC trainer end to end: small real runs, loading, moving, resuming, refusing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import h5py
import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))

from test_dataset import write_metaworld, write_robomimic

import train_bc
from bc.dataset import RobomimicDataset, read_demos
from bc.demos import DatasetError
from bc.explicit.bc_policy import BcPolicy, StateBcPolicy, StateBcPolicyConfig
from bc.explicit.mw_bc_policy import BcPolicy as MwBcPolicy
from bc.explicit.mw_bc_policy import BcPolicyConfig as MwBcPolicyConfig
from common_utils import run_config
from common_utils.records import read_metrics
from common_utils.run_config import ConfigError
from common_utils.specs import SpecError
from common_utils.success_rule import SparseReward
from env.core import EnvError
from env.factory import make_env
from evaluate.rollout import EvalError
from mw_main import generate_metaworld_dataset as demos
from mw_main import train_bc_mw
from networks import graphs
from tests import forkserver, runs
from tests.docs.metrics_page import undocumented

ROOT = Path(__file__).resolve().parents[2]
RELEASE = ROOT / "release" / "cfgs"


def config(save_dir: Path, data: Path, *more: str) -> train_bc.MainConfig:
    args = ["--dataset.path", str(data), "--save_dir", str(save_dir), "--device", "cpu"]
    args += ["--num_epoch", "2", "--epoch_len", "12", "--batch_size", "8"]
    args += ["--num_eval_episode", "0", *more]
    cfg = run_config.parse_args(train_bc.MainConfig, args)
    if cfg.kind == "state":
        cfg.own_section.hidden_dim = 32
    if cfg.kind == "pixel":
        cfg.policy.hidden_dim, cfg.policy.encoder.resnet.shallow = 32, 1
    return cfg


@pytest.fixture
def data(tmp_path) -> Path:
    return write_robomimic(tmp_path / "data.hdf5", size=48)


def test_state_run_and_a_moved_folder(tmp_path, data):
    more = ["--dataset.use_state", "1", "--dataset.state_stack", "2"]
    more += ["--lr", "3e-3", "--epoch_len", "60"]
    work = train_bc.run(config(tmp_path / "run", data, *more))
    losses = [r["train/loss"] for r in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 2 and losses[1] < losses[0]
    (tmp_path / "run").rename(tmp_path / "moved")
    policy, cfg = train_bc.load_policy(tmp_path / "moved" / "latest.pt", "cpu")
    assert isinstance(policy, StateBcPolicy) and not policy.training
    assert cfg.obs_shape == [46] and cfg.action_dim == 7 and cfg.task_name == "PickPlaceCan"
    assert (cfg.env.suite, cfg.env.task, cfg.env.state_stack) == ("robosuite", "PickPlaceCan", 2)
    for key, value in work.policy.state_dict().items():
        assert torch.equal(policy.state_dict()[key], value)
    action = policy.act({"state": torch.zeros(46)})
    assert action.shape == (7,) and bool((action.abs() <= 1).all())
    more += ["--resume", "1", "--num_epoch", "3"]
    assert train_bc.run(config(tmp_path / "moved", data, *more)).epoch == 3
    assert not (tmp_path / "run").exists()


def test_moved_demonstrations_and_awkward_names(tmp_path, data, monkeypatch, capsys):
    """``~``, "+", brackets and letters of all languages; from any folder."""
    home = tmp_path / "a+b [x] größe"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    data = data.rename(home / "d+[0].hdf5")
    more = ["--dataset.use_state", "1", "--save_dir", "~/run [1]+"]
    train_bc.run(config(tmp_path, Path("~/d+[0].hdf5"), *more, "--num_epoch", "1"))
    saved = run_config.load(train_bc.MainConfig, home / "run [1]+" / "cfg.yaml")
    assert (saved.dataset.path, saved.save_dir) == (str(data), str(home / "run [1]+"))
    (tmp_path / "later").mkdir()
    moved = data.rename(tmp_path / "later" / data.name)
    monkeypatch.chdir(tmp_path / "later")
    work = train_bc.run(config(tmp_path, Path(moved.name), *more, "--resume", "1"))
    assert work.epoch == 2 and f"dataset.path: {data} is now {moved}" in capsys.readouterr().out
    assert [r["step"] for r in read_metrics(home / "run [1]+" / "metrics.jsonl")] == [12, 24]
    other = shutil.copy(moved, tmp_path / "later" / "other.hdf5")
    with pytest.raises(ConfigError, match="dataset.path: .* -> .*other.hdf5"):
        train_bc.run(config(tmp_path, Path(other), *more, "--resume", "1"))


def test_weights_to_start_from_are_needed_once(tmp_path, data):
    more = ["--dataset.use_state", "1", "--num_epoch"]
    train_bc.run(config(tmp_path / "first", data, *more, "1"))
    start = ["--load_model", str(tmp_path / "first" / "latest.pt")]
    train_bc.run(config(tmp_path / "run", data, *more, "1", *start))
    shutil.rmtree(tmp_path / "first")
    work = train_bc.run(config(tmp_path / "run", data, *more, "2", *start, "--resume", "1"))
    assert work.epoch == 2


def test_a_run_is_replaced_only_when_that_is_asked_for(tmp_path, data):
    states = ["--dataset.use_state", "1"]
    run = tmp_path / "run"
    train_bc.run(config(run, data, *states, "--num_epoch", "1"))
    shutil.rmtree(run / "state")
    for more in ([], ["--resume", "1"]):
        with pytest.raises(ConfigError, match="--overwrite 1"):
            train_bc.run(config(run, data, *states, *more))
    assert (run / "model0.pt").exists()
    train_bc.run(config(run, data, *states, "--overwrite", "1"))
    assert len(read_metrics(run / "metrics.jsonl")) == 2
    assert run_config.load(train_bc.MainConfig, run / "cfg.yaml").overwrite == 0
    with pytest.raises(ConfigError, match="save_dir: ''"):
        train_bc.run(config(Path(), data, *states, "--save_dir", ""))


def test_the_log_names_demonstrations_of_other_names(tmp_path, data):
    with h5py.File(data, "r+") as file:
        file["data"].move("demo_1", "extra")
    train_bc.run(config(tmp_path / "run", data, "--dataset.use_state", "1", "--num_epoch", "1"))
    text = (tmp_path / "run" / "train.log").read_text()
    assert "1 demonstrations are not called demo_*: extra" in text
    assert "3 demonstrations, 21 steps" in text


def test_pixel_run_with_two_cameras_and_prop(tmp_path, data):
    cfg = config(tmp_path / "run", data, "--policy.use_prop", "1", "--dataset.prop_stack", "3")
    cfg.dataset.rl_camera = "agentview+robot0_eye_in_hand"
    cfg.num_epoch, cfg.epoch_len = 1, 2
    train_bc.run(cfg)
    policy, _ = train_bc.load_policy(tmp_path / "run" / "model0.pt", "cpu")
    assert isinstance(policy, BcPolicy)
    assert {k: v.shape for k, v in policy.input_specs().items()} == {
        "agentview": (3, 48, 48),
        "robot0_eye_in_hand": (3, 48, 48),
        "prop": (27,),
    }


def test_same_seed_same_weights_other_seed_others(tmp_path, data):
    states = ["--dataset.use_state", "1"]
    runs = [
        train_bc.run(config(tmp_path / str(i), data, *states, "--seed", seed))
        for i, seed in enumerate(("5", "5", "6"))
    ]
    a, b, c = (r.policy.state_dict()["net.0.weight"] for r in runs)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_normaliser_and_average_are_kept_in_the_weights(tmp_path, data):
    cfg = config(tmp_path / "run", data, "--dataset.use_state", "1", "--ema", "0.1")
    cfg.state_policy.norm_state = 1
    work = train_bc.run(cfg)
    assert work.ema is not None
    policy, _ = train_bc.load_policy(tmp_path / "run" / "model0.pt", "cpu")
    mean = work.data.batch_at(torch.arange(work.data.num_steps).numpy()).obs["state"].mean(0)
    torch.testing.assert_close(policy.normalizer.mean, mean)
    different = [
        not torch.equal(x, y)
        for x, y in zip(work.ema.parameters(), work.policy.parameters(), strict=True)
    ]
    assert all(different)


def same_run(a: Path, b: Path) -> None:
    for name in ("model0.pt", "model1.pt", "latest.pt"):
        x, y = (torch.load(p / name, weights_only=True) for p in (a, b))
        assert x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x), name
    rows_a, rows_b = (read_metrics(p / "metrics.jsonl") for p in (a, b))
    assert [{**r, "wall": 0} for r in rows_a] == [{**r, "wall": 0} for r in rows_b]


def command(save_dir: Path, data: Path, *more: str) -> list[str]:
    args = ["--dataset.path", str(data), "--save_dir", str(save_dir), "--dataset.use_state", "1"]
    args += ["--num_eval_episode", "0", "--state_policy.hidden_dim", "64", "--device", "cpu"]
    args += ["--num_epoch", "3", "--epoch_len", "120", "--ema", "0.01", *more]
    return [str(ROOT / "train_bc.py"), *args]


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_killed_run_resumes_bit_for_bit(tmp_path, data, sig):
    assert runs.program(*command(tmp_path / "whole", data)).returncode == 0
    broken = forkserver.Program(command(tmp_path / "broken", data), runs.env())
    deadline = time.monotonic() + 60
    while not (tmp_path / "broken" / "state" / "step_000000120").exists():
        assert time.monotonic() < deadline and broken.poll() is None
        time.sleep(0.005)
    broken.send_signal(sig)
    err = broken.done(60).stderr
    assert broken.returncode != 0, "the kill came too late to test anything"
    if sig == signal.SIGTERM:
        assert "state saved" in err
    resumed = runs.program(*command(tmp_path / "broken", data, "--resume", "1"))
    assert resumed.returncode == 0, resumed.stderr
    same_run(tmp_path / "whole", tmp_path / "broken")


def test_changed_config_is_refused_with_a_diff(tmp_path, data):
    states = ["--dataset.use_state", "1"]
    train_bc.run(config(tmp_path / "run", data, *states))
    with pytest.raises(ConfigError, match=r"lr: 0.0001 -> 0.01"):
        train_bc.run(config(tmp_path / "run", data, *states, "--resume", "1", "--lr", "0.01"))
    more = train_bc.run(
        config(tmp_path / "run", data, *states, "--resume", "1", "--num_epoch", "3")
    )
    assert more.epoch == 3 and more.step == 36
    with pytest.raises(ConfigError, match="holds a run"):
        train_bc.run(config(tmp_path / "run", data, "--dataset.use_state", "1"))


def test_checkpoints_of_the_original_program_load(tmp_path):
    # its cfg.yaml holds neither shapes nor an environment section
    policy = StateBcPolicy((69,), 7, StateBcPolicyConfig(hidden_dim=32))
    torch.save(policy.state_dict(), tmp_path / "model0.pt")
    tree = {
        "dataset": {"path": "gone.hdf5", "use_state": 1, "state_stack": 3, "num_data": 10},
        "state_policy": {"num_layer": 3, "hidden_dim": 32, "dropout": 0.5, "layer_norm": 0},
        "task_name": "PickPlaceCan",
        "robots": ["Panda"],
        "image_size": 224,
        "rl_image_size": 96,
    }
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(tree))
    loaded, cfg = train_bc.load_policy(tmp_path / "model0.pt", "cpu")
    state = torch.randn(5, 69)
    assert torch.equal(loaded.act({"state": state}), policy.eval().act({"state": state}))
    assert (cfg.env.suite, cfg.env.task) == ("robosuite", "PickPlaceCan")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"other": torch.ones(2, 2)}, "model0.pt' holds no matrix 'net.*' or 'policy.*', expected"),
        ({"net.0": torch.ones(2, 2)}, "cfg.yaml: rl_image_size: -1 and no obs_shape, expected"),
    ],
)
def test_what_an_original_checkpoint_lacks_is_named(tmp_path, weights, said):
    torch.save(weights, tmp_path / "model0.pt")
    (tmp_path / "cfg.yaml").write_text("dataset: {use_state: 0}\nrl_image_size: -1\n")
    with pytest.raises(ConfigError) as error:
        train_bc.load_policy(tmp_path / "model0.pt", "cpu")
    assert str(tmp_path) in str(error.value) and said in str(error.value)


def test_metaworld_checkpoints_of_the_original_program_load(tmp_path):
    policy = MwBcPolicy((3, 96, 96), (4,), 4, MwBcPolicyConfig(hidden_dim=16))
    torch.save(policy.state_dict(), tmp_path / "model1.pt")
    tree = {
        "dataset": {"path": "Assembly", "rl_camera": "corner2", "num_data": 3, "frame_stack": 1},
        "policy": {"net_type": "resnet", "hidden_dim": 16, "proj_dim": 1024},
        "batchsize": 256,
        "task_name": "Assembly",
        "robot": "Sawyer",
        "rl_image_size": 96,
    }
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(tree))
    loaded, cfg = train_bc.load_policy(tmp_path / "model1.pt", "cpu")
    image = torch.randint(0, 255, (3, 96, 96), dtype=torch.uint8)
    assert torch.equal(loaded.act({"corner2": image}), policy.eval().act({"obs": image}))
    assert (cfg.env.suite, cfg.env.task, cfg.env.cameras) == ("metaworld", "Assembly", ["corner2"])


def test_metaworld_states_of_the_original_program_load_for_metaworld(tmp_path):
    policy = StateBcPolicy((39,), 4, StateBcPolicyConfig(hidden_dim=16))
    torch.save(policy.state_dict(), tmp_path / "model1.pt")
    tree = {
        "dataset": {"path": "Assembly", "rl_camera": "corner2", "use_state": 1},
        "state_policy": {"hidden_dim": 16},
        "batchsize": 256,
        "task_name": "Assembly",
    }
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(tree))
    _, cfg = train_bc.load_policy(tmp_path / "model1.pt", "cpu")
    assert (cfg.kind, cfg.env.suite, cfg.env.task) == ("state", "metaworld", "Assembly")


def test_released_robomimic_configs_load():
    for path in sorted((RELEASE / "robomimic_bc").glob("*.yaml")):
        cfg = run_config.load(train_bc.MainConfig, path)
        assert cfg.kind == ("state" if "state" in path.name else "pixel")
        with pytest.raises(DatasetError, match=r"tools.generate_demos --task \w*[a-z]"):
            train_bc.run(cfg)
    cfg = run_config.load(train_bc.MainConfig, RELEASE / "robomimic_bc" / "square_state.yaml")
    assert (cfg.grad_clip, cfg.num_epoch, cfg.dataset.num_data) == (100, 20, 50)
    assert (cfg.state_policy.hidden_dim, cfg.state_policy.dropout) == (1024, 0.5)


@pytest.mark.parametrize("mp_eval", ["0", "1"])
def test_a_missing_simulator_tells_how_to_train_without(tmp_path, mp_eval):
    # an environment that cannot be built, here or in a worker
    data = write_metaworld(tmp_path / "data.hdf5")
    (tmp_path / "env_cfg.json").write_text(json.dumps({"env_name": "Juggling"}))
    more = ["--dataset.use_state", "1", "--num_eval_episode", "1", "--num_eval_worker", "1"]
    more += ["--env.suite", "gymnasium", "--env.task", "NoSuchTask-v0"]
    cfg = config(tmp_path / "run", data, *more, "--mp_eval", mp_eval)
    with pytest.raises((EnvError, EvalError), match=r"NoSuchTask(.|\n)*--num_eval_episode 0"):
        train_bc.run(cfg)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--policy.dropout", "1"], r"policy.dropout: expected .*\[0, 1\), got 1"),
        (
            ["--dataset.use_state", "1", "--state_policy.dropout", "-0.1"],
            "state_policy.dropout: .*got -0.1",
        ),
        (
            ["--policy_type", "metaworld", "--mw_policy.dropout", "1.5"],
            "mw_policy.dropout: .*got 1.5",
        ),
        (["--policy.use_prop", "2"], "policy.use_prop.*0 or 1"),
        (["--lr", "0"], "lr: expected a number above 0, got 0"),
        (["--num_epoch", "0"], "num_epoch: .* at least 1, got 0"),
        (["--policy_type", "state"], "policy_type"),
        (["--dataset.obs_stack", "0"], "dataset.obs_stack: .*got 0"),
        (["--policy.use_porp", "1"], "policy.use_prop"),
        (["--ema", "2"], "ema"),
    ],
)
def test_impossible_configs_name_the_field(tmp_path, data, args, message):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, data, *args)


def test_networks_that_cannot_be_built_name_the_section(tmp_path, data):
    cfg = config(tmp_path / "run", data, "--policy.use_prop", "1")
    cfg.obs_shape, cfg.action_dim = [3, 96, 96], 7
    with pytest.raises(ConfigError, match=r"^policy.use_prop: 1, expected 0: there is no propri"):
        train_bc.build_policy(cfg)


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("nowhere", "train_bc.py --dataset.path"),
        ("release/model/robomimic/can_state", "release/cfgs/robomimic_bc/can_state.yaml"),
        (
            "release/model/metaworld/pathBoxClose_num_data3_num_epoch2_seed1",
            "mw_main/train_bc_mw.py --dataset.path BoxClose --save_dir release/model/metaworld/",
        ),
    ],
)
def test_missing_weights_name_the_command(folder, command):
    with pytest.raises(ConfigError) as error:
        train_bc.load_policy(f"{folder}/none.pt")
    assert f"no file '{folder}/none.pt'" in str(error.value) and command in str(error.value)


# ------------------------------------------------------------------- Meta-World


@pytest.fixture
def mw_data(tmp_path) -> Path:
    (tmp_path / "mw").mkdir()
    return write_metaworld(tmp_path / "mw" / "dataset.hdf5", lengths=(9, 8, 7), size=96)


def mw_config(save_dir: Path, data: Path, *more: str) -> train_bc.MainConfig:
    args = ["--dataset.path", str(data), "--save_dir", str(save_dir), "--device", "cpu"]
    args += ["--num_epoch", "1", "--epoch_len", "4", "--batchsize", "4", *more]
    cfg = run_config.parse_args(train_bc_mw.MainConfig, args)
    return train_bc_mw.to_train_bc(cfg)


def test_metaworld_names_map_onto_the_one_trainer(tmp_path, mw_data):
    work = train_bc.run(mw_config(tmp_path / "run", mw_data, "--num_eval_episode", "0"))
    assert isinstance(work.policy, MwBcPolicy) and work.policy.camera == "corner2"
    assert {p.name for p in (tmp_path / "run").glob("*.pt")} == {"model0.pt", "latest.pt"}
    policy, cfg = train_bc.load_policy(tmp_path / "run" / "model0.pt", "cpu")
    assert policy.input_specs().keys() == {"corner2"}
    assert (cfg.env.suite, cfg.env.task, cfg.env.action_repeat) == ("metaworld", "Assembly", 2)
    named = run_config.parse_args(train_bc_mw.MainConfig, ["--dataset.path", "BoxClose"])
    assert "BoxClose_frame_stack_1_96x96" in train_bc_mw.to_train_bc(named).dataset.path


def test_evaluation_in_the_real_simulator(tmp_path, mw_data):
    more = ["--dataset.use_state", "1", "--num_eval_episode", "2", "--ema", "0.5"]
    work = train_bc.run(mw_config(tmp_path / "run", mw_data, *more))
    row = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert 0 <= row[0]["score/score"] <= 1 and 0 <= row[0]["score/ema_score"] <= 1
    assert "score/best_ckpt_score" in row[1]
    train_bc.run(mw_config(tmp_path / "run", mw_data, *more, "--resume", "1"))  # finished long ago
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == row
    assert undocumented(tmp_path / "run") == set()
    policy, env, params = train_bc.load_model(tmp_path / "run" / "model0.pt", "cpu")
    obs, _ = env.reset(seed=0)
    action = policy.act({k: torch.from_numpy(v) for k, v in obs.items()})
    assert action.shape == (work.cfg.action_dim,)
    assert params["suite"] == "metaworld"
    env.close()


def test_generated_demonstrations_fit_the_environment(tmp_path):
    config = run_config.load(demos.MainConfig, RELEASE / "metaworld" / "quickstart_demos.yaml")
    config.num_episodes, config.output_path = 1, str(tmp_path / "demos")
    path = demos.generate(config)
    cfg = run_config.parse_args(train_bc_mw.MainConfig, ["--dataset.path", str(path)])
    cfg.dataset.use_state, cfg.dataset.num_data = 1, 1
    data = RobomimicDataset(cfg.dataset)
    main = train_bc_mw.to_train_bc(cfg)
    train_bc.fill_in(main, data)
    env = make_env(main.env)
    data.check_frames(env.spec, list(data.observation_specs))
    demo = next(iter(read_demos(path, rule=SparseReward("metaworld"), use_state=True)))
    assert len(demo) == data.num_steps and demo.rewards[-1] == 1
    env.close()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--env.task", "Coffee"], "env.task: 'Coffee'"),
        (["--env.task", "Assembly", "--env.suite", "robosuite"], "env.suite: 'robosuite'"),
    ],
)
def test_an_environment_other_than_the_files_is_refused(tmp_path, args, said):
    data = write_metaworld(tmp_path / "data.hdf5")
    cfg = config(tmp_path / "run", data, "--dataset.use_state", "1", *args)
    with pytest.raises(ConfigError, match=said) as refused:
        train_bc.run(cfg)
    assert str(data) in str(refused.value) and "metaworld/Assembly" in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_another_spelling_of_the_files_task_is_the_task(tmp_path):
    data = write_metaworld(tmp_path / "data.hdf5")
    more = ["--dataset.use_state", "1", "--env.task", "assembly-v3"]
    cfg = config(tmp_path / "run", data, *more)
    train_bc.run(cfg)
    assert (cfg.env.suite, cfg.env.task) == ("metaworld", "Assembly")


def children() -> set[str]:
    """Processes that this one started and that still run."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_a_file_that_does_not_fit_the_environment_is_refused_with_advice(tmp_path):
    data, before = write_metaworld(tmp_path / "data.hdf5"), children()
    (tmp_path / "env_cfg.json").write_text(json.dumps({"env_name": "Juggling"}))
    more = ["--dataset.use_state", "1", "--env.suite", "particle", "--env.task", "PARTICLE_2d"]
    more += ["--num_eval_episode", "1", "--mp_eval", "1", "--num_eval_worker", "1"]
    said = r"dataset.path: .*action dimension 4.*takes 2\n.*--num_eval_episode 0"
    with pytest.raises(SpecError, match=said):
        train_bc.run(config(tmp_path / "run", data, *more))
    assert not (tmp_path / "run").exists() and children() <= before


def test_a_compiled_run_follows_one_that_is_not(tmp_path, data, monkeypatch):
    monkeypatch.setattr(graphs, "BACKEND", "aot_eager")
    losses = []
    for how in ("off", "default"):
        run = tmp_path / how
        options = ("--dataset.use_state", "1", "--state_policy.dropout", "0", "--compile", how)
        train_bc.run(config(run, data, *options))
        losses.append([r["train/loss"] for r in read_metrics(run / "metrics.jsonl")])
    assert len(losses[0]) == 2
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    options = ("--dataset.use_state", "1", "--state_policy.dropout", "0", "--num_epoch", "3")
    train_bc.run(config(tmp_path / "default", data, *options, "--resume", "1"))  # compile off
    assert len(read_metrics(tmp_path / "default" / "metrics.jsonl")) == 3
    torch._dynamo.reset()


def test_lower_precision_is_for_resnets_of_images(tmp_path, data):
    losses = []
    for precision in ("float32", "bfloat16", "tf32"):
        run = tmp_path / precision
        # two steps of two: without instructions for it, bfloat16 is slow
        short = ["--num_epoch", "1", "--epoch_len", "2", "--batch_size", "2"]
        options = ["--policy.dropout", "0", "--precision", precision, *short]
        train_bc.run(config(run, data, *options))
        losses.append([r["train/loss"] for r in read_metrics(run / "metrics.jsonl")])
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[1] != losses[0]
    assert losses[2] == losses[0]  # a CPU computes float32
    with pytest.raises(ConfigError, match="precision: bfloat16, expected float32 or tf32 with"):
        train_bc.run(
            config(tmp_path / "no", data, "--dataset.use_state", "1", "--precision", "bfloat16")
        )

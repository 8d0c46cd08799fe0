"""Every released YAML file holds the published values, and nothing else.

The tables below are written from the publication's description of its configurations (name,
value), not from the files. A field that no table names must have its default.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import quickstart
import train_bc
import train_rl
from common_utils import run_config
from common_utils.ibrl_utils import schedule
from mw_main import generate_metaworld_dataset, train_rl_mw

REPO = Path(__file__).resolve().parents[2]
CFGS = REPO / "release" / "cfgs"

# ------------------------------------------------------------------- robomimic, RL

RL_COMMON = {
    "stddev_max": 0.1,
    "replay_buffer_size": 1000,
    "use_wb": 1,
    "mp_eval": 1,
    "num_eval_episode": 50,
}
TASK = {
    "can": {
        "task_name": "PickPlaceCan",
        "episode_length": 200,
        "preload_num_data": 10,
        "num_warm_up_episode": 40,
        "preload_datapath": "release/data/robomimic/can/processed_data96.hdf5",
        "num_train_step": 200000,
    },
    "square": {
        "task_name": "NutAssemblySquare",
        "episode_length": 300,
        "preload_num_data": 50,
        "num_warm_up_episode": 50,
        "preload_datapath": "release/data/robomimic/square/processed_data96.hdf5",
        "log_per_step": 10000,
    },
}
PIXEL_TASK = {
    "can": {"rl_camera": "robot0_eye_in_hand", "log_per_step": 5000},
    "square": {"rl_camera": "agentview", "num_train_step": 500000},
}
STATE_TASK = {
    "can": {"log_per_step": 10000},
    "square": {"num_train_step": 300000},
}
PIXEL = {
    "prop_stack": 3,
    "use_state": 0,
    "q_agent.use_prop": 1,
    "q_agent.enc_type": "vit",
    "q_agent.vit.embed_style": "embed2",
    "q_agent.vit.depth": 1,
    "q_agent.critic.spatial_emb": 1024,
    "q_agent.critic.hidden_dim": 1024,
    "q_agent.actor.hidden_dim": 1024,
    "q_agent.actor.feature_dim": 128,
}
STATE = {
    "use_state": 1,
    "state_stack": 3,
    "num_critic_update": 5,
    "q_agent.state_critic.num_q": 5,
    "q_agent.state_critic.layer_norm": 1,
    "q_agent.state_critic.hidden_dim": 1024,
    "q_agent.state_actor.hidden_dim": 1024,
}
RFT_LOSS = {"add_bc_loss": 1, "q_agent.bc_loss_coef": 0.1, "q_agent.bc_loss_dynamic": 1}
PIXEL_METHOD = {
    "ibrl": {
        "q_agent.act_method": "ibrl",
        "bc_policy": "release/model/robomimic/{task}/model0.pt",
        "q_agent.actor.dropout": 0.5,
        "mix_rl_rate": 1,
    },
    "rlpd": {"q_agent.act_method": "rl", "q_agent.actor.dropout": 0, "mix_rl_rate": 0.5},
    "rft": {
        "q_agent.act_method": "rl",
        "q_agent.actor.dropout": 0,
        "mix_rl_rate": 1,
        "load_pretrained_agent": "release/model/robomimic/{task}_pretrain/model0.pt",
        **RFT_LOSS,
    },
}
STATE_METHOD = {
    "ibrl": {
        "q_agent.act_method": "ibrl_soft",
        "bc_policy": "release/model/robomimic/{task}_state/model0.pt",
        "q_agent.state_actor.dropout": 0.5,
        "mix_rl_rate": 1,
    },
    "rlpd": {"q_agent.act_method": "rl", "q_agent.state_actor.dropout": 0, "mix_rl_rate": 0.5},
    "rft": {
        "q_agent.act_method": "rl",
        "q_agent.state_actor.dropout": 0,
        "mix_rl_rate": 1,
        "pretrain_num_epoch": 5,
        "pretrain_only": 0,
        **RFT_LOSS,
    },
}

# ------------------------------------------------------------------- robomimic, BC

STATE_BC = {
    "dataset.use_state": 1,
    "dataset.state_stack": 3,
    "state_policy.hidden_dim": 1024,
    "state_policy.dropout": 0.5,
    "state_policy.num_layer": 3,
    "grad_clip": 100,
}
BC_TASK = {
    "can": {"dataset.num_data": 10, "num_epoch": 10},
    "square": {"dataset.num_data": 50, "num_epoch": 20},
}
PIXEL_BC = {
    "can": {"dataset.rl_camera": "robot0_eye_in_hand"},
    "square": {"dataset.rl_camera": "agentview", "dataset.prop_stack": 3, "policy.use_prop": 1},
}

# ------------------------------------------------------------------- Meta-World

MW_COMMON = {
    "episode_length": 100,
    "stddev_max": 0.1,
    "bc_policy": "release/model/metaworld/pathAssembly_num_data3_num_epoch2_seed1/model1.pt",
    "preload_datapath": (
        "release/data/metaworld/Assembly_frame_stack_1_96x96_end_on_success/dataset.hdf5"
    ),
    "preload_num_data": 3,
    "env_reward_scale": 1,
    "num_train_step": 100000,
    "replay_buffer_size": 500,
    "use_wb": 1,
    "num_eval_episode": 20,
    "q_agent.enc_type": "drq",
    "q_agent.actor.dropout": 0,
    "q_agent.actor.hidden_dim": 1024,
    "q_agent.actor.feature_dim": 64,
    "q_agent.critic.feature_dim": 64,
}
MW_METHOD = {
    "ibrl_basic": {"q_agent.act_method": "ibrl", "use_bc": 1},
    "rlpd": {"q_agent.act_method": "rl", "use_bc": 0, "mix_rl_rate": 0.5},
    "rft": {
        "q_agent.act_method": "rl",
        "use_bc": 0,
        "pretrain_num_epoch": 2,
        "pretrain_only": 0,  # the original's Meta-World script always goes on to RL
        "add_bc_loss": 1,
        "q_agent.bc_loss_dynamic": 1,
    },
}

Case = tuple[Any, dict[str, Any]]


def published() -> dict[str, Case]:
    """File (relative to release/cfgs) -> (config class, published values)."""
    out: dict[str, Case] = {}
    for task in ("can", "square"):
        data = {"dataset.path": TASK[task]["preload_datapath"], "use_wb": 1, **BC_TASK[task]}
        bc = train_bc.MainConfig
        out[f"robomimic_bc/{task}.yaml"] = bc, data | PIXEL_BC[task]
        out[f"robomimic_bc/{task}_state.yaml"] = bc, data | STATE_BC
        for method in ("ibrl", "rlpd", "rft"):
            for infix, shared, by_task, by_method in (
                ("", PIXEL, PIXEL_TASK, PIXEL_METHOD),
                ("_state", STATE, STATE_TASK, STATE_METHOD),
            ):
                values = RL_COMMON | TASK[task] | shared | by_task[task] | by_method[method]
                values = {
                    k: v.format(task=task) if isinstance(v, str) else v for k, v in values.items()
                }
                file = f"robomimic_rl/{task}{infix}_{method}.yaml"
                out[file] = train_rl.MainConfig, values
    for name, values in MW_METHOD.items():
        out[f"metaworld/{name}.yaml"] = train_rl_mw.MainConfig, MW_COMMON | values
    return out


PUBLISHED = published()
OWN = {  # files that are ours alone
    "metaworld/quickstart_demos.yaml": generate_metaworld_dataset.MainConfig,
    "metaworld/quickstart_bc.yaml": train_bc.MainConfig,
    "metaworld/quickstart_rl.yaml": train_rl.MainConfig,
    "metaworld/implicit_demos.yaml": generate_metaworld_dataset.MainConfig,
    "metaworld/implicit_bc_mse.yaml": train_bc.MainConfig,
    "metaworld/implicit_bc_mdn.yaml": train_bc.MainConfig,
    "metaworld/implicit_bc_ebm.yaml": train_bc.MainConfig,
    "metaworld/implicit_rl.yaml": train_rl.MainConfig,
    "robomimic_bc/lift_pixel.yaml": train_bc.MainConfig,
    "robomimic_bc/lift_state.yaml": train_bc.MainConfig,
    "robomimic_bc/can_state_small.yaml": train_bc.MainConfig,
    "robomimic_rl/can_state_small_ibrl.yaml": train_rl.MainConfig,
    "robomimic_rl/can_state_small_rlpd.yaml": train_rl.MainConfig,
    "robomimic_rl/lift_state_ibrl.yaml": train_rl.MainConfig,
    "robomimic_rl/lift_state_rlpd.yaml": train_rl.MainConfig,
    "robomimic_rl/lift_state_rft.yaml": train_rl.MainConfig,
}
# ... and those that are Square's except for what is listed here
LONG_RL = {"episode_length": 700, "num_train_step": 500000, "log_per_step": 20000}
LIKE_SQUARE = {
    "robomimic_bc/{}.yaml": {"dataset.eval_episode_len": 700},
    "robomimic_bc/{}_state.yaml": {"dataset.eval_episode_len": 700},
    "robomimic_rl/{}_ibrl.yaml": LONG_RL | {"replay_buffer_size": 300},
    "robomimic_rl/{}_state_ibrl.yaml": LONG_RL,
    "robomimic_rl/{}_state_rlpd.yaml": LONG_RL,
    "robomimic_rl/{}_state_rft.yaml": LONG_RL,
}
LONG_TASKS = {"transport": "TwoArmTransport", "tool_hang": "ToolHang"}
OWN |= {
    f.format(task): PUBLISHED[f.format("square")][0] for task in LONG_TASKS for f in LIKE_SQUARE
}


def config_class_of(file: str) -> Any:
    return OWN[file] if file in OWN else PUBLISHED[file][0]


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        section = isinstance(value, dict)
        if isinstance(value, str):  # files that are there have been located
            value = value.removeprefix(f"{CFGS.parents[1]}/")
        out |= flat(value, f"{prefix}{key}.") if section else {prefix + key: value}
    return out


def test_every_file_is_known_here() -> None:
    assert len(PUBLISHED) == 12 + 4 + 3
    files = {p.relative_to(CFGS).as_posix() for p in CFGS.rglob("*.y*ml")}
    files = {f for f in files if not f.startswith("ibc/")}  # test_ibc_configs
    assert files == set(PUBLISHED) | set(OWN)
    assert quickstart.CFG_DIR.resolve() == CFGS / "metaworld"


@pytest.mark.parametrize("file", PUBLISHED)
def test_published_values(file: str) -> None:
    config_class, values = PUBLISHED[file]
    loaded = flat(run_config.to_dict(run_config.load(config_class, CFGS / file)))
    # what chooses a policy's kind chooses the fields that there are
    chosen = {k: loaded[k] for k in ("policy_type", "dataset.use_state") if k in loaded}
    expected = flat(run_config.to_dict(run_config.from_dict(config_class, chosen))) | values
    assert set(values) <= set(loaded)
    assert {k: (v, expected[k]) for k, v in loaded.items() if v != expected[k]} == {}


@pytest.mark.parametrize("task", LONG_TASKS)
@pytest.mark.parametrize("file", LIKE_SQUARE)
def test_the_long_tasks_are_configured_as_square(file: str, task: str) -> None:
    config_class = PUBLISHED[file.format("square")][0]
    square, ours = (
        flat(run_config.to_dict(run_config.load(config_class, CFGS / file.format(name))))
        for name in ("square", task)
    )
    expected = {
        k: v.replace("/square", f"/{task}") if isinstance(v, str) else v for k, v in square.items()
    } | LIKE_SQUARE[file]
    if config_class is train_rl.MainConfig:
        expected["task_name"] = LONG_TASKS[task]
    assert ours == expected


@pytest.mark.parametrize("file", [*PUBLISHED, *OWN])
def test_a_config_survives_being_saved_and_loaded(file: str, tmp_path: Path) -> None:
    config_class = config_class_of(file)
    cfg = run_config.load(config_class, CFGS / file)
    run_config.dump(cfg, tmp_path / "cfg.yaml")
    assert run_config.diff(cfg, run_config.load(config_class, tmp_path / "cfg.yaml")) == []


@pytest.mark.parametrize("file", [*PUBLISHED, *OWN])
def test_a_misspelt_key_in_a_file_is_refused(file: str, tmp_path: Path) -> None:
    tree = yaml.safe_load((CFGS / file).read_text())
    key = next(iter(tree))
    tree[key + "x"] = tree.pop(key)
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(tree))
    with pytest.raises(run_config.ConfigError, match=f"{key}x: unknown field"):
        run_config.load(config_class_of(file), copy)


def test_exploration_noise_of_the_released_runs_is_constant() -> None:
    for file, (config_class, _) in PUBLISHED.items():
        if issubclass(config_class, train_rl.MainConfig):
            cfg = run_config.load(config_class, CFGS / file)
            stds = [schedule(cfg.stddev_schedule, t) for t in (0, 10**5, 10**6)]
            assert stds == pytest.approx([0.1] * 3), file


def test_warm_up_of_the_released_runs() -> None:
    """Demonstrations come on top of num_warm_up_episode on robosuite, not on Meta-World."""

    def target(file: str) -> int:
        return run_config.load(config_class_of(file), CFGS / file).warm_up_target

    assert target("robomimic_rl/can_ibrl.yaml") == 50
    assert target("robomimic_rl/square_state_rlpd.yaml") == 100
    assert target("metaworld/ibrl_basic.yaml") == 50


def test_options_that_are_gone_are_read_where_they_changed_nothing(tmp_path: Path) -> None:
    """cfg.yaml of an earlier version holds every field it had."""
    path = tmp_path / "cfg.yaml"
    path.write_text("task_name: Lift\noverlap_env: 0\n")
    assert run_config.load(train_rl.MainConfig, path).task_name == "Lift"
    path.write_text("task_name: Lift\noverlap_env: 1\n")
    with pytest.raises(run_config.ConfigError, match="overlap_env: 1: this option was removed"):
        run_config.load(train_rl.MainConfig, path)

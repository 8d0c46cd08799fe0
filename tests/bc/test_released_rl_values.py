"""Every released configuration loads and holds the published values (specification 3)."""

from __future__ import annotations

from pathlib import Path

import pytest

import train_rl
from common_utils import run_config
from mw_main import train_rl_mw

CFGS = Path(__file__).resolve().parents[2] / "release" / "cfgs"
METHODS = ("ibrl", "rlpd", "rft")


def robomimic(name: str) -> train_rl.MainConfig:
    return run_config.load(train_rl.MainConfig, CFGS / "robomimic_rl" / f"{name}.yaml")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", ["can", "square"])
@pytest.mark.parametrize("state", [False, True])
def test_robomimic(task, state, method):
    cfg = robomimic(f"{task}{'_state' if state else ''}_{method}")
    agent, can = cfg.q_agent, task == "can"
    assert cfg.task_name == ("PickPlaceCan" if can else "NutAssemblySquare")
    assert (cfg.stddev_max, cfg.stddev_min, cfg.replay_buffer_size) == (0.1, 0.1, 1000)
    assert (cfg.use_wb, cfg.mp_eval, cfg.num_eval_episode) == (1, 1, 50)
    assert (cfg.episode_length, cfg.preload_num_data) == ((200, 10) if can else (300, 50))
    # demonstrations are counted on top of the configured warm-up
    assert cfg.warm_up_target == (50 if can else 100)
    assert cfg.preload_datapath == f"release/data/robomimic/{task}/processed_data96.hdf5"
    steps = 200000 if can else (300000 if state else 500000)
    assert cfg.num_train_step == steps
    assert cfg.log_per_step == (5000 if can and not state else 10000)
    assert cfg.mix_rl_rate == (0.5 if method == "rlpd" else 1)
    folder = f"{task}_state" if state else task
    weights = f"release/model/robomimic/{folder}/model0.pt"
    assert cfg.bc_policy == (weights if method == "ibrl" else "")
    soft = "ibrl_soft" if state else "ibrl"
    assert agent.act_method == (soft if method == "ibrl" else "rl")
    if method == "rft":
        assert (cfg.add_bc_loss, agent.bc_loss_coef, agent.bc_loss_dynamic) == (1, 0.1, 1)
    if state:
        assert (cfg.use_state, cfg.state_stack, cfg.num_critic_update) == (1, 3, 5)
        critic, actor = agent.state_critic, agent.state_actor
        assert (critic.num_q, critic.layer_norm, critic.hidden_dim) == (5, 1, 1024)
        assert (actor.hidden_dim, actor.dropout) == (1024, 0.5 if method == "ibrl" else 0)
        pretrain = (5, 0) if method == "rft" else (0, 1)
        assert (cfg.pretrain_num_epoch, cfg.pretrain_only) == pretrain
    else:
        assert cfg.rl_camera == ("robot0_eye_in_hand" if can else "agentview")
        assert (cfg.use_state, cfg.prop_stack, agent.use_prop) == (0, 3, 1)
        assert (agent.enc_type, agent.vit.embed_style, agent.vit.depth) == ("vit", "embed2", 1)
        assert (agent.critic.spatial_emb, agent.critic.hidden_dim) == (1024, 1024)
        assert (agent.actor.hidden_dim, agent.actor.feature_dim) == (1024, 128)
        assert agent.actor.dropout == (0.5 if method == "ibrl" else 0)
        pretrained = f"release/model/robomimic/{task}_pretrain/model0.pt"
        assert cfg.load_pretrained_agent == (pretrained if method == "rft" else "")


@pytest.mark.parametrize("method", METHODS)
def test_metaworld(method):
    name = "ibrl_basic" if method == "ibrl" else method
    cfg = run_config.load(train_rl_mw.MainConfig, CFGS / "metaworld" / f"{name}.yaml")
    agent = cfg.q_agent
    assert (cfg.episode_length, cfg.stddev_max, cfg.env_reward_scale) == (100, 0.1, 1)
    assert "Assembly" in cfg.bc_policy and "Assembly" in cfg.preload_datapath
    assert (cfg.preload_num_data, cfg.num_train_step, cfg.replay_buffer_size) == (3, 100000, 500)
    assert (cfg.use_wb, cfg.num_eval_episode) == (1, 20)
    assert (agent.enc_type, agent.actor.dropout, agent.actor.hidden_dim) == ("drq", 0, 1024)
    assert (agent.actor.feature_dim, agent.critic.feature_dim) == (64, 64)
    assert cfg.use_bc == (method == "ibrl")
    assert agent.act_method == ("ibrl" if method == "ibrl" else "rl")
    assert cfg.mix_rl_rate == (0.5 if method == "rlpd" else 1)
    rft = (2, 1, 1) if method == "rft" else (0, 0, 0)
    assert (cfg.pretrain_num_epoch, cfg.add_bc_loss, agent.bc_loss_dynamic) == rft

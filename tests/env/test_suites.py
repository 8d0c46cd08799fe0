"""The table of suites: what derives from it, and that nothing is imported before its time."""

from __future__ import annotations

import json
import typing

import pytest

import train_bc
import train_rl
from common_utils import run_config
from common_utils.lookup import resolve
from common_utils.run_config import ConfigError
from common_utils.success_rule import AsRecorded, EndedBy, InfoSays, RewardReached, SparseReward
from env.config import EnvConfig
from env.core import Env, EnvError
from env.factory import (
    adopt_env_args,
    env_args,
    make_env,
    recording_config,
    success_rule,
    suite_class,
)
from env.suites import SUITES
from mw_main import train_rl_mw

# packages of simulators and of OpenGL, none of which a table or a particle needs
HEAVY = ("mujoco", "metaworld", "robosuite", "gymnasium_robotics", "pybullet", "OpenGL", "torch")


def choices(config_class: type, field: str) -> set[str]:
    return set(typing.get_args(run_config.field_types(config_class)[field]))


@pytest.mark.parametrize("suite", SUITES)
def test_every_row_is_an_environment(suite):
    found = resolve(SUITES[suite])
    assert issubclass(found, Env) and suite_class(suite) is found


def test_both_trainers_take_every_suite():
    assert choices(train_rl.MainConfig, "suite") == set(SUITES)
    assert choices(train_rl_mw.MainConfig, "suite") == set(SUITES)
    assert choices(train_bc.MainConfig, "env.suite") == {"", *SUITES}


@pytest.mark.parametrize(
    ("program", "option"), [(train_rl, "--suite"), (train_bc, "--env.suite")], ids=["rl", "bc"]
)
def test_an_unknown_suite_is_refused_with_the_names(program, option):
    with pytest.raises(
        ConfigError, match=r"suite: expected one of .*robosuite, .*d4rl, remote, got 'chess'"
    ):
        run_config.parse_args(program.MainConfig, [option, "chess"])
    with pytest.raises(EnvError, match="suite 'chess' is unknown; expected one of .*robosuite"):
        make_env({"suite": "chess"})


def test_tables_and_configs_import_no_simulator(python):
    code = (
        "import json, sys\n"
        "from env.config import EnvConfig\n"
        "from env.factory import make_env, recording_config, env_args\n"
        "before = sorted(set(sys.modules) & set(json.loads(sys.argv[1])))\n"
        "env = make_env(EnvConfig(suite='particle', task='PARTICLE_2d'))\n"
        "env.reset(seed=1); env.step([0, 0])\n"
        "after = sorted(set(sys.modules) & set(json.loads(sys.argv[1])))\n"
        "print(json.dumps([before, after]))\n"
    )
    done = python("-c", code, json.dumps(HEAVY))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], []]


def test_what_files_of_demonstrations_hold():
    pixels = EnvConfig(suite="robosuite", task="Lift", cameras=["agentview"])
    assert recording_config(pixels).cameras == ["agentview", "robot0_eye_in_hand"]
    states = EnvConfig(suite="robosuite", task="Lift", use_state=1)
    recording = recording_config(states)
    assert (recording.record_sim_state, recording.cameras, states.record_sim_state) == (1, [], 0)
    assert env_args(states)["env_kwargs"]["controller_configs"]["control_delta"]
    particle = EnvConfig(suite="particle", task="PARTICLE_2d")
    assert recording_config(particle) is particle
    assert env_args(particle)["env_kwargs"]["task"] == "PARTICLE_2d"


def adopted(suite: str, kwargs: dict, action_repeat: int = 2) -> tuple[EnvConfig, list[str]]:
    cfg = EnvConfig(suite=suite)
    return cfg, adopt_env_args(cfg, {"env_kwargs": kwargs}, action_repeat)


def test_what_files_of_demonstrations_say():
    cfg, notes = adopted("metaworld", {"action_repeat": 2, "render_quality": "fast"})
    assert (cfg.action_repeat, cfg.render_quality, notes) == (2, "fast", [])
    _, notes = adopted("metaworld", {"action_repeat": "2"})
    assert notes == []
    for wrong in (3, "two"):
        _, notes = adopted("metaworld", {"action_repeat": wrong})
        assert (
            f"use {wrong}, but action_repeat (dataset.action_repeat of a BC run) is 2" in notes[0]
        )
    # another suite's simulator steps are not the reader's business
    cfg, notes = adopted("gymnasium", {"action_repeat": 4})
    assert (cfg.action_repeat, notes) == (1, [])
    cfg, _ = adopted("particle", {"hide_velocity": 1})
    assert cfg.hide_velocity == 1
    cfg, notes = adopted("robosuite", {"controller_configs": {"control_delta": False}})
    assert (cfg.ctrl_delta, notes) == (0, [])
    _, notes = adopted("robosuite", {"controller_configs": {"kp": 10}})
    assert "controller kp was 10" in notes[0]
    turned = {"robots": ["Panda", "Panda"], "controller_configs": {}}
    _, notes = adopted("robosuite", turned)
    assert "along the world's axes" in notes[0]
    cfg, notes = adopted("", {"render_quality": "fast"})
    assert (cfg.render_quality, notes) == ("fast", [])


@pytest.mark.parametrize(
    ("suite", "key", "rule"),
    [
        ("metaworld", "", SparseReward("metaworld")),
        ("robosuite", "", SparseReward("robosuite")),
        ("d4rl", "truncated", AsRecorded("d4rl")),
        ("particle", "", AsRecorded("particle")),
        ("block_pushing", "", AsRecorded("block_pushing")),
        ("gymnasium", "", RewardReached("gym.success_key ''", ends=True)),
        ("gymnasium", "won", InfoSays("gym.success_key 'won'", "won", ends=True)),
        ("gymnasium", "terminated", EndedBy("gym.success_key 'terminated'", "terminated")),
        ("gymnasium", "truncated", EndedBy("gym.success_key 'truncated'", "truncated")),
    ],
)
def test_each_suite_says_where_recorded_episodes_end(suite, key, rule):
    assert success_rule(EnvConfig(suite=suite, gym_success_key=key)) == rule
    goes_on = success_rule(EnvConfig(suite=suite, gym_success_key=key, end_on_success=0))
    assert getattr(goes_on, "ends", False) is False


@pytest.mark.parametrize(
    ("suite", "a", "same", "other"),
    [
        ("metaworld", "BoxClose", "box-close-v3", "Assembly"),
        ("robosuite", "Lift", "Lift", "Door"),
        ("particle", "PARTICLE_2d", "Particle-v0", "PARTICLE_16d"),
        ("block_pushing", "PUSH", "BlockPush-v0", "PUSH_NORMALIZED"),
        ("gymnasium", "my_tasks:Reach-v0", "Reach-v0", "Reach-v1"),
        ("d4rl", "door-human-v0", "Door-human-v0", "pen-human-v0"),
    ],
)
def test_spellings_of_a_task(suite, a, same, other):
    suite = suite_class(suite)
    assert suite.same_task(a, same)
    assert not suite.same_task(a, other)


class NeedsASimulator:
    def __init__(self, cfg: EnvConfig) -> None:
        import no_such_simulator.tasks  # noqa: F401


def test_a_simulator_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SUITES, "metaworld", f"{__name__}:NeedsASimulator")
    with pytest.raises(EnvError, match=r"metaworld: the package 'no_such_simulator'.*ibrl\[sim\]"):
        make_env(EnvConfig(suite="metaworld", task="drawer-open-v3", use_state=1))

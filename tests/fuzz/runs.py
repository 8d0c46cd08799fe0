"""Short runs of both training programs on the particle, with two fields drawn."""

from __future__ import annotations

import functools
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import train_bc
import train_rl
from common_utils import run_config
from common_utils.config_kinds import chosen
from common_utils.run_config import field_types
from tests.bc.ibc_data import write_particle
from tests.fuzz import configs

KIND = "runs"
RUNS: dict[str, dict[str, Any]] = {
    "train_rl": {
        "suite": "particle", "task_name": "PARTICLE_2d", "use_state": 1, "episode_length": 6,
        "num_train_step": 12, "log_per_step": 6, "num_warm_up_episode": 2, "num_eval_episode": 1,
        "replay_buffer_size": 20, "batch_size": 4, "q_agent.state_actor.hidden_dim": 8,
        "q_agent.state_critic.hidden_dim": 8, "q_agent.device": "cpu", "num_critic_update": 1,
        "update_freq": 2, "nstep": 3,
    },
    "train_bc": {
        "policy_type": ["state", "mse", "mdn", "ebm"], "dataset.use_state": 1, "device": "cpu",
        "dataset.action_low": "[0]", "dataset.action_high": "[1]", "epoch_len": 4, "num_epoch": 2,
        "batch_size": 4, "num_eval_episode": 1, "num_final_episode": 1,
        "dataset.eval_episode_len": 20, "env.suite": "particle",
        "env.task": "PARTICLE_2d", "ebm.num_action_samples": 8, "ebm.net.width": 8,
        "ebm.num_counter_examples": 4, "ebm.langevin.num_iterations": 2, "mse.net.width": 8,
        "mdn.net.width": 8,
    },
}  # fmt: skip
# another machine's, or other files'
NOT_RUN = (
    *(*configs.LEFT_ALONE, "dataset.path", "bc_policy", "load_model", "mp_eval", "num_eval_worker"),
    *("replay_threads", "replay_prefetch", "torch_threads", "kernel_threads"),
    *("num_env", "env_timeout", "rollout"),
)


@functools.cache
def _demonstrations() -> bytes:
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        return write_particle(Path(folder) / "particle.hdf5").read_bytes()


def prepare() -> None:
    """What all children share."""
    _demonstrations()


def cases(rng: random.Random) -> Iterator[configs.ConfigCase]:
    """Runs of a few updates, with two of the fields that the base does not set."""
    while True:
        yield configs.ConfigCase(_drawn(rng), _train)


def _drawn(rng: random.Random) -> configs.Draw:
    program = rng.choice(sorted(RUNS))
    base = {k: rng.choice(v) if isinstance(v, list) else v for k, v in RUNS[program].items()}
    kind = base.get("policy_type", "")
    sections = ("ebm.", "mse.", "mdn.")
    own = {k: v for k, v in base.items() if not k.startswith(sections) or k.startswith(kind)}
    config_class = chosen(configs.PROGRAMS[program], own)
    known = {k: v for k, v in field_types(config_class).items() if k not in (*own, *NOT_RUN)}
    args = [f"--{k}={v}" for k, v in own.items()]
    for name in rng.sample(sorted(known), 2):
        args.append(f"--{name}={configs.legal(known[name], rng)}")
    return configs.Draw(program, args)


def _train(drawn: configs.Draw, folder: Path) -> None:
    if not configs.build(drawn, folder):
        return
    options = [*drawn.args, "--save_dir", f"{folder}/run"]
    if drawn.program == "train_rl":
        train_rl.run(run_config.parse_args(train_rl.MainConfig, options))
        return
    data = folder / "particle.hdf5"
    data.write_bytes(_demonstrations())
    options += ["--dataset.path", str(data)]
    train_bc.run(run_config.parse_args(train_bc.MainConfig, options))

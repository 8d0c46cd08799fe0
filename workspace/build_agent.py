"""A run's policies and agent, built from its config and loaded from weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bc.demos import DatasetError
from common_utils import run_config
from common_utils.kept_weights import KeptWeights, find, originals
from common_utils.link import is_url
from common_utils.made_by import how_to_make, how_to_pretrain
from common_utils.paths import split_paths
from common_utils.run_config import ConfigError
from common_utils.run_state import RunState
from common_utils.seeding import seed_for
from common_utils.specs import EnvSpec
from env.core import Env
from env.named_modules import check_address, module_names, settle_modules, split_task
from rl.agent import Agent, AgentInputs
from workspace.bc_config import MainConfig as BcConfig
from workspace.build_policy import env_of, load_policy, naming_fields
from workspace.build_policy import load_config as load_bc_config
from workspace.remote_policy import is_remote, policy_files, same_remote
from workspace.rl_config import MainConfig, rl_env_config
from workspace.weights import load_weights, put_weights, require_weights


def check_files(cfg: MainConfig) -> None:
    """Refuse a new run early, before its folder is made, when files it will read are missing."""
    if cfg.preload_num_data > 0 and not cfg.preload_datapath:
        raise DatasetError(
            f"preload_datapath: empty, but preload_num_data is {cfg.preload_num_data}; give an "
            f"HDF5 file of demonstrations of {cfg.suite}, or set preload_num_data to 0; how "
            f"Meta-World's are made, for example: {how_to_make('')}"
        )
    if cfg.preload_num_data > 0 and not Path(cfg.preload_datapath).exists():
        raise DatasetError(
            f"preload_datapath: no file '{cfg.preload_datapath}'; "
            f"to make it: {how_to_make(cfg.preload_datapath)}"
        )
    if cfg.bc_policy and cfg.use_bc:
        for path in policy_files(cfg.bc_policy):
            require_weights(path, "bc_policy")
    if cfg.load_pretrained_agent:
        require_weights(cfg.load_pretrained_agent, "load_pretrained_agent", how_to_pretrain)


def inherit_env(
    cfg: MainConfig, trusted: Sequence[str] | None = None, saved: MainConfig | None = None
) -> None:
    """Fill in what the config takes from the BC policy's run: task, image size, action repeat.

    ``trusted``: modules that the BC policy's config may name; None: those that ``cfg`` names.
    ``saved``: the config of a resumed run, which is already filled in.
    """
    fields = {
        "task_name": "task",
        "rl_image_size": "rl_image_size",
        "action_repeat": "action_repeat",
    }
    missing = [name for name in fields if not getattr(cfg, name)]
    if not missing:
        return
    trusted = own_modules(cfg) if trusted is None else trusted
    if saved is not None:
        env, source = rl_env_config(saved), cfg.cfg_path
    elif cfg.bc_policy:
        source = policy_files(cfg.bc_policy)[0]
        require_weights(source, "bc_policy")
        env = load_bc_config(source, trust_module=trusted).env
    else:
        raise ConfigError(
            f"{missing[0]}: empty, and there is no bc_policy to take it from, expected a name"
        )
    if not cfg.task_name:  # played in this run's suite, even if the policy's was another
        env = settle_modules(replace(env, suite=cfg.suite, gym_module=""), trusted, f"'{source}'")
    for name in missing:
        setattr(cfg, name, getattr(env, fields[name]))


def own_modules(cfg: MainConfig) -> tuple[str, ...]:
    """Modules that a run's user trusts: those that its config trusts, and those it names."""
    own = (cfg.gym.module, split_task(cfg.task_name)[0])
    return (*module_names(cfg.trust_module), *filter(None, own))


def bc_weights(
    cfg: MainConfig, run_dir: str | Path | None = None, state: RunState | None = None
) -> KeptWeights:
    """The BC policies' weights: the copies in ``run_dir`` if it has them, else ``cfg.bc_policy``.

    Raises ConfigError if they are not the ones that ``state`` was trained with.
    """
    if not cfg.bc_policy or not cfg.use_bc:
        return KeptWeights()
    kept = find(run_dir) if run_dir is not None else None
    if kept is None:
        paths = policy_files(cfg.bc_policy)
        for path in paths:
            require_weights(path, "bc_policy")
        kept = originals(paths)
        named = [p if is_url(p) else os.path.abspath(p) for p in split_paths(cfg.bc_policy)]
        kept = replace(kept, origins=named)
        if run_dir is not None and (state is None or "bc_policy" not in state.tree):
            note = (
                f"bc_policy: '{run_dir}' keeps no copy of it; {' and '.join(paths)} is used as it "
                "is now, whether or not it has changed since the run began"
            )
            kept = replace(kept, notes=[note])
    if state is not None and state.tree.get("bc_policy", kept.sums) != kept.sums:
        raise ConfigError(
            f"bc_policy: {' and '.join(kept.files)} are not the weights that {state.path} was "
            "trained with; put those back"
        )
    return kept


def same_weights(cfg: MainConfig, kept: KeptWeights) -> bool:
    """Whether ``cfg.bc_policy`` names the weights that the run keeps, maybe by other paths."""
    given = split_paths(cfg.bc_policy)
    try:
        local = [p for p in given if not is_remote(p)]
        sums = iter(originals(local).sums)
    except ConfigError:
        return False
    return len(given) == len(kept.files) and all(
        same_remote(path, file) if is_remote(path) else next(sums) == want
        for path, file, want in zip(given, kept.files, kept.sums, strict=True)
    )


def load_bc_policies(
    cfg: MainConfig, trusted: Sequence[str] | None = None, weights: KeptWeights | None = None
) -> tuple[list[Any], list[str]]:
    """The BC policies of a run and their cameras; ``trusted`` as in :func:`inherit_env`.

    ``weights``: weights to use instead of those that ``cfg.bc_policy`` names.
    """
    weights = bc_weights(cfg) if weights is None else weights
    own = trusted is None  # the config is the user's, not a checkpoint's
    trusted = own_modules(cfg) if trusted is None else trusted
    # what the user named, in the same order; a resumed run's may differ, and is compared later
    named = dict(enumerate(split_paths(cfg.bc_policy) if own else []))
    device = cfg.agent_cfg.device
    loaded = [
        load_policy(p, device, trust_module=trusted, field="bc_policy", given=named.get(number))
        for number, p in enumerate(weights.files)
    ]
    for path, (_, bc_cfg) in zip(weights.files, loaded, strict=True):
        _check_padding(path, bc_cfg)
    policies = [policy for policy, _ in loaded]
    cameras = [k for p in policies for k, s in p.input_specs().items() if len(s.shape) == 3]
    return policies, list(dict.fromkeys(cameras))


def _check_padding(path: str, bc_cfg: BcConfig) -> None:
    """Refuse a policy whose histories do not start with zeros, as RL's do."""
    dataset = bc_cfg.dataset
    stack = (
        dataset.state_stack if dataset.use_state else max(dataset.image_stack, dataset.prop_stack)
    )
    if stack > 1 and dataset.stack_pad != "zeros":
        raise ConfigError(
            f"bc_policy '{path}' was trained on histories of {stack} steps with "
            f"dataset.stack_pad {dataset.stack_pad}, but RL pads histories with zeros: train it "
            "with --dataset.stack_pad zeros"
        )


def agent_inputs(cfg: MainConfig, spec: EnvSpec) -> AgentInputs:
    """The inputs and outputs of the run's agent in an environment."""
    camera = "" if cfg.use_state else cfg.rl_camera
    prop = spec.observations.get("prop")
    return AgentInputs(
        obs_shape=spec.observations[camera or "state"].shape,
        action_dim=spec.action_dim,
        camera=camera,
        prop_shape=prop.shape if prop is not None else (0,),
        seed=seed_for(cfg.seed, "agent", bits=31),
    )


def build_agent(cfg: MainConfig, spec: EnvSpec, bc_policies: list[Any]) -> Agent:
    """The agent of a run, checked against what the environment delivers."""
    row, agent_cfg = cfg.agent_kind, cfg.agent_cfg
    if agent_cfg.bc_fields and not bc_policies:
        asking = (f"{row.section}.{k} '{getattr(agent_cfg, k)}'" for k in agent_cfg.bc_fields)
        raise ConfigError(
            f"{', '.join(asking)} need a BC policy: bc_policy is '{cfg.bc_policy}', use_bc "
            f"{cfg.use_bc}"
        )
    for policy in bc_policies:
        spec.check_provides(policy.input_specs(), policy.action_dim, f"bc_policy {cfg.bc_policy}")
    with naming_fields(row.section):
        agent = row.build(agent_inputs(cfg, spec), agent_cfg)
    for policy in bc_policies:
        length = getattr(policy, "chunk_length", None)
        if length is not None and length < agent.horizon:
            raise ConfigError(
                f"{row.section}.horizon: {agent.horizon}, expected at most {length}, the actions "
                f"that bc_policy {cfg.bc_policy} ({type(policy).__name__}) decides on at once"
            )
        with naming_fields(row.section):
            agent.add_bc_policy(policy)
    return agent


def bare_agent(cfg: MainConfig, spec: EnvSpec) -> Agent:
    """The agent of a run without its BC policies, whose actions come with the batches."""
    return cfg.agent_kind.build(agent_inputs(cfg, spec), cfg.agent_cfg)


def load_pretrained(agent: Agent, path: str, policy_only: bool) -> None:
    """Start from another agent's weights; ``policy_only`` keeps the new critics."""
    weights = load_weights(path, "load_pretrained_agent")
    if policy_only:
        weights = agent.policy_of(weights)
    put_weights(agent, weights, path, "load_pretrained_agent")
    # a checkpoint of pretraining holds the actor's target as it was before (sync_actor_target)
    agent.finish_pretraining()


def load_model(
    weight_file: str, device: str = "auto", *, trust_module: str | Sequence[str] = ()
) -> tuple[Agent, Env, dict[str, Any]]:
    """The agent of a checkpoint, an environment to evaluate it in, and its parameters.

    Args:
        weight_file: ``model0.pt`` or ``latest.pt`` of a run; its ``cfg.yaml`` and copies of
            its BC policies are next to it (the folder may have been moved).
        device: auto, cpu or cuda.
        trust_module: module(s) that the run's config may import (docs/security.md).

    Returns:
        (agent in eval mode, eval_env, eval_env_params); ``make_env(EnvConfig(**params))``
        builds the same environment again.
    """
    weights = load_weights(weight_file, "weight_file")
    path = Path(weight_file).parent / run_config.CFG_NAME
    cfg = run_config.load(MainConfig, path)
    cfg.agent_cfg.device = device
    if hasattr(cfg.agent_cfg, "compile"):
        cfg.agent_cfg.compile = "off"  # minutes of compiling, for some games
    cfg.trust_module = "+".join(module_names(trust_module))  # never from the file
    trusted = module_names(trust_module)
    inherit_env(cfg, trusted)
    kept = bc_weights(cfg, path.parent)
    for note in kept.notes:
        print(note)
    bc_policies, bc_cameras = load_bc_policies(cfg, trusted, kept)
    env_cfg = settle_modules(rl_env_config(cfg, bc_cameras), trust_module, f"'{path}'")
    check_address(env_cfg, trust_module, f"'{path}'")
    env = env_of(env_cfg, path)
    agent = build_agent(cfg, env.spec, bc_policies)
    put_weights(agent, weights, weight_file, "weight_file")
    return agent.eval(), env, asdict(env_cfg)

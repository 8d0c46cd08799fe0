"""A BC policy and its config: filled in from a dataset, built, and matched to weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from bc.base import BasePolicy, PolicyInputs
from bc.dataset import RobomimicDataset
from bc.demos import DatasetError
from bc.registry import POLICIES
from common_utils import run_config
from common_utils.device import resolve_device
from common_utils.run_config import ConfigError
from common_utils.specs import SpecError
from env.config import EnvConfig
from env.core import Env, EnvError
from env.factory import adopt_env_args, make_env, suite_class
from env.named_modules import (
    SUITE,
    check_address,
    module_names,
    modules_of,
    settle_modules,
)
from env.suites import SUITES
from evaluate.multi_process_eval import EvalPool
from networks.encoder import SmallImageError, set_precision
from workspace.bc_config import MainConfig
from workspace.remote_policy import is_remote, require_remote, url_to_ask
from workspace.weights import check_weights, load_weights, put_weights


def fill_in(cfg: MainConfig, data: RobomimicDataset) -> None:
    """Record the dataset's task, shapes and environment in ``cfg``."""
    specs, dataset = data.observation_specs, data.cfg
    cfg.task_name, cfg.robots = data.task_name, list(data.robots)
    cfg.rl_image_size, cfg.action_dim = data.image_size, data.action_dim
    cfg.obs_shape = list(specs["state" if dataset.use_state else data.cameras[0]].shape)
    cfg.prop_shape = list(specs["prop"].shape) if "prop" in specs else []
    for camera in data.cameras:
        if list(specs[camera].shape) != cfg.obs_shape:
            raise DatasetError(
                f"'{dataset.path}': cameras of one policy must have the same size, but "
                f"{camera} is {list(specs[camera].shape)} and {data.cameras[0]} {cfg.obs_shape}"
            )
    # modules that the user named; the rest come from the file
    trusted = (*module_names(cfg.trust_module), *modules_of(replace(cfg.env, suite=SUITE)))
    known = data.suite in SUITES
    if known:
        _check_task(cfg, data)
        cfg.env.suite = data.suite
    if known or not cfg.env.task:
        cfg.env.task = data.task_name or cfg.env.task
    if differences := _fill_in_env(cfg, data.env_args):
        raise DatasetError(f"'{data.cfg.path}', env_args: {'; '.join(differences)}")
    cfg.env = settle_modules(cfg.env, trusted, f"'{dataset.path}'")


def _check_task(cfg: MainConfig, data: RobomimicDataset) -> None:
    """Raise ConfigError where the user says another suite or task than the file."""
    env, recorded = cfg.env, f"{data.suite}/{data.task_name or '?'}"
    where = f"but '{data.cfg.path}' holds demonstrations of {recorded}; expected that, or none"
    if env.suite and env.suite != data.suite:
        raise ConfigError(f"env.suite: '{env.suite}', {where}")
    names = (env.task, data.task_name)
    if all(names) and not suite_class(data.suite).same_task(*names):
        raise ConfigError(f"env.task: '{env.task}', {where}")


def _fill_in_env(cfg: MainConfig, env_args: Mapping[str, Any]) -> list[str]:
    """Make the evaluation environment show what the policy was trained on.

    Returns the settings in ``env_args`` (from a demonstration file) that cannot be played.
    """
    env, dataset = cfg.env, cfg.dataset
    env.use_state = dataset.use_state
    env.cameras = [] if dataset.use_state else dataset.rl_cameras
    env.episode_length = dataset.eval_episode_len
    env.obs_stack, env.prop_stack = dataset.image_stack, dataset.prop_stack
    env.state_stack = dataset.state_stack
    env.stack_pad = dataset.stack_pad
    if cfg.rl_image_size > 0:
        env.rl_image_size = cfg.rl_image_size
    cfg.image_size = env.image_size
    return adopt_env_args(env, env_args, dataset.action_repeat)


def build_policy(cfg: MainConfig) -> BasePolicy:
    """A new policy from a filled-in config (needs no environment and no dataset)."""
    dataset, row = cfg.dataset, POLICIES[cfg.kind]
    inputs = PolicyInputs(
        obs_shape=tuple(cfg.obs_shape),
        action_dim=cfg.action_dim,
        stack=dataset.state_stack if dataset.use_state else dataset.image_stack,
        cameras=() if dataset.use_state else tuple(dataset.rl_cameras),
        prop_shape=tuple(cfg.prop_shape),
    )
    with naming_fields(row.section, f" (data: '{dataset.path}')"):
        policy = row.build(inputs, cfg.own_section)
    if not set_precision(policy, cfg.precision) and cfg.precision == "bfloat16":
        raise ConfigError(
            f"precision: bfloat16, expected float32 or tf32 with policy_type {cfg.kind}, which has "
            "no ResNet of images"
        )
    return policy


@contextmanager
def naming_fields(section: str, where: str = "") -> Iterator[None]:
    """Turn errors of building networks into a ConfigError with the field's dotted name."""
    try:
        yield
    except SmallImageError as error:
        raise ConfigError(f"rl_image_size: {error} for {section}'s encoder{where}") from error
    except (ConfigError, ValueError) as error:
        dot = "." if re.match(r"[\w.]+: ", str(error)) else ": "
        raise ConfigError(f"{section}{dot}{error}{where}") from error


@contextmanager
def without_storage() -> Iterator[None]:
    """Build networks on torch's "meta" device: they have shapes, and take no memory."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _NoDraws():
        yield


class _NoDraws(TorchFunctionMode):
    """Skip drawing normal numbers without storage: torch would load its compiler for a second."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> torch.Tensor:
        if func in (nn.init.normal_, torch.Tensor.normal_):
            return (*args, *(kwargs or {}).values())[0]  # the tensor comes first
        if func is torch.randn:
            func = torch.empty
        return func(*args, **(kwargs or {}))


def metaworld_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The config tree of ``train_bc`` from one with the Meta-World script's names."""
    out = copy.deepcopy(dict(tree))
    if "policy" in out:
        out["mw_policy"] = out.pop("policy")
    dataset = out.get("dataset")
    use_state = dataset.get("use_state", 0) if isinstance(dataset, dict) else 0
    out["policy_type"] = "state" if use_state else "metaworld"
    out["batch_size"] = out.pop("batchsize")
    robot = out.pop("robot", "")
    out["robots"] = [robot] if robot else []
    if isinstance(out.setdefault("env", {}), dict):  # else refused with the other fields
        out["env"]["suite"] = "metaworld"
    return out


def infer_shapes(cfg: MainConfig, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Shapes for a cfg.yaml of the original program, which does not record them."""
    heads = [k for k in weights if k.startswith(("net.", "policy.")) and weights[k].dim() == 2]
    if not heads:
        raise ConfigError(
            f"weight_file: '{path}' holds no matrix 'net.*' or 'policy.*', expected those of a BC "
            "policy"
        )
    cfg.action_dim = weights[heads[-1]].shape[0]
    # for Meta-World, metaworld_names has already set it
    cfg.env.suite = cfg.env.suite or "robosuite"
    if cfg.dataset.use_state:
        cfg.obs_shape = [weights[heads[0]].shape[1]]
    else:
        size, stack = cfg.rl_image_size, cfg.dataset.prop_stack
        if size < 1:
            raise ConfigError(
                f"{path.parent / run_config.CFG_NAME}: rl_image_size: {size} and no obs_shape, "
                "expected the size of the images that the policy was trained on in one of them"
            )
        cfg.obs_shape = [3 * cfg.dataset.image_stack, size, size]
        cfg.prop_shape = [suite_class(cfg.env.suite).prop_dim * stack]
    cfg.env.task = cfg.task_name
    _fill_in_env(cfg, {})


def load_config(weight_file: str | Path, *, trust_module: str | Sequence[str] = ()) -> MainConfig:
    """The config of the run that made ``weight_file``, from the cfg.yaml next to it.

    Raises ConfigError if its environment names a module that ``trust_module`` does not.
    """
    path = Path(weight_file).parent / run_config.CFG_NAME
    tree = run_config.read_yaml(path)
    if "batchsize" in tree:  # written by the original program's Meta-World script
        tree = metaworld_names(tree)
    cfg = run_config.from_dict(MainConfig, tree, str(path))
    cfg.trust_module = "+".join(module_names(trust_module))  # never from the file
    cfg.env = settle_modules(cfg.env, trust_module, f"'{path}'")
    return cfg


def load_policy(
    weight_file: str | Path,
    device: str = "auto",
    *,
    trust_module: str | Sequence[str] = (),
    field: str = "weight_file",
    given: str | None = None,
) -> tuple[BasePolicy, MainConfig]:
    """The policy of a checkpoint, in eval mode, and its config; builds no environment.

    ``cfg.env`` describes the environment it was trained for. The run folder may have been
    moved. ``trust_module``: module(s) that the config may name (docs/security.md).
    ``field``: the option that named the file, for messages. ``given``: what the user named, if
    ``weight_file`` is the config of a remote policy (``workspace.remote_policy``).
    Raises ConfigError for a missing file, weights of another policy, a module not trusted.
    """
    if is_remote(weight_file):
        cfg = load_config(weight_file, trust_module=trust_module)
        require_remote(cfg, weight_file)
        cfg.own_section.url = url_to_ask(cfg.own_section.url, given)
        return build_policy(cfg).to(resolve_device(device)).eval(), cfg
    weights = load_weights(weight_file, field)
    cfg = load_config(weight_file, trust_module=trust_module)
    if not cfg.action_dim:
        infer_shapes(cfg, weights, Path(weight_file))
    config = Path(weight_file).parent / run_config.CFG_NAME
    try:
        with without_storage():  # the config may claim any size
            check_weights(build_policy(cfg), weights, weight_file, field)
    except ConfigError as error:
        if str(weight_file) in str(error):
            raise
        raise ConfigError(f"'{config}': {error}") from error
    policy = build_policy(cfg)
    put_weights(policy, weights, weight_file, field)
    return policy.to(resolve_device(device)).eval(), cfg


def load_model(
    weight_file: str | Path, device: str = "auto", *, trust_module: str | Sequence[str] = ()
) -> tuple[BasePolicy, Env, dict[str, Any]]:
    """The policy of a checkpoint, an environment to evaluate it in, and its parameters.

    Args:
        weight_file: ``model0.pt`` or ``latest.pt`` of a run; its ``cfg.yaml`` is next to it
            (the folder may have been moved).
        device: auto, cpu or cuda.
        trust_module: module(s) that the run's config may import (docs/security.md).

    Returns:
        (policy in eval mode, eval_env, eval_env_params); ``make_env(EnvConfig(**params))``
        builds the same environment again.

    Raises SpecError where that environment does not deliver what the policy reads.
    """
    policy, cfg = load_policy(weight_file, device, trust_module=trust_module)
    path = Path(weight_file).parent / run_config.CFG_NAME
    check_address(cfg.env, trust_module, f"'{path}'")
    env = env_of(cfg.env, path)
    check_plays_in(env, policy, f"weight_file: the policy of '{weight_file}'")
    return policy, env, asdict(cfg.env)


def env_of(cfg: EnvConfig, config: Path) -> Env:
    """The environment that a run's ``config`` file describes; an EnvError names that file."""
    try:
        return make_env(cfg)
    except EnvError as error:
        raise EnvError(f"'{config}', {error}") from error


def check_plays_in(place: Env | EvalPool, policy: BasePolicy, who: str) -> None:
    """Close ``place`` and raise SpecError unless it delivers what the policy reads."""
    try:
        place.spec.check_provides(policy.input_specs(), policy.action_dim, who)
    except SpecError:
        place.close()
        raise

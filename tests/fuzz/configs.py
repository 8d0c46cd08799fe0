"""Random configurations of both training programs: parsed, checked, constructed.

A draw is refused by one UserError of at most three lines that names a field, or what it describes
is built (larger networks than a test can hold: counted). Whatever else happens is a fault of ours.
"""

from __future__ import annotations

import math
import random
import re
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch

import quickstart
import train_bc
import train_rl
from bc.base import BasePolicy
from bc.explicit.bc_policy import StateBcPolicy
from bc.ibc.ebm_policy import EbmPolicyConfig
from bc.registry import POLICIES
from common_utils import run_config
from common_utils.config_kinds import every_kind
from common_utils.config_types import is_switch
from common_utils.errors import UserError
from common_utils.finite import NonFiniteError
from common_utils.ranges import Above, AtLeast, AtMost, Below, Between, MultipleOf, OneOf
from common_utils.run_config import field_types
from common_utils.specs import BC_ACTION, ArraySpec, Batch, EnvSpec
from mw_main import generate_metaworld_dataset, train_bc_mw, train_rl_mw
from rl.agent import Agent
from tests.fuzz.case import Outcome, Verdict, brief, judge_message, scratch_folder
from tools import (
    collect_oracle,
    convert_dataset,
    convert_minari,
    coordinate_regression,
    expert_frames,
    expert_report,
    generate_demos,
    implicit_ibrl,
    particle_dimensions,
)
from workspace.build_agent import build_agent
from workspace.build_policy import build_policy
from workspace.network_memory import Footprint, check_agent, check_policy
from workspace.prepare_rl import build_replay, check_memory

KIND = "configs"
# every program with a config class
PROGRAMS: dict[str, Any] = {
    "train_rl": train_rl.MainConfig,
    "train_bc": train_bc.MainConfig,
    "train_rl_mw": train_rl_mw.MainConfig,
    "train_bc_mw": train_bc_mw.MainConfig,
    "quickstart": quickstart.QuickstartConfig,
    "generate_metaworld_dataset": generate_metaworld_dataset.MainConfig,
    "collect_oracle": collect_oracle.MainConfig,
    "convert_dataset": convert_dataset.MainConfig,
    "convert_minari": convert_minari.MainConfig,
    "coordinate_regression": coordinate_regression.MainConfig,
    "expert_frames": expert_frames.MainConfig,
    "expert_report": expert_report.MainConfig,
    "generate_demos": generate_demos.MainConfig,
    "implicit_ibrl": implicit_ibrl.MainConfig,
    "particle_dimensions": particle_dimensions.MainConfig,
}
TRAINING = ("train_rl", "train_bc") * 3 + ("train_rl_mw", "train_bc_mw")
# larger ones are described, not made
LARGEST_WEIGHTS, LARGEST_LAYERS = 2**28, 2**25
# of the machine or of files, not of the configuration; compiling takes minutes, which no case has
LEFT_ALONE = (
    *("device", "q_agent.device", "save_dir", "use_wb", "use_trackio", "resume", "overwrite"),
    "dry_run",
    *("compile", "q_agent.compile", "ebm.compile"),
)
# chosen before the fields are drawn
CHOSEN = ("policy_type", "agent", "use_state", "dataset.use_state")
TEXTS = (
    *("", "word", "a+b", "+", "~", "~nobody/x", "no such folder/x.hdf5", "/", "été", "[x]", "1"),
    "a\0b",
)
NONSENSE = ["-1", "0", "1e9", "1000000000000000000", "1e30", ".nan", ".inf", "-.inf", "word", "[]"]


# ------------------------------------------------------------------------- types and values


def plain_kind(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type without null and ``Annotated``, and its limits."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(k for k in get_args(kind) if k is not type(None))
    if get_origin(kind) is Annotated:
        base, *limits = get_args(kind)
        inner, more = plain_kind(base)
        return inner, (*limits, *more)
    return kind, ()


def is_numeric(kind: Any) -> bool:
    """Whether a field holds a number, a switch, or a list of numbers."""
    inner, limits = plain_kind(kind)
    if get_origin(inner) is list:
        return is_numeric(get_args(inner)[0])
    numbers = get_origin(inner) is Literal and isinstance(get_args(inner)[0], int)
    return inner in (int, float, bool) or numbers


def bounds_of(kind: Any) -> list[str]:
    """The least and the largest legal number, as far as the type has them."""
    inner, limits = plain_kind(kind)
    out = [repr(v) for limit in limits if isinstance(limit, OneOf) for v in limit.values]
    for limit in limits:
        ends = [getattr(limit, end) for end in ("low", "high") if hasattr(limit, end)]
        out += [repr(int(v) if inner is int else float(v)) for v in ends]
    return out


def legal(kind: Any, rng: random.Random) -> str:
    """A value that the type allows, as it is typed; for texts, one that somebody may type."""
    if is_switch(kind):
        return rng.choice("01")
    inner, limits = plain_kind(kind)
    if get_origin(inner) is Literal:
        return str(rng.choice([a for a in get_args(inner) if a != ""]))
    if get_origin(inner) is list:
        items = [legal(get_args(inner)[0], rng) for _ in range(rng.choice([0, 1, 1, 2, 7]))]
        return f"[{', '.join(items)}]"
    if inner not in (int, float):
        return rng.choice(TEXTS)
    for limit in limits:
        if isinstance(limit, OneOf) and rng.random() < 0.5:
            return str(rng.choice(limit.values))
    low, high = _bounds(limits)
    value = _between(low, high, inner, rng)
    for limit in limits:
        if isinstance(limit, MultipleOf):
            value = max(limit.step, int(value) // limit.step * limit.step)
    return repr(value)


def _bounds(limits: Sequence[Any]) -> tuple[float, float]:
    low, high = -1e6, 1e9
    for limit in limits:
        if isinstance(limit, (AtLeast, Above, Between)):
            low = limit.low
        if isinstance(limit, (AtMost, Below, Between)):
            high = limit.high
    return low, high


def _between(low: float, high: float, kind: Any, rng: random.Random) -> int | float:
    """Small values often, the bounds sometimes."""
    choice = rng.random()
    if choice < 0.1:
        value: float = high
    elif choice < 0.2:
        value = low
    elif high - low > 100:
        value = low + math.exp(rng.uniform(0, math.log(min(high - low, 1e6))))
    else:
        value = rng.uniform(low, high)
    return int(value) if kind is int else float(value)


# ------------------------------------------------------------------------- drawing


@dataclass
class Draw:
    """A command line of one program, and what the data or the environment are like."""

    program: str
    args: list[str]
    image_size: int = 96
    names: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.program} {' '.join(self.args)} (images of {self.image_size})"


def kinds_of(config_class: Any) -> Iterator[tuple[Any, list[str]]]:
    """A program's config class for each of its kinds, and the options that choose it."""
    for kind, own in every_kind(config_class).items():
        if not kind:
            yield own, []
            continue
        options = [f"--{own.CHOSEN_BY}", kind]
        if kind in POLICIES and POLICIES[kind].reads == ("state",):
            options += ["--dataset.use_state", "1"]
        yield own, options


def draw(program: str, rng: random.Random) -> Draw:
    """One configuration: a kind, states or images, and up to eight fields."""
    config_class, args = rng.choice(list(kinds_of(PROGRAMS[program])))
    args = list(args)
    state = "dataset.use_state" if program == "train_bc" else "use_state"
    own = state in field_types(config_class) and f"--{state}" not in args
    if own and rng.random() < 0.5:
        args += [f"--{state}", "1"]
    known = {
        k: v
        for k, v in field_types(config_class).items()
        if k not in LEFT_ALONE and k not in CHOSEN
    }
    args += quick(args) if program in TRAINING else []
    names = rng.sample(sorted(known), min(len(known), rng.randint(1, 8)))
    wrong = rng.random() < 0.25
    for name in names:
        value = rng.choice(NONSENSE) if wrong and rng.random() < 0.3 else legal(known[name], rng)
        args.append(f"--{name}={value}")
    return Draw(program, args, rng.choice([8, 16, 24, 32, 48, 64, 84, 96]), names)


def quick(args: Sequence[str]) -> list[str]:
    """Smaller defaults, so that a draw takes a fraction of a second."""
    if "--policy_type" not in args:
        return [] if "--use_state" in args else ["--rl_image_size", "48"]
    kind = args[args.index("--policy_type") + 1]
    out = []
    if kind in ("ebm", "mdn", "mse"):
        for side in ("height", "width"):
            out += [f"--{kind}.pixel.image.target_{side}", "48"]
    return out


# ------------------------------------------------------------------------- what becomes of it


def is_named(name: str, text: str) -> bool:
    """Whether ``text`` has the field's dotted name, as a word of its own."""
    return re.search(rf"(?<![\w.]){re.escape(name)}(?![\w.]*\w)", text) is not None


def judge(error: UserError, program: str) -> Outcome:
    """Refused, if the message is short and has a field's name."""
    known = {name for own, _ in kinds_of(PROGRAMS[program]) for name in field_types(own)}
    outcome, text = judge_message(str(error)), str(error)
    if not outcome.verdict.is_fault and not any(is_named(name, text) for name in known):
        return Outcome(Verdict.TRACEBACK, f"the message names no field: {text}")
    return outcome


@dataclass(frozen=True)
class ConfigCase:
    """A draw, and what is done with it: ``run`` judges what becomes of it."""

    drawn: Draw
    call: Callable[[Draw, Path], object]

    @property
    def name(self) -> str:
        return str(self.drawn)

    def run(self) -> Outcome:
        with scratch_folder() as folder:
            try:
                self.call(self.drawn, folder)
            except NonFiniteError as error:
                return Outcome(Verdict.ACCEPTED, str(error))  # diverged, by a step size of 1000
            except UserError as error:
                return judge(error, self.drawn.program)
            except Exception as error:
                return Outcome(Verdict.TRACEBACK, brief(error))
        return Outcome(Verdict.ACCEPTED)


def cases(rng: random.Random) -> Iterator[ConfigCase]:
    """Configurations of the training programs, that are built, and of all others."""
    while True:
        program = rng.choice([*TRAINING, rng.choice(sorted(PROGRAMS))])
        yield ConfigCase(draw(program, rng), build)


def build(drawn: Draw, folder: Path) -> bool:
    """Parse, check, construct, act and learn once; False for what is too large to be made here.

    Raises UserError for what is refused.
    """
    config_class = PROGRAMS[drawn.program]
    own = {"save_dir": "run", "out": "out", "output_path": "out"}
    options = [f"--{k}={folder}/{v}" for k, v in own.items() if k in field_types(config_class)]
    cfg = run_config.parse_args(config_class, [*drawn.args, *options])
    if isinstance(cfg, train_bc_mw.MainConfig):
        with train_bc_mw.own_names():
            return _build_policy(drawn, train_bc_mw.to_train_bc(cfg))
    if isinstance(cfg, train_bc.MainConfig):
        return _build_policy(drawn, cfg)
    if isinstance(cfg, train_rl.MainConfig):
        return _build_agent(cfg)
    return False


# ------------------------------------------------------------------------- policies


def _build_policy(drawn: Draw, cfg: train_bc.MainConfig) -> bool:
    data, size = cfg.dataset, drawn.image_size
    stack = data.state_stack if data.use_state else data.image_stack
    cfg.obs_shape = [5 * stack] if data.use_state else [3 * stack, size, size]
    cfg.action_dim, cfg.prop_shape, cfg.device = 2, [4 * data.prop_stack], "cpu"
    if _is_large(check_policy(cfg), cfg.batch_size):
        return False
    _shorten(cfg.own_section)
    torch.manual_seed(cfg.seed)
    policy = build_policy(cfg)
    policy.seed(cfg.seed)
    batch = _demonstrations(policy, min(cfg.batch_size, 3))
    policy.fit([batch])
    policy.loss(batch).backward()
    policy.eval()
    obs = {k: v[:1] for k, v in batch.obs.items()}
    action = policy.act(obs, generator=torch.Generator().manual_seed(0))
    assert action.shape == (1, 2), f"the action has shape {list(action.shape)}"
    return True


def _shorten(section: Any) -> None:
    """What was checked at its full size is tried with fewer samples and shorter loops."""
    if isinstance(section, EbmPolicyConfig):
        section.num_action_samples = min(section.num_action_samples, 64)
        section.num_counter_examples = min(section.num_counter_examples, 64)
        for loop in (section.dfo, section.langevin):
            loop.num_iterations = min(loop.num_iterations, 4)


def _is_large(need: Footprint, batch_size: int) -> bool:
    """Whether a draw takes long here, where batches have at most 3 rows."""
    layers = need.layers * min(batch_size, 3) // batch_size
    return need.weights > LARGEST_WEIGHTS or layers > LARGEST_LAYERS


def _demonstrations(policy: BasePolicy, num: int) -> Any:
    rng = torch.Generator().manual_seed(0)
    obs = {k: _random(s, num, rng) for k, s in policy.input_specs().items()}
    steps = [policy.chunk_length or 1] if policy.chunked else []
    return SimpleNamespace(obs=obs, action=torch.rand(num, *steps, 2, generator=rng) * 2 - 1)


def _random(spec: ArraySpec, num: int, rng: torch.Generator) -> torch.Tensor:
    if spec.dtype == "uint8":
        return torch.randint(0, 256, (num, *spec.shape), generator=rng, dtype=torch.uint8)
    return torch.rand(num, *spec.shape, generator=rng)


# ------------------------------------------------------------------------- agents


def _build_agent(cfg: train_rl.MainConfig) -> bool:
    size = cfg.rl_image_size or 96
    cfg.agent_cfg.device = "cpu"
    spec = EnvSpec(
        "particle",
        "none",
        {
            "state": ArraySpec((5 * cfg.state_stack,), stack=cfg.state_stack),
            cfg.rl_camera: ArraySpec((3 * cfg.obs_stack, size, size), "uint8", cfg.obs_stack),
            "prop": ArraySpec((4 * cfg.prop_stack,), stack=cfg.prop_stack),
        },
        action_dim=2,
        horizon=cfg.episode_length,
        cameras=(cfg.rl_camera,),
    )
    wanted = cfg.agent_cfg.bc_fields
    policies = [StateBcPolicy((5 * cfg.state_stack,), 2)] if wanted else []
    if _is_large(check_agent(cfg, spec, len(policies)), cfg.batch_size):
        return False
    torch.manual_seed(cfg.seed)
    agent = build_agent(cfg, spec, [policy.eval() for policy in policies])
    check_memory(cfg, spec, agent)
    build_replay(cfg, spec, agent, None)
    _update(agent, cfg, spec)
    return True


def _update(agent: Agent, cfg: train_rl.MainConfig, spec: EnvSpec) -> None:
    rng = torch.Generator().manual_seed(0)
    obs, after = (
        {k: _random(spec.observations[k], 2, rng) for k in agent.input_keys} for _ in range(2)
    )
    h, windows = agent.horizon, agent.horizon > 1
    proposed = torch.rand(2, agent.num_bc_action, h * 2, generator=rng) * 2 - 1
    known = proposed if agent.num_stored else None
    batch = Batch(
        obs=obs,
        next_obs=after,
        action=torch.rand(2, *[h] * windows, 2, generator=rng) * 2 - 1,
        reward=torch.rand(2, generator=rng),
        bootstrap=torch.ones(2),
        bc_action=known,
        next_bc_action=known,
        valid=torch.ones(2, h) if windows else None,
    )
    agent.update(batch, stddev=cfg.stddev_min, update_actor=True)
    agent.eval()
    if known is not None:
        obs[BC_ACTION] = known
    action = agent.act({k: v[0] for k, v in obs.items()}, eval_mode=False, stddev=cfg.stddev_max)
    assert action.shape == (2,), f"the action has shape {list(action.shape)}"

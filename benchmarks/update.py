"""Measure the cost of an update, an action and a BC step for every released configuration.

    python -m benchmarks.update [--case NAME] [--repeat N] [--json FILE]
    python -m benchmarks.update --compare eager,plain,auto

The second command alternates variants and prints each one's speed-up over the first: eager is the
published program, written plainly (``benchmarks.eager``), plain is our program with torch's
operations only, auto is what runs use. A ratio holds only on the machine that measured it.

Agents and policies are built from ``release/cfgs`` and get random batches of the tasks' sizes, so
neither simulator nor data are needed. Batches carry the BC action of the next observation, as the
replay's batches do; acting includes the BC policy.
"""

from __future__ import annotations

import argparse
import fnmatch
import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bc.explicit.base import ExplicitPolicy
from bc.explicit.bc_policy import BcPolicy, StateBcPolicy, StateBcPolicyConfig
from bc.explicit.mw_bc_policy import BcPolicy as MwBcPolicy
from benchmarks import common, compare
from benchmarks.eager import EagerAgent, plainly
from common_utils import run_config
from common_utils.errors import run_program
from common_utils.ibrl_utils import eval_mode
from common_utils.options import numeric
from common_utils.ranges import Positive
from common_utils.specs import Batch, Obs
from mw_main import train_bc_mw
from networks.fast import measure
from networks.fast.cpu.module import kernels
from rl.q_agent import QAgent
from train_bc import MainConfig as BcConfig
from train_rl import MainConfig
from workspace.build_policy import build_policy

CFGS = Path(__file__).resolve().parents[1] / "release" / "cfgs"
IMAGE = (3, 96, 96)

# Process CPU ms of the original programs on one thread of a Zen 5 core (docs/performance.md):
# critic update, critic and actor update, act.
REFERENCE = {
    "robomimic_rl/can_ibrl": (8076.0, 9944.0, 30.6),
    "robomimic_rl/can_state_ibrl": (517.0, 790.0, 5.9),
    "small_state": (45.0, 72.0, 0.62),
    "metaworld/ibrl_basic": (4273.0, 4612.0, 27.0),
}
# RLPD's JAX program on the same sizes: critic update; critic, actor and temperature.
JAX_REFERENCE = {"robomimic_rl/can_state_ibrl": (203.1, 283.8), "small_state": (13.2, 21.0)}
BC_REFERENCE = {"robomimic_bc/can": 4118.0, "robomimic_bc/can_state": 61.0}
METAWORLD_BC = "metaworld/train_bc_mw"
RL_CALLS = ("critic update", "critic + actor update", "act")


@dataclass(frozen=True)
class Sizes:
    """One step of a task: widths of proprioception, state and action."""

    prop: int
    state: int
    action: int


ROBOMIMIC = Sizes(prop=9, state=23, action=7)
METAWORLD = Sizes(prop=4, state=39, action=4)


def config_of(case: str) -> MainConfig:
    """The configuration of a case: a file under release/cfgs, or the small state agent."""
    if case != "small_state":
        return run_config.load(MainConfig, CFGS / f"{case}.yaml")
    cfg = run_config.load(MainConfig, CFGS / "robomimic_rl" / "can_state_ibrl.yaml")
    q_cfg = cfg.own_section
    q_cfg.act_method = "ibrl"
    q_cfg.state_critic.hidden_dim = q_cfg.state_actor.hidden_dim = 256
    cfg.num_critic_update = 1
    return cfg


def rl_cases() -> list[str]:
    """Every released RL configuration; "small_state" has a reference figure but no file."""
    found = sorted([*CFGS.glob("robomimic_rl/*.yaml"), *CFGS.glob("metaworld/*.yaml")])
    # the folder also has the configurations of the runs' demonstrations and BC policies
    found = [p for p in found if not {"bc", "demos"} & set(p.stem.split("_"))]
    return ["small_state", *(str(p.relative_to(CFGS).with_suffix("")) for p in found)]


def bc_cases() -> list[str]:
    """Every released BC configuration, and Meta-World's (the defaults of its script)."""
    found = sorted([*CFGS.glob("*_bc/*.yaml"), *CFGS.glob("metaworld/*_bc.yaml")])
    return [*(str(p.relative_to(CFGS).with_suffix("")) for p in found), METAWORLD_BC]


def bc_config_of(case: str) -> BcConfig:
    """The BC configuration of a case."""
    if case == METAWORLD_BC:
        return train_bc_mw.to_train_bc(run_config.from_dict(train_bc_mw.MainConfig, {}))
    return run_config.load(BcConfig, CFGS / f"{case}.yaml")


def sizes_of(case: str) -> Sizes:
    """The task's sizes; the small state agent has Meta-World's state and 7-dim actions."""
    if case == "small_state":
        return Sizes(prop=9, state=13, action=7)  # x 3 steps = 39
    return METAWORLD if case.startswith("metaworld") else ROBOMIMIC


def make_agent(
    case: str, cfg: MainConfig, device: str = "cpu"
) -> tuple[QAgent, Callable[[int], Obs]]:
    """An agent on ``device`` with its BC policy, and a maker of random observation batches."""
    sizes, q_cfg = sizes_of(case), cfg.own_section
    q_cfg.device = device
    camera = cfg.rl_camera
    prop, state = (sizes.prop * cfg.prop_stack,), (sizes.state * cfg.state_stack,)
    shape = state if cfg.use_state else IMAGE
    agent = QAgent(cfg.use_state, shape, prop, sizes.action, camera, q_cfg)

    def obs(n: int) -> Obs:
        if cfg.use_state:
            return {"state": torch.randn(n, *state, device=device)}
        image = torch.randint(0, 256, (n, *IMAGE), dtype=torch.uint8, device=device)
        return {camera: image, "prop": torch.randn(n, *prop, device=device)}

    if q_cfg.bc_fields:
        policy: ExplicitPolicy
        if cfg.use_state:
            width = q_cfg.state_actor.hidden_dim
            policy = StateBcPolicy(state, sizes.action, StateBcPolicyConfig(hidden_dim=width))
        elif case.startswith("metaworld"):
            policy = MwBcPolicy(IMAGE, prop, sizes.action, camera=camera)
        else:
            policy = BcPolicy(IMAGE, prop, sizes.action, [camera])
        agent.add_bc_policy(policy)
    return agent, obs


def make_batch(agent: QAgent, obs: Callable[[int], Obs], n: int) -> Batch:
    """Random transitions on the agent's device."""
    device = agent.device

    def actions(*shape: int) -> torch.Tensor:
        return 2 * torch.rand(*shape, agent.action_dim, device=device) - 1

    k = agent.num_bc_action
    return Batch(
        obs=obs(n),
        next_obs=obs(n),
        action=actions(n),
        reward=torch.rand(n, device=device),
        bootstrap=torch.full((n,), 0.97, device=device),
        bc_action=actions(n, k) if k else None,
        next_bc_action=actions(n, k) if k else None,
    )


def agent_calls(
    case: str,
    eager: bool = False,
    batch_size: int = 0,
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
) -> dict[str, Callable[[], Any]]:
    """Critic update, critic and actor update, act of one RL configuration.

    batch_size: 0 for the configuration's own. options: fields of the agent's configuration.
    """
    cfg = config_of(case)
    cfg.batch_size = batch_size or cfg.batch_size
    for name, value in (options or {}).items():
        setattr(cfg.own_section, name, value)
    torch.manual_seed(0)
    agent, obs = make_agent(case, cfg, device)
    batch = make_batch(agent, obs, cfg.batch_size)
    extra: dict[str, Any] = {}
    if cfg.add_bc_loss:
        ref_agent = agent.reference_copy()
        extra = {"bc_batch": batch, "ref_agent": plainly(ref_agent) if eager else ref_agent}
    one = {k: v[0].cpu() for k, v in obs(1).items()}  # as the environment delivers it
    what: Any = EagerAgent(agent) if eager else agent

    def act() -> None:
        with eval_mode(what.agent if eager else what):
            what.act(one, stddev=0.1)

    updates = (partial(what.update, batch, 0.1, actor, **extra) for actor in (False, True))
    return dict(zip(RL_CALLS, (*updates, act), strict=True))


def bc_calls(
    case: str, eager: bool = False, batch_size: int = 0, device: str = "cpu"
) -> dict[str, Callable[[], Any]]:
    """One gradient step of a BC configuration: loss, backward, clip, Adam.

    batch_size: 0 for the configuration's own.
    """
    cfg = bc_config_of(case)
    cfg.batch_size = batch_size or cfg.batch_size
    torch.manual_seed(0)
    sizes, n = sizes_of(case), cfg.batch_size
    prop = (sizes.prop * cfg.dataset.prop_stack,)
    shape = (sizes.state * cfg.dataset.state_stack,) if cfg.dataset.use_state else IMAGE
    cfg.obs_shape, cfg.prop_shape, cfg.action_dim = list(shape), list(prop), sizes.action
    policy: Any = build_policy(cfg).to(device)
    if cfg.dataset.use_state:
        obs = {"state": torch.randn(n, *shape, device=device)}
    else:
        image = torch.randint(0, 256, (n, *IMAGE), dtype=torch.uint8, device=device)
        obs = {cfg.dataset.rl_camera: image, "prop": torch.randn(n, *prop, device=device)}
    action = 2 * torch.rand(n, sizes.action, device=device) - 1
    batch = Namespace(obs=obs, action={"action": action})
    policy = plainly(policy) if eager else policy
    opt = torch.optim.Adam(policy.parameters(), lr=cfg.lr, fused=None if eager else True)

    def step() -> None:
        opt.zero_grad(set_to_none=True)
        policy.loss(batch).backward()
        nn.utils.clip_grad_norm_(policy.parameters(), cfg.grad_clip)
        opt.step()

    return {"step": step}


def calls_of(case: str, eager: bool = False) -> dict[str, Callable[[], Any]]:
    """The calls to measure of a case; ``eager``: computed as in the original program."""
    return (agent_calls if case in rl_cases() else bc_calls)(case, eager)


def bench(report: common.Report, case: str, timing: dict[str, Any]) -> None:
    """Measure every call of a case, with figures from other machines if there are any."""
    references = dict(zip(RL_CALLS, REFERENCE.get(case, ()), strict=False))
    references |= {"step": BC_REFERENCE[case]} if case in BC_REFERENCE else {}
    jax = dict(zip(RL_CALLS, JAX_REFERENCE.get(case, ()), strict=False))
    for name, call in calls_of(case).items():
        t = common.measure(call, **timing)
        report.add_timing(f"{case}: {name}", t, references.get(name))
        if name in jax:
            report.add(f"{case}: {name}, RLPD in JAX", "cpu_time", t.cpu_ms, "ms", jax[name])


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument(
        "--case", action="append", help="only these (shell pattern, may be repeated)"
    )
    parser.add_argument(
        "--repeat", type=numeric(Positive), help="repeats to take the median of (default 5)"
    )
    parser.add_argument(
        "--compare", metavar="A,B,...", type=_variants,
        help=f"alternate these and print ratios to the first: {', '.join(compare.VARIANTS)}",
    )  # fmt: skip
    args = parser.parse_args(argv)
    cases = rl_cases() + bc_cases()
    if args.case:
        cases = [c for c in cases if any(fnmatch.fnmatch(c, f"*{p}*") for p in args.case)]
        if not cases:
            parser.error(f"--case: none of {rl_cases() + bc_cases()} matches {args.case}")
    report = common.start(args)
    if args.compare:
        return _compare(args, cases, argv)
    timing = common.timing_options(args)
    if args.repeat is not None:
        timing["repeats"] = args.repeat
    isa = kernels.isa() if kernels is not None else "not built"
    print(f"fused kernels: {isa}; batch 256 unless configured; matrix products:")
    print("\n".join(f"  {line}" for line in measure.report()))
    for case in cases:
        bench(report, case, timing)
        report.write(args.json)  # after each case, so that an interrupted run keeps its results


def _variants(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [n for n in names if n not in compare.VARIANTS]:
        known = ", ".join(compare.VARIANTS)
        raise argparse.ArgumentTypeError(f"'{unknown[0]}', expected some of {known}")
    return names


def _calls(case: str, variant: compare.Variant) -> dict[str, Callable[[], Any]]:
    return calls_of(case, variant.eager)


def _compare(args: argparse.Namespace, cases: list[str], argv: list[str] | None) -> None:
    turns = args.repeat or (1 if args.quick else 5)
    command = shlex.join(["python", "-m", "benchmarks.update", *(argv or sys.argv[1:])])
    variants = {name: compare.VARIANTS[name] for name in args.compare}
    rows: list[compare.Compared] = []
    for case in cases:
        found = compare.compare(case, variants, _calls, turns, args.threads, counted=True)
        compare.show(found)
        rows += found
        compare.write(args.json, rows, args.threads, command)


if __name__ == "__main__":
    sys.exit(run_program(main))

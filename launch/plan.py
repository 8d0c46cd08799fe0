"""What a run needs and how fast it will be, on machines that need not be there.

    python -m launch.plan --config_path release/cfgs/robomimic_rl/lift_state_ibrl.yaml \
        --bc_config release/cfgs/robomimic_bc/lift_state.yaml --cores 16 --num_env 1,4,16

The parts of the run are measured on this machine, in about half a minute (pixels: two), while it
should do nothing else; or they are those of a file, ``--costs``. From them follow environment steps
per second, what holds the run up, memory and network traffic for every number of environments, and
what it would take where one learner is not enough. docs/scaling.md says how well that agrees with
measurements. Evaluations are not included.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated, Any

from common_utils import run_config
from common_utils.atomic import atomic_json
from common_utils.errors import ConfigError, run_program
from common_utils.next_commands import started_as
from common_utils.options import Options, numeric
from common_utils.ranges import Above, AtMost, Between
from common_utils.resources import format_bytes
from common_utils.run_config import to_dict
from launch import costs as recorded
from launch import measure
from launch.costs import Costs
from launch.forecast import Forecast, Plan, Shards, checkpoint_seconds, forecast, shards
from launch.programs import PROGRAMS, program_of
from launch.rounds import Setting
from launch.sweep_file import pairs
from workspace.rl_config import MainConfig as RlConfig

CORES = Annotated[int, Between(1, 4096)]
NODES = Annotated[int, Between(1, 10_000)]
ENVIRONMENTS = Annotated[int, Between(1, 100_000)]
RANKS = Annotated[int, Between(1, 1024)]
SPEEDUP = Annotated[float, Above(0), AtMost(10_000)]
GPUS = Annotated[int, Between(0, 1024)]


def _numbers(text: str) -> list[int]:
    return [numeric(ENVIRONMENTS)(word) for word in text.split(",")]


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = Options(prog="python -m launch.plan", description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("--config_path", default="", help="configuration of an RL run to measure")
    p.add_argument(
        "--program",
        choices=["", *(name for name, row in PROGRAMS.items() if row.kind == "rl")],
        default="",
        help="default: train_rl",
    )
    p.add_argument(
        "--bc_config",
        default="",
        help="configuration of its BC policy if that is not trained yet: it is measured untrained",
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the run, such as batch_size=128",
    )
    p.add_argument("--costs", default="", help="measured costs to read instead of measuring")
    p.add_argument("--save_costs", default="", help="where to write what was measured")
    p.add_argument(
        "--num_env", type=_numbers, default=None, help="environments, such as 1,4,16 (the run's)"
    )
    p.add_argument("--cores", type=numeric(CORES), default=None, help="of a machine (this one's)")
    p.add_argument("--nodes", type=numeric(NODES), default=1, help="machines (%(default)s)")
    p.add_argument("--gpus", type=numeric(GPUS), default=0, help="of a machine (%(default)s)")
    p.add_argument(
        "--gpu_speedup",
        type=numeric(SPEEDUP),
        default=None,
        help="how many times as fast a GPU is as what was measured; nothing is assumed",
    )
    p.add_argument(
        "--ranks", type=numeric(RANKS), default=1, help="processes of the learner (%(default)s)"
    )
    p.add_argument("--json", default="", metavar="FILE", help="write costs and forecasts to FILE")
    return p


def costs_of(args: argparse.Namespace) -> Costs:
    """The costs that the options name or that are measured now; raises ConfigError."""
    if args.costs:
        measuring = ("config_path", "program", "bc_config", "set", "save_costs")
        if others := [name for name in measuring if vars(args)[name]]:
            raise ConfigError(f"--{others[0]}: given with --costs, expected one of the two")
        return recorded.read(args.costs)
    if not args.config_path:
        raise ConfigError("--config_path: empty, expected a configuration, or --costs FILE")
    options = [f"--{name}={value}" for name, value in pairs(args.set, "--set")]
    given = [f"--config_path={args.config_path}", *options]
    name = args.program or program_of(args.config_path, "--config_path")
    if PROGRAMS[name].kind != "rl":
        raise ConfigError(
            f"--config_path: '{args.config_path}' is of a BC run, expected one of an RL run; what "
            "a BC run costs is printed by train_bc.py --dry_run 1"
        )
    cfg: RlConfig = run_config.parse_args(PROGRAMS[name].config_class, given)
    found = measure.measure(
        cfg, args.bc_config, say=lambda line: print(f"measuring: {line}", flush=True)
    )
    bc = ["--bc_config", args.bc_config] if args.bc_config else []
    found.config = shlex.join([args.config_path, *options, *bc])
    if args.save_costs:
        recorded.write(found, args.save_costs, command())
    return found


def plans_of(args: argparse.Namespace, costs: Costs) -> list[Plan]:
    """One per number of environments; raises ConfigError."""
    cores = args.cores or len(os.sched_getaffinity(0))
    if args.gpu_speedup is not None and not args.gpus:
        raise ConfigError("--gpu_speedup: given without GPUs, expected --gpus of at least 1")
    if args.ranks > 1 and not costs.exchange_s:
        raise ConfigError(
            f"--ranks: {args.ranks}, expected 1: exchanging gradients could not be measured"
        )
    most = args.gpus if args.gpu_speedup is not None else cores
    if args.ranks > most:
        raise ConfigError(
            f"--ranks: {args.ranks}, expected at most {most}: a rank has a "
            f"{'GPU' if args.gpu_speedup is not None else 'core'} of the first machine for itself"
        )
    return [
        Plan(Setting(num, cores, args.nodes), args.ranks, args.gpu_speedup)
        for num in args.num_env or [costs.num_env]
    ]


# ------------------------------------------------------------------------- in words


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def describe(costs: Costs) -> list[str]:
    """The measured costs, in lines."""
    act = ", ".join(f"{n}: {_ms(s)}" for n, s in zip(costs.act_numbers, costs.act_s, strict=True))
    starts = costs.reset_s / costs.episode_length
    return [
        f"measured: {costs.config}",
        f"  on {costs.cores} x {costs.cpu}, agent on {costs.device}, torch {costs.torch}",
        f"  environment: step {_ms(costs.step_s)}, pictures {_ms(costs.render_s)}, start of an "
        f"episode {_ms(costs.reset_s)} ({_ms(starts)} per step)",
        f"  acting for so many: {act}",
        f"  observing, BC included {_ms(costs.observe_s)}, storing {_ms(costs.add_s)}",
        f"  update of {costs.batch_size}: critic {_ms(costs.critic_s)}, with actor "
        f"{_ms(costs.update_s)} (half of them: {_ms(costs.half_update_s)}), drawing a batch "
        f"{_ms(costs.sample_s)}; {costs.updates_of_a_step():g} per step",
        f"  another process: asking {_ms(costs.send_s)}, receiving {_ms(costs.receive_s)}, "
        f"waking up and copies {_ms(costs.answer_s)}; all cores busy: {costs.crowded:.2f} x longer",
        f"  per transition {format_bytes(costs.observation_bytes + costs.action_bytes)} travel",
        f"  saved state {format_bytes(costs.checkpoint_bytes)} in {_ms(costs.checkpoint_s)}; with "
        f"a full replay of {format_bytes(costs.replay_bytes)} about "
        f"{checkpoint_seconds(costs):.1f} s, every {costs.log_per_step:,} steps",
    ]


def table(found: Sequence[Forecast]) -> list[str]:
    """A line per forecast, under a line of titles."""
    first = found[0]
    machines = f"{first.nodes} machine(s) with {first.cores} core(s), {first.ranks} rank(s)"
    lines = [
        f"forecast for {machines}, without evaluations:",
        f"{'envs':>7} {'steps/s':>9} {'updates/s':>9} {'with states':>11} {'learner':>8} "
        f"{'cores':>6} {'memory':>10} {'traffic':>12}  held up by",
    ]
    for f in found:
        memory = format_bytes(sum(f.memory.values()))
        traffic = f"{format_bytes(f.to_learner + f.from_learner)}/s"
        busy = f"{100 * f.learner_busy:.0f} %", f"{100 * f.cores_busy:.0f} %"
        lines.append(
            f"{f.num_env:>7,} {f.steps_per_second:>9.4g} {f.updates_per_second:>9.4g} "
            f"{f.with_checkpoints:>11.4g} {busy[0]:>8} {busy[1]:>6} {memory:>10} {traffic:>12}  "
            f"{f.bottleneck}"
        )
    return lines


def details(found: Forecast) -> list[str]:
    """The learner's time, memory and traffic of a forecast, in lines."""
    parts = sorted(found.parts.items(), key=lambda item: -item[1])
    memory = ", ".join(f"{name} {format_bytes(n)}" for name, n in found.memory.items())
    lines = [
        f"with {found.num_env:,} environment(s):",
        f"  the learner per step: {', '.join(f'{name} {_ms(s)}' for name, s in parts)}; it could "
        f"take {found.learner_limit:.4g} steps/s",
        f"  memory of the learner's machine: {memory}",
    ]
    if found.nodes > 1:
        lines.append(f"  memory of each other machine: {format_bytes(found.memory_elsewhere)}")
        lines.append(
            f"  between machines: {format_bytes(found.between_machines)}/s "
            f"({8e-9 * found.between_machines:.3g} Gbit/s)"
        )
    if found.ranks > 1:
        lines.append(f"  between the ranks: {format_bytes(found.between_ranks)}/s of each")
    return lines


def more(found: Shards, costs: Costs) -> list[str]:
    """What it would take past one learner, in lines."""
    lines = [
        f"  the environments could play {found.played:.4g} steps/s. To use all of them:",
        f"    {found.collectors:,} collector(s), which act and store, each with a shard of the "
        "replay",
        f"    a learner of {found.ranks:,} rank(s), with batches of {costs.batch_size:,} from all "
        f"shards ({format_bytes(found.batches)}/s)",
        f"    weights to the collectors: {format_bytes(found.weights)}/s if sent after each update",
    ]
    if found.update_freq > costs.update_freq:
        lines.append(
            f"    update_freq {found.update_freq:,} instead of {costs.update_freq:,}: more ranks "
            "hardly make an update of this batch faster"
        )
    return lines


def report(costs: Costs, args: argparse.Namespace) -> dict[str, Any]:
    """Print the forecasts; returns them for JSON."""
    every = plans_of(args, costs)
    found = [forecast(costs, plan) for plan in every]
    beyond = [shards(costs, plan) for plan in every]
    lines = [*describe(costs), "", *table(found)]
    largest = max(range(len(found)), key=lambda i: found[i].num_env)
    lines += ["", *details(found[largest])]
    if (larger := beyond[largest]) is not None:
        lines += more(larger, costs)
    lines += notes(args, costs)
    print("\n".join(lines).rstrip())
    return {
        "command": command(),
        "costs": to_dict(costs),
        "forecasts": [
            {**one.plain(), "shards": None if past is None else past.plain()}
            for one, past in zip(found, beyond, strict=True)
        ],
    }


def notes(args: argparse.Namespace, costs: Costs) -> list[str]:
    """What was not measured and is not assumed."""
    lines = []
    if args.gpus and args.gpu_speedup is None and costs.device == "cpu":
        lines.append(
            "note: GPU times are unknown: nothing was measured on one. The forecast computes on "
            "CPUs; state a factor with --gpu_speedup, or measure on a machine with a GPU"
        )
    if args.gpu_speedup is not None:
        lines.append(f"note: GPUs {args.gpu_speedup:g} x as fast is what you state, not measured")
    if args.nodes > 1:
        lines.append(
            "note: messages between machines count as between processes of one; what Ray and the "
            "network add to each of them (python -m benchmarks.envs --part ray) comes on top"
        )
    return lines


def command() -> str:
    """This call."""
    return shlex.join([*started_as(), *sys.argv[1:]])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    args = parser().parse_args(argv)
    costs = costs_of(args)
    found = report(costs, args)
    if args.json:
        atomic_json(found, args.json)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

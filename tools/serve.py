"""Serve a trained policy to robots and other programs: ``ibrl serve``.

    python -m tools.serve --weight exps/bc/run1/model0.pt --port 8000
    python -m tools.serve --weight exps/rl/run1/model0.pt --map observation/state=state

Clients are openpi's (``openpi_client.websocket_client_policy.WebsocketClientPolicy``), and anything
that speaks its protocol (docs/deploy.md). Ctrl-C ends the server.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from common_utils.errors import UserError, run_program
from common_utils.link import TOKEN_VARIABLE, check_token, renamed
from common_utils.options import Options, numeric
from common_utils.ranges import Between, Positive, Seed
from common_utils.specs import EnvSpec
from common_utils.version import __version__
from env.named_modules import add_trust_option
from evaluate.eval import LOADERS, kind_of
from networks import fast
from serve.server import PolicyServer, ServerOptions
from serve.session import MAX_BATCH, RESET, Inputs

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _parser() -> argparse.ArgumentParser:
    parser = Options(prog="python -m tools.serve", description="Serve a trained policy.")
    parser.add_argument(
        "--weight", required=True, help="weight file (.pt); its cfg.yaml must be next to it"
    )
    parser.add_argument(
        "--mode", choices=sorted(LOADERS), help="what was trained; default: read from its cfg.yaml"
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: reachable by other machines")
    parser.add_argument(
        "--port", type=numeric(Annotated[int, Between(0, 65535)]), default=8000,
        help="0: any free port",
    )  # fmt: skip
    parser.add_argument(
        "--token", default="", help=f"clients must send it; default: the variable {TOKEN_VARIABLE}"
    )
    parser.add_argument(
        "--map", nargs="+", default=[], metavar="THEIRS=OURS",
        help="clients' names of observations, where they differ from this program's",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=numeric(Seed), default=1, help="of the policies that draw random numbers"
    )
    parser.add_argument(
        "--max_clients", type=numeric(Annotated[int, Between(1, 1024)]), default=32,
        help="connections at the same time",
    )  # fmt: skip
    parser.add_argument(
        "--max_mb", type=numeric(Annotated[int, Between(1, 1024)]), default=16,
        help="megabytes of one request",
    )  # fmt: skip
    parser.add_argument(
        "--report_every", type=numeric(Positive), default=1000,
        help="requests between lines with the percentiles of latency",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_trust_option(parser)
    return parser


def names_of(pairs: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """Our keys -> the clients' names, from ``THEIRS=OURS``; UserError for what is no pair."""
    names = renamed(pairs, keys, "--map")
    if RESET in names.values():
        raise UserError(f"--map: found '{RESET}', which begins an episode, expected another name")
    return names


def keys_of(player: Any) -> list[str]:
    """The observations that a BC policy reads, or an agent with its BC policies."""
    policies = [*getattr(player, "bc_policies", []), player]
    specs = [k for p in policies if hasattr(p, "input_specs") for k in p.input_specs()]
    return list(dict.fromkeys([*getattr(player, "input_keys", []), *specs]))


def greeting_of(
    weight: Path, kind: str, spec: EnvSpec, params: Mapping[str, Any], control_hz: float
) -> dict[str, Any]:
    """What clients learn besides the observations; ``params``: of the EnvConfig."""
    return {
        "server": f"ibrl {__version__}",
        "kind": kind,
        "weights": hashlib.sha256(weight.read_bytes()).hexdigest(),
        "suite": spec.suite,
        "task": spec.task,
        "action_repeat": params["action_repeat"],
        "stack_pad": params["stack_pad"],
        "control_hz": float(control_hz),
        "action_dim": spec.action_dim,
        "action_horizon": 1,
        "max_batch": MAX_BATCH,
    }


def build(args: argparse.Namespace) -> PolicyServer:
    """The server of the command line's options; UserError names what cannot be used."""
    token = args.token or os.environ.get(TOKEN_VARIABLE, "")
    check_token(token, "--token" if args.token else TOKEN_VARIABLE)
    weight = Path(args.weight)
    kind = kind_of(weight, args.mode)
    player, env, params = LOADERS[kind](str(weight), args.device, trust_module=args.trust_module)
    spec, control_hz = env.spec, env.control_hz
    env.close()
    keys = keys_of(player)
    inputs = Inputs(
        specs={key: spec.observations[key] for key in keys},
        pad=params["stack_pad"],
        names=names_of(args.map, keys),
    )
    options = ServerOptions(
        args.host, args.port, token, args.seed, args.max_clients, args.max_mb * 2**20,
        args.report_every,
    )  # fmt: skip
    greeting = greeting_of(weight, kind, spec, params, control_hz)
    return PolicyServer(player, inputs, greeting, options, partial(print, flush=True))


def announce(server: PolicyServer, weight: str) -> None:
    """Say what is served, and where."""
    parts = ", ".join(
        f"{name} {d['dtype']}{d['shape']}" for name, d in server.greeting["observations"].items()
    )
    options = server.options
    server.say(f"{weight} is served at {server.address}: {parts} -> actions [1, A]")
    if options.host not in LOOPBACK and not options.token:
        server.say(f"note: {options.host} is reachable by others, and there is no --token")


async def serve(server: PolicyServer, weight: str) -> None:
    """Serve until Ctrl-C or SIGTERM, then say how it went."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    await server.run(stop, lambda: announce(server, weight))
    server.say(f"ended: {server.summary()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    fast.set_up()
    args = _parser().parse_args(argv)
    asyncio.run(serve(build(args), args.weight))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

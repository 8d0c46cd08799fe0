"""The program: its options, and from the environment to the loop that answers requests."""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

from .button import Buttons, watch_keyboard
from .messages import ServeError, say
from .network import Network
from .player import Player, describe

TOKEN_VARIABLE = "IBRL_TOKEN"
HERE = ("127.0.0.1", "localhost")


class _Options(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ServeError(message[9:] if message.startswith("argument ") else message)


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = _Options(prog="serve_env", description="Offer an environment to a trainer elsewhere.")
    made.add_argument(
        "--env", required=True, metavar="MODULE:FUNCTION",
        help="a function without arguments that returns the environment, a gymnasium.Env",
    )  # fmt: skip
    made.add_argument(
        "--name", default="", help="of the task; the trainer's task_name must be the same"
    )
    made.add_argument("--host", default="127.0.0.1", help="address to listen at")
    made.add_argument("--port", type=_port, default=8765, help="0: any that is free")
    made.add_argument(
        "--button_port", type=_port, help="of the page with the success button; default: port + 1"
    )
    made.add_argument(
        "--episode_length", type=_positive, default=0, help="its own time limit, in steps"
    )
    made.add_argument(
        "--control_hz", type=_positive, default=0, help="control steps per second, for videos"
    )
    made.add_argument(
        "--deterministic", type=int, choices=(0, 1), default=0,
        help="1: the same seed and actions give the same episode, so a lost one can be repeated",
    )  # fmt: skip
    return made


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"found '{text}', expected 0 to 65535")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1e7:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a positive number")
    return value


def load(name: str) -> Any:
    """The environment that ``--env MODULE:FUNCTION`` names."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise ServeError(f"--env: found '{name}', expected MODULE:FUNCTION")
    sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ServeError(f"--env: '{name}': {error}; is its folder in PYTHONPATH?") from error
    made = make()
    if hasattr(made, "action_space"):
        return made
    if not hasattr(made, "state_dict"):
        found = type(made).__name__
        raise ServeError(f"--env: '{name}' returned a {found}, expected a gymnasium.Env")
    from env.network.view import GymView  # an Env of this project, so it is here

    return GymView(made)


def run(argv: Sequence[str] | None = None) -> None:
    """Serve until the program is interrupted. Raises ServeError for what cannot be served."""
    args = parser().parse_args(argv)
    token = os.environ.get(TOKEN_VARIABLE, "")
    if args.host not in HERE and not token:
        raise ServeError(
            f"--host: {args.host} may be reached by others, and whoever reaches it moves the "
            f"robot; expected a token in the environment variable {TOKEN_VARIABLE}"
        )
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGTERM, _interrupt)
    env = load(args.env)
    try:
        _serve(env, args, token)
    except KeyboardInterrupt:
        say("stopped")
    finally:
        env.close()


def _serve(env: Any, args: argparse.Namespace, token: str) -> None:
    described = (args.name, args.episode_length, args.control_hz, bool(args.deterministic))
    player = Player(env, describe(env, *described))
    network = Network(player.greeting, token)
    port = network.start(args.host, args.port)
    beside = args.button_port
    if beside is None:
        beside = port + 1 if args.port else 0
    page = Buttons(player, args.host, beside, token).start()
    say(f"serving {player.greeting['name']} at ws://{args.host}:{port}")
    say(f"success button at http://{args.host}:{page}/{'#TOKEN' if token else ''}")
    if sys.stdin is not None and sys.stdin.isatty():
        say("or type s (success) or f (failure) and Enter here")
        threading.Thread(target=watch_keyboard, args=(player,), daemon=True).start()
    player.play(network.jobs)


def _interrupt(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def program() -> int:
    """Run as a program; returns the exit status."""
    try:
        run()
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0

"""The environment side of a worker process: one environment, driven over a socket.

Started as ``python -m env.worker FD`` and not by multiprocessing, which would import the
parent's main module (and torch with it) again in every worker. Messages, first item the kind:

    -> ("env", maker, env_cfg)          <- ("ready", spec dict) | ("refused", text)  an EnvError,
                                                                   and the worker ends
    -> ("call", method, args, kwargs)   <- ("result", what the environment's method returned,
                                            seconds it took, seconds of them spent drawing)
    -> ("play", seed)                   <- ("obs", obs)
    -> ("act", action)                  <- ("obs", obs) | ("done", score, success, length,
                                                   metrics)
                                        <- ("misuse", text)       an EnvError; the worker lives on
                                        <- ("error", traceback)   and the worker ends

The end of the connection ends the worker, so none outlives its pool.
"""

from __future__ import annotations

import sys
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

from common_utils.lookup import resolve


def make_env(env_cfg: dict[str, Any]) -> Any:
    """The environment of a plain ``asdict(EnvConfig)``."""
    # here, so that a pool on another maker needs no suite at all
    from env import factory

    return factory.make_env(env_cfg)


def _play(conn: Connection, env: Any, seed: int) -> None:
    obs, _ = env.reset(seed=seed)
    score, success, length, done = 0.0, False, 0, False
    while not done:
        conn.send(("obs", obs))
        _, action = conn.recv()
        obs, reward, terminated, truncated, info = env.step(action)
        score += float(reward)
        length += 1
        success = success or bool(info["success"])
        done = terminated or truncated
    conn.send(("done", score, success, length, dict(info.get("metrics", {}))))


def _call(conn: Connection, env: Any, method: str, args: Any, kwargs: Any) -> None:
    from env.core import EnvError

    started, drawn = time.perf_counter(), getattr(env, "render_seconds", 0.0)
    try:
        result = getattr(env, method)(*args, **kwargs)
    except EnvError as error:  # a refused action or seed: the caller's, not ours
        conn.send(("misuse", str(error)))
    else:
        took = time.perf_counter() - started
        conn.send(("result", result, took, getattr(env, "render_seconds", 0.0) - drawn))


def serve(conn: Connection) -> None:
    """Answer until the other side closes the connection."""
    from env.core import EnvError

    env = None
    try:
        while True:
            message = conn.recv()
            if message[0] == "env":
                try:
                    env = resolve(message[1])(message[2])
                except EnvError as error:  # a task or camera that is not there, no OpenGL
                    conn.send(("refused", str(error)))
                    return
                conn.send(("ready", env.spec.to_dict()))
            elif message[0] == "call":
                _call(conn, env, *message[1:])
            else:
                _play(conn, env, message[1])
    except (EOFError, ConnectionResetError, BrokenPipeError):
        pass  # the pool was closed, or its process died
    except Exception:
        try:
            conn.send(("error", traceback.format_exc()))
        except OSError:
            traceback.print_exc()  # nobody is left to hear it
    finally:
        if env is not None:
            env.close()


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))

"""The environment side of a worker process: one environment, driven over a socket.

It is started as ``python -m env.worker FD MEMORY``, not by multiprocessing, which would import the
parent's main module (and torch with it) again in every worker. FD and MEMORY are the descriptors of
an ``env.shared_arrays.SharedConnection``. The first item of a message is its kind:

    -> ("env", maker, env_cfg)          <- ("ready", spec dict, whether it is replayable)
    -> ("call", method, args, kwargs)   <- ("result", what the environment's method returned,
                                            seconds it took, seconds of them spent drawing)
    -> ("play", seed, discount|None)    <- ("obs", obs)
    -> ("act", action)                  <- ("obs", obs) | ("done", score, success, length,
                                                   metrics; with a discount the
                                                   DISCOUNTED_RETURN is one of them)
                                        <- ("misuse", text)       an EnvError; the worker goes on
                                        <- ("refused", text)      another UserError, and
                                                                  the worker ends
                                        <- ("error", traceback)   and the worker ends

A worker ends when its connection ends, so none outlives its pool.
"""

from __future__ import annotations

import sys
import time
import traceback
from typing import Any

from common_utils.errors import UserError
from common_utils.finite import check_observed
from common_utils.lookup import resolve
from common_utils.specs import DISCOUNTED_RETURN
from env.shared_arrays import SharedConnection


def make_env(env_cfg: dict[str, Any]) -> Any:
    """The environment of a plain ``asdict(EnvConfig)``."""
    # imported here, so that a pool with another maker needs no suite at all
    from env import factory

    return factory.make_env(env_cfg)


def _play(conn: SharedConnection, env: Any, seed: int, discount: float | None) -> None:
    task = env.spec.task
    obs, _ = env.reset(seed=seed)
    check_observed(task, seed, 0, obs)
    score, success, length, done = 0.0, False, 0, False
    discounted, factor = 0.0, 1.0
    while not done:
        conn.send(("obs", obs))
        _, action = conn.recv()
        obs, reward, terminated, truncated, info = env.step(action)
        length += 1
        check_observed(task, seed, length, obs, reward)
        score += float(reward)
        if discount is not None:
            discounted += factor * float(reward)
            factor *= discount
        success = success or bool(info["success"])
        done = terminated or truncated
    metrics = dict(info.get("metrics", {}))
    if discount is not None:
        metrics[DISCOUNTED_RETURN] = discounted
    conn.send(("done", score, success, length, metrics))


def _call(conn: SharedConnection, env: Any, method: str, args: Any, kwargs: Any) -> None:
    from env.core import EnvError

    started, drawn = time.perf_counter(), getattr(env, "render_seconds", 0.0)
    try:
        result = getattr(env, method)(*args, **kwargs)
    except EnvError as error:  # a refused action or seed: the caller's, not ours
        conn.send(("misuse", str(error)))
    else:
        took = time.perf_counter() - started
        conn.send(("result", result, took, getattr(env, "render_seconds", 0.0) - drawn))


def serve(conn: SharedConnection) -> None:
    """Answer until the other side closes the connection."""
    env = None
    try:
        while True:
            message = conn.recv()
            if message[0] == "env":
                env = resolve(message[1])(message[2])
                conn.send(("ready", env.spec.to_dict(), getattr(env, "replayable", True)))
            elif message[0] == "call":
                _call(conn, env, *message[1:])
            else:
                _play(conn, env, *message[1:])
    except (EOFError, ConnectionResetError, BrokenPipeError):
        pass  # the pool was closed, or its process died
    except UserError as error:  # a task that is not there, no OpenGL, a reward that is NaN
        _send_last(conn, "refused", str(error))
    except Exception:
        _send_last(conn, "error", traceback.format_exc())
    finally:
        if env is not None:
            env.close()


def _send_last(conn: SharedConnection, kind: str, text: str) -> None:
    try:
        conn.send((kind, text))
    except OSError:
        print(text, file=sys.stderr)  # nobody is left to hear it


if __name__ == "__main__":
    serve(SharedConnection(int(sys.argv[1]), int(sys.argv[2])))

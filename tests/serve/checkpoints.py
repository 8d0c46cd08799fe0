"""Small checkpoints of random policies on the particle task, and servers in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import train_bc
from common_utils import run_config
from serve.server import PolicyServer
from tools import serve

TASK = "PARTICLE_2d"
STATE = 8  # of PARTICLE_2d
LENGTH = 20


def bc_checkpoint(folder: Path, stack: int = 1, kind: str = "auto", **more: Any) -> Path:
    """A run folder with a random policy on states; returns its weight file."""
    values = {
        "policy_type": kind, "dataset.path": "gone.hdf5", "dataset.use_state": 1,
        "dataset.state_stack": stack, "obs_shape": f"[{stack * STATE}]", "action_dim": 2,
        "env.suite": "particle", "env.task": TASK, "env.use_state": 1, "env.state_stack": stack,
        "env.episode_length": LENGTH, "save_dir": folder, "device": "cpu", **more,
    }  # fmt: skip
    args = [f"--{key}={value}" for key, value in values.items()]
    cfg = run_config.parse_args(train_bc.MainConfig, args)
    run_config.dump(cfg, folder / "cfg.yaml")
    torch.manual_seed(1)
    torch.save(train_bc.build_policy(cfg).state_dict(), folder / "model0.pt")
    return folder / "model0.pt"


@contextmanager
def running(server: PolicyServer) -> Iterator[PolicyServer]:
    """``server`` in a thread of its own."""
    ready, failed, ends = threading.Event(), [], []

    async def serve_here() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(stop.set))
        await server.run(stop, ready.set)

    def work() -> None:
        try:
            asyncio.run(serve_here())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait(30)
    try:
        if not failed:
            yield server
    finally:
        if not failed:
            ends[0]()
        thread.join(30)
    if failed:
        raise failed[0]


@contextmanager
def serving(weight: Path, *args: str) -> Iterator[PolicyServer]:
    """The program's server of a weight file, at a free port; prints into ``server.said``."""
    options = ["--weight", str(weight), "--port", "0", "--device", "cpu", *args]
    server: Any = serve.build(serve._parser().parse_args(options))
    server.said = []
    server.say = server.said.append
    with running(server):
        yield server


def port_of(server: PolicyServer) -> int:
    return int(server.address.rpartition(":")[2])

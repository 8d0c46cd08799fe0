"""The parts of ``benchmarks.device``: each yields (name, results) as it goes.

A case that fails gives {"error": ...} and the next one is measured; cases for which no time is
left give {"left_out": ...}.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch

from benchmarks import ibc, update
from benchmarks.replay import ACTION_DIM, MAX_LEN, PIXEL, STATE, make_buffer, random_episode
from common_utils import run_config
from common_utils.ahead import Ahead
from common_utils.records import read_metrics
from common_utils.saver import save_weights
from common_utils.specs import BC_ACTION, ArraySpec, Batch, Obs
from networks import fast, graphs
from networks.graphs import COMPILE
from networks.precision import Precision
from rl.q_agent import QAgent
from rl.replay import ReplayBuffer
from train_bc import MainConfig as BcConfig
from workspace.build_policy import build_policy

ROOT = Path(__file__).resolve().parents[1]
CFGS = ROOT / "release" / "cfgs"
# measured in this order, the rest after them
FIRST = (
    "robomimic_rl/can_ibrl", "robomimic_rl/can_state_ibrl", "small_state", "metaworld/ibrl_basic",
)  # fmt: skip
# compiling takes longest
TESTS = ("test_agents.py", "test_batches.py", "test_implicit.py", "test_runs.py", "test_graphs.py")
Results = Iterator[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Task:
    """Where a part runs, and until when (``time.monotonic``)."""

    device: str
    quick: bool
    end: float

    @property
    def cuda(self) -> bool:
        return self.device.startswith("cuda")

    def left(self) -> float:
        """Seconds until the part is stopped."""
        return self.end - time.monotonic()


class Part(NamedTuple):
    """A part and its time limit, if all parts have eight minutes together."""

    seconds: int
    run: Callable[[Task], Results]


def wait(task: Task) -> None:
    """Until the device has done all its work."""
    if task.cuda:
        torch.cuda.synchronize(task.device)


def timed(call: Callable[[], Any], task: Task) -> dict[str, float]:
    """Wall milliseconds of a call: the median, least and most of several turns."""
    turns, least = (2, 0.0) if task.quick else (5, 0.08)
    for _ in range(1 if task.quick else 3):  # also compiles and captures
        call()
    wait(task)
    times, calls = [], 1
    for turn in range(turns + 1):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        wait(task)
        spent = time.perf_counter() - began
        if turn == 0:  # finds how many calls a turn needs
            calls = max(1, min(1000, int(least * calls / max(spent, 1e-9))))
        else:
            times.append(1e3 * spent / calls)
    return {
        "ms": statistics.median(times), "ms_least": min(times), "ms_most": max(times),
        "turns": turns, "calls": calls,
    }  # fmt: skip


def measured(task: Task, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``measure`` returns, with the peak memory on the device; or its error."""
    if task.left() < 0:
        return {"left_out": "no time is left"}
    if task.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(task.device)
    try:
        found = measure()
    except Exception as error:  # whatever it is, the next case is measured
        traceback.print_exc()
        text = str(error).strip().splitlines()
        return {"error": f"{type(error).__name__}: {text[0] if text else ''}"}
    if task.cuda:
        found["peak_bytes"] = torch.cuda.max_memory_allocated(task.device)
    return found


# ---------------------------------------------------------------------------------- tests


def tests(task: Task) -> Results:
    """The tests marked gpu, file by file; without a GPU they are skipped."""
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(TESTS):
            results = Path(folder) / f"{number}.xml"
            yield file, measured(task, partial(_tests, task, file, results))


def _tests(task: Task, file: str, results: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"tests/gpu/{file}"]
    done = subprocess.run([*command, f"--junitxml={results}"], cwd=ROOT, check=False)
    return _counts(results, done.returncode)


def _counts(file: Path, status: int) -> dict[str, Any]:
    if not file.exists():
        return {"error": f"pytest: exit status {status}, no results"}
    suites = list(ET.parse(file).getroot().iter("testsuite"))
    counts = {k: sum(int(s.get(k, 0)) for s in suites) for k in ("failures", "errors", "skipped")}
    total = sum(int(s.get("tests", 0)) for s in suites)
    failed = [
        f"{c.get('classname')}::{c.get('name')}"
        for c in ET.parse(file).getroot().iter("testcase")
        if c.find("failure") is not None or c.find("error") is not None
    ]
    found = {"tests": total, **counts, "failed": failed}
    return found | ({"error": f"{len(failed)} tests failed"} if status else {})


# --------------------------------------------------------------------------------- update


def ordered_cases() -> list[str]:
    """Every release configuration of RL, the most telling first."""
    return [*FIRST, *(c for c in update.rl_cases() if c not in FIRST)]


def updates(task: Task) -> Results:
    """Critic update, critic and actor update, and act of every release configuration, as is."""
    for case in FIRST[-2:-1] if task.quick else ordered_cases():
        yield case, measured(task, partial(_update, task, case))


def compiled(task: Task) -> Results:
    """The same compiled in every way (``q_agent.compile``), and how much faster that is.

    On a GPU ``max`` also captures. The first cases again in the lower precisions, at last.
    """
    if task.quick:
        graphs.BACKEND = "aot_eager"  # makes graphs, but no code for them
    ways = [{"compile": how} for how in (COMPILE[:2] if task.quick else COMPILE)]
    for case in FIRST[-2:-1] if task.quick else ordered_cases():
        yield from _compared(task, case, ways)
    for case in () if task.quick else FIRST:
        states = update.config_of(case).use_state  # which have no encoder for bfloat16
        precisions = get_args(Precision)[: 2 if states else 3]
        yield from _compared(task, case, [{"compile": "max", "precision": p} for p in precisions])


def _compared(task: Task, case: str, ways: list[dict[str, str]]) -> Results:
    """Each way, and how much faster it is than the first."""
    plain: dict[str, Any] = {}
    for way in ways:
        found = measured(task, partial(_update, task, case, **way))
        torch.compiler.reset()
        plain = plain or found
        both = {*plain, *found}
        for name in () if {"error", "left_out"} & both else update.RL_CALLS:
            found[name]["times_faster"] = plain[name]["ms"] / found[name]["ms"]
        yield f"{case}, {', '.join(way.values())}", found


def _update(task: Task, case: str, **options: str) -> dict[str, Any]:
    fast.set_up(1)
    rows = 8 if task.quick else 0
    calls = update.agent_calls(case, batch_size=rows, device=task.device, options=options)
    return {name: timed(call, task) for name, call in calls.items()}


# --------------------------------------------------------------------------------- replay


def replays(task: Task) -> Results:
    """Batches on the device: copied by themselves, copied ahead of an update, gathered there."""
    for name, specs in (("state", STATE), ("pixel", PIXEL)):
        for how in ("copied", "resident"):
            what = f"{name}, {how}"
            yield what, measured(task, partial(_replay, task, specs, how))


def _replay(task: Task, specs: Any, how: str) -> dict[str, Any]:
    rows, where = 8 if task.quick else 256, torch.device(task.device)
    buffer = make_buffer(specs, resident=where if how == "resident" else None)
    episode = random_episode(specs, MAX_LEN)
    for _ in range(2 if task.quick else 20):
        buffer.add_episode(*episode)
    found = timed(lambda: buffer.sample(rows, where), task)
    nbytes = rows * 2 * sum(s.nbytes for s in specs.values()) + rows * 4 * (ACTION_DIM + 2)
    return {"sample": found, "bytes": nbytes, "bytes_per_second": 1e3 * nbytes / found["ms"]}


def waits(task: Task) -> Results:
    """How long an update waits for its batch, which is drawn while the last one is computed."""
    for case in ["small_state"] if task.quick else FIRST:
        for how in ("ahead", "not ahead", "resident"):
            yield f"{case}, {how}", measured(task, partial(_waiting, task, case, how))


def _waiting(task: Task, case: str, how: str) -> dict[str, Any]:
    """Milliseconds per update with batches of the replay, and with one batch again and again."""
    fast.set_up(1)
    cfg, where = update.config_of(case), torch.device(task.device)
    rows = 8 if task.quick else cfg.batch_size
    agent, obs = update.make_agent(case, cfg, task.device)
    buffer = update_replay(agent, obs, where if how == "resident" else None)
    ahead = Ahead[Batch](buffer, where if how == "ahead" else torch.device("cpu"))

    def drawn() -> None:
        batch = ahead.take(buffer.sample, rows, where)
        agent.update(batch, 0.1, True)
        ahead.prepare(buffer.sample, rows, where)

    same = buffer.sample(rows, where)
    alone = timed(lambda: agent.update(same, 0.1, True), task)
    together = timed(drawn, task)
    return {"update": alone, "with its batch": together, "wait_ms": together["ms"] - alone["ms"]}


def update_replay(
    agent: QAgent, obs: Callable[[int], Obs], resident: torch.device | None
) -> ReplayBuffer:
    """A replay of random episodes for an agent; stacks are stored as they are delivered."""
    frames = {k: v.cpu().numpy() for k, v in obs(MAX_LEN).items()}
    specs = {k: ArraySpec(v.shape[1:], str(v.dtype)) for k, v in frames.items()}
    buffer = ReplayBuffer(
        specs, agent.action_dim, nstep=3, gamma=0.99, max_episode_length=MAX_LEN, replay_size=20,
        seed=1, num_bc_action=agent.num_bc_action, resident=resident,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (MAX_LEN, agent.action_dim)).astype(np.float32)
    if k := agent.num_bc_action:
        frames[BC_ACTION] = np.repeat(actions[:, None], k, axis=1)
    for _ in range(5):
        buffer.add_episode(frames, actions, np.zeros(MAX_LEN, np.float32))
    return buffer


# -------------------------------------------------------------------------------------- bc

BC_CASES = ("robomimic_bc/can_state", "robomimic_bc/can", update.METAWORLD_BC)
IBC_CASES = (
    "particle/mlp_mse", "particle/mlp_ebm_langevin", "pushing_states/mlp_ebm",
    "pushing_states/mlp_ebm_langevin", "pushing_pixels/pixel_ebm_langevin",
)  # fmt: skip


def bc_steps(task: Task) -> Results:
    """A training step of BC's configurations, and of Implicit BC's, with an action of those."""
    for case in BC_CASES[:1] if task.quick else BC_CASES:
        yield case, measured(task, partial(_bc, task, case))
    for case in IBC_CASES[:1] if task.quick else IBC_CASES:
        yield case, measured(task, partial(_ibc, task, case))


def _bc(task: Task, case: str) -> dict[str, Any]:
    fast.set_up(1)
    rows = 8 if task.quick else 0
    calls = update.bc_calls(case, batch_size=rows, device=task.device)
    return {name: timed(call, task) for name, call in calls.items()}


def _ibc(task: Task, case: str) -> dict[str, Any]:
    fast.set_up(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = 16 if task.quick else 0
        work = ibc.make_workspace(case, "float32", Path(folder), rows, task.device)
        work.log = ibc.Log()  # type: ignore[assignment]
        obs = {k: v[0] for k, v in work.data.batch_at(torch.arange(2).numpy()).obs.items()}
        try:
            step = timed(work._train_step, task)
            work.policy.eval()
            act = timed(lambda: work.policy.act(obs), task)  # type: ignore[operator]
        finally:
            work.close()
    return {"training step": step, "action": act}


# ------------------------------------------------------------------------------------- can


def can(task: Task) -> Results:
    """A short IBRL run of Can from pixels, simulated and rendered, with an untrained BC policy."""
    yield "run", measured(task, partial(_can, task))


def untrained_bc(folder: Path) -> Path:
    """Weights of a BC policy for Can that has learned nothing: time does not depend on them."""
    cfg = run_config.load(BcConfig, CFGS / "robomimic_bc" / "can.yaml")
    sizes = update.ROBOMIMIC
    cfg.obs_shape, cfg.prop_shape = list(update.IMAGE), [sizes.prop * cfg.dataset.prop_stack]
    cfg.action_dim, cfg.rl_image_size = sizes.action, update.IMAGE[-1]
    cfg.task_name, cfg.env.suite, cfg.env.task = "PickPlaceCan", "robosuite", "PickPlaceCan"
    cfg.env.cameras, cfg.env.prop_stack = cfg.dataset.rl_cameras, cfg.dataset.prop_stack
    run_config.dump(cfg, folder / run_config.CFG_NAME)
    save_weights(build_policy(cfg).state_dict(), folder / "model0.pt")
    return folder / "model0.pt"


def _can(task: Task) -> dict[str, Any]:
    steps, batch, length = (4, 8, 4) if task.quick else (400, 256, 100)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            sys.executable, str(ROOT / "train_rl.py"),
            "--config_path", str(CFGS / "robomimic_rl" / "can_ibrl.yaml"), "--save_dir", str(run),
            "--bc_policy", str(untrained_bc(Path(folder))), "--preload_num_data", "0",
            "--num_warm_up_episode", "2", "--episode_length", str(length), "--batch_size",
            str(batch), "--num_train_step", str(steps), "--log_per_step", str(max(1, steps // 4)),
            "--num_eval_episode", "0", "--use_wb", "0", "--q_agent.device", task.device,
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ, timeout=max(1.0, task.left()), check=False,
        )  # fmt: skip
        print(done.stdout)
        if done.returncode:
            raise RuntimeError((done.stdout.strip().splitlines() or ["it printed nothing"])[-1])
        records = read_metrics(run / "metrics.jsonl")
    first, last = records[0], records[-1]  # the first has what happens once
    seconds = last["other/elapsed_time"] - first["other/elapsed_time"]
    return {
        "rendered_by": os.environ.get("MUJOCO_GL", ""),
        "env_steps": last["other/step"],
        "env_steps_per_second": (last["other/step"] - first["other/step"]) / max(seconds, 1e-9),
        **{k: v for k, v in last.items() if k.startswith("time/")},
    }


PARTS = {
    "tests": Part(110, tests),
    "update": Part(80, updates),
    "compiled": Part(120, compiled),
    "replay": Part(15, replays),
    "waits": Part(30, waits),
    "bc": Part(40, bc_steps),
    "can": Part(85, can),
}

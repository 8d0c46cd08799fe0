"""Replay: sample, add, memory, compared with numpy in the same run and the original's figures.

    python -m benchmarks.replay [--json FILE] [--quick]

References are process CPU milliseconds of the original program on its machine (1 thread,
batch 256). The numpy implementation does the same work in the same run on this machine:
steps in preallocated arrays, fancy indexing, conversion to torch. Sampling includes the
conversion to torch tensors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from benchmarks.common import Report, measure, median, run, timing_options
from common_utils.errors import run_program
from common_utils.specs import ArraySpec
from common_utils.stacking import gather_stack
from rl.replay import ReplayBuffer, Window

BATCH, NSTEP, GAMMA, ACTION_DIM, MAX_LEN = 256, 3, 0.99, 7, 200

STATE = {"state": ArraySpec((69,), "float32", 3)}  # 23 numbers, 3 steps stacked
FLAT_STATE = {"state": ArraySpec((69,), "float32", 1)}  # stored as delivered, as the original
PIXEL = {"cam": ArraySpec((3, 96, 96), "uint8"), "prop": ArraySpec((27,), "float32", 3)}

# case: (specs, episode length, transitions, reference ms per sample(256))
CASES = {
    "state, full episodes": (STATE, MAX_LEN, 100_000, 2.2),
    "state, 30 of 200 steps": (STATE, 30, 15_000, 4.9),
    "state unstacked, full episodes": (FLAT_STATE, MAX_LEN, 100_000, 2.2),
    "pixel, full episodes": (PIXEL, MAX_LEN, 30_000, 6.5),
    "pixel, 30 of 200 steps": (PIXEL, 30, 15_000, 11.7),
}
# the original's bytes per transition, pixels: (full, 30 of 200)
MEMORY_REFERENCE = {MAX_LEN: 31_000.0, 30: 206_000.0}


class NumpyReplay:
    """The plain way: steps in preallocated arrays, stacks and n-step sums by fancy indexing."""

    def __init__(self, specs: Mapping[str, ArraySpec], steps: int, seed: int) -> None:
        self.specs = specs
        self.obs = {k: np.zeros((steps, *s.frame_shape), s.dtype) for k, s in specs.items()}
        self.action = np.zeros((steps, ACTION_DIM), np.float32)
        self.reward = np.zeros(steps, np.float32)
        self.first = np.zeros(steps, np.int64)  # first step of each step's episode
        self.last = np.zeros(steps, np.int64)
        self.size = 0
        self.rng = np.random.default_rng(seed)

    def add_episode(
        self, obs: Mapping[str, np.ndarray], action: np.ndarray, reward: np.ndarray
    ) -> None:
        a, b = self.size, self.size + len(reward)
        for k, v in obs.items():
            self.obs[k][a:b] = v
        self.action[a:b], self.reward[a:b] = action, reward
        self.first[a:b], self.last[a:b] = a, b - 1
        self.size = b

    def _stack(self, key: str, i: np.ndarray) -> torch.Tensor:
        stack = self.specs[key].stack
        return torch.from_numpy(gather_stack(self.obs[key], i, self.first[i], stack))

    def sample(self, n: int) -> tuple[dict, dict, torch.Tensor, torch.Tensor, torch.Tensor]:
        i = self.rng.integers(0, self.size, n)
        last = self.last[i]
        ahead = np.minimum(i + NSTEP, last)
        steps = i[:, None] + np.arange(NSTEP)
        inside = steps <= last[:, None]
        weights = np.float32(GAMMA) ** np.arange(NSTEP, dtype=np.float32)
        reward = (self.reward[np.minimum(steps, last[:, None])] * inside * weights).sum(1)
        bootstrap = np.where(i + NSTEP <= last, np.float32(GAMMA**NSTEP), np.float32(0))
        return (
            {k: self._stack(k, i) for k in self.obs},
            {k: self._stack(k, ahead) for k in self.obs},
            torch.from_numpy(self.action[i]),
            torch.from_numpy(reward.astype(np.float32)),
            torch.from_numpy(bootstrap),
        )


WINDOW = 5


def window_cases(report: Report, args: argparse.Namespace) -> None:
    """sample(256) of windows of 5 steps, beside transitions, alternated."""
    options = timing_options(args)
    specs, length, transitions, _ = CASES["state, full episodes"]
    buffer = make_buffer(specs, nstep=1)
    for _ in range(max(1, transitions // length // (20 if args.quick else 1))):
        buffer.add_episode(*random_episode(specs, length))
    whole, one = [], []
    for _ in range(1 if args.quick else 5):
        one.append(measure(partial(buffer.sample, BATCH), **options).cpu_ms)
        whole.append(
            measure(partial(buffer.sample, BATCH, window=Window(WINDOW)), **options).cpu_ms
        )
    case = f"sample(256), state, windows of {WINDOW}"
    report.add(case, "cpu_time", median(whole), "ms")
    report.add(case, "times_as_long_as_transitions", median(whole) / median(one), "x")


def random_episode(
    specs: Mapping[str, ArraySpec], length: int
) -> tuple[dict, np.ndarray, np.ndarray]:
    """Frames, actions, rewards of one episode."""
    rng = np.random.default_rng(0)
    obs = {}
    for k, s in specs.items():
        shape = (length, *s.frame_shape)
        pixels = s.dtype == "uint8"
        obs[k] = (
            rng.integers(0, 256, shape, dtype=np.uint8)
            if pixels
            else rng.standard_normal(shape).astype(np.float32)
        )
    reward = np.zeros(length, np.float32)
    reward[-1] = 1
    return obs, rng.random((length, ACTION_DIM), np.float32), reward


def make_buffer(
    specs: Mapping[str, ArraySpec],
    prefetch: int = 0,
    num_threads: int = 1,
    resident: torch.device | None = None,
    nstep: int = NSTEP,
) -> ReplayBuffer:
    return ReplayBuffer(
        specs,
        ACTION_DIM,
        nstep=nstep,
        gamma=GAMMA,
        max_episode_length=MAX_LEN,
        replay_size=1_000_000,
        seed=1,
        prefetch=prefetch,
        num_threads=num_threads,
        resident=resident,
    )


def sample_cases(report: Report, args: argparse.Namespace) -> None:
    """sample(256) on CPU, also compared with the numpy implementation."""
    options = timing_options(args)
    for case, (specs, length, transitions, reference) in CASES.items():
        episodes = max(1, transitions // length // (20 if args.quick else 1))
        episode = random_episode(specs, length)
        buffer = make_buffer(specs)
        plain = NumpyReplay(specs, episodes * length, 1)
        for _ in range(episodes):
            buffer.add_episode(*episode)
            plain.add_episode(*episode)
        ours = measure(partial(buffer.sample, BATCH), **options)
        numpys = measure(partial(plain.sample, BATCH), **options)
        report.add_timing(f"sample(256), {case}", ours, reference)
        report.add(f"sample(256), {case}", "numpy_cpu_time", numpys.cpu_ms, "ms")
        report.add(
            f"sample(256), {case}", "times_faster_than_numpy", numpys.cpu_ms / ours.cpu_ms, "x"
        )
        raw = buffer.memory_estimate(specs, ACTION_DIM, 1)
        stored = buffer.nbytes / buffer.num_transitions()
        original = MEMORY_REFERENCE[length] if specs is PIXEL else None
        report.add(f"memory, {case}", "per_transition", stored, "B", original)
        report.add(f"memory, {case}", "overhead", stored / raw, "x raw")


def threads_and_prefetch(report: Report, args: argparse.Namespace) -> None:
    """The caller's waiting time when other threads do the gathering (wall time)."""
    options = timing_options(args)
    episode = random_episode(PIXEL, MAX_LEN)
    for name, gathering, prefetch in (("2 gathering threads", 2, 0), ("prefetch 2", 1, 2)):
        buffer = make_buffer(PIXEL, prefetch, gathering)
        for _ in range(5 if args.quick else 50):
            buffer.add_episode(*episode)
        timing = measure(partial(buffer.sample, BATCH), **options)
        report.add_timing(f"sample(256), pixel, {name}", timing, threads=2)


def add_cases(report: Report, args: argparse.Namespace) -> None:
    """The cost of adding one environment step, with episode ends, at full capacity."""
    for case, specs in (("state", STATE), ("pixel", PIXEL)):
        buffer = ReplayBuffer(
            specs,
            ACTION_DIM,
            nstep=NSTEP,
            gamma=GAMMA,
            max_episode_length=MAX_LEN,
            replay_size=5,
            seed=1,
        )
        obs = {k: np.zeros(s.shape, s.dtype) for k, s in specs.items()}
        action = np.zeros(ACTION_DIM, np.float32)

        def one_episode(b: ReplayBuffer = buffer, o: dict = obs, a: np.ndarray = action) -> None:
            b.new_episode(o)
            for t in range(MAX_LEN):
                b.add(o, a, 0.0, t == MAX_LEN - 1, False, False)

        timing = measure(one_episode, **{**timing_options(args), "warmup": 8})
        report.add(f"add, {case}", "cpu_time_per_step", timing.cpu_ms / MAX_LEN * 1e3, "us")


def main(report: Report, args: argparse.Namespace) -> None:
    """All cases."""
    sample_cases(report, args)
    window_cases(report, args)
    threads_and_prefetch(report, args)
    add_cases(report, args)


if __name__ == "__main__":
    sys.exit(run_program(run, main, __doc__))

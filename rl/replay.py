"""The replay buffer of training: the agent's transitions, and the successes for BC.

Steps are stored once and unstacked in the C++ core (``common_utils.rela``); stacks, next
observations, n-step returns and bootstraps are assembled at sampling time
(docs/reference/ibrl.md#replay). Time line of one transition with nstep 3::

    obs[t] --action[t]--> r[t] --> r[t+1] --> r[t+2] --> obs[t+3]
    reward    = r[t] + gamma r[t+1] + gamma^2 r[t+2]
    bootstrap = gamma^3, or 0 where the episode ends first

A window of h steps (``specs.Window``) is the same with h in the place of nstep, and has all
actions: action[t] ... action[t+h-1].
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from common_utils import rela
from common_utils.errors import UserError
from common_utils.specs import BC_ACTION, ONE_STEP, ArraySpec, Batch, Window
from rl.device_store import DeviceStore, Parts, joined
from rl.replay_io import load_folder, save_folder, to_numpy, to_torch, write_hdf5
from rl.successes import Record, SuccessWriter

ObsLike = Mapping[str, "np.ndarray | torch.Tensor"]


class ReplayError(UserError):
    """The replay was used out of order, or does not hold what was requested."""


def _numpy(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


class ReplayBuffer:
    """Stores episodes and delivers uniformly drawn transitions.

    obs_specs: observations as delivered (stacked); keys not named here are ignored.
    replay_size: capacity in episodes; the oldest are dropped.
    num_bc_action: K > 0 stores ``obs["bc_action"]`` float32 [K, D] with every observation.
    bc_action_dim: D; 0: as the actions.
    bootstrap_truncated: False (the paper's released behaviour): a time limit ends an episode
        as success does, bootstrap 0. True: the last observation of a truncated episode is
        kept and its final transitions bootstrap from it with gamma^k, k <= nstep steps ahead.
    bc_max_len: successes longer than this stay out of the BC replay (-1: no limit).
    save_per_success: every k-th success that was played (``add``; demonstrations are already in
        files) writes the last k to ``save_dir/data{n}.h5``, with their records.
    reward_scale: factor on the rewards; saved files hold the unscaled rewards.
    env_args: how the environment was built ({"env_name", "env_kwargs"}), stored in saved files.
    prefetch: batches prepared ahead in a thread; affects only speed.
    storage: "ram", or a folder for a memory-mapped scratch file.
    resident: a device that holds the contents as well, and on which all batches are gathered.

    The same seed and calls give the same batches, for any prefetch, num_threads and resident.
    """

    def __init__(
        self,
        obs_specs: Mapping[str, ArraySpec],
        action_dim: int,
        *,
        nstep: int,
        gamma: float,
        max_episode_length: int,
        replay_size: int,
        seed: int,
        use_bc: bool = False,
        num_bc_action: int = 0,
        bc_action_dim: int = 0,
        bootstrap_truncated: bool = False,
        bc_max_len: int = -1,
        save_per_success: int = -1,
        save_dir: str | None = None,
        reward_scale: float = 1.0,
        env_args: Mapping[str, Any] | None = None,
        prefetch: int = 0,
        num_threads: int = 1,
        storage: str = "ram",
        resident: torch.device | None = None,
    ) -> None:
        if not obs_specs:
            raise ValueError("ReplayBuffer: obs_specs is empty, nothing to store")
        if BC_ACTION in obs_specs:
            raise ValueError(f"ReplayBuffer: '{BC_ACTION}' is stored through num_bc_action")
        if action_dim < 1 or num_bc_action < 0:
            raise ValueError(
                f"ReplayBuffer: action_dim {action_dim} must be >= 1 and "
                f"num_bc_action {num_bc_action} >= 0"
            )
        self.obs_specs = dict(obs_specs)
        self.action_dim = action_dim
        self.num_bc_action = num_bc_action
        self.nstep, self.gamma = nstep, gamma
        self.bootstrap_truncated = bootstrap_truncated
        self.bc_max_len = bc_max_len
        self.reward_scale = reward_scale
        self.env_args = env_args
        self.freeze_bc_replay = False
        self.num_episode = 0
        self.num_success = 0
        self.successes = SuccessWriter(save_per_success, save_dir)

        self._frames = dict(obs_specs)
        if num_bc_action:
            self._frames[BC_ACTION] = ArraySpec(
                (num_bc_action, bc_action_dim or action_dim), "float32"
            )
        self._prefetch = prefetch
        self._stacks = {k: s.stack for k, s in self._frames.items()}
        seeds = np.random.SeedSequence(seed).generate_state(2, np.uint64)
        self._core = self._make_core(replay_size, int(seeds[0]), storage, num_threads)
        self._bc_core = None
        self._joint = None
        if use_bc:
            self._bc_core = self._make_core(replay_size, int(seeds[1]), storage, num_threads)
            self._joint = rela.JointSampler(
                [self._bc_core, self._core], prefetch=prefetch, num_threads=num_threads
            )
        self.resident = resident
        self._stores: dict[rela.SingleStepTransitionReplay, DeviceStore] = {}
        if resident is not None:
            for core in self._cores().values():
                self._stores[core] = DeviceStore(core, self._stacks, nstep, resident)
        self.max_episode_length = max_episode_length
        self._episodes = {0: rela.Episode(nstep, max_episode_length, gamma)}  # by lane
        self._running: set[int] = set()  # lanes whose episode has begun and not ended
        self._in_flight: deque[tuple[Any, Any]] = deque()  # (CUDA event, batch being copied)
        self._pinned: set[tuple[int, int]] = set()

    def _make_core(
        self, capacity: int, seed: int, storage: str, num_threads: int
    ) -> rela.SingleStepTransitionReplay:
        return rela.SingleStepTransitionReplay(
            1,
            self.nstep,
            capacity,
            seed,
            self._prefetch,
            stacks=self._stacks,
            stack_order="newest_first",
            bootstrap_truncated=self.bootstrap_truncated,
            storage=storage,
            num_threads=num_threads,
        )

    # ------------------------------------------------------------------ adding

    def new_episode(self, obs: ObsLike, record: Record | None = None, lane: int = 0) -> None:
        """Begin an episode with its first observation (stacked, unbatched, numpy or torch).

        record: see :meth:`add`.
        lane: which of the episodes that run at the same time. They are stored in the order in
            which they end.
        """
        episode = self._episode(lane)
        if lane in self._running:
            raise ReplayError(f"new_episode: the last one ({episode.len()} steps) has not ended")
        frames = self._newest_frames(obs)
        episode.init({})
        episode.push_obs(frames)
        self.successes.begin(record, lane)
        self._running.add(lane)

    def _episode(self, lane: int) -> rela.Episode:
        if lane not in self._episodes:
            self._episodes[lane] = rela.Episode(self.nstep, self.max_episode_length, self.gamma)
        return self._episodes[lane]

    def is_running(self, lane: int = 0) -> bool:
        """Whether an episode has begun and not ended."""
        return lane in self._running

    def drop_episode(self, lane: int = 0) -> None:
        """Forget the episode that has begun: none of its steps is stored."""
        if lane not in self._running:
            raise ReplayError("drop_episode: no episode is running")
        self._episode(lane).reset()
        self.successes.begin(None, lane)
        self._running.remove(lane)

    def add(
        self,
        obs: ObsLike,
        action: Any,
        reward: float,
        terminated: bool,
        truncated: bool,
        success: bool,
        record: Record | None = None,
        lane: int = 0,
    ) -> None:
        """Add a step: ``action`` was taken at the previous observation and led to ``obs``.

        action: float [A]; reward: finite; success: that of the episode, read when it ends.
        record: further data of ``obs`` for the files of ``save_per_success``.
        lane: that of the episode's ``new_episode``.
        """
        if lane not in self._running:
            raise ReplayError("add: no episode is running, call new_episode first")
        over = bool(terminated or truncated)
        keep_final = self.bootstrap_truncated and truncated and not terminated
        # all checks before the first push, so that a refused step does not change the episode
        frames = self._newest_frames(obs) if keep_final or not over else {}
        action = self._action(action)
        if not math.isfinite(reward):
            raise ValueError(f"add: reward must be finite, got {reward}")
        episode = self._episode(lane)
        episode.push_action({"action": action})
        episode.push_reward(float(reward))
        episode.push_terminal(float(bool(terminated)), bool(truncated))
        self.successes.step(record, lane)
        if not over:
            episode.push_obs(frames)
            return
        if keep_final:
            episode.push_final_obs(frames)
        self._running.remove(lane)
        whole = episode.pop_transition()
        self._finish(whole, bool(success), bc=True)
        if (due := self.successes.end(whole, bool(success), lane)) is not None:
            self._write(*due)

    def add_episode(
        self,
        observations: Mapping[str, np.ndarray],
        actions: np.ndarray,
        rewards: np.ndarray,
        *,
        terminated: bool = True,
        success: bool = True,
        bc: bool = True,
    ) -> None:
        """Add a whole episode, for demonstrations.

        observations: unstacked frames {key: [T, ...]} (``bc_action`` [T, K, A]), with an extra row
        when truncated with ``bootstrap_truncated``; actions [T, A]; rewards [T].
        terminated=False means cut off by a time limit. bc=False keeps it out of the BC replay.
        """
        frames = {}
        for key in self._frames:
            if key not in observations:
                raise ValueError(f"add_episode: observation '{key}' is missing")
            frames[key] = self._checked_frame(key, _numpy(observations[key]), rows=True)
        actions = np.ascontiguousarray(_numpy(actions), np.float32)
        if actions.ndim != 2 or actions.shape[1] != self.action_dim:
            raise ValueError(
                f"add_episode: actions must be [T, {self.action_dim}], got {list(actions.shape)}"
            )
        episode = rela.episode_from_arrays(
            frames,
            {"action": actions},
            np.ascontiguousarray(_numpy(rewards), np.float32),
            terminated=terminated,
            truncated=not terminated,
            final_obs=self.bootstrap_truncated and not terminated,
            nstep=self.nstep,
            gamma=self.gamma,
        )
        self._finish(episode, success, bc)

    def _newest_frames(self, obs: ObsLike) -> dict[str, np.ndarray]:
        frames = {}
        for key in self._frames:
            if key not in obs:
                raise ValueError(f"observation '{key}' is missing, got {sorted(obs)}")
            frames[key] = self._checked_frame(key, _numpy(obs[key]), rows=False)
        return frames

    def _checked_frame(self, key: str, x: np.ndarray, rows: bool) -> np.ndarray:
        spec = self._frames.get(key)
        if spec is None:
            return x
        want, have = (spec.frame_shape, x.shape[1:]) if rows else (spec.shape, x.shape)
        if have != want or x.dtype != spec.dtype:
            lead = "[T, ...] " if rows else ""
            raise ValueError(
                f"observation '{key}' must be {lead}{spec.dtype}{list(want)}, "
                f"got {x.dtype}{list(have)}"
            )
        return x if rows or spec.stack == 1 else x[: spec.frame_shape[0]]

    def _action(self, action: Any) -> np.ndarray:
        a = np.asarray(_numpy(action), np.float32)
        if a.shape != (self.action_dim,):
            raise ValueError(f"action must be float32 [{self.action_dim}], got {list(a.shape)}")
        return a

    def _finish(self, episode: rela.EpisodeData, success: bool, bc: bool) -> None:
        self._core.add(episode)
        self.num_episode += 1
        if not success:
            return
        self.num_success += 1
        fits = self.bc_max_len <= 0 or len(episode) <= self.bc_max_len
        if self._bc_core is not None and bc and fits and not self.freeze_bc_replay:
            self._bc_core.add(episode)

    # ---------------------------------------------------------------- sampling

    def sample(
        self, batch_size: int, device: str | torch.device = "cpu", window: Window = ONE_STEP
    ) -> Batch:
        """``batch_size`` transitions, or windows, which begin anywhere; with replacement."""
        return self._batch([self._core], [batch_size], device, window)

    def sample_bc(
        self, batch_size: int, device: str | torch.device = "cpu", window: Window = ONE_STEP
    ) -> Batch:
        """Like :meth:`sample`, from successful episodes; ReplayError while there are none."""
        return self._batch([self._need_bc()], [batch_size], device, window)

    def sample_rl_bc(
        self,
        rl_batchsize: int,
        bc_batchsize: int,
        device: str | torch.device = "cpu",
        window: Window = ONE_STEP,
    ) -> Batch:
        """One batch of bc_batchsize rows from successes followed by rl_batchsize from all."""
        bc_core = self._need_bc()
        if rl_batchsize == 0:
            return self.sample_bc(bc_batchsize, device, window)
        if bc_batchsize == 0:
            return self.sample(rl_batchsize, device, window)
        return self._batch([bc_core, self._core], [bc_batchsize, rl_batchsize], device, window)

    def _need_bc(self) -> rela.SingleStepTransitionReplay:
        if self._bc_core is None:
            raise ReplayError("this replay was built without use_bc=True: there are no BC samples")
        if self._bc_core.size() == 0:
            raise ReplayError("no successful episode in the BC replay yet")
        return self._bc_core

    def _batch(
        self,
        cores: list[rela.SingleStepTransitionReplay],
        sizes: list[int],
        device: str | torch.device,
        window: Window,
    ) -> Batch:
        where, horizon = torch.device(device), window.horizon
        if self.resident is not None:
            parts = self._gather_resident(cores, sizes, where, horizon)
        else:
            # rows of several replays are drawn by one sampler
            source: Any = self._joint if len(cores) > 1 else cores[0]
            size: Any = sizes if len(cores) > 1 else sizes[0]
            if where.type == "cuda":
                parts = self._copy_to_cuda(source, source.sample(size, None, horizon), where)
            else:
                parts = _parts(source.sample(size, str(device), horizon))
        rewards, valid = (parts[k][k] if horizon > 1 else None for k in ("rewards", "valid"))
        obs, next_obs = parts["obs"], parts["next_obs"]
        return Batch(
            obs=obs,
            next_obs=next_obs,
            action=parts["action"]["action"],
            reward=parts["reward"]["reward"],
            bootstrap=parts["bootstrap"]["bootstrap"],
            bc_action=obs.pop(BC_ACTION, None),
            next_bc_action=next_obs.pop(BC_ACTION, None),
            rewards=rewards,
            valid=valid,
            weight=valid[:, -1] if valid is not None and window.tail == "drop" else None,
        )

    def _gather_resident(
        self,
        cores: list[rela.SingleStepTransitionReplay],
        sizes: list[int],
        where: torch.device,
        horizon: int,
    ) -> Parts:
        assert self.resident is not None  # asked by the caller
        if where.type != self.resident.type:
            raise ReplayError(f"this replay is on {self.resident}: it has no batches on {where}")
        drawn = zip(cores, sizes, strict=True)
        return joined([self._stores[core].sample(n, horizon) for core, n in drawn])

    def _copy_to_cuda(self, source: Any, raw: rela.Batch, device: torch.device) -> Parts:
        """One asynchronous copy of the whole batch; page-locked memory from the second batch on."""
        on_gpu = torch.from_numpy(raw.flat).to(device, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        self._in_flight.append((event, raw))  # the core must not reuse the block before that
        while self._in_flight and self._in_flight[0][0].query():
            self._in_flight.popleft()
        size = (id(source), raw.flat.nbytes)
        if size not in self._pinned:
            self._pinned.add(size)
            for _ in range(self._prefetch + 3):
                source.donate(torch.empty(size[1], dtype=torch.uint8, pin_memory=True).numpy())
        return split_flat(on_gpu, raw.layout)

    def copies_to(self, device: torch.device) -> torch.device:
        """Where batches of an agent on ``device`` are copied: not there if the contents are."""
        return torch.device("cpu") if self.resident is not None else device

    def mark(self) -> list[tuple[int, list[int]]]:
        """What decides the next batches: the versions of the contents, and the generators."""
        return [core.mark() for core in self._cores().values()]

    def rewind(self, mark: list[tuple[int, list[int]]]) -> None:
        """Set the generators as they were at ``mark``; the contents stay."""
        for core, (_, rng) in zip(self._cores().values(), mark, strict=True):
            core.set_rng(rng)

    # ---------------------------------------------------------------- contents

    def size(self, bc: bool = False) -> int:
        """Stored episodes."""
        core = self._bc_core if bc else self._core
        return core.size() if core is not None else 0

    def num_transitions(self, bc: bool = False) -> int:
        """Stored transitions."""
        core = self._bc_core if bc else self._core
        return core.num_transitions if core is not None else 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory (or of the scratch file) in use."""
        return self._core.nbytes + (self._bc_core.nbytes if self._bc_core is not None else 0)

    @staticmethod
    def memory_estimate(
        obs_specs: Mapping[str, ArraySpec],
        action_dim: int,
        transitions: int,
        num_bc_action: int = 0,
        bc_action_dim: int = 0,
    ) -> int:
        """Bytes that the transitions will take in one replay (without the BC replay)."""
        frames = sum(s.nbytes // s.stack for s in obs_specs.values())
        proposed = num_bc_action * (bc_action_dim or action_dim)
        return transitions * (frames + 4 * (action_dim + proposed + 1))

    def save_replay(self, path: str | os.PathLike[str]) -> None:
        """Write all stored episodes as HDF5 demonstrations, raw rewards, observations stacked.

        Further records (``add``) are kept only for the last successes and are not in this file.
        """
        self._write(path, (self._episode_frames(i) for i in range(self.size())))

    def _write(self, path: str | os.PathLike[str], episodes: Any) -> None:
        def plain(e: Mapping[str, Any]) -> dict[str, Any]:
            obs = {k: v for k, v in e["obs"].items() if k != BC_ACTION}
            return {
                "obs": obs,
                "action": e["action"]["action"],
                "reward": e["reward"] / np.float32(self.reward_scale),
                "records": e.get("records", []),
                **({"terminated": e["terminated"]} if "terminated" in e else {}),
            }

        write_hdf5(path, (plain(e) for e in episodes), self._stacks, self.env_args)

    def _episode_frames(self, i: int) -> dict[str, Any]:
        table = self._core.meta()["episodes"]
        steps = int(table[:i, 0].sum())
        rows = steps + int(table[:i, 3].sum())
        length = int(table[i, 0])
        read = self._core.read
        return {
            "obs": {k: read("obs", k, rows, rows + length) for k, _, _ in self._core.obs_fields},
            "action": {"action": read("action", "action", steps, steps + length)},
            "reward": read("reward", "", steps, steps + length),
        }

    # ------------------------------------------------------------------ resume

    def _cores(self) -> dict[str, rela.SingleStepTransitionReplay]:
        cores = {"replay": self._core}
        if self._bc_core is not None:
            cores["bc_replay"] = self._bc_core
        return cores

    def _rest(self) -> dict[str, Any]:
        return {
            "episodes": {k: to_torch(self._episode(k).state_dict()) for k in sorted(self._running)},
            "num_episode": self.num_episode,
            "num_success": self.num_success,
            "freeze_bc_replay": bool(self.freeze_bc_replay),
            "successes": self.successes.state_dict(),
        }

    def _load_rest(self, rest: Mapping[str, Any]) -> None:
        if "episodes" in rest:
            episodes = rest["episodes"]
        else:  # states of versions with one lane
            episodes = {} if rest["episode"] is None else {0: rest["episode"]}
        for episode in self._episodes.values():
            episode.reset()
        self._running = set(episodes)
        for lane, state in episodes.items():
            self._episode(lane).load_state_dict(to_numpy(state))
        self.num_episode = int(rest["num_episode"])
        self.num_success = int(rest["num_success"])
        self.freeze_bc_replay = bool(rest["freeze_bc_replay"])
        if "successes" in rest:  # newer than the first states
            self.successes.load_state_dict(rest["successes"], self.nstep, self.gamma)

    def state_dict(self) -> dict[str, Any]:
        """The whole state, with the unfinished episode; tensors, numbers and strings only.

        Copies the contents: for replays of several GB use ``save`` and ``load``.
        """
        replays = {name: to_torch(core.state_dict()) for name, core in self._cores().items()}
        return {**replays, **self._rest()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where ``state_dict`` was taken: same contents, same next batches."""
        for name, core in self._cores().items():
            if name not in state:
                raise ValueError(f"ReplayBuffer.load_state_dict: '{name}' is missing")
            core.load_state_dict(to_numpy(state[name]))
        self._load_rest(state)
        self._forget_copies()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``state_dict`` as files to an empty or new folder, without a copy in memory."""
        save_folder(path, self._cores(), self._rest())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Inverse of :meth:`save`."""
        self._load_rest(load_folder(path, self._cores()))
        self._forget_copies()

    def _forget_copies(self) -> None:
        for store in self._stores.values():
            store.forget()


def _parts(batch: rela.Batch) -> Parts:
    return {
        "obs": batch.obs,
        "next_obs": batch.next_obs,
        "action": batch.action,
        "reward": {"reward": batch.reward},
        "bootstrap": {"bootstrap": batch.bootstrap},
        "rewards": {"rewards": batch.rewards},
        "valid": {"valid": batch.valid},
    }


def split_flat(
    flat: torch.Tensor, layout: Sequence[tuple[str, str, str, tuple[int, ...], int]]
) -> Parts:
    """The arrays {group: {key: tensor}} inside one uint8 tensor, as views."""
    out: Parts = {}
    for group, key, dtype, shape, offset in layout:
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        part = flat[offset : offset + nbytes].view(getattr(torch, dtype)).view(shape)
        out.setdefault(group, {})[key] = part
    return out

"""Prepares an RL run's first step: memory, replay, demonstrations, pretraining, warm-up.

Each function takes the objects it works on, or the :class:`Run` itself if it plays or saves.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from bc.dataset import Demo
from bc.demos import DatasetError
from common_utils.ahead import Ahead
from common_utils.atomic import make_folder
from common_utils.finite import NonFiniteError
from common_utils.ibrl_utils import eval_mode
from common_utils.kept_weights import KeptWeights
from common_utils.logger import RunLogger
from common_utils.progress import RunProgress
from common_utils.resources import Need, check_fits, check_room
from common_utils.run_config import ConfigError
from common_utils.saver import TopkSaver
from common_utils.seeding import seed_for
from common_utils.specs import BC_ACTION, CLOCK, Batch, EnvSpec, Obs
from common_utils.stacking import stack_episode
from common_utils.stopwatch import Stopwatch
from env.config import EnvConfig
from evaluate.protocol import Games
from evaluate.protocol import Protocol as EvalProtocol
from evaluate.rollout import EvalResult
from rl.agent import Agent
from rl.device_store import ROOM
from rl.replay import ReplayBuffer
from workspace.build_agent import load_pretrained
from workspace.collector import Choose, Playing, acting, batched
from workspace.disk_needs import disk_needs
from workspace.preload import read_preload
from workspace.rl_config import MainConfig
from workspace.shared_updates import SharedUpdates

KEPT_WEIGHTS = 1  # of the best
ON_GPU = "cuda"  # of replay_storage


class Run(Protocol):
    """The part of ``train_rl.Workspace`` that is used here."""

    cfg: MainConfig
    spec: EnvSpec
    env_cfg: EnvConfig
    protocol: EvalProtocol
    bc_weights: KeptWeights
    agent: Agent
    updates: SharedUpdates
    ref_agent: Agent | None
    replay: ReplayBuffer
    play: Playing
    log: RunLogger
    watch: Stopwatch
    saver: TopkSaver
    warm_up_rng: np.random.Generator
    loaded: bool
    pretrain_step: int
    prepared: bool
    reported: bool

    def evaluate(self, games: Games) -> EvalResult:
        """Play these games."""

    def step_env(self, choose: Choose) -> bool:
        """Play and store one step; returns whether its episode ended."""

    def stop_if_asked(self) -> None:
        """Save and exit after a signal."""

    def report(self, evaluate_and_log: Callable[[], None], last: bool) -> None:
        """Save, then evaluate."""

    def save_state(self) -> None:
        """Save a state that the run can resume from."""


class WarmUp(Protocol):
    """Who chooses the actions of the warm-up."""

    cfg: MainConfig
    spec: EnvSpec
    agent: Agent
    warm_up_rng: np.random.Generator


# ------------------------------------------------------------------------- memory, replay


def memory_needs(cfg: MainConfig, spec: EnvSpec, agent: Agent) -> dict[str, Need]:
    """The most memory that the run will take for its replay."""
    specs = {k: spec.observations[k] for k in agent.input_keys}

    def size(episodes: int) -> int:
        return ReplayBuffer.memory_estimate(
            specs,
            spec.action_dim,
            episodes * cfg.episode_length,
            agent.num_stored,
            spec.action_dim * agent.horizon,
        )

    running = cfg.num_env - 1  # episodes besides those that the capacity counts
    needs = {"replay": Need(size(cfg.replay_buffer_size + running), "replay_buffer_size")}
    if cfg.uses_bc_replay:  # demonstrations (and successes) are held a second time
        episodes = cfg.preload_num_data if cfg.freeze_bc_replay else cfg.replay_buffer_size
        needs["demonstration replay"] = Need(size(episodes), "preload_num_data")
    if cfg.save_per_success > 0 and spec.cameras:  # held until they are written
        step = sum(spec.observations[c].nbytes for c in spec.cameras)
        steps = (cfg.save_per_success + running) * cfg.episode_length
        needs["successes"] = Need(steps * step, "save_per_success")
    return needs


def check_memory(cfg: MainConfig, spec: EnvSpec, agent: Agent) -> list[str]:
    """What the run will take, in words; ResourceError if memory or disk cannot hold it."""
    needs = memory_needs(cfg, spec, agent)
    replay = Need(sum(need.bytes for need in needs.values()), "replay_buffer_size")
    disk = disk_needs(agent, KEPT_WEIGHTS, replay)
    if cfg.replay_storage in ("ram", ON_GPU):
        fits = check_fits(needs, disk, cfg.save_dir)
        return fits + (check_card(cfg, needs, agent.device) if cfg.replay_storage == ON_GPU else [])
    check_storage(cfg.replay_storage)
    return check_fits({}, needs, cfg.replay_storage) + check_fits({}, disk, cfg.save_dir)


def check_card(cfg: MainConfig, needs: Mapping[str, Need], device: torch.device) -> list[str]:
    """What a replay on the agent's GPU will take there; an error if there is none, or no room."""
    if device.type != "cuda":
        raise ConfigError(
            f"replay_storage: '{cfg.replay_storage}', expected ram or a folder: the agent "
            f"({cfg.agent_kind.section}.device {cfg.agent_cfg.device}) is on the {device.type}"
        )
    # successes stay in memory until they are written
    held = {k: n for k, n in needs.items() if k != "successes"}
    on_card = {k: Need(int(ROOM * n.bytes), n.field) for k, n in held.items()}
    return check_room(f"memory of {device}", on_card, torch.cuda.mem_get_info(device)[0])


def check_storage(path: str) -> None:
    """ConfigError unless ``replay_storage`` is a folder that can be written to, or made."""
    folder, expected = Path(path), "expected ram, cuda or a folder that can be written to"
    if not path or not os.path.isdir(folder.parent):
        raise ConfigError(f"replay_storage: '{path}', {expected} (its parent must exist)")
    try:
        there = stat.S_ISDIR(os.stat(folder).st_mode)
        if not there:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    except FileNotFoundError:
        there = False
    except OSError as error:  # a name too long, say
        raise ConfigError(f"replay_storage: '{path}', {expected}: {error.strerror}") from None
    if not os.access(folder if there else folder.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"replay_storage: '{path}', {expected}: Permission denied")


def build_replay(cfg: MainConfig, spec: EnvSpec, agent: Agent, env_args: Any) -> ReplayBuffer:
    """The run's replay; ``env_args`` go into files of saved successes (None: none are saved)."""
    specs = {k: spec.observations[k] for k in agent.input_keys}
    on_gpu = cfg.replay_storage == ON_GPU
    if not on_gpu and cfg.replay_storage != "ram":
        make_folder(cfg.replay_storage)
    return ReplayBuffer(
        specs,
        spec.action_dim,
        nstep=cfg.nstep,
        gamma=cfg.discount,
        max_episode_length=cfg.episode_length,
        replay_size=cfg.replay_buffer_size,
        seed=seed_for(cfg.seed, "replay"),
        use_bc=cfg.uses_bc_replay,
        num_bc_action=agent.num_stored,
        bc_action_dim=spec.action_dim * agent.horizon,
        bootstrap_truncated=bool(cfg.bootstrap_truncated),
        save_per_success=cfg.save_per_success,
        save_dir=cfg.save_dir,
        prefetch=cfg.replay_prefetch,
        num_threads=cfg.replay_threads,
        storage="ram" if on_gpu else cfg.replay_storage,
        resident=agent.device if on_gpu else None,
        reward_scale=cfg.env_reward_scale,
        env_args=env_args,
    )


# ------------------------------------------------------------------------- before step 0


def prepare(run: Run) -> None:
    """Demonstrations, pretrained weights, BC pretraining, warm-up: all before step 0.

    A resumed run continues where it stopped.
    """
    cfg = run.cfg
    for line in load_inputs(run):
        run.log.print(line)
    if cfg.pretrain_num_epoch > 0:
        _pretrain(run)
        if cfg.pretrain_only:
            return
    if cfg.add_bc_loss and run.ref_agent is None:
        # After pretraining, so that the reference is the pretrained agent.
        run.ref_agent = run.agent.reference_copy()
    run.replay.freeze_bc_replay = bool(cfg.freeze_bc_replay)
    _warm_up(run)
    run.prepared = True
    run.save_state()


def load_inputs(run: Run) -> list[str]:
    """Read the demonstrations and pretrained weights, once; returns lines that describe them.

    Writes nothing: with ``overwrite``, inputs that are refused must not cost the older run.
    """
    cfg, lines = run.cfg, []
    if not run.loaded:
        if cfg.preload_num_data > 0:
            lines = add_demos_to_replay(run)
        elif cfg.preload_datapath:
            lines = [f"note: {cfg.preload_datapath} is not read: preload_num_data is 0"]
        if cfg.load_pretrained_agent:
            load_pretrained(run.agent, cfg.load_pretrained_agent, bool(cfg.load_policy_only))
        run.loaded = True
    return lines


def add_demos_to_replay(run: Run) -> list[str]:
    """Add demonstrations to both replays; each step's BC actions are computed here, once.

    Returns lines that describe them.
    """
    cfg = run.cfg
    keys = list(run.agent.input_keys)
    found = read_preload(cfg, run.env_cfg, run.spec, keys, run.bc_weights)
    demos = list(found)
    run.agent.fit(_stacked(run, demo.observations, keys) for demo in demos)
    for demo in demos:
        _add_demo(run, demo)
    steps, failed = sum(len(d) for d in demos), len(demos) - found.num_success
    return [
        *(f"note: {cfg.preload_datapath}: {note}" for note in found.notes),
        f"{len(demos)} demonstrations, {steps} steps, each ends at {found.ends_at}"
        + (f"; {failed} of them are not successes and are not imitated" if failed else "")
        + f"; from {cfg.preload_datapath}",
    ]


def _add_demo(run: Run, demo: Demo) -> None:
    cfg = run.cfg
    observations = {k: demo.observations[k] for k in run.agent.input_keys}
    if run.agent.num_stored:
        observations[BC_ACTION] = _bc_actions_of(run, demo.observations)
    with np.errstate(over="ignore"):  # values as the replay holds them; overflow is reported below
        rewards = np.asarray(demo.rewards * cfg.env_reward_scale, np.float32)
    numbers = {
        f"rewards times env_reward_scale {cfg.env_reward_scale:g}": rewards,
        "actions of the BC policy": observations.get(BC_ACTION, rewards),
    }
    for what, values in numbers.items():
        if not np.isfinite(values).all():
            raise NonFiniteError(
                f"'{cfg.preload_datapath}', {demo.name}: {what} are NaN or infinite at step "
                f"{np.argwhere(~np.isfinite(values))[0][0]}, expected finite numbers"
            )
    # files have no observation after the last action: if its value is needed, the last action is
    # dropped, and the last observation is the one after the action before it
    played = slice(None) if demo.terminated or not cfg.bootstrap_truncated else slice(-1)
    if not len(demo.actions[played]):
        raise DatasetError(
            f"'{cfg.preload_datapath}', {demo.name}: one step, cut off by the time limit: "
            "with bootstrap_truncated 1 nothing can be learned from it; drop it"
        )
    run.replay.add_episode(
        observations,
        demo.actions[played],
        rewards[played],
        terminated=demo.terminated,
        success=demo.success,
    )


def _stacked(run: Run, observations: dict[str, np.ndarray], keys: Iterable[str]) -> Obs:
    """Observations of a demonstration, [T, ...] with stacks assembled."""
    specs = run.spec.observations
    return {k: torch.from_numpy(stack_episode(observations[k], specs[k].stack)) for k in keys}


def _bc_actions_of(run: Run, observations: dict[str, np.ndarray]) -> np.ndarray:
    """BC proposals for every step of a demonstration: [T, K, h * A]."""
    obs = _stacked(run, observations, observations)
    length = len(next(iter(obs.values())))
    device = run.agent.device
    parts = [
        run.agent.propose({k: v[i : i + 256].to(device) for k, v in obs.items()})
        for i in range(0, length, 256)
    ]
    return torch.cat(parts).cpu().numpy()


def _warm_up(run: Run) -> None:
    """Fill the replay: BC without noise, else the pretrained agent, else random actions."""
    total, have = run.cfg.warm_up_target, run.replay.size()
    if have >= total:
        return
    run.log.print(f"warm-up: {have} of {total} episodes are in the replay")
    started = time.perf_counter()
    choose = partial(warm_up_actions, run)
    with RunProgress(total, "warm-up", have) as progress:
        while (have := run.replay.size()) < total:
            # as many as are missing: none is left over, which would favour short episodes
            run.play.restart(total - have)
            if run.step_env(choose):
                progress.update(run.replay.size(), success=run.replay.num_success)
                run.stop_if_asked()
    # from here on the agent acts: its times and scores start from zero
    run.watch.seconds = {"warm-up": time.perf_counter() - started}
    run.log.meters.summary()


def warm_up_actions(run: WarmUp, observations: Sequence[Obs]) -> Sequence[torch.Tensor]:
    """Of the BC policy without noise, else the pretrained agent's, else random ones."""
    if run.agent.num_bc_action:
        device = run.agent.device
        obs = {k: v if k == CLOCK else v.to(device) for k, v in batched(observations).items()}
        return list(run.agent.imitate(obs).cpu())
    if run.cfg.load_pretrained_agent or run.cfg.pretrain_num_epoch > 0:
        with eval_mode(run.agent):
            return acting(partial(run.agent.act, eval_mode=True))(observations)
    width = run.spec.action_dim
    drawn = [run.warm_up_rng.uniform(-1, 1, width) for _ in observations]
    return [torch.from_numpy(action.astype(np.float32)) for action in drawn]


def _pretrain(run: Run) -> None:
    """RFT's first phase: BC on the actor (and encoder). Logged at step 0."""
    cfg = run.cfg
    total = cfg.pretrain_num_epoch * cfg.pretrain_epoch_len
    finish = partial(_finish_pretrain_epoch, run)
    if not run.reported:  # interrupted before the report
        run.report(finish, run.pretrain_step == total)
    drawn = (run.replay.sample_bc, cfg.batch_size, run.agent.device, run.agent.window)
    batches = Ahead[Batch](run.replay, run.replay.copies_to(run.agent.device))
    run.updates.begin()
    with RunProgress(total, "BC pretraining", run.pretrain_step) as progress:
        while run.pretrain_step < total:
            run.log.meters.step = run.pretrain_step + 1
            metrics = run.updates.pretrain(batches.take(*drawn))
            batches.prepare(*drawn)
            run.log.meters.update(metrics)
            run.pretrain_step += 1
            progress.update(run.pretrain_step)
            if run.pretrain_step % cfg.pretrain_epoch_len == 0:
                run.report(finish, run.pretrain_step == total)
            run.stop_if_asked()


def _finish_pretrain_epoch(run: Run) -> None:
    run.agent.finish_pretraining()
    extra: dict[str, float] = {"pretrain/step": run.pretrain_step}
    score = float(run.pretrain_step)  # without an evaluation the newest weights count as the best
    if run.cfg.num_eval_episode > 0:
        games = run.protocol.after_pretraining(run.pretrain_step, run.cfg.num_eval_episode)
        score = extra["pretrain/score"] = run.protocol.score(run.evaluate(games))
    run.saver.save(run.agent.state_dict(), score)
    run.log.summarize(0, extra)

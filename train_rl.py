"""IBRL, RLPD and RFT: the one training loop, for every suite, from pixels or states.

    python train_rl.py --config_path release/cfgs/robomimic_rl/can_ibrl.yaml --save_dir exps/rl/1

Per environment step (paper algorithm 1): act, step, store; every ``update_freq`` steps
``num_critic_update`` critic updates and one actor update; every ``log_per_step`` steps
evaluate, log, save. ``--resume 1`` continues an interrupted run, on CPU bit for bit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common_utils import ranks, run_config
from common_utils.ahead import Ahead
from common_utils.errors import run_program
from common_utils.ibrl_utils import eval_mode, schedule
from common_utils.kept_weights import KeptWeights, keep
from common_utils.progress import RunProgress, pace
from common_utils.run_folder import RunFolder
from common_utils.run_state import GracefulStop, RunState, SavesItself
from common_utils.saver import TopkSaver
from common_utils.seeding import (
    generator_state,
    global_rng_state,
    seed_for,
    set_all_seeds,
    set_generator_state,
    set_global_rng_state,
)
from common_utils.specs import Batch, Obs
from common_utils.stopwatch import Stopwatch
from env.factory import env_args, recording_config
from env.lanes import Lanes, open_lanes
from env.render_slots import check_free
from evaluate.multi_process_eval import EvalPool
from evaluate.protocol import Games, protocol_of
from evaluate.rollout import EvalResult, Forecast
from networks import fast
from rl.agent import Agent
from tools.replayed import with_observations
from workspace.actor_play import ActorPlay, ActorProcess
from workspace.build_agent import (
    bare_agent,
    bc_weights,
    build_agent,
    check_files,
    inherit_env,
    load_bc_policies,
    own_modules,
    same_weights,
)
from workspace.build_agent import load_model as load_model  # part of this script's interface
from workspace.collector import Choose, Collector, Playing, acting, state_of_one_lane
from workspace.dry_run import refuse_resume, rehearse_rl, unwritten
from workspace.first_line import what_runs_here
from workspace.lost_env import Opened, listen, saved_when_gone, tell_dropped
from workspace.network_memory import check_agent
from workspace.next_steps import run_and_tell
from workspace.prepare_rl import KEPT_WEIGHTS, build_replay, check_memory, load_inputs, prepare
from workspace.resumable import ResumableRun
from workspace.rl_config import RESUMABLE_CHANGES, MainConfig, rl_env_config
from workspace.several_ranks import check_options
from workspace.shared_updates import SharedUpdates, received_run, tell_run
from workspace.watchdog import watched

# Plain numbers of a run that its resumption needs.
COUNTERS = (
    "global_step",
    "train_step",
    "loaded",
    "pretrain_step",
    "prepared",
    "train_seconds",
)


class Workspace(ResumableRun):
    """Everything a run holds: environments, agent, replay, counters, logs, checkpoints."""

    def __init__(self, cfg: MainConfig, weights: KeptWeights | None = None) -> None:
        """``weights``: of the BC policies, if not those that ``cfg.bc_policy`` names."""
        self.cfg = cfg
        self.save_dir = Path(cfg.save_dir)
        self.protocol = protocol_of(cfg.suite)
        set_all_seeds(cfg.seed)
        self.bc_weights = bc_weights(cfg) if weights is None else weights
        bc_policies, bc_cameras = load_bc_policies(cfg, weights=self.bc_weights)
        self.env_cfg = rl_env_config(cfg, bc_cameras)
        # evaluations play in env_cfg; training may record more than the agent sees
        saves = cfg.save_per_success > 0
        self.train_env_cfg = recording_config(self.env_cfg) if saves else self.env_cfg
        self.envs: Opened = (
            ActorProcess(cfg, self.train_env_cfg, self.bc_weights)
            if cfg.actor_learner
            else open_lanes(self.train_env_cfg, cfg.num_env, cfg.env_timeout, cfg.lanes)
        )
        self.spec = self.envs.spec
        self.footprint = check_agent(cfg, self.spec, len(bc_policies))
        self.agent = build_agent(cfg, self.spec, bc_policies)
        self.ref_agent: Agent | None = None
        # before anything is allocated or written
        self.memory = [*self.envs.notes, *check_memory(cfg, self.spec, self.agent)]
        saved_env_args = env_args(self.train_env_cfg) if saves else None
        self.replay = build_replay(cfg, self.spec, self.agent, saved_env_args)

        self.updates = SharedUpdates(self.agent)
        copies_to = self.replay.copies_to(self.agent.device)
        self.batches = Ahead[tuple[Batch, Batch | None]](self.replay, copies_to)

        self.global_step = 0
        self.train_step = 0
        self.loaded = False  # demonstrations and pretrained weights
        self.pretrain_step = 0
        self.prepared = False
        self.warm_up_rng = np.random.default_rng(seed_for(cfg.seed, "warm_up"))
        self.watch = Stopwatch()
        self.play = self._play()
        self.train_seconds = 0.0
        self.saver = TopkSaver(self.save_dir, topk=KEPT_WEIGHTS)
        self.headline: dict[str, float] = {}
        # num_proc 0 plays in this process; started at the first evaluation
        workers = min(cfg.num_eval_worker, cfg.num_eval_episode) if cfg.mp_eval else 0
        check_free(workers or int(cfg.num_env > 1), "num_eval_worker")
        self.eval_pool = EvalPool(asdict(self.env_cfg), workers)

    def _play(self) -> Playing:
        if isinstance(self.envs, ActorProcess):
            return ActorPlay(self.envs, self.agent, self.replay, self.watch)
        assert isinstance(self.envs, Lanes)
        seen = [c for c in self.train_env_cfg.cameras if c not in self.agent.input_keys]
        return Collector(self.envs, self.agent, self.replay, self.watch, self.cfg.seed, seen)

    @property
    def steps_done(self) -> int:
        """Environment steps."""
        return self.global_step

    # -------------------------------------------------------------- environment

    def step_env(self, choose: Choose) -> bool:
        """One environment step, stored; returns whether its episode ended."""
        ended = self.play.step(choose)
        if ended is None:
            return False
        if ended.lost:
            tell_dropped(self.log, [ended.length], ended.lost)
        else:
            self.log.meters.append("data/episode_len", ended.length)
            self.log.meters.append("score/train_score", float(ended.success))
        return True

    # ----------------------------------------------------------------- training

    def train(self) -> None:
        """The loop, from wherever the counters stand to ``num_train_step``."""
        cfg = self.cfg
        self.agent.set_stats(self.log.meters)
        self.updates.begin(self.ref_agent)
        self.play.restart()
        if not self.reported:  # interrupted there
            self.report(self._log_and_evaluate, self.global_step == cfg.num_train_step)
        before, started = self.train_seconds, time.monotonic()
        first_step, paced = self.global_step, False
        with RunProgress(cfg.num_train_step, "training", self.global_step) as progress:
            while self.global_step < cfg.num_train_step:
                self._train_one_step()
                elapsed = time.monotonic() - started
                self.train_seconds = before + elapsed
                last = self.global_step == cfg.num_train_step
                if self.global_step % cfg.log_per_step == 0 or last:
                    self.report(self._log_and_evaluate, last)
                progress.update(self.global_step, **self.headline)
                if not paced and elapsed > 60:
                    paced = True
                    per_second = (self.global_step - first_step) / elapsed
                    self.log.print(pace(per_second, self.global_step, cfg.num_train_step))
                if not last:
                    self.stop_if_asked()
        self.agent.set_stats(None)
        self.log.print(f"time: {self.watch.report()}")

    def _train_one_step(self) -> None:
        """Algorithm 1 of the paper: act, step, store, update."""
        cfg = self.cfg
        self.log.meters.step = self.global_step + 1
        stddev = schedule(cfg.stddev_schedule, self.global_step)
        self.step_env(partial(self._act, stddev))
        self.global_step += 1
        self.play.restart()
        if self.global_step % cfg.update_freq == 0:
            self._update(stddev)

    def _act(self, stddev: float, observations: Sequence[Obs]) -> Sequence[torch.Tensor]:
        """The exploring actions of all environments of a round."""
        act = partial(self.agent.act, eval_mode=False, stddev=stddev)
        with self.watch("act"), eval_mode(self.agent):
            return acting(act)(observations)

    def _update(self, stddev: float) -> None:
        """``num_critic_update`` updates; the actor is updated in the last, if it learns yet."""
        num = self.cfg.num_critic_update
        learns = self.global_step > self.cfg.critic_only_step
        for i in range(num):
            last = i == num - 1
            update_actor = last and learns
            with self.watch("sample"):
                batch, bc_batch = self.batches.take(self._draw, update_actor)
            with self.watch("update"):
                how = stddev, update_actor, bc_batch, self.ref_agent
                metrics = self.updates.update(batch, *how)
            with self.watch("sample"):
                self.batches.prepare(self._draw, learns and (i + 1) % num == num - 1)
            self.log.meters.update(metrics)
            self.train_step += last
        self.play.updated()

    def _draw(self, update_actor: bool) -> tuple[Batch, Batch | None]:
        """The batch of one update, and RFT's demonstrations."""
        cfg, num = self.cfg, self.cfg.batch_size
        how = self.agent.device, self.agent.window
        if cfg.mix_rl_rate >= 1:
            batch = self.replay.sample(num, *how)
        else:
            num_rl = int(num * cfg.mix_rl_rate)
            batch = self.replay.sample_rl_bc(num_rl, num - num_rl, *how)
        with_bc = update_actor and cfg.add_bc_loss
        return batch, self.replay.sample_bc(num, *how) if with_bc else None

    # --------------------------------------------------------------- evaluation

    def evaluate(self, games: Games) -> EvalResult:
        """Play these games."""
        with self.watch("evaluate"):
            pause, forecast = self.leave_if_asked, Forecast(self.agent.value, self.cfg.discount)
            play = self.eval_pool.run
            return play(self.agent, games.num, games.seed, pause=pause, forecast=forecast)

    def _log_and_evaluate(self) -> None:
        cfg, protocol = self.cfg, self.protocol
        games = protocol.after_step(self.global_step, cfg.log_per_step, cfg.num_eval_episode)
        extra: dict[str, float] = {"eval/seed": games.seed}
        if cfg.num_eval_episode > 0:
            extra |= protocol.report(self.evaluate(games))
            score = extra["score/score"]
            for variant in self.agent.eval_variants():
                with variant.acting:
                    other = protocol.score(self.evaluate(games))
                extra[variant.score] = other
                extra[variant.difference] = other - score
            self.headline["score"] = score
        else:  # the newest counts as the best
            score = float(self.global_step)
        self.saver.save(self.agent.state_dict(), score)
        extra |= {
            "score/num_success": self.replay.num_success,
            "other/speed": self.global_step / max(self.train_seconds, 1e-9),
            "other/elapsed_time": self.train_seconds,
            "other/episode": self.replay.num_episode,
            "other/step": self.global_step,
            "other/train_step": self.train_step,
            "other/replay": self.replay.size(),
            "data/stddev": schedule(cfg.stddev_schedule, self.global_step),
            "data/bc_replay_size": self.replay.size(bc=True),
            **{f"time/{name}": share for name, share in self.watch.shares().items()},
        }
        self.log.summarize(self.global_step, extra)

    # ------------------------------------------------------- checkpoint, resume

    def _counters(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in COUNTERS}

    def state_dict(self) -> dict[str, Any]:
        """Everything but the replay (which writes its own files)."""
        return {
            "counters": self._counters(),
            "bc_policy": self.bc_weights.sums,
            "bc_memory": self.agent.bc_memory(),
            "agent": self.agent.training_state(),
            "ref_agent": self.ref_agent.state_dict() if self.ref_agent is not None else None,
            "play": self.play.state_dict(),
            "warm_up_rng": generator_state(self.warm_up_rng),
            "global_rng": global_rng_state(),
            "saver": self.saver.state_dict(),
            "watch": self.watch.state_dict(),
            "log": self.log.state_dict(),
            "headline": dict(self.headline),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        for name in COUNTERS:
            setattr(self, name, state["counters"][name])
        self.agent.load_training_state(state["agent"])
        self.agent.load_bc_memory(state.get("bc_memory", []))  # absent in older states
        if state["ref_agent"] is not None:
            self.ref_agent = self.agent.reference_copy()
            self.ref_agent.load_state_dict(state["ref_agent"])
        play = state.get("play") or state_of_one_lane(state, self.replay.is_running())
        dropped = self.play.load_state_dict(play)
        tell_dropped(self.log, dropped, "the environment cannot be brought back to them")
        set_generator_state(self.warm_up_rng, state["warm_up_rng"])
        self.saver.load_state_dict(state["saver"])
        self.watch.load_state_dict(state["watch"])
        self.log.load_state_dict(state["log"])
        self.headline = dict(state["headline"])
        set_global_rng_state(state["global_rng"])
        self.replay.freeze_bc_replay = self.prepared and bool(self.cfg.freeze_bc_replay)

    def state_parts(self) -> Mapping[str, SavesItself]:
        """The replay."""
        return {"replay": self.replay}

    def load_state(self, state: RunState) -> None:
        """The replay first."""
        self.replay.load(state.part("replay"))
        super().load_state(state)

    def save_state(self) -> None:
        """Timed, otherwise as every run's."""
        with self.watch("checkpoint"):
            super().save_state()

    def moved(self, state: dict[str, Any]) -> str:
        """Of the agent's generators."""
        return self.agent.moved(state["agent"])

    def close(self) -> None:
        """Stop workers and free simulators."""
        self.eval_pool.close()
        self.envs.close()


def run(cfg: MainConfig) -> Workspace:
    """Train (or resume) one run from start to end; returns its workspace, closed."""
    run_config.check(cfg)
    own = cfg.agent_kind.section
    compile_field, compiling = f"{own}.compile", getattr(cfg.agent_cfg, "compile", "off")
    check_options(cfg.batch_size, compile_field, compiling, cfg.dry_run)
    if cfg.dry_run:
        return rehearse(cfg)
    resume, overwrite = bool(cfg.resume), bool(cfg.overwrite)
    cfg.overwrite = 0  # asked for once: a config that is used again must not say it
    with RunFolder(cfg.save_dir, resume=resume, overwrite=overwrite) as folder:
        state = folder.state
        if state is None:
            check_files(cfg)
        saved = folder.saved_config(type(cfg))
        inherit_env(cfg, saved=saved)
        weights = bc_weights(cfg, folder.path if state is not None else None, state)
        may_change = [*RESUMABLE_CHANGES, f"{own}.device", compile_field]
        if saved is not None and same_weights(cfg, weights):
            may_change.append("bc_policy")
        fast.set_up(cfg.torch_threads, cfg.kernel_threads)
        work = Workspace(cfg, weights)
        tell_run(cfg, work.spec)
        try:
            if cfg.preload_num_data and cfg.preload_datapath:
                seen = (cfg.preload_datapath, work.env_cfg.cameras, cfg.save_dir)
                cfg.preload_datapath = with_observations(*seen)
            inputs = load_inputs(work) if state is None else []  # before a run is replaced
            with (
                folder.open_log(cfg, may_change) as log,
                GracefulStop() as work.stop,
                watched(cfg.suite, cfg.env_timeout, log.print),
            ):
                work.log, work.folder = log, folder
                listen(work)
                log.print(what_runs_here(work.agent.device))
                for line in work.memory + weights.notes + inputs:
                    log.print(line)
                keep(folder.path, weights)
                _start(work, state)
                work.updates.end()
        finally:
            work.close()
    return work


def follow(config_class: type[MainConfig]) -> None:
    """A rank other than the first: compute its rows of the first one's batches, to the end."""
    cfg, spec = received_run(config_class)
    fast.set_up(cfg.torch_threads, cfg.kernel_threads)
    set_all_seeds(cfg.seed)
    with GracefulStop():  # the first rank decides when all end
        SharedUpdates(bare_agent(cfg, spec)).follow()


def rehearse(cfg: MainConfig) -> Workspace:
    """``--dry_run 1``: build the run and print its cost; nothing is written."""
    refuse_resume(cfg)
    check_files(cfg)
    inherit_env(cfg)
    if cfg.actor_learner:
        print("note: acting and updates are timed one after the other, not at the same time")
        cfg.actor_learner = 0
    fast.set_up(cfg.torch_threads, cfg.kernel_threads)
    with unwritten(cfg):
        work = Workspace(cfg)
        try:
            print(what_runs_here(work.agent.device))
            rehearse_rl(work, lambda: load_inputs(work))
        finally:
            work.close()
    return work


def _start(work: Workspace, state: RunState | None) -> None:
    """Everything from the saved state on, or from the beginning."""
    if state is not None:
        work.resume(state)
    else:
        work.save_state()  # from now on whatever the run writes has a state with it
    if not work.prepared:
        with work.folder.preparing(), saved_when_gone(work):
            prepare(work)
    if work.prepared:
        with saved_when_gone(work):
            work.train()


def main(config_class: type[MainConfig] = MainConfig) -> int:
    """Entry point: parse, run, exit status 0. Of several ranks the first does that."""
    with ranks.joined():
        if not ranks.is_first():
            follow(config_class)
            return 0
        cfg = run_config.parse(config_class)
        longer = {"num_train_step": 2 * cfg.num_train_step}
        run_and_tell(run, cfg, longer, lambda: own_modules(cfg))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

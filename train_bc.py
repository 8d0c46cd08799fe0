"""Behaviour cloning: the one BC loop, for every suite, from pixels or states.

    python train_bc.py --config_path release/cfgs/robomimic_bc/can.yaml --save_dir exps/bc/can

Per step: a batch drawn uniformly over all demonstrated steps, squared error of the action,
clipped gradient, Adam. After each epoch the policy plays ``num_eval_episode`` games and the
best weights are kept. ``cfg.yaml`` next to the weights is enough to rebuild the policy
(:func:`load_policy`) and its environment (:func:`load_model`), wherever the folder is moved.
``--resume 1`` continues an interrupted run, on CPU bit for bit. ``torchrun --nproc_per_node K
train_bc.py ...`` splits every batch over K processes (docs/scaling.md).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bc.base import BasePolicy
from bc.dataset import BcBatch, RobomimicDataset
from bc.gradients import loss_and_gradients, trained
from common_utils import ranks, rows, run_config
from common_utils.ahead import Ahead
from common_utils.device import resolve_device
from common_utils.errors import run_program
from common_utils.progress import RunProgress
from common_utils.resources import check_fits
from common_utils.run_folder import RunFolder
from common_utils.run_state import GracefulStop
from common_utils.saver import TopkSaver, save_weights
from common_utils.seeding import (
    global_rng_state,
    seed_for,
    set_all_seeds,
    set_global_rng_state,
)
from env.factory import make_env
from env.named_modules import module_names, modules_of
from evaluate.multi_process_eval import EvalPool
from evaluate.protocol import Games, protocol_of
from evaluate.rollout import EvalResult
from networks import fast
from networks.graphs import compiled
from networks.optim import set_lr, soft_update_params
from networks.precision import products
from tools.replayed import with_observations
from workspace.bc_config import RESUMABLE_CHANGES, MainConfig
from workspace.build_policy import build_policy, fill_in
from workspace.build_policy import load_model as load_model  # part of this script's interface
from workspace.build_policy import load_policy as load_policy
from workspace.disk_needs import disk_needs
from workspace.dry_run import no_log, refuse_resume, rehearse_bc
from workspace.first_line import what_runs_here
from workspace.network_memory import check_policy
from workspace.next_steps import run_and_tell
from workspace.prepare_bc import (
    build_optimizer,
    demonstrations,
    open_pool,
    require_learner,
    say_what_runs,
    set_weights,
)
from workspace.resumable import ResumableRun
from workspace.several_ranks import check_networks, check_options
from workspace.weights import load_weights, put_weights

# Steps after which a loss that is not finite is noticed, where an epoch is longer than that: read
# every step, it would make the host wait for the device.
CHECK_EVERY = 500


# ------------------------------------------------------------------------- training


class Workspace(ResumableRun):
    """Everything a run holds: dataset, policy, optimiser, evaluator, counters, checkpoints."""

    def __init__(self, cfg: MainConfig, data: RobomimicDataset, resumed: bool = False) -> None:
        """``resumed``: a state follows that holds the weights and their statistics."""
        self.cfg, self.data = cfg, data
        self.rows = ranks.split(cfg.batch_size)
        self.save_dir = Path(cfg.save_dir)
        self.protocol = protocol_of(cfg.env.suite)
        self.device = resolve_device(cfg.device)
        set_all_seeds(cfg.seed)
        self.policy = build_policy(cfg)
        check_networks(self.policy)
        disk = disk_needs(self.policy, self.protocol.topk)
        self.disk = check_fits({}, disk, cfg.save_dir)
        if not resumed:
            set_weights(self.policy, cfg, data)
        self.policy.to(self.device)
        self.policy.seed(seed_for(cfg.seed, "policy"))
        averages = cfg.ema > 0 and ranks.is_first()
        self.ema = copy.deepcopy(self.policy).eval() if averages else None
        self.optim = build_optimizer(self.policy, cfg)
        where = torch.device(self.device)
        self.graph = compiled(loss_and_gradients, cfg.compile, "compile", where)
        # docs/reference/ibrl.md#training (there Meta-World has no latest.pt; here it has)
        self.saver = TopkSaver(cfg.save_dir, topk=self.protocol.topk)
        self.epoch = 0  # finished epochs
        self.step = 0  # gradient steps
        self.scores: dict[str, float] = {}
        self.finished = False  # the last number is written
        self.pool: EvalPool | None = None
        self.batches = Ahead[BcBatch](data, self.device)

    def train(self) -> None:
        """All remaining epochs."""
        cfg = self.cfg
        total = cfg.num_epoch * cfg.epoch_len
        with RunProgress(total, "BC", self.step) as progress:
            while self.epoch < cfg.num_epoch:
                self.finished = False  # a finished run may be given more epochs
                self._train_epoch(progress)
                if ranks.is_first():
                    self.report(self._finish_epoch, last=self.epoch + 1 == cfg.num_epoch)
                else:
                    self.epoch += 1
        if ranks.is_first():
            self._finish()

    def _finish(self) -> None:
        """The run's final number, once."""
        if not self.finished and self._evaluate_best():
            self.finished = True
            self.save_state()

    def _train_epoch(self, progress: RunProgress) -> None:
        self.policy.train()
        end = (self.epoch + 1) * self.cfg.epoch_len
        while self.step < end:
            self._train_step()
            if self.step % CHECK_EVERY == 0 or self.step == end:
                self.log.meters.check_finite()
            progress.update(self.step, **self.scores)
            self.stop_if_asked()

    def _train_step(self) -> None:
        cfg = self.cfg
        self.log.meters.step = self.step + 1
        drawn = (self.data.sample_bc, cfg.batch_size, self.device)
        with products(cfg.precision, torch.device(self.device)), rows.computing(self.rows):
            loss = self._backward(self.batches.take(*drawn)).detach()
        self._average(loss)
        if cfg.grad_clip > 0:
            norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), cfg.grad_clip)
            self.log.meters.append("train/grad_norm", norm)
        if cfg.lr_schedule != "constant":
            set_lr(self.optim, cfg.lr_at(self.step))
        self.optim.step()
        self.batches.prepare(*drawn)
        if self.ema is not None:
            soft_update_params(list(self.policy.parameters()), list(self.ema.parameters()), cfg.ema)
        # kept on the device, read now and then
        self.log.meters.append("train/loss", loss)
        for name, value in self.policy.metrics.items():
            self.log.meters.append(f"train/{name}", value)
        self.step += 1

    def _backward(self, batch: Any) -> torch.Tensor:
        """The loss of a batch; its gradients are in the parameters."""
        if self.cfg.compile == "off":
            loss = self.policy.loss(batch)
            self.optim.zero_grad(set_to_none=True)
            loss.backward()
            return loss
        found = self.graph(self.policy, batch)
        self.policy.metrics = found.metrics
        for p, grad in zip(trained(self.policy), found.of, strict=True):
            p.grad = grad
        return found.loss

    def _average(self, loss: torch.Tensor) -> None:
        """Make gradients, loss and metrics of this rank's rows those of the batch."""
        if self.rows is not None:
            grads = [p.grad for p in self.policy.parameters() if p.grad is not None]
            asked = self.stop is not None and self.stop.requested
            means = [*grads, loss, *self.policy.metrics.values()]
            self.agreed = ranks.average(means, self.rows, asked)

    def _finish_epoch(self) -> None:
        """Evaluate, keep the best weights, log."""
        cfg, epoch, protocol = self.cfg, self.epoch, self.protocol
        extra: dict[str, float] = {"other/epoch": epoch + 1}
        if cfg.evaluates:
            extra |= protocol.report(
                self.evaluate(protocol.after_epoch(epoch, cfg.num_eval_episode))
            )
            self.scores["score"] = score = extra["score/score"]
        else:
            score = float(epoch)  # the newest weights are kept
        self.saver.save(self.policy.state_dict(), score)
        if self.ema is not None:
            extra |= self._finish_ema(score)
        games = protocol.long_after_epoch(epoch, cfg.num_epoch, cfg.num_final_episode)
        if cfg.evaluates and games is not None:
            extra["score/last_ckpt_score"] = protocol.score(self.evaluate(games))
        if cfg.save_per > 0 and (epoch + 1) % cfg.save_per == 0:
            save_weights(self.policy.state_dict(), self.save_dir / f"epoch{epoch + 1}.pt")
        self.epoch += 1
        self.log.summarize(self.step, extra)

    def _finish_ema(self, score: float) -> dict[str, float]:
        """The averaged weights compete for the same slots."""
        assert self.ema is not None  # asked for by the caller
        for mine, theirs in zip(self.ema.buffers(), self.policy.buffers(), strict=True):
            mine.copy_(theirs)  # running statistics are not averaged a second time
        if self.cfg.evaluates:
            games = self.protocol.after_epoch(self.epoch, self.cfg.num_eval_episode)
            score = self.protocol.score(self.evaluate(games, self.ema))
        self.saver.save(self.ema.state_dict(), score, save_latest=False)
        return {"score/ema_score": score} if self.cfg.evaluates else {}

    def evaluate(self, games: Games, policy: BasePolicy | None = None) -> EvalResult:
        """Play these games."""
        assert self.pool is not None  # only called when cfg.evaluates
        pause = self.leave_if_asked
        return self.pool.run(policy or self.policy, games.num, games.seed, pause=pause)

    def _evaluate_best(self) -> bool:
        """The best checkpoint's long evaluation, the run's final number; whether there is one."""
        cfg, best = self.cfg, self.saver.best_path
        if not cfg.evaluates or not cfg.num_final_episode or best is None:
            return False
        policy = copy.deepcopy(self.policy)
        put_weights(policy, load_weights(best, "best checkpoint"), best, "best checkpoint")
        result = self.evaluate(self.protocol.of_best(cfg.num_final_episode), policy.eval())
        self.scores["best_ckpt_score"] = score = self.protocol.score(result)
        self.log.log(self.step, {"score/best_ckpt_score": score})
        self.log.print(f"best checkpoint {best.name}: success {result.rate()}")
        return True

    # --------------------------------------------------------- checkpoint, resume

    @property
    def steps_done(self) -> int:
        """Gradient steps."""
        return self.step

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes while training."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "scores": dict(self.scores),
            "finished": self.finished,
            "policy": self.policy.state_dict(),
            "policy_rng": self.policy.rng_state(),
            "ema": self.ema.state_dict() if self.ema is not None else None,
            "optim": self.optim.state_dict(),
            "data": self.data.state_dict(),
            "saver": self.saver.state_dict(),
            "log": self.log.state_dict(),
            "global_rng": global_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.epoch, self.step = state["epoch"], state["step"]
        self.scores = dict(state["scores"])
        self.finished = bool(state.get("finished", False))  # newer than the first states
        self.policy.load_state_dict(state["policy"])
        self.policy.set_rng_state(state["policy_rng"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.optim.load_state_dict(state["optim"])
        self.data.load_state_dict(state["data"])
        self.saver.load_state_dict(state["saver"])
        self.log.load_state_dict(state["log"])
        set_global_rng_state(state["global_rng"])

    def moved(self, state: dict[str, Any]) -> str:
        """Of the policy's generator."""
        return self.policy.moved(state["policy_rng"])

    def close(self) -> None:
        """Stop workers, free the simulator and the data file."""
        if self.pool is not None:
            self.pool.close()
        self.data.close()


def run(cfg: MainConfig) -> Workspace:
    """Train (or resume) one run from start to end; returns its workspace, closed."""
    run_config.check(cfg)
    require_learner(cfg)
    check_options(cfg.batch_size, "compile", cfg.compile, cfg.dry_run)
    if cfg.dry_run:
        return rehearse(cfg)
    resume, overwrite = bool(cfg.resume), bool(cfg.overwrite)
    cfg.overwrite = 0  # asked for once: a config that is used again must not say it
    with RunFolder(cfg.save_dir, resume=resume, overwrite=overwrite) as folder:
        cameras = [] if cfg.dataset.use_state else cfg.dataset.rl_cameras
        cfg.dataset.path = with_observations(cfg.dataset.path, cameras, cfg.save_dir)
        ranks.shared(run_config.to_dict(cfg))
        data = demonstrations(cfg)
        fill_in(cfg, data)
        fast.set_up(kernel_threads=cfg.kernel_threads)
        check_policy(cfg)
        work = Workspace(cfg, data, resumed=folder.state is not None)
        try:
            work.pool = open_pool(cfg, data, work.policy)
            with folder.open_log(cfg, RESUMABLE_CHANGES) as log, GracefulStop() as work.stop:
                work.log, work.folder = log, folder
                log.print(what_runs_here(work.device))
                say_what_runs(log, cfg, data, work.policy, work.device)
                if folder.state is not None:
                    work.resume(folder.state)
                else:
                    work.save_state()  # from now on whatever the run writes has a state with it
                work.align()
                work.train()
        finally:
            work.close()
    return work


def follow() -> None:
    """A rank other than the first: compute its rows of the first one's batches, to the end."""
    cfg = run_config.from_dict(MainConfig, ranks.shared(), "the first rank's configuration")
    data = demonstrations(cfg)
    fill_in(cfg, data)
    fast.set_up(kernel_threads=cfg.kernel_threads)
    check_policy(cfg)
    work = Workspace(cfg, data, resumed=True)
    work.log = no_log()
    try:
        with GracefulStop() as work.stop:
            work.align()
            work.train()
    finally:
        work.close()


def rehearse(cfg: MainConfig) -> Workspace:
    """``--dry_run 1``: build the run and print its cost; nothing is written."""
    refuse_resume(cfg)
    data = demonstrations(cfg)
    fill_in(cfg, data)
    fast.set_up(kernel_threads=cfg.kernel_threads)
    footprint = check_policy(cfg)
    work = Workspace(cfg, data)
    work.log = log = no_log()
    try:
        log.print(what_runs_here(work.device))
        work.pool = open_pool(cfg, data, work.policy)
        say_what_runs(log, cfg, data, work.policy, work.device)
        rehearse_bc(work, footprint, work.disk, make_env(cfg.env) if cfg.evaluates else None)
    finally:
        work.close()
    return work


def _parse() -> MainConfig:
    return run_config.parse(MainConfig)


def main(parse: Callable[[], MainConfig] = _parse) -> int:
    """Entry point: parse, run, exit status 0. Of several ranks the first does that."""
    with ranks.joined():
        if not ranks.is_first():
            follow()
            return 0
        cfg = parse()
        modules = (*module_names(cfg.trust_module), *modules_of(cfg.env))
        run_and_tell(run, cfg, {"num_epoch": 2 * cfg.num_epoch}, lambda: modules)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

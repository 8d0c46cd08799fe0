"""Measures what the parts of an RL run cost here: its real environment, agent, replay and messages.

Nothing of the run is written, and demonstrations are not read. Episodes are played with random
actions and are short, so that starts of episodes are among them.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bc.base import BasePolicy
from common_utils import run_config
from common_utils.errors import ConfigError
from common_utils.ibrl_utils import eval_mode
from common_utils.resources import cpu_name
from common_utils.run_state import save_state
from common_utils.seeding import set_all_seeds
from common_utils.specs import Batch, EnvSpec, Obs
from common_utils.stopwatch import Stopwatch
from env.config import EnvConfig
from env.lanes import Lanes, open_lanes
from launch.costs import Costs
from launch.exchange import exchange_seconds
from launch.needs import own_memory
from networks import fast
from networks.captured import split
from rl.agent import Agent
from rl.replay import ReplayBuffer
from workspace.bc_config import MainConfig as BcConfig
from workspace.build_agent import bc_weights, build_agent, inherit_env, load_bc_policies
from workspace.build_policy import build_policy
from workspace.collector import Collector, acting
from workspace.prepare_rl import build_replay, memory_needs
from workspace.rl_config import MainConfig, rl_env_config
from workspace.shared_updates import SharedUpdates

SECONDS = 1.0  # of each measurement, at least
MOST_CALLS = 200
LENGTH = 20  # steps of an episode that is played
EPISODES = 3
ACTING = (1, 2, 4, 8, 16, 64, 256)  # observations in a batch
WORKERS = 8  # environments that play at the same time to see how they slow each other down
STDDEV = 0.1  # exploration noise, whose amount costs nothing


def measure(cfg: MainConfig, bc_config: str = "", say: Callable[[str], None] = print) -> Costs:
    """The costs of a run of ``cfg`` on this machine, which should do nothing else.

    Args:
        bc_config: configuration of a BC policy that is not trained yet: used untrained, instead of
            the weights of ``cfg.bc_policy``.
        say: where lines about the progress go.

    Raises ConfigError, EnvError and what else a run raises that cannot start.
    """
    fast.set_up(cfg.torch_threads, cfg.kernel_threads)
    set_all_seeds(cfg.seed)
    costs = Costs(
        config="",
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        torch=torch.__version__,
        threads=max(torch.get_num_threads(), cfg.kernel_threads),
        num_env=cfg.num_env,
        episode_length=cfg.episode_length,
        update_freq=cfg.update_freq,
        num_critic_update=cfg.num_critic_update,
        batch_size=cfg.batch_size,
        log_per_step=cfg.log_per_step,
    )
    say("building the environment and the agent")
    policies, env_cfg, untrained = _policies(cfg, bc_config)
    env_cfg.episode_length = min(cfg.episode_length, max(LENGTH, 2 * cfg.nstep))
    with closing(open_lanes(env_cfg, 1)) as lanes:
        policies += [_untrained(c, lanes.spec) for c in untrained]
        agent = build_agent(cfg, lanes.spec, policies)
        small = copy.deepcopy(cfg)
        small.episode_length, small.replay_buffer_size = env_cfg.episode_length, EPISODES + 1
        small.replay_storage, small.save_per_success = "ram", -1
        replay = build_replay(small, lanes.spec, agent, None)
        _sizes(costs, cfg, lanes.spec, agent)
        say("playing")
        obs = _playing(costs, lanes, agent, replay)
        say("acting and updating")
        _acting(costs, agent, obs)
        _updating(costs, cfg, agent, replay)
        _saving(costs, cfg, agent)
        costs.trainer_bytes = max(0, own_memory() - replay.nbytes)
    say("playing in other processes")
    _messages(costs, env_cfg, cfg.rollout)
    say("exchanging gradients between two processes")
    costs.exchange_s, costs.scatter_s = exchange_seconds(
        costs.gradient_bytes, costs.batch_bytes // 2
    )
    run_config.check(costs)
    return costs


# ------------------------------------------------------------------------- building


def _policies(cfg: MainConfig, bc_config: str) -> tuple[list[Any], EnvConfig, list[BcConfig]]:
    """BC policies that are there, the environment, and configurations of untrained ones."""
    if not bc_config:
        try:
            weights = bc_weights(cfg)
        except ConfigError as error:
            raise ConfigError(
                f"{error}; to measure with an untrained one: --bc_config and its configuration"
            ) from None
        inherit_env(cfg)
        policies, cameras = load_bc_policies(cfg, weights=weights)
        return policies, rl_env_config(cfg, cameras), []
    bc = run_config.load(BcConfig, bc_config)
    cfg.bc_policy = ""
    inherit_env(cfg)
    cameras = [] if bc.dataset.use_state else list(bc.dataset.rl_cameras)
    return [], rl_env_config(cfg, cameras), [bc]


def _untrained(cfg: BcConfig, spec: EnvSpec) -> BasePolicy:
    """The policy that ``cfg`` would train on this environment's demonstrations."""
    seen = "state" if cfg.dataset.use_state else cfg.dataset.rl_cameras[0]
    if seen not in spec.observations:
        raise ConfigError(
            f"--bc_config: reads '{seen}', expected one of {sorted(spec.observations)}, which the "
            "run's environment delivers"
        )
    cfg.obs_shape = list(spec.observations[seen].shape)
    prop = spec.observations.get("prop")
    cfg.prop_shape = list(prop.shape) if prop is not None else []
    cfg.action_dim = spec.action_dim
    return build_policy(cfg).eval()


def _sizes(costs: Costs, cfg: MainConfig, spec: EnvSpec, agent: Agent) -> None:
    costs.device = str(agent.device)
    if agent.device.type == "cuda":
        costs.device = torch.cuda.get_device_name(agent.device)
    costs.observation_bytes = sum(s.nbytes for s in spec.observations.values())
    costs.action_bytes = 4 * spec.action_dim
    costs.weights_bytes = sum(t.nbytes for t in agent.state_dict().values())
    trained = [p for o in agent.optimizers().values() for g in o.param_groups for p in g["params"]]
    costs.gradient_bytes = sum(p.nbytes for p in trained)
    one, two = copy.copy(cfg), copy.copy(cfg)
    one.num_env, two.num_env = 1, 2
    needs = [memory_needs(c, spec, agent) for c in (one, two)]
    sizes = [sum(need.bytes for need in found.values()) for found in needs]
    costs.replay_bytes, costs.episode_bytes = sizes[0], sizes[1] - sizes[0]


# ------------------------------------------------------------------------- in this process


def _at_random(width: int) -> Callable[[Sequence[Obs]], Sequence[torch.Tensor]]:
    rng = torch.Generator().manual_seed(0)
    return lambda observations: list(torch.rand(len(observations), width, generator=rng) * 2 - 1)


def _playing(costs: Costs, lanes: Lanes, agent: Agent, replay: ReplayBuffer) -> Obs:
    """Steps, pictures, starts of episodes, observing and storing; returns an observation."""
    watch = Stopwatch()
    play = Collector(lanes, agent, replay, watch, seed=0)
    choose, steps = _at_random(lanes.spec.action_dim), 0
    resets: list[float] = []
    with eval_mode(agent):
        _episode(play, choose)  # the first allocates and compiles
        watch.seconds.clear()
        started = time.perf_counter()
        while len(resets) < EPISODES or time.perf_counter() - started < SECONDS:
            before = dict(watch.seconds)
            play.restart()
            spent = {k: v - before.get(k, 0.0) for k, v in watch.seconds.items()}
            resets.append(sum(spent.get(k, 0.0) for k in ("env", "rendering", "network")))
            watch.seconds = before
            obs = dict(play.lanes[0].obs)
            steps += _episode(play, choose)
    spent = {k: v / steps for k, v in watch.seconds.items()}
    costs.step_s = spent.get("env", 0.0) + spent.get("network", 0.0)
    costs.render_s = spent.get("rendering", 0.0)
    costs.reset_s = float(np.median(resets))
    costs.observe_s, costs.add_s = spent["act"], spent["add"]
    return obs


def _episode(play: Collector, choose: Callable[..., Any]) -> int:
    """Play to the end of an episode; returns its length."""
    play.restart()
    while (ended := play.step(choose)) is None:
        pass
    return ended.length


def _acting(costs: Costs, agent: Agent, obs: Obs) -> None:
    """Acting for several observations, with exploration; until one batch takes a second."""
    act = acting(partial(agent.act, eval_mode=False, stddev=STDDEV))
    costs.act_numbers, costs.act_s = [], []
    with eval_mode(agent):
        for num in ACTING:
            took = _seconds(lambda n=num: act([obs] * n), seconds=SECONDS / 4)  # type: ignore[misc]
            costs.act_numbers.append(num)
            costs.act_s.append(took)
            if took > SECONDS:
                break


def _updating(costs: Costs, cfg: MainConfig, agent: Agent, replay: ReplayBuffer) -> None:
    """Drawing batches, and updates of them."""
    updates, num = SharedUpdates(agent), cfg.batch_size
    ref_agent = agent.reference_copy() if cfg.add_bc_loss else None

    def draw(size: int) -> Batch:
        return replay.sample(size, agent.device, agent.window)

    def update(batch: Batch, actor: bool) -> None:
        bc_batch = batch if cfg.add_bc_loss and actor else None
        updates.update(batch, STDDEV, actor, bc_batch, ref_agent)
        if agent.device.type == "cuda":
            torch.cuda.synchronize(agent.device)

    batch, half = draw(num), draw(max(1, num // 2))
    costs.batch_bytes = _bytes_of(batch)
    costs.sample_s = _seconds(lambda: draw(num), seconds=SECONDS / 2)
    costs.critic_s = _seconds(lambda: update(batch, False), seconds=SECONDS)
    costs.update_s = _seconds(lambda: update(batch, True), seconds=SECONDS)
    costs.half_update_s = _seconds(lambda: update(half, True), seconds=SECONDS)


def _seconds(call: Callable[[], object], seconds: float) -> float:
    """The median of a call's times, after one that is not counted: others on the machine disturb
    it less than the mean."""
    call()
    took: list[float] = []
    begun = time.perf_counter()
    while not took or (time.perf_counter() - begun < seconds and len(took) < MOST_CALLS):
        started = time.perf_counter()
        call()
        took.append(time.perf_counter() - started)
    return float(np.median(took))


def _bytes_of(batch: Batch) -> int:
    tensors: list[torch.Tensor] = []
    split(batch, tensors)
    return sum(t.nbytes for t in tensors)


def _saving(costs: Costs, cfg: MainConfig, agent: Agent) -> None:
    """A state of the agent, on the disk of ``save_dir``."""
    folder = Path(cfg.save_dir).absolute()
    while not folder.is_dir() or not os.access(folder, os.W_OK):
        folder = folder.parent
    with tempfile.TemporaryDirectory(prefix=".plan-", dir=folder) as temp:
        started = time.perf_counter()
        saved = save_state(temp, 0, {"agent": agent.training_state()})
        costs.checkpoint_s = time.perf_counter() - started
        files = (path for path in saved.rglob("*") if path.is_file())
        costs.checkpoint_bytes = sum(path.stat().st_size for path in files)


# ------------------------------------------------------------------------- in other processes


def _messages(costs: Costs, env_cfg: EnvConfig, way: str) -> None:
    """Messages to environments elsewhere (``way``: in processes of their own, or in actors of Ray),
    and how they slow each other down."""
    num = min(costs.cores, WORKERS)
    costs.env_bytes = _memory(env_cfg)
    with closing(open_lanes(env_cfg, num, way=way)) as lanes:
        rounds = _Rounds(lanes, env_cfg.episode_length)
        step = costs.step_s + costs.render_s
        # asked and received when it is there
        sent, received = rounds.apart(step)
        costs.send_s, costs.receive_s = sent, received
        one = rounds.together(1)
        costs.answer_s = max(0.0, one - step - sent - received)
        if num > 1:
            messages = (num - 1) * (sent + received)  # of the others, one after the other
            costs.crowded = max(1.0, (rounds.together(num) - messages) / one)


def _memory(env_cfg: EnvConfig) -> int:
    """Bytes of an environment's process; an actor, which cannot be asked from here, needs the
    same."""
    before = set(_children())
    with closing(open_lanes(env_cfg, 1, way="process")):
        return max((own_memory(pid) for pid in _children() if pid not in before), default=0)


def _children() -> Iterator[int]:
    """Processes that this one has started."""
    for task in Path("/proc/self/task").iterdir():
        try:
            yield from map(int, (task / "children").read_text().split())
        except OSError:
            pass


class _Rounds:
    """Steps of environments in other processes; starts of episodes are not timed."""

    def __init__(self, lanes: Lanes, length: int) -> None:
        self._lanes, self._length = lanes, length - 1
        self._left = 0
        self._rng = np.random.default_rng(0)
        self._action_dim = lanes.spec.action_dim

    def _action(self) -> np.ndarray:
        return self._rng.uniform(-1, 1, self._action_dim).astype(np.float32)

    def _ready(self) -> None:
        """All have a step left."""
        if self._left == 0:
            for lane in range(self._lanes.num):
                self._lanes.reset(lane, 0)
            for lane in range(self._lanes.num):
                self._lanes.receive(lane)
            self._left = self._length
        self._left -= 1

    def apart(self, step: float) -> tuple[float, float]:
        """Seconds of asking one, and of receiving its answer long after it came."""
        sent, received = [], []
        for _ in self._repeated():
            action = self._action()
            started = time.perf_counter()
            self._lanes.send(0, action)
            asked = time.perf_counter()
            time.sleep(2 * step + 0.005)
            waited = time.perf_counter()
            self._lanes.receive(0)
            received.append(time.perf_counter() - waited)
            sent.append(asked - started)
        return float(np.median(sent)), float(np.median(received))

    def together(self, num: int) -> float:
        """Seconds of a step that ``num`` of them take at the same time."""
        took = []
        for _ in self._repeated():
            actions = [self._action() for _ in range(num)]
            started = time.perf_counter()
            for lane, action in enumerate(actions):
                self._lanes.send(lane, action)
            for lane in range(num):
                self._lanes.receive(lane)
            took.append(time.perf_counter() - started)
        return float(np.median(took[1:]))

    def _repeated(self) -> Iterator[None]:
        begun, done = time.perf_counter(), 0
        while done < 10 or (time.perf_counter() - begun < SECONDS and done < 500):
            self._ready()
            yield
            done += 1

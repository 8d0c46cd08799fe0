"""How fast a run will be, what will hold it up, and what it will take; from measured costs.

Pure functions of :class:`launch.costs.Costs`. docs/scaling.md compares them with measurements.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from launch.costs import Costs
from launch.rounds import Played, Setting, play, slower

MOST_STEPS = 10_000  # that are played for a forecast
OWN = ("act", "observe", "store", "messages")  # the learner's work for each environment step
WAITS = 0.1  # share of the time that the learner waits, from which on it is not what holds up
FULL = 0.9  # share of the cores' time that is used, from which on they are what holds up
MOST_RANKS = 4096
NEARLY = 1.1  # times the shortest update: more ranks are not worth it


@dataclass(frozen=True)
class Plan:
    """The machines and processes that a forecast is for.

    Args:
        setting: environments, cores and nodes.
        ranks: processes that share each update (torchrun), on the first machine.
        gpu_speedup: how many times as fast a GPU acts, proposes and updates as what was measured;
            None: as measured.
    """

    setting: Setting = field(default_factory=Setting)
    ranks: int = 1
    gpu_speedup: float | None = None


@dataclass(frozen=True)
class Forecast:
    """What is to be expected of a plan. Seconds are per environment step, traffic is per second."""

    num_env: int
    cores: int
    nodes: int
    ranks: int
    steps_per_second: float
    updates_per_second: float
    # as above, with a saved state at every log_per_step
    with_checkpoints: float
    bottleneck: str
    # share of the time in which the learner computes, and of the cores' time that is used
    learner_busy: float
    cores_busy: float
    # seconds of the learner per step, by what it does
    parts: dict[str, float]
    # the most steps per second that this learner could take, whatever plays
    learner_limit: float
    # bytes of memory on the learner's machine by their use, and of another machine
    memory: dict[str, int]
    memory_elsewhere: int
    # bytes per second: observations to the learner, actions from it; between machines only the
    # part of the environments that are elsewhere; and what each rank sends of gradients and batches
    to_learner: float
    from_learner: float
    between_machines: float
    between_ranks: float

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def forecast(costs: Costs, plan: Plan) -> Forecast:
    """What is to be expected of ``plan``."""
    setting = plan.setting
    scaled = with_ranks(with_gpu(costs, plan.gpu_speedup), plan.ranks)
    played = play(scaled, setting, _steps(scaled, setting))
    rate = played.steps / played.seconds
    parts = {name: took / played.steps for name, took in played.learner.items()}
    busy = played.busy / (setting.cores * setting.nodes * played.seconds)
    checkpoint = checkpoint_seconds(costs) / costs.log_per_step
    up, down = _messages(scaled, setting)
    elsewhere = setting.num_env - _on_first(setting)
    return Forecast(
        num_env=setting.num_env,
        cores=setting.cores,
        nodes=setting.nodes,
        ranks=plan.ranks,
        steps_per_second=rate,
        updates_per_second=rate * scaled.updates_of_a_step(),
        with_checkpoints=1 / (1 / rate + checkpoint),
        bottleneck=_bottleneck(played, setting, parts, busy),
        learner_busy=1 - played.waited / played.seconds,
        cores_busy=busy,
        parts=parts,
        learner_limit=1 / learner_seconds(scaled, setting.num_env),
        memory=_memory(costs, setting, plan.ranks),
        memory_elsewhere=costs.env_bytes * math.ceil(elsewhere / max(1, setting.nodes - 1)),
        to_learner=rate * up,
        from_learner=rate * down,
        between_machines=rate * (up + down) * elsewhere / setting.num_env,
        between_ranks=rate * scaled.updates_of_a_step() * _rank_bytes(costs, plan.ranks),
    )


def _steps(costs: Costs, setting: Setting) -> int:
    """Enough whole episodes of all environments, as far as that is quick."""
    rounds = max(4, min(2 * costs.episode_length, MOST_STEPS // setting.num_env))
    whole = max(1, rounds // costs.episode_length) * costs.episode_length
    return setting.num_env * (whole if rounds >= costs.episode_length else rounds)


def _bottleneck(played: Played, setting: Setting, parts: dict[str, float], busy: float) -> str:
    largest = max(parts, key=lambda name: parts[name])
    share = f"{largest} {100 * parts[largest] * played.steps / played.seconds:.0f} %"
    if setting.num_env == 1:
        return f"one process does everything ({share})"
    waited = played.waited / played.seconds
    if busy >= FULL:
        return f"cores (the learner waits {100 * waited:.0f} % of the time)"
    if waited < WAITS:
        return f"learner ({share})"
    return f"environments (the learner waits {100 * waited:.0f} % of the time)"


# ------------------------------------------------------------------------- costs, changed


def with_gpu(costs: Costs, speedup: float | None) -> Costs:
    """Costs with networks that are ``speedup`` times as fast."""
    if speedup is None:
        return costs
    names = ("observe_s", "critic_s", "update_s", "half_update_s")
    faster: dict[str, Any] = {name: getattr(costs, name) / speedup for name in names}
    return replace(costs, **faster, act_s=[s / speedup for s in costs.act_s], threads=1)


def with_ranks(costs: Costs, ranks: int) -> Costs:
    """Costs whose updates are shared by ``ranks`` processes.

    The part of an update that grows with the batch is divided, the rest is not; gradients are then
    averaged (a ring: 2 (K - 1) / K of them travel), and each rank is sent its part of the batch.
    """
    if ranks == 1:
        return costs
    grows = min(2 * (costs.update_s - costs.half_update_s), costs.update_s)
    kept = 1 - max(0.0, grows) / max(costs.update_s, 1e-12) * (1 - 1 / ranks)
    # both were measured between two, where half of a batch and all gradients travel
    exchange = (
        costs.exchange_s * 2 * (ranks - 1) / ranks + costs.scatter_s * 2 * (ranks - 1) / ranks
    )
    return replace(
        costs,
        critic_s=kept * costs.critic_s + exchange,
        update_s=kept * costs.update_s + exchange,
        threads=ranks * costs.threads,
    )


def update_seconds(costs: Costs, ranks: int, cores: int) -> float:
    """Seconds of an update of critic and actor, on ``ranks`` processes of a machine that does
    nothing else."""
    shared = with_ranks(costs, ranks)
    alone = replace(shared, num_critic_update=1, update_freq=1)
    return play(alone, Setting(cores=cores), 1).learner["update"]


def checkpoint_seconds(costs: Costs) -> float:
    """Seconds of saving a state with a full replay, at the speed at which one without was saved."""
    speed = costs.checkpoint_bytes / costs.checkpoint_s if costs.checkpoint_s else math.inf
    return costs.checkpoint_s + costs.replay_bytes / speed


def learner_seconds(costs: Costs, num: int) -> float:
    """Seconds that the learner computes per environment step, with ``num`` environments that
    always have answered."""
    return collect_seconds(costs, num) + updates_seconds(costs)


def collect_seconds(costs: Costs, num: int) -> float:
    """Of these, those of acting and storing."""
    own = costs.act(num) / num + costs.observe_s + costs.add_s
    here = costs.step_s + costs.render_s + costs.reset_s / costs.episode_length
    return own + (here if num == 1 else costs.send_s + costs.receive_s)


def updates_seconds(costs: Costs) -> float:
    """And those of updates."""
    each = (costs.num_critic_update - 1) * costs.critic_s + costs.update_s
    return (each + costs.num_critic_update * costs.sample_s) / costs.update_freq


# ------------------------------------------------------------------------- memory, network


def _on_first(setting: Setting) -> int:
    """Environments on the learner's machine."""
    return math.ceil(setting.num_env / setting.nodes)


def _memory(costs: Costs, setting: Setting, ranks: int) -> dict[str, int]:
    here = 0 if setting.num_env == 1 else _on_first(setting)
    return {
        "replay": costs.replay_bytes + (setting.num_env - 1) * costs.episode_bytes,
        "trainer": costs.trainer_bytes * ranks,
        "environments": here * costs.env_bytes,
    }


def _messages(costs: Costs, setting: Setting) -> tuple[int, int]:
    """Bytes to and from the learner per environment step; one in its own process sends none."""
    if setting.num_env == 1:
        return 0, 0
    starts = costs.observation_bytes // costs.episode_length  # the first of an episode
    return costs.observation_bytes + starts, costs.action_bytes


def _rank_bytes(costs: Costs, ranks: int) -> float:
    """Bytes that a rank sends and receives per update."""
    travelling = 2 * costs.gradient_bytes * (ranks - 1) / ranks
    return travelling + costs.batch_bytes / ranks if ranks > 1 else 0.0


# ------------------------------------------------------------------------- more than one learner


@dataclass(frozen=True)
class Shards:
    """What it would take to use all that the environments of a plan can play.

    Collectors act for a part of the environments and store what they do in a replay of their own
    (a shard); the ranks of one learner draw from all shards and send their weights back.
    """

    # steps per second that the environments can play, if nobody lets them wait
    played: float
    collectors: int
    ranks: int
    # environment steps between updates; that of the configuration, if so many ranks suffice
    update_freq: int
    # bytes per second of batches from the shards, and of weights for the collectors per update
    batches: float
    weights: float

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def shards(costs: Costs, plan: Plan) -> Shards | None:
    """See :class:`Shards`; None where one learner is enough."""
    setting, scaled = plan.setting, with_gpu(costs, plan.gpu_speedup)
    if setting.num_env == 1:
        return None
    played = environments_rate(scaled, setting)
    if played <= 1 / learner_seconds(with_ranks(scaled, plan.ranks), setting.num_env):
        return None
    collectors = math.ceil(played * collect_seconds(scaled, setting.num_env))
    numbers = [2**power for power in range(int(math.log2(MOST_RANKS)) + 1)]
    seconds = {ranks: updates_seconds(with_ranks(scaled, ranks)) for ranks in numbers}
    least = NEARLY * min(seconds.values())
    ranks = next(num for num in numbers if seconds[num] <= max(least, 1 / played))
    slower = max(1.0, played * seconds[ranks])
    update_freq = math.ceil(costs.update_freq * slower)
    updates = played * costs.num_critic_update / update_freq
    return Shards(
        played=played,
        collectors=collectors,
        ranks=ranks,
        update_freq=update_freq,
        batches=updates * costs.batch_bytes,
        weights=updates / costs.num_critic_update * collectors * costs.weights_bytes,
    )


def environments_rate(costs: Costs, setting: Setting) -> float:
    """Steps per second that the environments play on their cores, without waiting."""
    each = costs.step_s + costs.render_s + costs.reset_s / costs.episode_length + costs.answer_s
    cores = setting.cores * setting.nodes
    return min(setting.num_env, cores) / (each * slower(costs, setting))

"""What the parts of an RL run cost on one machine: measured by ``launch.measure``, kept as JSON.

A forecast (``launch.forecast``) rests on nothing else, so it can be made on another machine from a
recorded file.
"""

from __future__ import annotations

import bisect
import json
import os
from dataclasses import dataclass, field, fields
from typing import Annotated

from common_utils.atomic import atomic_json
from common_utils.errors import ConfigError
from common_utils.plain_file import read_small_text
from common_utils.ranges import AtLeast, NotNegative, NotNegativeNumber, Positive, PositiveNumber
from common_utils.run_config import from_dict, to_dict

MAX_BYTES = 1 << 20
SLOWER = Annotated[float, AtLeast(1)]


@dataclass
class Costs:
    """Seconds of wall time on an otherwise idle machine, bytes, and what the run does how often.

    A step is an environment step of the run (all simulator repeats of its action).
    """

    # the configuration, with the options that changed it
    config: str = ""
    # the machine: its processor, its cores, and where the agent computes
    cpu: str = ""
    cores: Positive = 1
    device: str = "cpu"
    torch: str = ""
    # threads of an update
    threads: Positive = 1

    # a step, without drawing
    step_s: PositiveNumber = 1.0
    # drawing the pictures of a step
    render_s: NotNegativeNumber = 0.0
    # the start of an episode, its picture included
    reset_s: NotNegativeNumber = 0.0
    # choosing actions for so many observations in one batch ...
    act_numbers: list[int] = field(default_factory=lambda: [1])
    # ... takes this long
    act_s: list[float] = field(default_factory=lambda: [0.0])
    # an observation's checks, and the BC policies' proposals for it
    observe_s: NotNegativeNumber = 0.0
    # storing a step
    add_s: NotNegativeNumber = 0.0
    # drawing a batch
    sample_s: NotNegativeNumber = 0.0
    # a critic update; one of critic and actor; and that with half the batch
    critic_s: NotNegativeNumber = 0.0
    update_s: PositiveNumber = 1.0
    half_update_s: NotNegativeNumber = 0.0
    # in the trainer: asking an environment in another process, receiving an answer that is there
    send_s: NotNegativeNumber = 0.0
    receive_s: NotNegativeNumber = 0.0
    # what else passes until an answer is there, besides the step: waking up, copies in the worker
    answer_s: NotNegativeNumber = 0.0
    # how much longer an environment takes while all cores simulate
    crowded: SLOWER = 1.0
    # averaging all gradients of two processes, and sending one of them half a batch; 0: unknown
    exchange_s: NotNegativeNumber = 0.0
    scatter_s: NotNegativeNumber = 0.0
    # saving a state, without the replay
    checkpoint_s: NotNegativeNumber = 0.0

    # what an environment sends per step, and what it is sent
    observation_bytes: NotNegative = 0
    action_bytes: NotNegative = 0
    # weights of the agent, of its gradients, of a batch, of a saved state without the replay
    weights_bytes: NotNegative = 0
    gradient_bytes: NotNegative = 0
    batch_bytes: NotNegative = 0
    checkpoint_bytes: NotNegative = 0
    # memory: the trainer without its replay, the full replay, an environment in a process of its
    # own, and the episode that it plays
    trainer_bytes: NotNegative = 0
    replay_bytes: NotNegative = 0
    env_bytes: NotNegative = 0
    episode_bytes: NotNegative = 0

    # of the configuration
    num_env: Positive = 1
    episode_length: Positive = 1
    update_freq: Positive = 1
    num_critic_update: Positive = 1
    batch_size: Positive = 1
    log_per_step: Positive = 1

    def __post_init__(self) -> None:
        numbers, seconds = self.act_numbers, self.act_s
        good = numbers and numbers == sorted(set(numbers)) and numbers[0] == 1
        if not good or len(seconds) != len(numbers) or min(seconds) < 0:
            raise ValueError(
                f"act_s: {seconds} for act_numbers {numbers}, expected a time for each, and "
                "numbers that begin with 1 and increase"
            )

    def act(self, num: int) -> float:
        """Seconds of choosing ``num`` actions in one batch: on the line between the two nearest
        numbers that were measured, beyond the largest on that of the last two."""
        numbers, seconds = self.act_numbers, self.act_s
        if len(numbers) == 1:
            return seconds[0] * num
        at = min(max(bisect.bisect_left(numbers, num), 1), len(numbers) - 1)
        slope = (seconds[at] - seconds[at - 1]) / (numbers[at] - numbers[at - 1])
        return max(0.0, seconds[at - 1] + max(0.0, slope) * (num - numbers[at - 1]))

    def updates_of_a_step(self) -> float:
        """Critic updates per environment step."""
        return self.num_critic_update / self.update_freq


def read(path: str | os.PathLike[str], option: str = "--costs") -> Costs:
    """The costs that :func:`write` has written; raises ConfigError for any other file."""
    try:
        found = json.loads(read_small_text(path, MAX_BYTES))
    except OSError as error:
        raise ConfigError(f"{option}: cannot read '{path}': {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{option}: '{path}': not valid JSON: {reason}") from None
    costs = found.get("costs") if isinstance(found, dict) else None
    if not isinstance(costs, dict):
        raise ConfigError(
            f"{option}: '{path}': no section 'costs', expected a file that python -m launch.plan "
            "--save_costs has written"
        )
    found = from_dict(Costs, costs, f"{option}: '{path}'")
    if missing := [f.name for f in fields(Costs) if f.name not in costs]:
        raise ConfigError(f"{option}: '{path}': {missing[0]}: missing, expected what was measured")
    return found


def write(costs: Costs, path: str | os.PathLike[str], command: str) -> None:
    """Write costs as JSON, with the command that measured them."""
    atomic_json({"command": command, "costs": to_dict(costs)}, path)

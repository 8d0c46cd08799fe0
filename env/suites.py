"""All suites: one table, from which the choices of both trainers derive."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

# name -> "module:class" of its environment, imported when one is made
SUITES = {
    "robosuite": "env.robosuite.env:RobosuiteEnv",
    "metaworld": "env.metaworld.env:MetaWorldEnv",
    "gymnasium": "env.gymnasium_adapter:GymnasiumEnv",
    "particle": "env.particle.env:ParticleEnv",
    "block_pushing": "env.block_pushing.env:BlockPushEnv",
    "d4rl": "env.d4rl:D4RLEnv",
    "remote": "env.network.env:RemoteEnv",
}

# suites that are implied by a task's name: a pattern of the whole name, ignoring case (the first
# that matches)
TASK_NAMES = {"particle": r"particle.*", "block_pushing": r".*"}

if TYPE_CHECKING:  # type checkers do not know computed types
    Suite = str
    AnySuite = str
else:
    _names = tuple(SUITES)
    Suite = Literal[_names]
    AnySuite = Literal["", Suite]  # "": not given


def suite_by_task(task: str) -> str:
    """The suite that is implied by a task's name."""
    return next(s for s, name in TASK_NAMES.items() if re.fullmatch(name, task, re.I | re.S))

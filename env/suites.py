"""All suites: one table, from which the choices of both trainers derive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

# name -> "module:class" of its environment, imported when one is made
SUITES = {
    "robosuite": "env.robosuite.env:RobosuiteEnv",
    "metaworld": "env.metaworld.env:MetaWorldEnv",
    "gymnasium": "env.gymnasium_adapter:GymnasiumEnv",
    "particle": "env.particle.env:ParticleEnv",
    "block_pushing": "env.block_pushing.env:BlockPushEnv",
    "d4rl": "env.d4rl:D4RLEnv",
}

if TYPE_CHECKING:  # type checkers do not know computed types
    Suite = str
    AnySuite = str
else:
    _names = tuple(SUITES)
    Suite = Literal[_names]
    AnySuite = Literal["", Suite]  # "": not given

"""Scripted experts, by suite."""

from __future__ import annotations

from typing import Any

from common_utils.lookup import resolve
from env.core import Env, EnvError, Expert

# suite -> "module:class", imported when one is made; the class takes (env, noise, options by name)
EXPERTS = {
    "robosuite": "env.robosuite.experts:RobosuiteExpert",
    "metaworld": "env.metaworld.expert:MetaWorldExpert",
    "particle": "env.particle.oracle:ParticleOracle",
    "block_pushing": "env.block_pushing.oracles:BlockPushOracle",
}


def make_expert(env: Env, noise: float = 0.0, **options: Any) -> Expert:
    """The expert of an environment; call its ``reset`` after each reset of the environment.

    Args:
        env: the environment that it reads and acts in.
        noise: standard deviation of Gaussian noise on its actions. robosuite and Meta-World: in
            action units; particle and block pushing: in the task's native units (metres).
        options: options of the expert's class.

    Raises EnvError for an environment without an expert, or an option that it does not have.
    """
    suite = env.spec.suite
    if suite not in EXPERTS:
        raise EnvError(f"no expert for suite '{suite}'; there is one for {', '.join(EXPERTS)}")
    try:
        expert: Expert = resolve(EXPERTS[suite])(env, noise, **options)
    except TypeError as error:
        raise EnvError(f"the expert of {env.spec.task} has no such option: {error}") from None
    return expert

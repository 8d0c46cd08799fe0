"""Scripted experts, by suite and task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from env.core import Env, EnvError

if TYPE_CHECKING:
    from env.block_pushing.env import BlockPushEnv


class Oracle(Protocol):
    """An expert that looks at the environment it was made for, not at observations."""

    def reset(self, rng: np.random.Generator) -> None:
        """Before each episode, after the environment's reset; ``rng`` is for its choices."""

    def action(self) -> np.ndarray:
        """Action float32 [A] in [-1, 1] for the environment's current state."""


class _BlockOracle:
    """An expert of a block task, in the units of the framework."""

    def __init__(self, env: BlockPushEnv, noise_std: float, options: dict[str, Any]) -> None:
        from env.block_pushing.oracles import block_oracle

        self.env = env
        self.oracle = block_oracle(env.task.name, noise_std, **options)

    def reset(self, rng: np.random.Generator) -> None:
        self.oracle.reset(rng)

    def action(self) -> np.ndarray:
        return self.env.from_native(self.oracle.delta(self.env.plain_observation()))


def make_oracle(env: Env, noise_std: float = 0.0, **options: Any) -> Oracle:
    """The oracle of a particle or block-pushing environment.

    Args:
        env: what it looks at and acts in.
        noise_std: of Gaussian noise, in the task's native units (block pushing: metres).
        options: of the oracle's class (``env.particle.oracle``, ``env.block_pushing.oracles``).

    Raises EnvError for an environment without one, or an option it doesn't have.
    """
    if env.spec.suite not in ("particle", "block_pushing"):
        raise EnvError(
            f"no oracle for suite '{env.spec.suite}'; expected particle or block_pushing"
        )
    try:
        if env.spec.suite == "particle":
            from env.particle.oracle import ParticleOracle

            return ParticleOracle(env, noise_std=noise_std, **options)  # type: ignore[arg-type]
        return _BlockOracle(env, noise_std, options)  # type: ignore[arg-type]
    except TypeError as error:
        raise EnvError(f"the oracle of {env.spec.task} has no such option: {error}") from None

"""Meta-World's scripted policies."""

from __future__ import annotations

from typing import Any

from env.core import EnvError


def metaworld_expert(task: str) -> Any:
    """The scripted policy of ``task`` (assembly-v3): ``get_action(state [39]) -> [4]``."""
    from metaworld.policies import ENV_POLICY_MAP

    policies: dict[str, Any] = ENV_POLICY_MAP
    try:
        return policies[task]()
    except KeyError:
        raise EnvError(f"no scripted policy for Meta-World task '{task}'") from None

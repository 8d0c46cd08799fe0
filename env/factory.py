"""Making environments by configuration. Simulators are imported only when one is made."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from env.config import EnvConfig
from env.core import Env, EnvError

SUITES = ("robosuite", "metaworld", "gymnasium", "particle", "block_pushing", "d4rl")


def make_env(cfg: EnvConfig | dict[str, Any]) -> Env:
    """The environment of a configuration (or of its plain dict)."""
    if isinstance(cfg, dict):
        cfg = EnvConfig(**cfg)
    if cfg.suite == "metaworld":
        from env.metaworld.env import MetaWorldEnv

        return MetaWorldEnv(cfg)
    if cfg.suite == "gymnasium":
        from env.gymnasium_adapter import GymnasiumEnv

        return GymnasiumEnv(cfg)
    if cfg.suite == "particle":
        from env.particle.env import ParticleEnv

        return ParticleEnv(cfg)
    if cfg.suite == "block_pushing":
        from env.block_pushing.env import BlockPushEnv

        return BlockPushEnv(cfg)
    if cfg.suite == "d4rl":
        from env.d4rl import D4RLEnv

        return D4RLEnv(cfg)
    if cfg.suite == "robosuite":
        from env.robosuite.env import RobosuiteEnv

        return RobosuiteEnv(cfg)
    raise EnvError(f"suite '{cfg.suite}' is unknown; expected one of {', '.join(SUITES)}")


def env_args(cfg: EnvConfig) -> dict[str, Any]:
    """What files of demonstrations say of the environment (``data.attrs["env_args"]``)."""
    if cfg.suite == "robosuite":
        from env.robosuite.robomimic_args import robomimic_env_args

        size, delta = cfg.rl_image_size, bool(cfg.ctrl_delta)
        args = robomimic_env_args(cfg.task, cfg.cameras, size, delta=delta)
        if cfg.cameras:
            args["env_kwargs"]["render_quality"] = cfg.render_quality
        return args
    return {"suite": cfg.suite, "env_name": cfg.task, "env_kwargs": asdict(cfg)}

"""The fields of an agent (:class:`rl.q_agent.QAgent`) and what they may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from common_utils.run_config import Flag
from networks.encoder import ResNet96EncoderConfig, ResNetEncoderConfig, VitEncoderConfig
from rl.actor import ActorConfig, FcActorConfig
from rl.critic import CriticConfig, MultiFcQConfig

EncType = Literal["vit", "resnet", "resnet96", "drq"]
ActMethod = Literal["rl", "ibrl", "ibrl_soft"]
ACT_METHODS = get_args(ActMethod)


@dataclass
class QAgentConfig:
    """Defaults are those of the paper's release; departures are named options."""

    # auto (cuda when present), cpu, cuda or cuda:N
    device: str = "auto"
    # Adam step size of encoder, critic and actor
    lr: float = 1e-4
    # soft update rate tau of both target networks
    critic_target_tau: float = 0.01
    # clip of the exploration noise inside updates (acting is not clipped)
    stddev_clip: float = 0.3
    # pixels: give proprioception to actor and critic
    use_prop: Flag = 0
    # pixels: vit, resnet, resnet96 or drq
    enc_type: EncType = "vit"
    vit: VitEncoderConfig = field(default_factory=VitEncoderConfig)
    resnet: ResNetEncoderConfig = field(default_factory=ResNetEncoderConfig)
    resnet96: ResNet96EncoderConfig = field(default_factory=ResNet96EncoderConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    actor: ActorConfig = field(default_factory=ActorConfig)
    state_critic: MultiFcQConfig = field(default_factory=MultiFcQConfig)
    state_actor: FcActorConfig = field(default_factory=FcActorConfig)
    # who acts: rl (the actor), ibrl (the better of actor and BC), ibrl_soft (sampled by value)
    act_method: ActMethod = "rl"
    # who proposes the action of the TD target; "" means the same as act_method
    bootstrap_method: Literal["", "rl", "ibrl", "ibrl_soft"] = ""
    # ibrl: probability of acting greedily; otherwise a uniformly random candidate
    ibrl_eps_greedy: float = 1.0
    # ibrl_soft: inverse temperature of the softmax over candidate values
    soft_ibrl_beta: float = 10.0
    # rft: weight of the BC regulariser
    bc_loss_coef: float = 0.1
    # rft: scale the regulariser by how often the reference agent is valued higher
    bc_loss_dynamic: Flag = 0
    # candidate actions each BC policy proposes (1 = IBRL as published)
    num_bc_samples: int = 1
    # states: normalise by the demonstrations' mean and std (0 = as released: raw states)
    norm_state: Flag = 0
    # copy actor to actor_target after BC pretraining (0 = as released: target stays random)
    sync_actor_target: Flag = 0

    def __post_init__(self) -> None:
        if self.num_bc_samples < 1:
            raise ValueError(f"num_bc_samples: {self.num_bc_samples}, expected at least 1")
        if not 0.0 <= self.ibrl_eps_greedy <= 1.0:
            raise ValueError(f"ibrl_eps_greedy: {self.ibrl_eps_greedy}, expected within [0, 1]")
        if not 0.0 < self.critic_target_tau <= 1.0:
            raise ValueError(f"critic_target_tau: {self.critic_target_tau}, expected in (0, 1]")
        if self.lr <= 0:
            raise ValueError(f"lr: {self.lr}, expected above 0")
        for name in ("stddev_clip", "soft_ibrl_beta", "bc_loss_coef"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: {getattr(self, name)}, expected 0 or more")
        # built in Python, a config has not been through run_config's check of Literals
        check_choice("enc_type", self.enc_type, get_args(EncType))
        check_choice("act_method", self.act_method, ACT_METHODS)
        check_choice("bootstrap_method", self.bootstrap_method, ("", *ACT_METHODS))


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: {value!r}, expected one of {', '.join(map(repr, choices))}")

"""The fields of an agent (:class:`rl.q_agent.QAgent`) and their possible values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from common_utils.config_types import Flag
from common_utils.ranges import Above, AtMost, Between, NotNegativeNumber, PositiveNumber, Share
from networks.encoder import ResNet96EncoderConfig, ResNetEncoderConfig, VitEncoderConfig
from networks.graphs import Compile
from networks.precision import Precision
from rl.actor import ActorConfig, FcActorConfig
from rl.agent import AgentConfig, RunFacts
from rl.critic import CriticConfig, MultiFcQConfig
from rl.value_bins import ValueBinsConfig

EncType = Literal["vit", "resnet", "resnet96", "drq"]
ActMethod = Literal["rl", "ibrl", "ibrl_soft", "bc"]
ACT_METHODS = get_args(ActMethod)


@dataclass
class QAgentConfig(AgentConfig):
    """Defaults are those of the paper's release; departures are named options."""

    # Adam step size of encoder, critic and actor
    lr: PositiveNumber = 1e-4
    # Adam step size of the actor; 0: lr
    actor_lr: NotNegativeNumber = 0.0
    # Adam step size of the encoder; 0: lr
    encoder_lr: NotNegativeNumber = 0.0
    # above 0: largest norm of a gradient, of encoder, critic and actor apart
    grad_clip: NotNegativeNumber = 0.0
    # soft update rate tau of both target networks
    critic_target_tau: Annotated[float, Above(0), AtMost(1)] = 0.01
    # clip of the exploration noise inside updates (acting is not clipped)
    stddev_clip: NotNegativeNumber = 0.3
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
    # who acts: rl (the actor), ibrl (the better of actor and BC), ibrl_soft (sampled by value), bc
    # (the best of the BC policies' proposals)
    act_method: ActMethod = "rl"
    # who proposes the action of the TD target; "" means the same as act_method
    bootstrap_method: Literal["", "rl", "ibrl", "ibrl_soft", "bc"] = ""
    # above 0: BC policies keep learning from the replay, by Adam with this step size (Q-chunking;
    # not with several ranks)
    bc_lr: NotNegativeNumber = 0.0
    # a state's value: of the members that are drawn their least (min) or mean (Q-chunking)
    pessimism: Literal["min", "mean"] = "min"
    # ibrl: probability of acting greedily; otherwise a uniformly random candidate
    ibrl_eps_greedy: Share = 1.0
    # ibrl_soft: inverse temperature of the softmax over candidate values
    soft_ibrl_beta: NotNegativeNumber = 10.0
    # above 0: the actor corrects each BC proposal, by at most this much in each dimension (residual
    # RL, ResFiT); with act_method ibrl both are candidates
    residual: Annotated[float, Between(0, 2)] = 0.0
    # residual: what the actor learns to correct, the BC policies' proposals or the actions in the
    # replay (as EXPO does); it always acts on proposals
    residual_learns: Literal["proposals", "actions"] = "proposals"
    # above 0: the actor maps noise to an action at once, and imitates with this weight where the BC
    # policy's flow ends (flow Q-learning, QC-FQL)
    distill: NotNegativeNumber = 0.0
    # values as distributions over bins (HL-Gauss)
    value_bins: ValueBinsConfig = field(default_factory=ValueBinsConfig)
    # rft: weight of the BC regulariser
    bc_loss_coef: NotNegativeNumber = 0.1
    # rft: scale the regulariser by how often the reference agent is valued higher
    bc_loss_dynamic: Flag = 0
    # states: normalise by the demonstrations' mean and std (0 = as released: raw states)
    norm_state: Flag = 0
    # steps whose actions are chosen and valued together, and played before the next choice; above 1
    # (Q-chunking; Li et al. 2025) with nstep 1, and BC policies over chunks of at least this length
    horizon: Annotated[int, Between(1, 64)] = 1
    # horizon above 1: windows that the episode's end cuts short. absorb: they teach the critics, as
    # if nothing changed after the end; drop: they do not, as Q-chunking was published
    tail: Literal["absorb", "drop"] = "absorb"
    # copy actor to actor_target after BC pretraining (0 = as released: target stays random)
    sync_actor_target: Flag = 0
    # float32; tf32: products and convolutions with rounded factors, on NVIDIA GPUs (elsewhere
    # float32); bfloat16: encoders of images under autocast
    precision: Precision = "float32"
    # off: operations one by one, with the kernels on a CPU; default: update and act are compiled
    # into one graph each by torch.compile; max: compiled with tuning
    compile: Compile = "off"

    @property
    def bc_fields(self) -> tuple[str, ...]:
        """See :class:`AgentConfig`."""
        ibrl = {self.act_method, self.bootstrap_method} - {"", "rl"}
        fields = ("act_method", "bootstrap_method") if ibrl else ()
        return fields + tuple(k for k in ("bc_lr", "residual", "distill") if getattr(self, k))

    def check(self, run: RunFacts) -> None:
        """See :class:`AgentConfig`."""
        if run.add_bc_loss and self.bc_loss_dynamic and not run.pretrained:
            raise ValueError(
                "bc_loss_dynamic: 1 compares with a pretrained agent, expected "
                "pretrain_num_epoch of at least 1 or load_pretrained_agent"
            )
        if self.norm_state and not run.demonstrations:
            raise ValueError(
                "norm_state: 1 takes mean and std from demonstrations, expected "
                "preload_num_data of at least 1 and preload_datapath"
            )
        if self.precision == "bfloat16" and run.use_state:
            raise ValueError(
                "precision: bfloat16 is for encoders of images, expected float32 or tf32 with "
                "use_state 1"
            )
        self._check_actor(run)
        if self.horizon > 1 and run.nstep > 1:
            raise ValueError(
                f"horizon: {self.horizon} sums the rewards of as many steps, expected nstep 1, got "
                f"{run.nstep}"
            )
        if self.norm_state and not run.use_state:
            raise ValueError("norm_state: 1, expected 0 with use_state 0")

    def _check_actor(self, run: RunFacts) -> None:
        """What an actor that sees more than the observation does not go with."""
        if self.residual and self.distill:
            raise ValueError(f"distill: {self.distill:g}, expected 0 with residual")
        if self.distill and self.compile != "off":
            raise ValueError(f"distill: {self.distill:g}, expected 0 with compile {self.compile}")
        for name in ("residual", "distill"):
            if getattr(self, name) and (run.add_bc_loss or run.pretrains):
                raise ValueError(
                    f"{name}: {getattr(self, name):g}, expected 0 with add_bc_loss and "
                    "pretrain_num_epoch, which teach an actor that sees the observation alone"
                )


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name}: {value!r}, expected one of {', '.join(map(repr, choices))}")

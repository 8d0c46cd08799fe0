"""The configuration of an RL run: every field of ``train_rl.py`` with its documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from bc.dataset_config import DemoOptions
from common_utils.config_kinds import Kinded, Section
from common_utils.paths import InputData, InputFile, InputFiles
from common_utils.ranges import (
    Above,
    AtLeast,
    AtMost,
    BatchSize,
    Between,
    EpisodeLength,
    NotNegative,
    NotNegativeNumber,
    Or,
    PictureSize,
    Positive,
    RewardScale,
    Seed,
    Share,
    Stack,
    Threads,
    Workers,
)
from common_utils.run_config import Flag, RunConfig
from env.config import EnvConfig, GymConfig, RemoteConfig
from env.suites import Suite
from rl.agent import AgentConfig, RunFacts
from rl.registry import AGENTS, DEFAULT_AGENT, AgentKind

# Fields that may differ between a run and its resumption without changing earlier results; so may
# the device of the agent.
RESUMABLE_CHANGES = (
    "resume",
    "save_dir",
    "num_train_step",
    "use_wb",
    "use_trackio",
    "mp_eval",
    "num_eval_worker",
    "replay_storage",
    "replay_threads",
    "replay_prefetch",
    "kernel_threads",
    "env_timeout",
    "max_lead",
    "rollout",
    "trust_module",
    "remote.url",
    "remote.step_timeout",
    "remote.reset_timeout",
    "remote.retry_for",
)


@dataclass
class MainConfig(Kinded, RunConfig):
    """Defaults are those of the paper's release; departures are named options.

    The agent's fields are in a section of its kind (``rl.registry``): ``--q_agent.lr``.
    """

    # fields of earlier versions' cfg.yaml, with the values that give the same run
    RETIRED = (("overlap_env", 0),)
    CHOSEN_BY: ClassVar[str] = "agent"

    # which agent: q_agent is the one of IBRL, RLPD and RFT
    agent: str = DEFAULT_AGENT
    # source of all randomness of the run
    seed: Seed = 1
    # the suite that simulates the task (docs/environments.md)
    suite: Suite = "robosuite"
    # task of the suite; "" takes the BC policy's
    task_name: str = "Lift"
    # time limit in control steps
    episode_length: EpisodeLength = 200
    # end the episode at the first success
    end_on_success: Flag = 1
    # size at which robosuite renders (videos use it)
    image_size: PictureSize = 224
    # size of the images that the agent sees; 0 takes the BC policy's
    rl_image_size: Annotated[PictureSize, Or(0)] = 96
    # camera(s) of the agent; several joined by "+"
    rl_camera: str = "robot0_eye_in_hand"
    # steps per observation, newest first: images
    obs_stack: Stack = 1
    # proprioception
    prop_stack: Stack = 1
    # state vectors
    state_stack: Stack = 1
    # simulator repeats of each action (Meta-World); 0 takes the BC policy's
    action_repeat: Annotated[int, Between(0, 1000)] = 1
    # rendering: faithful or fast (see docs/environments.md)
    render_quality: Literal["faithful", "fast"] = "faithful"
    # learn from state vectors (1) or pixels (0)
    use_state: Flag = 0
    # particle, block_pushing: distance at which a goal counts as reached (0: the task's own)
    goal_tolerance: NotNegativeNumber = 0.0
    # particle: leave the velocity out of the state
    hide_velocity: Flag = 0
    # environments that play at the same time
    num_env: Workers = 1
    # where they play: process (several: each in one of its own, 1: in the trainer's) or ray (actors
    # of a Ray cluster, that of RAY_ADDRESS)
    rollout: Literal["process", "ray"] = "process"
    # seconds that a step or a reset may take; then its process is replaced, or (1 environment, in
    # the trainer's process) the run ends
    env_timeout: Annotated[float, Above(0), AtMost(86400)] = 120.0
    # environments and acting in a process of their own, which no update delays (docs/scaling.md)
    actor_learner: Flag = 0
    # environment steps that this process may be ahead of the updates; 0: they take turns
    max_lead: NotNegative = 100
    gym: GymConfig = field(default_factory=GymConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    # exploration noise: linear from stddev_max ...
    stddev_max: Annotated[float, Between(0, 100)] = 1.0
    # ... to stddev_min (clamped to stddev_max) ...
    stddev_min: Annotated[float, Between(0, 100)] = 0.1
    # ... over this many environment steps
    stddev_step: Positive = 500000
    # n-step returns
    nstep: Annotated[int, Between(1, 10000)] = 3
    # discount gamma per step
    discount: Annotated[float, Above(0), AtMost(1)] = 0.99
    # value states at the time limit by bootstrapping (0 = as released: time limit is terminal)
    bootstrap_truncated: Flag = 0
    # capacity of the replay, in episodes
    replay_buffer_size: Positive = 500
    # "ram", "cuda" (in memory, and a copy on the agent's GPU, where batches are then gathered), or
    # a folder for memory-mapped files (made if its parent exists)
    replay_storage: str = "ram"
    # threads that gather a batch
    replay_threads: Workers = 1
    # batches gathered ahead of time (affects only speed)
    replay_prefetch: Annotated[int, Between(0, 64)] = 0
    # transitions per update
    batch_size: BatchSize = 256
    # critic updates per update step; the actor is updated in the last
    num_critic_update: Annotated[int, Between(1, 10000)] = 1
    # environment steps between update steps
    update_freq: Positive = 2
    # environment steps, at the beginning of training, in which only the critics learn
    critic_only_step: NotNegative = 0
    # weights of the BC policy (with its cfg.yaml next to it), or a server (ws://HOST:PORT, or a
    # .yaml file that describes its policy: docs/deploy.md); several joined by "+"
    bc_policy: InputFiles = ""
    # 0: take only the environment's settings from the BC policy (RLPD and RFT on Meta-World)
    use_bc: Flag = 1
    # share of each batch that comes from the replay; the rest from demonstrations (RLPD: 0.5)
    mix_rl_rate: Share = 1.0
    # demonstrations loaded into the replay
    preload_num_data: NotNegative = 0
    # their HDF5 file
    preload_datapath: InputData = ""
    # how demonstrations are read, as for BC (train_bc.py)
    dataset: DemoOptions = field(default_factory=DemoOptions)
    # keep successful online episodes out of the demonstration replay
    freeze_bc_replay: Flag = 1
    # stop after BC pretraining
    pretrain_only: Flag = 1
    # BC pretraining of the actor (RFT): epochs ...
    pretrain_num_epoch: NotNegative = 0
    # ... of this many steps
    pretrain_epoch_len: Positive = 10000
    # weights to start the agent from
    load_pretrained_agent: InputFile = ""
    # load only encoder and actor from them; the critics start anew
    load_policy_only: Flag = 1
    # RFT: add the BC regulariser to the actor's loss
    add_bc_loss: Flag = 0
    # factor on environment rewards
    env_reward_scale: RewardScale = 1.0
    # episodes collected before training (by BC, else the pretrained agent, else at random)
    num_warm_up_episode: NotNegative = 50
    # count preloaded demonstrations among them (0: they are additional)
    warm_up_counts_demos: Flag = 0
    # episodes per evaluation
    num_eval_episode: NotNegative = 10
    # write the last k successes to HDF5 at every k-th success (-1: never); robosuite's have
    # simulator states and, for pixel agents, images of two cameras
    save_per_success: Annotated[int, AtLeast(-1)] = -1
    # evaluate in worker processes
    mp_eval: Flag = 0
    # number of worker processes
    num_eval_worker: Workers = 2
    # environment steps of the run (after warm-up)
    num_train_step: Positive = 200000
    # environment steps between evaluations, log lines and checkpoints
    log_per_step: Positive = 5000
    # threads of torch; 0 leaves it to OMP_NUM_THREADS
    torch_threads: Threads = 0
    # threads of the C++ kernels (perceptrons of state agents); results do not depend on it. 2 with
    # torch at one thread updates on two cores; 0: as torch
    kernel_threads: Threads = 0
    # module(s) that checkpoints may import by name, joined by "+" (docs/security.md)
    trust_module: str = ""
    # continue the run in save_dir from its last checkpoint
    resume: Flag = 0
    # replace the run in save_dir; with 0 nothing is overwritten
    overwrite: Flag = 0
    # build everything, time a few steps, print what the run costs, and write nothing
    dry_run: Flag = 0
    save_dir: str = "exps/rl/run1"

    def __post_init__(self) -> None:
        if self.bc_policy in ("none", "None"):
            self.bc_policy = ""
        self.stddev_min = min(self.stddev_max, self.stddev_min)
        self._validate()
        self._check_agent()

    def _validate(self) -> None:
        for name in ("pretrain_num_epoch", "add_bc_loss"):
            if getattr(self, name) > 0 and self.preload_num_data == 0:
                raise ValueError(
                    f"{name}: {getattr(self, name)} needs demonstrations, expected "
                    "preload_num_data of at least 1 and preload_datapath"
                )
        if max(self.warm_up_target, self.preload_num_data) > self.replay_buffer_size:
            raise ValueError(
                f"replay_buffer_size: {self.replay_buffer_size}, expected at least "
                f"num_warm_up_episode {self.num_warm_up_episode} and preload_num_data "
                f"{self.preload_num_data}, which warm-up fills the replay with"
            )
        if self.mix_rl_rate < 1 and self.preload_num_data == 0 and self.freeze_bc_replay:
            raise ValueError(
                f"mix_rl_rate: {self.mix_rl_rate} takes part of each batch from demonstrations, "
                "expected preload_num_data of at least 1 or freeze_bc_replay 0"
            )
        if self.mix_rl_rate < 1 and int(self.batch_size * self.mix_rl_rate) < 1:
            raise ValueError(
                f"mix_rl_rate: {self.mix_rl_rate}, expected at least one transition of batch_size "
                f"{self.batch_size}"
            )
        if self.num_warm_up_episode == 0 and self.preload_num_data == 0:
            raise ValueError(
                "num_warm_up_episode: 0 leaves the replay empty; expected at least 1, or "
                "demonstrations (preload_num_data, preload_datapath)"
            )
        if not self.use_state and "+" in self.rl_camera:
            raise ValueError(
                f"rl_camera: '{self.rl_camera}': pixel agents see one camera; expected one name"
            )

    def _check_agent(self) -> None:
        """Check that the agent can read the run's observations and has the required phases."""
        row = self.agent_kind
        if ("state" if self.use_state else "camera") not in row.reads:
            raise ValueError(
                f"agent: {self.agent} reads {row.reads[0]}: expected use_state "
                f"{int(row.reads[0] == 'state')}, got {self.use_state}"
            )
        for name in () if row.rft else ("pretrain_num_epoch", "add_bc_loss"):
            if getattr(self, name) > 0:
                raise ValueError(
                    f"{name}: {getattr(self, name)}, expected 0: the agent {self.agent} has no "
                    "such phase or loss"
                )
        facts = RunFacts(
            use_state=bool(self.use_state),
            demonstrations=self.preload_num_data > 0,
            pretrained=bool(self.pretrain_num_epoch or self.load_pretrained_agent),
            add_bc_loss=bool(self.add_bc_loss),
            nstep=self.nstep,
            pretrains=self.pretrain_num_epoch > 0,
        )
        try:
            self.agent_cfg.check(facts)
        except ValueError as error:
            raise ValueError(f"{row.section}.{error}") from None

    @classmethod
    def sections(cls) -> dict[str, Section]:
        """One per row of ``rl.registry.AGENTS``."""
        return {kind: Section(row.section, row.config) for kind, row in AGENTS.items()}

    @classmethod
    def kind_of(cls, values: Mapping[str, Any]) -> str:
        """The row that ``agent`` chooses."""
        kind = values.get("agent")
        return kind if isinstance(kind, str) and kind in AGENTS else DEFAULT_AGENT

    @property
    def agent_kind(self) -> AgentKind:
        """The row of ``rl.registry.AGENTS``."""
        return AGENTS[self.KIND]

    @property
    def agent_cfg(self) -> AgentConfig:
        """The agent's section."""
        return self.own_section

    @property
    def rl_cameras(self) -> list[str]:
        """Cameras of the agent; none for states."""
        return [] if self.use_state else self.rl_camera.split("+")

    @property
    def stddev_schedule(self) -> str:
        """Exploration noise over environment steps, as ``common_utils.ibrl_utils.schedule``."""
        return f"linear({self.stddev_max},{self.stddev_min},{self.stddev_step})"

    @property
    def lanes(self) -> str:
        """How ``env.lanes.open_lanes`` plays the environments; "": as is usual for their number."""
        return "ray" if self.rollout == "ray" else ""

    @property
    def warm_up_target(self) -> int:
        """Episodes in the replay when training starts, demonstrations included."""
        demos = self.preload_num_data if self.preload_datapath else 0
        return self.num_warm_up_episode + (0 if self.warm_up_counts_demos else demos)

    @property
    def uses_bc_replay(self) -> bool:
        """Whether demonstrations are sampled separately (RLPD, RFT, pretraining, saving)."""
        return (
            self.mix_rl_rate < 1
            or self.save_per_success > 0
            or self.pretrain_num_epoch > 0
            or self.add_bc_loss > 0
        )


def rl_env_config(cfg: MainConfig, bc_cameras: list[str] | None = None) -> EnvConfig:
    """The environment of a run: what the agent sees, plus the BC policy's cameras."""
    cameras = list(dict.fromkeys(cfg.rl_cameras + (bc_cameras or [])))
    return EnvConfig(
        suite=cfg.suite,
        task=cfg.task_name,
        cameras=cameras,
        image_size=cfg.image_size,
        rl_image_size=cfg.rl_image_size,
        obs_stack=cfg.obs_stack,
        prop_stack=cfg.prop_stack,
        state_stack=cfg.state_stack,
        use_state=cfg.use_state,
        episode_length=cfg.episode_length,
        action_repeat=cfg.action_repeat,
        end_on_success=cfg.end_on_success,
        env_reward_scale=cfg.env_reward_scale,
        render_quality=cfg.render_quality,
        goal_tolerance=cfg.goal_tolerance,
        hide_velocity=cfg.hide_velocity,
        **cfg.gym.env_fields(),
        **cfg.remote.env_fields(),
    )

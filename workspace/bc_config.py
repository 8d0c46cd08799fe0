"""The configuration of a behaviour-cloning run (``train_bc.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from bc.dataset import DatasetConfig
from bc.registry import POLICIES
from common_utils.config_kinds import Kinded, Section
from common_utils.paths import InputFile
from common_utils.ranges import (
    AtLeast,
    BatchSize,
    Between,
    NotNegative,
    NotNegativeNumber,
    Or,
    PictureSize,
    Positive,
    PositiveNumber,
    Seed,
    Threads,
    Workers,
)
from common_utils.run_config import Flag, RunConfig
from env.config import EnvConfig
from networks.graphs import Compile
from networks.optim import exponential_decay, warmup
from networks.precision import Precision

# What may differ between a run and its resumption without changing what was done so far.
RESUMABLE_CHANGES = (
    "resume",
    "save_dir",
    "num_epoch",
    "device",
    "compile",
    "use_wb",
    "use_trackio",
    "mp_eval",
    "num_eval_worker",
    "kernel_threads",
    "trust_module",
    "env.remote_url",
    "env.remote_step_timeout",
    "env.remote_reset_timeout",
    "env.remote_retry_for",
)


@dataclass
class MainConfig(Kinded, RunConfig):
    """Defaults are those of the paper's release; departures are named options.

    The policy's fields are in a section of its kind (``bc.registry``): ``--ebm.net.width``.
    """

    CHOSEN_BY: ClassVar[str] = "policy_type"

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    # which policy: auto chooses state_policy or policy by dataset.use_state
    policy_type: str = "auto"
    # source of all randomness of the run
    seed: Seed = 1
    # weights to start from (a .pt or .safetensors file), or "none"
    load_model: InputFile = "none"
    # epochs (an evaluation follows each) ...
    num_epoch: Positive = 20
    # ... of this many gradient steps
    epoch_len: Positive = 10000
    # demonstrated steps per gradient step
    batch_size: BatchSize = 256
    # Adam step size
    lr: PositiveNumber = 1e-4
    # exponential: lr * 0.99^(step / lr_decay_steps); warmup: Keras's inverse square root
    lr_schedule: Literal["constant", "exponential", "warmup"] = "constant"
    # steps in which the exponential schedule falls by one percent
    lr_decay_steps: PositiveNumber = 100
    # keras_adam: epsilon 1e-7, added before the bias correction, as Implicit BC was trained
    optimizer: Literal["adam", "keras_adam"] = "adam"
    # the gradient's norm is clipped to this; 0: no clipping
    grad_clip: NotNegativeNumber = 5
    # 0: Adam, else AdamW with this decay
    weight_decay: NotNegativeNumber = 0
    # above 0: also keep an average of the weights (rate tau per step) and evaluate it too
    ema: Annotated[float, Between(0, 1), Or(-1)] = -1
    # auto (cuda when present), cpu, cuda or cuda:N
    device: str = "auto"
    # off: operations one by one, with the kernels on a CPU; default: the loss and its gradients are
    # compiled into one graph by torch.compile; max: with tuning, and captured on a GPU
    compile: Compile = "off"
    # float32; tf32: products and convolutions rounded on an NVIDIA GPU; bfloat16: ResNets of images
    # under autocast (made for GPUs)
    precision: Precision = "float32"
    # threads of the C++ kernels (perceptrons, energy networks); results do not depend on it. 2 with
    # torch at one thread trains on two cores; 0: as torch
    kernel_threads: Threads = 0
    # games after each epoch; 0: no evaluation; the newest weights count as the best
    num_eval_episode: NotNegative = 50
    # games of the long evaluations, every 5 epochs and at the end (none with num_eval_episode 0)
    num_final_episode: NotNegative = 100
    # evaluate in worker processes
    mp_eval: Flag = 0
    # number of worker processes
    num_eval_worker: Workers = 2
    # also write epoch{N}.pt every save_per epochs (-1: never)
    save_per: Annotated[int, AtLeast(-1)] = -1
    # module(s) that demonstrations may import by name, joined by "+" (docs/security.md)
    trust_module: str = ""
    # continue the run in save_dir from its last saved state
    resume: Flag = 0
    # replace the run in save_dir; with 0 nothing is overwritten
    overwrite: Flag = 0
    # build everything, time a few steps, print what the run costs, and write nothing
    dry_run: Flag = 0
    # filled in from the dataset: the task
    task_name: str = ""
    # filled in from the dataset: the robots
    robots: list[str] = field(default_factory=list)
    # filled in from the environment: pixels of rendered images
    image_size: Annotated[PictureSize, Or(-1)] = -1
    # filled in from the dataset: pixels of the policy's images (-1 with states)
    rl_image_size: Annotated[PictureSize, Or(-1)] = -1
    # filled in from the dataset: shape of one (stacked) image or state
    obs_shape: list[Positive] = field(default_factory=list)
    # filled in from the dataset: shape of one (stacked) proprioception vector
    prop_shape: list[Positive] = field(default_factory=list)
    # filled in from the dataset
    action_dim: NotNegative = 0
    # the environment of evaluations; suite, task and what the policy sees are filled in
    env: EnvConfig = field(default_factory=EnvConfig)
    save_dir: str = "exps/bc/run1"

    def __post_init__(self) -> None:
        if self.load_model in ("", "None"):
            self.load_model = "none"
        if self.optimizer == "keras_adam" and self.weight_decay:
            raise ValueError(
                f"weight_decay: {self.weight_decay}, expected 0 with optimizer keras_adam"
            )
        self._check_policy()
        if self.compile != "off" and self.own_section.draws_in_training:
            raise ValueError(
                f"compile: {self.compile}, expected off with policy_type {self.kind}, whose loss "
                "draws random numbers (ebm.compile is for its chains)"
            )

    def _check_policy(self) -> None:
        """Check that the policy can read what the dataset delivers."""
        dataset, row = self.dataset, POLICIES[self.kind]
        if wrong := row.check_inputs(bool(dataset.use_state), len(dataset.rl_cameras)):
            raise ValueError(f"policy_type: {self.policy_type} {wrong}")
        try:
            self.own_section.check(pixels=not dataset.use_state)
        except ValueError as error:
            raise ValueError(f"{row.section}.{error}") from None

    @classmethod
    def sections(cls) -> dict[str, Section]:
        """One per row of ``bc.registry.POLICIES``."""
        return {kind: Section(row.section, row.config) for kind, row in POLICIES.items()}

    @classmethod
    def choices(cls) -> tuple[str, ...]:
        """Values of ``policy_type``."""
        return ("auto", *POLICIES)

    @classmethod
    def kind_of(cls, values: Mapping[str, Any]) -> str:
        """The row that ``policy_type`` and, with auto, ``dataset.use_state`` choose."""
        kind = values.get("policy_type")
        if isinstance(kind, str) and kind in POLICIES:
            return kind
        return "state" if values.get("dataset.use_state") in (1, True) else "pixel"

    @property
    def kind(self) -> str:
        """The row of ``bc.registry.POLICIES``."""
        return self.KIND

    @property
    def evaluates(self) -> bool:
        """Whether games are played."""
        return self.num_eval_episode > 0 and not self.dataset.real_data

    def lr_at(self, step: int) -> float:
        """Step size of gradient step ``step`` (from 0)."""
        if self.lr_schedule == "exponential":
            return exponential_decay(self.lr, step, self.lr_decay_steps)
        if self.lr_schedule == "warmup":
            return warmup(self.lr, step)
        return self.lr

"""Behaviour cloning on Meta-World with the documented names; ``train_bc`` has the loop.

    python mw_main/train_bc_mw.py --dataset.path Assembly --save_dir exps/bc/metaworld/run

``--dataset.path`` takes Assembly, BoxClose, StickPull, CoffeePush (their demonstrations under
release/data/metaworld), or a file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from typing import Annotated

import train_bc
from bc.dataset import DatasetConfig
from bc.explicit.bc_policy import StateBcPolicyConfig
from bc.explicit.mw_bc_policy import BcPolicyConfig
from common_utils import run_config
from common_utils.config_kinds import Kinded, Section
from common_utils.errors import UserError, run_program
from common_utils.paths import InputFile
from common_utils.ranges import (
    BatchSize,
    Between,
    NotNegative,
    NotNegativeNumber,
    Or,
    PictureSize,
    Positive,
    PositiveNumber,
    Seed,
    Workers,
)
from common_utils.run_config import Flag, RunConfig
from env.config import EnvConfig
from mw_main.names import DATASETS, released
from workspace.build_policy import metaworld_names

NUM_EVAL_EPISODE = 50


def _dataset() -> DatasetConfig:
    return DatasetConfig(rl_camera="corner2", num_data=3, eval_episode_len=100)


@dataclass
class MainConfig(Kinded, RunConfig):
    """The documented fields, and what ``train_bc`` adds to them.

    The policy's options are in section ``policy`` on images and ``state_policy`` on states.
    """

    CHOSEN_BY: ClassVar[str] = "dataset.use_state"

    # path: a name (Assembly, BoxClose, StickPull, CoffeePush) or an HDF5 file
    dataset: DatasetConfig = field(default_factory=_dataset)
    # source of all randomness of the run
    seed: Seed = 1
    # weights to start from (a .pt file), or "none"
    load_model: InputFile = "none"
    # epochs (an evaluation follows each) ...
    num_epoch: Positive = 2
    # ... of this many gradient steps
    epoch_len: Positive = 10000
    # demonstrated steps per gradient step
    batchsize: BatchSize = 256
    # Adam step size
    lr: PositiveNumber = 1e-4
    # largest norm of the gradient
    grad_clip: NotNegativeNumber = 5
    # 0: Adam, else AdamW with this decay
    weight_decay: NotNegativeNumber = 0
    # above 0: also keep an average of the weights (rate tau per step) and evaluate it too
    ema: Annotated[float, Between(0, 1), Or(-1)] = -1
    # auto (cuda when present), cpu, cuda or cuda:N
    device: str = "auto"
    # games after each epoch, and with the best weights at the end; 0: none
    num_eval_episode: NotNegative = NUM_EVAL_EPISODE
    # evaluate in worker processes
    mp_eval: Flag = 0
    # number of worker processes
    num_eval_worker: Workers = 2
    # module(s) that demonstrations may import by name, joined by "+" (docs/security.md)
    trust_module: str = ""
    # continue the run in save_dir from its last saved state
    resume: Flag = 0
    # replace the run in save_dir; with 0 nothing is overwritten
    overwrite: Flag = 0
    # build everything, time a few steps, print what the run costs, and write nothing
    dry_run: Flag = 0
    # the environment of evaluations; suite, task and what the policy sees are filled in
    env: EnvConfig = field(default_factory=EnvConfig)
    # filled in from the dataset
    task_name: str = ""
    # filled in from the dataset
    robot: str = ""
    # filled in from the dataset
    rl_image_size: Annotated[PictureSize, Or(-1)] = -1
    save_dir: str = "exps/bc/metaworld/run"

    @classmethod
    def sections(cls) -> dict[str, Section]:
        """By ``dataset.use_state``."""
        return {
            "0": Section("policy", BcPolicyConfig),
            "1": Section("state_policy", StateBcPolicyConfig),
        }

    @classmethod
    def kind_of(cls, values: Mapping[str, Any]) -> str:
        """``dataset.use_state``."""
        return "1" if values.get("dataset.use_state") in (1, True) else "0"


def to_train_bc(cfg: MainConfig) -> train_bc.MainConfig:
    """The same run with ``train_bc``'s names."""
    tree = run_config.to_dict(cfg)
    tree["dataset"]["path"] = released(DATASETS, cfg.dataset.path, cfg.dataset.path)
    tree["num_final_episode"] = cfg.num_eval_episode
    return run_config.from_dict(train_bc.MainConfig, metaworld_names(tree), "train_bc_mw")


@contextmanager
def own_names() -> Iterator[None]:
    """Report errors of train_bc with this script's field names."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("mw_policy", "policy")
        error.args = (re.sub(r"\bbatch_size\b", "batchsize", text),)
        raise


def main() -> int:
    """Entry point: parse, run, exit status 0."""
    with own_names():
        return train_bc.main(lambda: to_train_bc(run_config.parse(MainConfig)))


if __name__ == "__main__":
    sys.exit(run_program(main))

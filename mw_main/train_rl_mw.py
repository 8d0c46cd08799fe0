"""IBRL, RLPD and RFT on Meta-World with the documented names; ``train_rl`` has the loop.

    python mw_main/train_rl_mw.py --config_path release/cfgs/metaworld/ibrl_basic.yaml \
        --bc_policy assembly --save_dir exps/rl/metaworld/run1 --use_wb 0

``--bc_policy`` takes assembly, boxclose, coffeepush or stickpull (their weights and
demonstrations under release/), or a weight file. Task, image size, stacking and action
repeat are those of the BC policy's run, also for RLPD and RFT (``use_bc 0``).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from typing import Annotated

import train_rl
from common_utils.errors import run_program
from common_utils.ranges import Between, Or, PictureSize
from common_utils.run_config import Flag
from env.suites import Suite
from mw_main.names import BC_DATASETS, BC_POLICIES, released


@dataclass
class MainConfig(train_rl.MainConfig):
    """train_rl.MainConfig with Meta-World's defaults; "" takes the value of the BC policy's run."""

    suite: Suite = "metaworld"
    # task; "" takes the BC policy's
    task_name: str = ""
    # camera of the agent
    rl_camera: str = "corner2"
    # simulator steps per action; 0 takes the BC policy's
    action_repeat: Annotated[int, Between(0, 1000)] = 0
    # size of the images that the agent sees; 0 takes the BC policy's
    rl_image_size: Annotated[PictureSize, Or(0)] = 0
    # count preloaded demonstrations among the warm-up episodes
    warm_up_counts_demos: Flag = 1
    # stop after BC pretraining (the original's Meta-World script always continues)
    pretrain_only: Flag = 0
    save_dir: str = "exps/rl/metaworld/run1"

    def __post_init__(self) -> None:
        name = self.bc_policy
        self.bc_policy = released(BC_POLICIES, name, name)
        if not self.preload_datapath:
            self.preload_datapath = released(BC_DATASETS, name, "")
        super().__post_init__()


if __name__ == "__main__":
    sys.exit(run_program(train_rl.main, MainConfig))

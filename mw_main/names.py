"""Short names of the documented Meta-World commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from common_utils.paths import REPO, locate

_TASKS = {
    "assembly": "Assembly",
    "boxclose": "BoxClose",
    "coffeepush": "CoffeePush",
    "stickpull": "StickPull",
}

BC_POLICIES = {
    k: f"release/model/metaworld/path{v}_num_data3_num_epoch2_seed1/model1.pt"
    for k, v in _TASKS.items()
}
BC_DATASETS = {
    k: f"release/data/metaworld/{v}_frame_stack_1_96x96_end_on_success/dataset.hdf5"
    for k, v in _TASKS.items()
}
# Names that train_bc_mw.py takes for --dataset.path.
DATASETS = {v: BC_DATASETS[k] for k, v in _TASKS.items()}


def released(table: Mapping[str, str], name: str, default: str) -> str:
    """The path of the file that ``table`` lists under ``name``; ``default`` if there is none."""
    return locate(table[name], [Path.cwd(), REPO]) if name in table else default

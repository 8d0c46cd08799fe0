"""The commands that make missing files: one table of the documented paths.

The first row whose pattern is found in the path counts. Its command is filled in with the
pattern's groups and with ``{folder}``, the file's folder. Words in capitals (TASK, FOLDER) are
for the reader to replace. Every row has an example: a test fills it in and checks that the
programs and configurations exist and take the options.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

RAW_ROBOMIMIC = (
    "robomimic's raw recordings are replayed and rendered by "
    "'python -m tools.dataset_states_to_obs --dataset RAW.hdf5 --output_folder FOLDER'"
)


class Row(NamedTuple):
    """The command makes the files whose path matches the pattern."""

    pattern: str
    command: str
    example: str


_METAWORLD = "python mw_main/generate_metaworld_dataset.py --env_cfg.env_name"
_ROBOMIMIC = "python -m tools.generate_demos --task"
_ORACLE = "python -m tools.collect_oracle --num 2000 --out {folder} --task"
_USUAL = "--num 200 --noise 0.1 --seed 1"
_SIZED = r"processed_data(?!96\.)(?P<size>\d+)\.hdf5"  # other than the usual size


def _robomimic(folder: str, options: str, sized: str = "") -> Row:
    """``sized``: the option for the picture size, where the file name states it."""
    return Row(
        rf"robomimic.*/{folder}/{sized and _SIZED}[^/]*$",
        f"{_ROBOMIMIC} {options} {sized}--out {{folder}}; {RAW_ROBOMIMIC}",
        f"release/data/robomimic/{folder}/processed_data{64 if sized else 96}.hdf5",
    )


DEMONSTRATIONS = (
    Row(
        r"metaworld.*/(?P<task>[\w-]+?)(_frame_stack\w*)?/[^/]+$",
        f"{_METAWORLD} {{task}} --num_episodes 3 --env_cfg.frame_stack 1 "
        "--env_cfg.end_on_success True --output_path {folder}",
        "release/data/metaworld/Assembly_frame_stack_1_96x96_end_on_success/dataset.hdf5",
    ),
    _robomimic("lift", 'Lift --num 10 --noise 0.4 --seed 1 --cameras "[]"'),
    _robomimic(
        "lift_pixel", "Lift --num 50 --noise 0.1 --seed 1 --obs_size 64 --render_quality fast"
    ),
    _robomimic("can", f"PickPlaceCan {_USUAL}", "--obs_size {size} "),
    _robomimic("can", f"PickPlaceCan {_USUAL}"),
    _robomimic("can_small", 'PickPlaceCan --num 50 --noise 0.15 --seed 1 --cameras "[]"'),
    _robomimic("square", f"NutAssemblySquare {_USUAL}", "--obs_size {size} "),
    _robomimic("square", f"NutAssemblySquare {_USUAL}"),
    _robomimic("transport", f"TwoArmTransport {_USUAL} --episode_length 700"),
    _robomimic("tool_hang", f"ToolHang {_USUAL} --episode_length 700"),
    Row(
        "robomimic",
        f"{_ROBOMIMIC} TASK {_USUAL} --out {{folder}}; {RAW_ROBOMIMIC}",
        "data/robomimic/mine/demo.hdf5",
    ),
    Row(
        r"(?P<domain>[a-z]+)-(?P<kind>[a-z]+)-v\d+/[^/]+$",
        "minari download D4RL/{domain}/{kind}-v2; python -m tools.convert_minari "
        "--dataset D4RL/{domain}/{kind}-v2 --out {folder}",
        "release/data/d4rl/door-human-v0/dataset.hdf5",
    ),
    Row(
        r"\bibc/.*particle_(?P<dim>\d+d)[^/]*/[^/]+$",
        f"{_ORACLE} PARTICLE_{{dim}}",
        "release/data/ibc/particle_2d/dataset.hdf5",
    ),
    *(
        Row(rf"\bibc/(.*/)?{folder}/[^/]+$", f"{_ORACLE} {task}", f"release/data/ibc/{folder}/d.h5")
        for folder, task in {
            "push": "PUSH",
            "push_discontinuous": "PUSH_DISCONTINUOUS",
            "push_multimodal": "PUSH_MULTIMODAL",
            "push_pixels": "PUSH --use_image_obs 1",
        }.items()
    ),
    Row(r"\bibc/", f"{_ORACLE} TASK", "release/data/ibc/mine/dataset.hdf5"),
    Row("", f"{_METAWORLD} TASK --output_path {{folder}} (writes dataset.hdf5 there)", "data/d.h5"),
)

# BC pretraining of RFT's agents
_PRETRAINED = tuple(
    Row(
        rf"robomimic/{task}_pretrain/[^/]+$",
        f"python train_rl.py --config_path release/cfgs/robomimic_rl/{task}_rft.yaml "
        f'--load_pretrained_agent "" --pretrain_num_epoch {epochs} --save_dir {{folder}}',
        f"release/model/robomimic/{task}_pretrain/model0.pt",
    )
    for task, epochs in {"can": 5, "square": 10}.items()
)

WEIGHTS = (
    Row(
        r"/path(?P<task>\w+?)_num_data[^/]*/[^/]+$",
        "python mw_main/train_bc_mw.py --dataset.path {task} --save_dir {folder}",
        "release/model/metaworld/pathAssembly_num_data3_num_epoch2_seed1/model1.pt",
    ),
    *_PRETRAINED,
    *(
        Row(
            rf"robomimic/{name}/[^/]+$",
            f"python train_bc.py --config_path release/cfgs/robomimic_bc/{name}.yaml "
            "--save_dir {folder} --use_wb 0",
            f"release/model/robomimic/{name}/model0.pt",
        )
        for task, kinds in {
            "lift": ("pixel", "state"),
            "can": ("", "state", "state_small"),
            "square": ("", "state"),
            "transport": ("", "state"),
            "tool_hang": ("", "state"),
        }.items()
        for name in ("_".join(filter(None, (task, kind))) for kind in kinds)
    ),
    Row(
        "",
        "python train_bc.py --dataset.path DEMONSTRATIONS.hdf5 --save_dir {folder}",
        "exps/bc/mine/model0.pt",
    ),
)

AGENTS = (
    *_PRETRAINED,
    Row(
        "",
        "python train_rl.py --preload_datapath DEMONSTRATIONS.hdf5 --preload_num_data 10 "
        "--pretrain_num_epoch 5 --save_dir {folder}",
        "exps/rl/mine/model0.pt",
    ),
)


def how_to_make(path: str | Path, rows: Sequence[Row] = DEMONSTRATIONS) -> str:
    """The command that makes a missing file of demonstrations (or one of ``rows``)."""
    text = Path(path).as_posix()
    folder = shlex.quote(Path(path).parent.as_posix()) if Path(path).name else "FOLDER"
    for row in rows:
        if match := re.search(row.pattern, text):
            words = {k: shlex.quote(v) for k, v in match.groupdict().items()}
            return row.command.format(folder=folder, **words)
    raise AssertionError("the last row matches every path")


def how_to_train(path: str | Path) -> str:
    """The command that makes missing weights of a policy, or of an agent in a released run."""
    return how_to_make(path, WEIGHTS)


def how_to_pretrain(path: str | Path) -> str:
    """The command that makes missing weights of an agent."""
    return how_to_make(path, AGENTS)

"""Copy a robosuite dataset with absolute actions (poses) instead of relative ones.

    python -m tools.robomimic_dataset_conversion --dataset processed_data96.hdf5 \
        --output_path absolute/processed_data96.hdf5 [--error_report report.json]

In every recorded state the controller computes the pose that the relative action means: position
(m) and axis-angle rotation of the hand in the world, and the unchanged gripper command. The
relative actions stay in the file as "actions_delta". ``env_cfg.json`` is written next to it, but
does not replace one that other files there share. ``--error_report`` plays both kinds of actions
from each recording's first state and reports how far they deviate from the recorded path. As in
robosuite 1.4, an exactly zero rotation in its recordings keeps the previous target rotation.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bc.loader import DemoFile
from common_utils.atomic import atomic_json
from common_utils.demo_file import open_demos, write_env_cfg
from common_utils.errors import run_program
from common_utils.options import Options, numeric
from common_utils.progress import RunProgress, console
from common_utils.ranges import AllOr
from common_utils.run_config import ConfigError
from env.core import EnvError
from env.robosuite.obs import observe
from env.robosuite.replay import (
    RecordedScene,
    hand_rotations,
    poses_asked_for,
    restore_state,
    restore_step,
    to_base_frame,
)
from env.robosuite.sim import make_sim, reset_sim, step_sim
from tools.filter_keys import masks_of
from tools.raw_demos import (
    RawDemo,
    Source,
    adopt,
    print_each_note,
    read_demo,
    read_source,
)
from tools.recording import disk_reported


class Converter:
    """Absolute actions of one file's demonstrations."""

    def __init__(self, file: DemoFile, source: Source) -> None:
        self.source, self._file = source, file
        self._env = make_sim(source.task)
        reset_sim(self._env, 0)
        self._scene = RecordedScene(self._env)

    def absolute(self, demo: RawDemo) -> tuple[np.ndarray, list[str]]:
        """float64 [T, A]: the poses that the demonstration's relative actions command; and
        sentences about what of its model is not taken over. Raises DatasetError."""
        _, differences = adopt(self._file, self._scene, demo)
        try:
            return self._poses(demo), differences
        except EnvError as error:
            raise self._file.error(demo.name, "states", str(error)) from error

    def _poses(self, demo: RawDemo) -> np.ndarray:
        env, out = self._env, []
        restore_state(env, demo.states[0])
        goals = hand_rotations(env) if self.source.keeps_rotation else None
        for state, action in zip(demo.states, demo.actions, strict=True):
            restore_state(env, state)
            pose, rotations = poses_asked_for(
                env, action, goals, world_frame=self.source.world_frame
            )
            goals = rotations if self.source.keeps_rotation else None
            out.append(pose)
        return continuous_rotations(np.array(out), len(env.robots))


def continuous_rotations(actions: np.ndarray, arms: int) -> np.ndarray:
    """The same rotations, without the jumps of axis-angle vectors at half a turn."""
    out = actions.copy()
    for arm in range(arms):
        part = out[:, 7 * arm + 3 : 7 * arm + 6]
        for t in range(1, len(part)):
            angle = np.linalg.norm(part[t])
            if angle < 1e-6:
                continue
            turn = part[t] * (2 * np.pi / angle)
            choices = part[t] + turn * np.arange(-1, 2)[:, None]
            part[t] = choices[np.linalg.norm(choices - part[t - 1], axis=1).argmin()]
    return out


class Reporter:
    """Plays actions from a recording's first state and compares with the recorded path."""

    def __init__(self, file: DemoFile, source: Source) -> None:
        self.source, self._file = source, file
        self._envs = {
            kind: make_sim(source.task, delta=kind == "relative")
            for kind in ("relative", "absolute")
        }
        for env in self._envs.values():
            reset_sim(env, 0)
        self._scenes = {kind: RecordedScene(env) for kind, env in self._envs.items()}

    def report(self, demo: RawDemo, absolute: np.ndarray) -> dict[str, Any]:
        """Success of both, and distances (m) of robot0's hand from the recorded path."""
        relative = demo.actions
        if self.source.world_frame:
            relative = to_base_frame(self._envs["relative"], relative)
        out: dict[str, Any] = {"name": demo.name, "steps": len(relative)}
        for kind, actions in (("relative", relative), ("absolute", absolute)):
            env, scene = self._envs[kind], self._scenes[kind]
            adopt(self._file, scene, demo)
            path = self._path(env, demo.states)
            success, errors = self._play(env, demo.states, actions, path)
            out[kind] = {
                "success": success,
                "position_error_mean": float(np.mean(errors)),
                "position_error_max": float(np.max(errors)),
            }
        return out

    def _path(self, env: Any, states: np.ndarray) -> np.ndarray:
        path = []
        for t, state in enumerate(states):
            restore_state(env, state, live=t > 0)
            path.append(observe(env)["robot0_eef_pos"])
        return np.array(path)

    def _play(
        self, env: Any, states: np.ndarray, actions: np.ndarray, path: np.ndarray
    ) -> tuple[bool, list[float]]:
        restore_step(env, states, actions, 0)
        success, errors = False, [0.0]
        for t, action in enumerate(actions):
            success = step_sim(env, action) or success
            if t + 1 < len(path):
                errors.append(float(np.linalg.norm(observe(env)["robot0_eef_pos"] - path[t + 1])))
        return success, errors


def absolute_env_args(env_args: dict[str, Any]) -> dict[str, Any]:
    """The file's description of its environment with an absolute controller."""
    args: dict[str, Any] = json.loads(json.dumps(env_args))
    args["env_kwargs"] = args.get("env_kwargs") or {}
    configs = args["env_kwargs"].get("controller_configs") or {}
    args["env_kwargs"]["controller_configs"] = configs
    for config in configs if isinstance(configs, list) else [configs]:
        if config.get("body_parts") is not None:
            arms = config["body_parts"].get("arms", config["body_parts"])
            absolute = {"input_type": "absolute", "input_ref_frame": "world"}
            arms["right"] = (arms.get("right") or {}) | absolute
        else:
            config["control_delta"] = False
    return args


def convert(dataset: Path, output: Path, num: int = -1, with_report: bool = False) -> list[Any]:
    """Write ``output`` (and env_cfg.json next to it); returns one report per demonstration.

    Raises DatasetError for a file that cannot be converted, EnvError for a full disk.
    """
    if output.resolve() == dataset.resolve():
        raise ConfigError(f"output_path: '{output}' is the dataset itself")
    reports = []
    notes: dict[str, list[str]] = {}
    with DemoFile(dataset) as file:
        source = read_source(file)
        if not source.delta:
            raise file.error(None, "data.attrs['env_args']", "the actions are already absolute")
        if num > len(file.names):
            raise ConfigError(
                f"n: {num}, but '{dataset}' holds {len(file.names)} demonstrations, "
                "expected no more"
            )
        names = file.names if num < 0 else file.names[:num]
        for note in source.notes:
            console().print(f"note: {note}", soft_wrap=True, markup=False)
        masks = masks_of(file, {name: name for name in names})
        converter = Converter(file, source)
        reporter = Reporter(file, source) if with_report else None
        env_args = absolute_env_args(file.env_args)
        with (
            disk_reported(output),
            open_demos(output, env_args) as out,
            RunProgress(len(names), "demonstrations") as progress,
        ):
            for key, value in file.data.attrs.items():
                if key not in ("env_args", "env_info", "total"):
                    out.data.attrs[key] = value
            for done, name in enumerate(names):
                demo = read_demo(file, name, source)
                absolute, differences = converter.absolute(demo)
                for note in [*demo.notes, *differences]:
                    notes.setdefault(note, []).append(name)
                file.check_all(name)
                copy = out.copy(file.group(name), name, expand_soft=True, expand_external=True)
                copy.move("actions", "actions_delta")
                copy["actions"] = absolute
                if reporter is not None:
                    reports.append(reporter.report(demo, absolute))
                progress.update(done + 1)
            out.add_masks(masks)
    write_env_cfg(env_args, output)
    print_each_note(notes)
    return reports


def summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all demonstrations: successes, mean and largest distance from the recorded path."""
    out: dict[str, Any] = {"demonstrations": len(reports)}
    for kind in ("relative", "absolute"):
        parts = [r[kind] for r in reports]
        out[kind] = {
            "successes": sum(p["success"] for p in parts),
            "position_error_mean": float(np.mean([p["position_error_mean"] for p in parts])),
            "position_error_max": float(np.max([p["position_error_max"] for p in parts])),
        }
    return out


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Options(description=__doc__.split("\n", maxsplit=1)[0])
    p.add_argument("--dataset", type=Path, required=True, help="HDF5 file, relative actions")
    p.add_argument("--output_path", type=Path, required=True, help="HDF5 file to write")
    p.add_argument("--n", type=numeric(AllOr), default=-1, help="only the first n demonstrations")
    p.add_argument("--error_report", type=Path, help="JSON file: how the actions play")
    return p


def main(args: Sequence[str] | None = None) -> int:
    """Entry point: exit status 0, or 2 with a message."""
    options = parser().parse_args(args)
    with_report = options.error_report is not None
    reports = convert(options.dataset, options.output_path, options.n, with_report)
    if with_report:
        total = summary(reports)
        atomic_json({"summary": total, "demonstrations": reports}, options.error_report)
        for kind in ("relative", "absolute"):
            part = total[kind]
            console().print(
                f"{kind} actions: {part['successes']} of {len(reports)} succeed, hand "
                f"{1000 * part['position_error_mean']:.2f} mm from the recorded path on "
                f"average, at most {1000 * part['position_error_max']:.1f} mm",
                soft_wrap=True,
            )
    console().print(f"absolute actions in {options.output_path}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

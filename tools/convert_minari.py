"""Convert Minari datasets to this project's layout, for ``train_bc.py`` and IBRL.

    minari download D4RL/door/human-v2
    python -m tools.convert_minari --dataset D4RL/door/human-v2 \\
        --out release/data/d4rl/door-human-v0

Writes ``dataset.hdf5`` and ``env_cfg.json`` into the folder ``--out``. Nothing is downloaded: the
dataset must be in Minari's folder (``--root``). Actions are mapped from their bounds to [-1, 1];
the observation after the last action is dropped. Datasets of Adroit and the Franka kitchen become
tasks of the suite d4rl (``env/d4rl.py``); the kitchen's 59 numbers and its goals become D4RL's 60
numbers. All others keep their environment (suite gymnasium) and take their state from
``--state_key``. Rewards stay as recorded. How each episode ended and the numbers in its infos are
kept, since success may be read from them (``gym.success_key``).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gymnasium
import numpy as np

from common_utils import run_config
from common_utils.demo_file import FILE_NAME, Recording, write_demos
from common_utils.errors import run_program
from common_utils.extras import how_to_install
from common_utils.ranges import AllOr
from common_utils.run_config import ConfigError, Flag
from common_utils.run_folder import output_folder
from common_utils.success_rule import TERMINATED, TRUNCATED
from env.d4rl import SUITE, TASKS, import_robotics, kitchen_state
from env.named_modules import is_trusted

if TYPE_CHECKING:
    from minari import MinariDataset

KITCHEN = "FrankaKitchen"


@dataclass
class MainConfig:
    """What to convert, and where to write it."""

    # id of the Minari dataset, such as D4RL/door/human-v2
    dataset: str = ""
    # folder of dataset.hdf5 and env_cfg.json
    out: str = ""
    # Minari's folder ("": MINARI_DATASETS_PATH, or ~/.minari/datasets)
    root: str = ""
    # number of episodes, from the first (-1: all)
    num: AllOr = -1
    # observation key(s) of the state, joined by "+" ("": observations are one vector)
    state_key: str = ""
    # 1: actions outside their bounds are clipped, as Adroit and the kitchen do; 0: refused
    clip_actions: Flag = 0
    # module(s) that the dataset may import by name, joined by "+" (docs/security.md)
    trust_module: str = ""
    # replace an existing dataset.hdf5
    overwrite: Flag = 0


def datasets_folder(root: str) -> Path:
    """Where Minari keeps its datasets."""
    default = Path.home() / ".minari" / "datasets"
    return Path(root or os.environ.get("MINARI_DATASETS_PATH", "") or default)


def local_datasets(folder: Path) -> list[str]:
    """Ids of the datasets in Minari's folder."""
    found = folder.rglob("metadata.json")
    return sorted(str(f.parent.parent.relative_to(folder)) for f in found)


def open_dataset(cfg: MainConfig) -> MinariDataset:
    """The local dataset. If it is absent, ConfigError gives the command that downloads it."""
    folder = datasets_folder(cfg.root)
    if not cfg.dataset:
        raise ConfigError("dataset: '', expected an id, such as D4RL/door/human-v2")
    path = folder / cfg.dataset / "data"
    if not path.is_dir():
        here = ", ".join(local_datasets(folder)) or "no datasets"
        where = f"MINARI_DATASETS_PATH={cfg.root} " if cfg.root else ""
        raise ConfigError(
            f"dataset: '{cfg.dataset}' is not in {folder}, which has {here}; "
            f"to download it: {where}minari download {cfg.dataset}"
        )
    check_named_modules(cfg, path / "metadata.json")
    try:
        import minari
    except ImportError as error:
        raise ConfigError(f"cannot import minari ({error}); {how_to_install('sim')}") from error
    try:
        return minari.MinariDataset(path)
    except Exception as error:  # a damaged dataset can make minari or h5py raise anything
        raise ConfigError(
            f"dataset: '{cfg.dataset}' in {folder} cannot be read: {error!r}"
        ) from error


def check_named_modules(cfg: MainConfig, metadata: Path) -> None:
    """Raise ConfigError if Minari would import a module that is neither registered nor trusted.

    For a dataset that does not state its spaces, Minari makes the environment that it names.
    """
    try:
        found = json.loads(metadata.read_text(encoding="utf-8"))
        if {"observation_space", "action_space"} <= found.keys():
            return
        spec = json.loads(found["env_spec"])
        entries = [spec["entry_point"], *(w["entry_point"] for w in spec["additional_wrappers"])]
        modules = [str(entry).partition(":")[0] for entry in entries]
        known = gymnasium.registry.get(spec["id"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"dataset: '{metadata}' cannot be read: {error!r}") from error
    if known is not None and entries == [known.entry_point]:
        return
    for module in modules:
        if not is_trusted(module, cfg.trust_module):
            raise ConfigError(
                f"dataset: '{cfg.dataset}' does not state its spaces but names the "
                f"module '{module}', which would be imported and run; if you trust it: "
                f"--trust_module {module}"
            )


def d4rl_task(env_id: str, kwargs: Mapping[str, Any], dataset_id: str) -> str | None:
    """The task of suite d4rl that matches a gymnasium environment, or None."""
    base = re.sub(r"-v\d+$", "", env_id)
    fitting = [n for n, t in TASKS.items() if re.sub(r"-v\d+$", "", t.env_id) == base]
    if base == KITCHEN:
        subtasks = set(kwargs.get("tasks_to_complete", ()))
        fitting = [n for n in fitting if set(TASKS[n].subtasks) == subtasks]
        if not fitting:
            raise ConfigError(
                f"dataset: '{dataset_id}' has the subtasks {sorted(subtasks)}; expected those of "
                + " or ".join(f"{n} {sorted(t.subtasks)}" for n, t in TASKS.items() if t.subtasks)
            )
    # complete and partial are one task
    named = [n for n in fitting if n.split("-")[1] in dataset_id]
    return next(iter(named or fitting), None)


class Converter:
    """Turns a dataset's episodes into recordings."""

    def __init__(self, cfg: MainConfig, data: MinariDataset) -> None:
        self.cfg, self.data = cfg, data
        spec = data.env_spec
        if spec is None:
            raise ConfigError(f"dataset: '{cfg.dataset}' does not name its environment")
        self.task = d4rl_task(spec.id, spec.kwargs, cfg.dataset)
        self.kitchen = spec.id.startswith(KITCHEN)
        self.env_args = {
            "env_name": self.task or spec.id,
            "suite": SUITE if self.task else "gymnasium",
            "minari_dataset": cfg.dataset,
        }
        self._low, self._high = self._action_bounds()
        # clipped steps by episode; the largest ratio of an action to its bounds
        self.clipped: dict[int, int] = {}
        self.worst = 0.0

    def _action_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        from gymnasium.spaces import Box

        space = self.data.action_space
        if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
            raise ConfigError(
                f"dataset: '{self.cfg.dataset}' has actions {space}; expected a float Box"
            )
        low, high = (np.asarray(b, np.float64).ravel() for b in (space.low, space.high))
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            raise ConfigError(
                f"dataset: '{self.cfg.dataset}' has action bounds {low.tolist()} to "
                f"{high.tolist()}; expected finite low < high"
            )
        return low, high

    def recording(self, episode: Any) -> Recording:
        """One episode of T steps: state float32 [T, S], actions float32 [T, A]."""
        actions = self._actions(episode)
        state = self._state(episode)
        for name, array in (("actions", actions), ("observations", state)):
            if not np.isfinite(array).all():
                raise self._error(episode, name, "hold NaN or infinity")
        if len(state) != len(actions) + 1 or len(episode.rewards) != len(actions):
            raise self._error(
                episode, "observations",
                f"{len(state)} for {len(actions)} actions and {len(episode.rewards)} rewards; "
                "expected one more than actions",
            )  # fmt: skip
        return Recording(
            obs={"state": list(state[:-1])},
            actions=list(actions),
            rewards=[float(r) for r in episode.rewards],
            infos=self._infos(episode),
        )

    @staticmethod
    def _infos(episode: Any) -> dict[str, np.ndarray]:
        """The numbers in each step's info, by key; success may be read from them."""
        steps, found = len(episode.rewards), {}
        for key, value in (episode.infos or {}).items():
            array = np.asarray(value)
            if array.ndim == 1 and array.dtype.kind in "fiub" and "/" not in key:
                array = array[1:] if len(array) == steps + 1 else array  # drop the reset's info
                if len(array) == steps and np.isfinite(array).all():
                    found[key] = array
        return found

    def _error(self, episode: Any, key: str, what: str) -> ConfigError:
        return ConfigError(f"dataset: '{self.cfg.dataset}', episode {episode.id}, {key}: {what}")

    def _actions(self, episode: Any) -> np.ndarray:
        actions = np.asarray(episode.actions, np.float64)
        actions = actions.reshape(len(actions), -1)
        if not len(actions):
            raise self._error(episode, "actions", "empty")
        actions = 2 * (actions - self._low) / (self._high - self._low) - 1
        worst = float(np.abs(actions).max())
        if worst > 1 + 1e-5 and not self.cfg.clip_actions:
            raise self._error(
                episode, "actions",
                f"up to {worst:.4g} times their bounds; --clip_actions 1 clips them",
            )  # fmt: skip
        beyond = int((np.abs(actions) > 1 + 1e-5).any(axis=1).sum())
        if beyond:
            self.clipped[int(episode.id)] = beyond
            self.worst = max(self.worst, worst)
        return actions.clip(-1, 1).astype(np.float32)

    def _state(self, episode: Any) -> np.ndarray:
        """float32 [T + 1, S]."""
        found = episode.observations
        if self.kitchen:
            goals = found["desired_goal"]
            return kitchen_state(found["observation"], goals).astype(np.float32)
        keys = [k for k in self.cfg.state_key.split("+") if k]
        if isinstance(found, Mapping):
            have = ", ".join(sorted(found))
            if not keys or not set(keys) <= found.keys():
                raise ConfigError(
                    f"state_key: '{self.cfg.state_key}', but the observations of "
                    f"'{self.cfg.dataset}' are {have}; name one, or several joined by '+'"
                )
            parts = [found[k] for k in keys]
        elif keys:
            raise ConfigError(
                f"state_key: '{self.cfg.state_key}', but the observations of "
                f"'{self.cfg.dataset}' have no keys"
            )
        else:
            parts = [found]
        for part in parts:
            if not isinstance(part, np.ndarray) or part.dtype.kind not in "fiub":
                raise self._error(episode, "observations", f"{type(part).__name__}, not numbers")
            if part.dtype == np.uint8 and part.ndim == 4:
                raise self._error(episode, "observations", "are images; only states are read")
        return np.concatenate([p.reshape(len(p), -1) for p in parts], axis=1).astype(np.float32)


def ended_by(episode: Any) -> dict[str, str]:
    """The attribute "ended" of an episode, as far as it was recorded."""
    if episode.terminations[-1]:
        return {"ended": TERMINATED}
    return {"ended": TRUNCATED} if episode.truncations[-1] else {}


def convert(cfg: MainConfig) -> Path:
    """Write the dataset file; returns its path. Raises ConfigError naming field and fault."""
    like = "a folder, such as release/data/d4rl/door-human-v0"
    target = output_folder(cfg.out, "out", like) / FILE_NAME
    if target.exists() and not cfg.overwrite:
        raise ConfigError(f"out: {target} exists already; --overwrite 1 replaces it")
    data = open_dataset(cfg)
    if data.total_episodes < max(cfg.num, 1):
        raise ConfigError(
            f"num: {cfg.num}, but '{cfg.dataset}' has {data.total_episodes} episodes, "
            "expected no more"
        )
    converter = Converter(cfg, data)
    indices = data.episode_indices if cfg.num < 0 else data.episode_indices[: cfg.num]
    recordings, attrs = [], []
    for episode in data.iterate_episodes(indices):
        recordings.append(converter.recording(episode))
        attrs.append({"minari_episode": int(episode.id)} | ended_by(episode))
    path = write_demos(cfg.out, recordings, [], converter.env_args, attrs)
    if converter.clipped:
        print(
            f"note: {sum(converter.clipped.values())} actions of {len(converter.clipped)} episodes "
            f"exceeded their bounds (up to {converter.worst:.4g} times) and were clipped"
        )
    steps = sum(len(r) for r in recordings)
    print(f"{path}: {len(recordings)} episodes, {steps} steps of {converter.env_args['env_name']}")
    return path


def main() -> int:
    """Entry point: parse, convert, exit status 0."""
    cfg = run_config.parse(MainConfig)
    import_robotics()
    convert(cfg)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))

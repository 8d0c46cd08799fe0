"""Writing demonstrations as a Minari dataset, by minari itself."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bc.demos import Demos
from common_utils.atomic import atomic_folder, atomic_json
from common_utils.demo_file import CFG_NAME
from common_utils.extras import how_to_install
from common_utils.run_config import ConfigError
from common_utils.success_rule import TERMINATED, TRUNCATED
from tools.to_lerobot import camera_of, counted, is_picture, kept_attributes
from tools.to_zarr import shared_keys

ROOT = "MINARI_DATASETS_PATH"
ID = re.compile(r"[\w-]+-v\d+")
DESCRIPTION = (
    "Demonstrations. The observation after the last action was not recorded; the last one is "
    "repeated in its place."
)


def write(
    source: Demos, out: Path, *, lists: Mapping[str, Sequence[str]], lossless: bool
) -> list[str]:
    """Write the new folder ``out``, named as Minari names datasets (can-v0); returns notes.

    lists: demonstration -> the filter keys that list it.

    lossless: pictures are stored with their channels first, which minari does not pack as JPEG.
    """
    if not ID.fullmatch(out.name):
        raise ConfigError(f"out: '{out}', expected a folder whose name ends in -v0, as in can-v0")
    try:
        import minari
        from gymnasium.spaces import Box
    except ImportError as error:
        raise ConfigError(f"format: minari, but {error}; {how_to_install('data')}") from error
    keys, left_out = shared_keys(source)
    observed = [k for k in keys if k.startswith("obs/")]
    used = {*observed, "actions", "rewards", *(k for k in keys if k.startswith("infos/"))}
    left_out += [k for k in keys if k not in used]
    episodes = (_episode(source, name, observed, lossless) for name in counted(source.names))
    with atomic_folder(out) as folder, _datasets_in(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # minari asks for an author, a permalink, ...
        first = next(episodes)
        width = first.actions.shape[1]
        dataset = minari.create_dataset_from_buffers(
            out.name,
            [first],
            observation_space=_space(first.observations),
            action_space=Box(-1, 1, (width,), np.float32) if source.delta_control else _any(width),
            description=DESCRIPTION,
        )
        for episode in episodes:
            dataset.update_dataset_from_buffer([episode])
        dataset.storage.update_episode_metadata(
            kept_attributes(source, name, lists) for name in source.names
        )
        for part in (folder / out.name).iterdir():
            shutil.move(part, folder / part.name)
        (folder / out.name).rmdir()
        if source.env_args:
            atomic_json(source.env_args, folder / CFG_NAME)
    notes = ["the observation after the last action is not in the source: the last one is repeated"]
    if left_out:
        notes.append(f"not written: {', '.join(sorted(left_out))}")
    return notes


@contextmanager
def _datasets_in(folder: Path) -> Iterator[None]:
    """Where minari writes."""
    before = os.environ.get(ROOT)
    os.environ[ROOT] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[ROOT]
        else:
            os.environ[ROOT] = before


def _any(width: int) -> Any:
    from gymnasium.spaces import Box

    return Box(-np.inf, np.inf, (width,), np.float32)


def _space(observations: Any) -> Any:
    from gymnasium.spaces import Box, Dict

    if isinstance(observations, dict):
        return Dict({key: _space(value) for key, value in observations.items()})
    if observations.dtype == np.uint8:
        return Box(0, 255, observations.shape[1:], np.uint8)
    return Box(-np.inf, np.inf, observations.shape[1:], observations.dtype)


def _episode(source: Demos, name: str, observed: list[str], lossless: bool) -> Any:
    from minari.data_collector import EpisodeBuffer

    steps = source.length(name)
    observations = {}
    for key in observed:
        if is_picture(source, name, key):
            frames = source.images(name, camera_of(key))
            found = frames if lossless else frames.transpose(0, 2, 3, 1)
        else:
            found = source.array(name, key)
        observations[_own(key)] = np.concatenate([found, found[-1:]])
    ended, _ = source.verdict(name)
    last = np.arange(steps) == steps - 1
    infos = {
        key.removeprefix("infos/"): source.array(name, key)
        for key in source.all_keys(name)
        if key.startswith("infos/")
    }
    single = observations["state"] if list(observations) == ["state"] else observations
    return EpisodeBuffer(
        observations=single,
        actions=source.actions(name).astype(np.float32),
        rewards=source.rewards(name).astype(np.float64)
        if source.has(name, "rewards")
        else np.zeros(steps),
        terminations=last & (ended == TERMINATED),
        truncations=last & (ended == TRUNCATED),
        infos=infos or None,
    )


def _own(key: str) -> str:
    """minari makes groups of names with slashes."""
    return key.removeprefix("obs/").removesuffix("_image").replace("/", ".")

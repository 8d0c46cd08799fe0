"""Writing demonstrations as a Zarr replay buffer, which bc/replay_zarr.py describes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bc.demos import Demos
from common_utils.atomic import atomic_folder, atomic_json
from common_utils.demo_file import CFG_NAME
from common_utils.extras import how_to_install
from common_utils.run_config import ConfigError
from tools.to_lerobot import camera_of, counted, is_picture, kept_attributes

CHUNK_BYTES = 2**20
NAMES = {"actions": "action", "rewards": "reward", "dones": "done", "states": "sim_state"}


def shared_keys(source: Demos) -> tuple[list[str], list[str]]:
    """The keys of numbers and pictures that every demonstration has; and all other keys."""
    every = [set(source.all_keys(name)) for name in source.names]
    first, shared = source.names[0], set.intersection(*every)
    usable = [k for k in sorted(shared) if _is_numbers(source, first, k)]
    return usable, sorted(set.union(*every) - set(usable))


def _is_numbers(source: Demos, name: str, key: str) -> bool:
    found = source.stored(name, key)
    return bool(found.ndim) and found.dtype.kind in "fiub"


def values(source: Demos, name: str, key: str) -> np.ndarray:
    """[T, ...]: an array of a demonstration; pictures uint8 [T, H, W, 3]."""
    if is_picture(source, name, key):
        return source.images(name, camera_of(key)).transpose(0, 2, 3, 1)
    return source.array(name, key)


def attributes(source: Demos, lists: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """attribute -> demonstration (numbered from 0) -> its value."""
    out: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(source.names):
        for attr, value in kept_attributes(source, name, lists).items():
            out.setdefault(attr, {})[f"demo_{number}"] = value
    return out


def write(source: Demos, out: Path, lists: Mapping[str, Sequence[str]]) -> list[str]:
    """Write the new folder ``out``, Zarr format 2, which Diffusion Policy's zarr reads too.

    Returns notes. Raises DatasetError where demonstrations differ in shape.
    lists: demonstration -> the filter keys that list it.
    """
    try:
        import numcodecs
        import zarr
    except ImportError as error:
        raise ConfigError(f"format: zarr, but {error}; {how_to_install('data')}") from error
    keys, left_out = shared_keys(source)
    lengths = [source.length(name) for name in source.names]
    with atomic_folder(out) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about formats that may change one day
        group = _new_group(zarr, folder)
        arrays = {key: _new_array(group, source, key, sum(lengths), numcodecs) for key in keys}
        ends = np.cumsum(lengths).astype(np.int64)
        for name, end in zip(counted(source.names), ends.tolist(), strict=True):
            for key, array in arrays.items():
                _put(source, name, key, array, end)
        meta = _array(group.require_group("meta"), "episode_ends", ends.shape, ends.dtype, None)
        meta[:] = ends
        group.attrs["episodes"] = attributes(source, lists)
        if source.env_args:
            group.attrs["env_args"] = json.dumps(source.env_args)
            atomic_json(source.env_args, folder / CFG_NAME)
    return [f"not written, since not numbers of all demonstrations: {', '.join(left_out)}"] * bool(
        left_out
    )


def _put(source: Demos, name: str, key: str, array: Any, end: int) -> None:
    found = values(source, name, key)
    if len(found) != source.length(name) or found.shape[1:] != array.shape[1:]:
        expected = [source.length(name), *array.shape[1:]]
        raise source.error(
            name, key, f"has shape {list(found.shape)}, expected {expected} (as "
            f"{source.names[0]})"
        )  # fmt: skip
    array[end - len(found) : end] = found


def _new_group(zarr: Any, folder: Path) -> Any:
    if zarr.__version__.startswith("2."):
        return zarr.open_group(str(folder), mode="a")
    return zarr.open_group(str(folder), mode="a", zarr_format=2)


def _new_array(group: Any, source: Demos, key: str, total: int, numcodecs: Any) -> Any:
    first = values(source, source.names[0], key)
    own = key.removeprefix("obs/")
    name = NAMES.get(key) or (own if own != key else key.replace("/", "_"))
    packed = numcodecs.Blosc(cname="zstd", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)
    shape = (total, *first.shape[1:])
    array = _array(group.require_group("data"), name, shape, first.dtype, packed)
    array.attrs["key"] = key
    return array


def _array(group: Any, name: str, shape: tuple[int, ...], dtype: Any, packed: Any) -> Any:
    row = max(1, int(np.prod(shape[1:])) * np.dtype(dtype).itemsize)
    chunks = (max(1, min(shape[0], CHUNK_BYTES // row)), *shape[1:])
    if hasattr(group, "create_array"):  # zarr 3, which would leave out chunks of zeros
        more = {"compressors": packed, "config": {"write_empty_chunks": True}}
        return group.create_array(name, shape=shape, dtype=dtype, chunks=chunks, **more)
    return group.create_dataset(name, shape=shape, dtype=dtype, chunks=chunks, compressor=packed)

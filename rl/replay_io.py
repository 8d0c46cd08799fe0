"""Writing replay contents: HDF5 demonstrations, and folders for exact resume of big replays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common_utils import rela
from common_utils.atomic import atomic_write, fsync_path
from common_utils.stacking import stack_episode
from common_utils.success_rule import TERMINATED, TRUNCATED

_PIECE_BYTES = 32 << 20
_REST = "rest.pt"


def write_hdf5(
    path: str | os.PathLike[str],
    episodes: Iterable[Mapping[str, Any]],
    stacks: Mapping[str, int],
    env_args: Mapping[str, Any] | None = None,
) -> None:
    """Write ``data/demo_{i}/{actions, rewards, obs/{key}}``, raw rewards.

    ``episodes``: dicts with frames ``obs`` {key: [T or T+1, ...]}, ``action`` [T, A],
    ``reward`` [T], and ``records``, further data: one dict per step, or none; its arrays become
    observations (``sim_state`` also robomimic's ``states``), its strings attributes.
    Observations are stored stacked; image keys get the suffix ``_image``. For a stack of k > 1
    steps the dataset has an attribute "stack", so that readers can take the newest step.
    ``terminated``, if present, becomes the attribute "ended".
    ``env_args``: how the environment was built, kept as ``data.attrs["env_args"]``.
    """
    from common_utils.demo_file import Recording, open_demos  # with h5py, which a replay needs not

    with open_demos(path, env_args) as out:
        for e in episodes:
            obs, attrs = _records(e.get("records", []), len(e["reward"]))
            obs |= {k: stack_episode(v[: len(e["reward"])], stacks[k]) for k, v in e["obs"].items()}
            if "terminated" in e:
                attrs["ended"] = TERMINATED if bool(e["terminated"]) else TRUNCATED
            steps = {k: list(v) for k, v in obs.items()}
            recording = Recording(
                steps,
                states=steps.get("sim_state", []),
                actions=list(e["action"]),
                rewards=list(e["reward"]),
                stacks={k: stacks[k] for k in e["obs"]},
                reward_dtype="float32",
            )
            out.add(recording, [k for k, v in obs.items() if v.ndim == 4], attrs)


def _records(
    records: Sequence[Mapping[str, Any]], length: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays [T, ...] by key, and strings (the last of each), of an episode's records."""
    texts = {k: v for record in records for k, v in record.items() if isinstance(v, str)}
    keys = [k for k, v in records[0].items() if not isinstance(v, str)] if records else []
    return {k: np.stack([r[k] for r in records[:length]]) for k in keys}, texts


def to_torch(tree: Any) -> Any:
    """numpy arrays in nested dicts and lists become tensors that share their memory."""
    if isinstance(tree, Mapping):
        return {k: to_torch(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [to_torch(v) for v in tree]
    return torch.from_numpy(tree) if isinstance(tree, np.ndarray) else tree


def to_numpy(tree: Any) -> Any:
    """Inverse of :func:`to_torch`."""
    if isinstance(tree, Mapping):
        return {k: to_numpy(v) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [to_numpy(v) for v in tree]
    return tree.detach().cpu().numpy() if isinstance(tree, torch.Tensor) else tree


def _columns(core: rela.SingleStepTransitionReplay) -> list[tuple[str, str, str, tuple[int, ...]]]:
    """(group, key, dtype, frame shape) of everything stored per row."""
    out = [("obs", k, d, tuple(s)) for k, d, s in core.obs_fields]
    out += [("action", k, d, tuple(s)) for k, d, s in core.action_fields]
    return [*out, ("reward", "", "float32", ())] if out else []


def _file(folder: Path, name: str, index: int) -> Path:
    return folder / f"{name}_{index:02d}.npy"


def save_folder(
    path: str | os.PathLike[str],
    cores: Mapping[str, rela.SingleStepTransitionReplay],
    rest: Mapping[str, Any],
) -> None:
    """Write replays as .npy files, piece by piece, and ``rest`` last (it marks completeness).

    ``path`` may be a new or an empty folder; FileExistsError otherwise.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FileExistsError(f"{folder}: a replay is saved into an empty folder only")
    metas = {}
    for name, core in cores.items():
        columns = _columns(core)
        metas[name] = {"meta": to_torch(core.meta()), "columns": columns}
        for i, column in enumerate(columns):
            _write_column(_file(folder, name, i), core, *column)
    with atomic_write(folder / _REST, "wb") as f:
        torch.save({"replays": metas, "rest": dict(rest)}, f)
    fsync_path(folder)


def _write_column(
    path: Path,
    core: rela.SingleStepTransitionReplay,
    group: str,
    key: str,
    dtype: str,
    shape: tuple[int, ...],
) -> None:
    row = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    table = core.meta()["episodes"]
    rows = int(table[:, 0].sum() + (table[:, 3].sum() if group == "obs" else 0))
    step = max(1, _PIECE_BYTES // row)
    with open(path, "wb") as f:
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
            "fortran_order": False,
            "shape": (rows, *shape),
        }
        np.lib.format.write_array_header_1_0(f, header)
        for begin in range(0, rows, step):
            f.write(core.read(group, key, begin, min(rows, begin + step)).data)
        f.flush()
        os.fsync(f.fileno())


def load_folder(
    path: str | os.PathLike[str], cores: Mapping[str, rela.SingleStepTransitionReplay]
) -> dict[str, Any]:
    """Restore replays written by :func:`save_folder`; returns ``rest``."""
    folder = Path(path)
    if not (folder / _REST).is_file():
        raise FileNotFoundError(f"{folder}: no complete replay here ({_REST} is missing)")
    saved = torch.load(folder / _REST, weights_only=True, map_location="cpu")
    if set(saved["replays"]) != set(cores):
        raise ValueError(f"{folder}: holds replays {sorted(saved['replays'])}, not {sorted(cores)}")
    for name, core in cores.items():
        entry = saved["replays"][name]
        state: dict[str, Any] = {**to_numpy(entry["meta"]), "obs": {}, "action": {}}
        state["reward"] = np.zeros(0, np.float32)
        for i, (group, key, _, _) in enumerate(entry["columns"]):
            array = np.load(_file(folder, name, i), mmap_mode="r", allow_pickle=False)
            if group == "reward":
                state["reward"] = array
            else:
                state[group][key] = array
        core.load_state_dict(state)
    return saved["rest"]

"""Weights of other runs that a run depends on, kept in its own folder.

    bc_policy/origin.json     for each: the path it came from, and SHA-256 of both files
    bc_policy/0/model.pt      the weights as they were when the run began (or model.safetensors) ...
    bc_policy/0/cfg.yaml      ... and the config of the network that they belong to

With these copies the folder can be moved or copied on its own, and replacing an original later
changes neither evaluations nor a resumed run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common_utils.atomic import (
    atomic_json,
    atomic_write,
    fsync_path,
    remove_any,
    remove_leftovers,
)
from common_utils.link import is_url
from common_utils.run_config import CFG_NAME, ConfigError

KEPT_DIR = "bc_policy"
_ORIGIN = "origin.json"
_SAFETENSORS = ".safetensors"  # the suffix says how weights are read; any other is torch's
Sums = dict[str, str]  # SHA-256 of "weights" and "config"


@dataclass(frozen=True)
class KeptWeights:
    """Weight files to read, where they came from, and what they must hold.

    notes: lines about files that are damaged or have changed.
    """

    files: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    sums: list[Sums] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def originals(paths: Sequence[str]) -> KeptWeights:
    """The files at ``paths`` themselves; ConfigError if one, or its config, is missing."""
    sums = []
    for path in paths:
        found = _sums(Path(path), Path(path).parent / CFG_NAME)
        if found is None:
            raise ConfigError(f"{KEPT_DIR}: '{path}' must have its {CFG_NAME} beside it")
        sums.append(found)
    return KeptWeights(list(paths), [os.path.abspath(p) for p in paths], sums)


def find(run_dir: str | os.PathLike[str]) -> KeptWeights | None:
    """The weights that a run keeps, checked; None if it keeps none (runs of earlier versions).

    If a copy is damaged, its original is used instead, provided that it has not changed.
    Raises ConfigError if it has.
    """
    folder = Path(run_dir) / KEPT_DIR
    if not (folder / _ORIGIN).is_file():
        return None
    origins, sums = _read_origins(folder / _ORIGIN)
    files, notes = [], []
    for number, (origin, want) in enumerate(zip(origins, sums, strict=True)):
        copy = _copy_of(folder, number, origin)
        whole = _sums(copy, copy.parent / CFG_NAME) == want
        original = _sums(Path(origin), Path(origin).parent / CFG_NAME)
        if not whole and original != want:
            raise ConfigError(
                f"{KEPT_DIR}: '{copy}' is missing or damaged, and its original '{origin}' has "
                "changed since"
            )
        files.append(str(copy) if whole else origin)
        if not whole:
            notes.append(f"{KEPT_DIR}: '{copy}' is damaged; its original '{origin}' is used")
        elif original not in (None, want):
            notes.append(
                f"{KEPT_DIR}: '{origin}' has changed since the run began; the run's copy is used"
            )
    return KeptWeights(files, origins, sums, notes)


def is_copy(weight_file: Path) -> bool:
    """Whether a weight file is a run's copy of another run's."""
    return (weight_file.parent.parent / _ORIGIN).is_file()


def keep(run_dir: str | os.PathLike[str], weights: KeptWeights) -> None:
    """Copy ``weights`` into the run's folder unless they are there already.

    Raises ConfigError if a file has changed since it was read.
    """
    folder = Path(run_dir) / KEPT_DIR
    wanted = [str(_copy_of(folder, n, origin)) for n, origin in enumerate(weights.origins)]
    if weights.files == wanted:
        for copy in wanted:
            remove_leftovers(Path(copy).parent)
        return
    new = folder.with_name(f"{folder.name}.new")  # complete before it is renamed
    remove_any(new)
    for number, (path, want) in enumerate(zip(weights.files, weights.sums, strict=True)):
        source, target = Path(path), _copy_of(new, number, path)
        _copy(source, target)
        _copy(source.parent / CFG_NAME, target.parent / CFG_NAME)
        if _sums(target, target.parent / CFG_NAME) != want:
            raise ConfigError(f"{KEPT_DIR}: '{path}' was changed while the run was starting")
    entries = [{"path": p, **s} for p, s in zip(weights.origins, weights.sums, strict=True)]
    atomic_json(entries, new / _ORIGIN)
    remove_any(folder)
    new.rename(folder)
    fsync_path(folder.parent)


def _copy_of(folder: Path, number: int, origin: str) -> Path:
    """Where the weights of ``origin`` are kept; a remote policy has a config alone."""
    if is_url(origin) or origin.endswith(".yaml"):
        return folder / str(number) / CFG_NAME
    suffix = _SAFETENSORS if origin.endswith(_SAFETENSORS) else ".pt"
    return folder / str(number) / f"model{suffix}"


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as given, atomic_write(target, "wb") as handle:
        shutil.copyfileobj(given, handle)


def _sums(weights: Path, config: Path) -> Sums | None:
    """SHA-256 of both files, None if one of them is missing."""
    if not (os.path.isfile(weights) and os.path.isfile(config)):  # no name is too long for it
        return None
    return {"weights": _sha256(weights), "config": _sha256(config)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _read_origins(path: Path) -> tuple[list[str], list[Sums]]:
    try:
        entries = json.loads(path.read_bytes())
        origins = [str(entry["path"]) for entry in entries]
        sums = [{key: str(entry[key]) for key in ("weights", "config")} for entry in entries]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: damaged ({type(error).__name__}); it names the files that {KEPT_DIR} was "
            "copied from"
        ) from None
    return origins, sums

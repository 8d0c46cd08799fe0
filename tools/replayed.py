"""Raw robosuite recordings as demonstrations for training: replayed once, then read from a cache.

``train_bc.py`` and ``train_rl.py`` read what :func:`with_observations` returns, so that a file of
``collect_human_demonstrations`` goes straight into training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from bc.demo_store import DatasetError
from bc.loader import DemoFile
from common_utils.progress import console
from env.core import EnvError
from env.robosuite.sim import recorded_task

CACHE = "replayed"  # folder next to a run's


def with_observations(path: str, cameras: Sequence[str], save_dir: str) -> str:
    """``path``, or if it is a raw recording the demonstrations that its replay gives.

    Those have the images of ``cameras`` (none: states only) at the size of
    ``tools.dataset_states_to_obs``. They lie in a folder next to ``save_dir``, are made once for
    all runs there, and again when the recording changes. Raises DatasetError, EnvError or
    ConfigError where the recording cannot be replayed.
    """
    if not _is_raw(path):
        return path
    from tools import dataset_states_to_obs  # takes packages that training may do without

    folder = cache_folder(path, cameras, save_dir)
    console().print(
        f"{path} is a raw recording: it is replayed into {folder}", markup=False, soft_wrap=True
    )
    source = str(Path(path).resolve())
    options = ["--dataset", source, "--output_folder", str(folder), "--camera_names", *cameras]
    return str(dataset_states_to_obs.convert(dataset_states_to_obs.parser().parse_args(options)))


def cache_folder(path: str | Path, cameras: Sequence[str], save_dir: str) -> Path:
    """Where the replay of the recording ``path``, as it is now, is kept."""
    source = Path(path).resolve()
    stat = source.stat()
    facts = f"{source}:{stat.st_size}:{stat.st_mtime_ns}:{'+'.join(cameras)}"
    digest = hashlib.sha256(facts.encode()).hexdigest()[:8]
    return Path(save_dir).parent / CACHE / f"{source.stem}-{digest}"


def _is_raw(path: str) -> bool:
    """Whether ``path`` holds states of a robosuite task without observations."""
    try:
        with DemoFile(path) as file:
            recorded_task(file.suite, file.env_name)
            first = file.names[0]
            return file.find(first, "obs") is None and file.find(first, "states") is not None
    except (DatasetError, EnvError):  # the reader says what is wrong with the file
        return False

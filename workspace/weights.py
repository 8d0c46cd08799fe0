"""Weight files: bare state_dicts of dense numbers, read safely and matched to their module.

A file may come from anybody. Nothing in it is run, it may not claim more than its size can hold,
and it must fit its module exactly: the same names, shapes and kinds of numbers, all finite.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from common_utils.errors import UserError
from common_utils.made_by import how_to_train
from common_utils.run_config import ConfigError
from workspace.tensor_file import is_tensor_file, read_tensors

# dtypes of parameters and buffers; not complex, quantised or 8-bit float
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)
SHOWN = 3  # names that a message lists
DOS_FOLDER = 0x10  # of a record's external attributes


def require_weights(
    path: str | Path, what: str, how: Callable[[str | Path], str] = how_to_train
) -> None:
    """Raise ConfigError, with the command that makes the weights (``how``), if they are missing."""
    if Path(path).is_dir():
        raise ConfigError(
            f"{what}: '{path}' is a folder, expected a weight file in it, such as model0.pt"
        )
    if Path(path).exists() and not Path(path).is_file():
        raise ConfigError(
            f"{what}: '{path}' is not an ordinary file (a pipe or device), expected a weight file"
        )
    if not Path(path).is_file():
        raise ConfigError(f"{what}: no file '{path}'; to make it: {how(path)}")
    if not Path(path).stat().st_size:  # as all files of /proc are, whatever reading them does
        raise ConfigError(
            f"{what}: '{path}' is not a readable weight file: it is empty, expected a state_dict"
        )


def load_weights(path: str | Path, what: str) -> dict[str, torch.Tensor]:
    """A bare state_dict from a .pt or .safetensors file, on the CPU, read safely.

    Raises ConfigError, in up to three lines, for what is not a weight file, holds anything but
    dense tensors with names, claims more numbers than it has, or holds NaN or infinity.
    """
    require_weights(path, what)
    where = f"{what}: '{path}'"
    try:
        weights = read_tensors(path, what) if is_tensor_file(path) else _torch_load(path)
    except UserError:  # no package reads it
        raise
    except Exception as error:  # torch raises many kinds for damaged and for unsafe files
        raise ConfigError(f"{where} is not a readable weight file: {_reason(error)}") from None
    if not isinstance(weights, dict):
        raise ConfigError(f"{where} holds a {type(weights).__name__}, expected a state_dict")
    for key, value in weights.items():
        if fault := _fault(key, value):
            raise ConfigError(f"{where}: {fault}")
    return weights


def _torch_load(path: str | Path) -> Any:
    _check_archive(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's warnings are for writers of files
        return torch.load(path, map_location="cpu", weights_only=True)


def _check_archive(path: str | Path) -> None:
    """Check that records are undamaged and uncompressed: others could unpack to any size."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(r.compress_type != zipfile.ZIP_STORED for r in records):
            raise ValueError("its records are compressed, which torch never does")
        if folders := [r.filename for r in records if r.is_dir() or r.external_attr & DOS_FOLDER]:
            # torch reads nothing of a folder, and takes whatever is in memory for its numbers
            raise ValueError(f"damaged: its record {folders[0][:60]!r} is marked as a folder")
        if sum(r.file_size for r in records) > Path(path).stat().st_size:
            raise ValueError("its records overlap")
        if damaged := archive.testzip():  # torch writes checksums, and does not compare them
            raise ValueError(f"damaged: the checksum of its record {damaged[:60]!r} does not match")


def _reason(error: Exception) -> str:
    """Why a file does not load; torch's own message advises loading it unsafely."""
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"besides tensors it names '{found[1]}', which is code and is not run"
    if type(error) is ValueError:
        return str(error)
    return f"damaged, cut off, or of another kind ({type(error).__name__})"


def _fault(key: object, value: object) -> str:
    """Why an entry is not a weight, else ""."""
    if not isinstance(key, str):
        return f"holds the key {str(key)[:60]!r} ({type(key).__name__}), expected names"
    if not isinstance(value, torch.Tensor):
        return f"'{_one_line(key)}' is a {type(value).__name__}, expected a tensor"
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        return f"'{_one_line(key)}' is not a dense tensor ({value.layout}, {value.device.type})"
    if value.dtype not in DTYPES:
        return f"'{_one_line(key)}' holds {_name(value.dtype)}, expected real numbers"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"'{_one_line(key)}' claims shape {list(value.shape)}, but the file holds less"
    if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
        return f"'{_one_line(key)}' holds NaN or infinity, expected finite numbers"
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def put_weights(
    module: torch.nn.Module, weights: Mapping[str, torch.Tensor], path: str | Path, what: str
) -> None:
    """``module.load_state_dict``: all names, shapes and kinds of numbers exact.

    Raises ConfigError naming the file, in up to three lines.
    """
    check_weights(module, weights, path, what)
    module.load_state_dict(weights)


def check_weights(
    module: torch.nn.Module, weights: Mapping[str, torch.Tensor], path: str | Path, what: str
) -> None:
    """The checks of :func:`put_weights`, for a module that may be on the meta device."""
    own = module.state_dict()
    faults = [
        *_listed("missing", (k for k in own if k not in weights)),
        *_listed("not expected", (k for k in weights if k not in own)),
        *_listed("size mismatch for", (
            f"{k} ({list(weights[k].shape)}, expected {list(v.shape)})"
            for k, v in own.items() if k in weights and weights[k].shape != v.shape
        )),
        *_listed("other kind of numbers in", (
            f"{k} ({_name(weights[k].dtype)}, expected {_name(v.dtype)})"
            for k, v in own.items() if k in weights and not _same_kind(weights[k], v)
        )),
    ]  # fmt: skip
    if faults:
        raise ConfigError(
            f"{what}: '{path}' does not fit the {type(module).__name__} its config describes:\n"
            f"  {'; '.join(faults)}"
        )


def _same_kind(loaded: torch.Tensor, own: torch.Tensor) -> bool:
    """Floating numbers may differ in precision; counters and masks are what they are."""
    return loaded.is_floating_point() == own.is_floating_point() and (
        loaded.is_floating_point() or (loaded.dtype is torch.bool) == (own.dtype is torch.bool)
    )


def _listed(title: str, names: Iterable[str]) -> list[str]:
    found = [_one_line(name) for name in names]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return [f"{title} {', '.join(found[:SHOWN])}{more}"] if found else []


def _one_line(name: str) -> str:
    """A name from a file, as one line of a message."""
    return name[:120].encode("unicode_escape").decode()

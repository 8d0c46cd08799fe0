"""Weights as ``.safetensors`` files: tensors by name, and a header of text. Nothing can run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from common_utils.atomic import atomic_write
from common_utils.errors import shortened
from common_utils.extras import optional

SUFFIX = ".safetensors"


def is_tensor_file(path: str | Path) -> bool:
    """Whether a weight file is of this kind, by its name."""
    return Path(path).suffix == SUFFIX


def read_tensors(path: str | Path, what: str) -> dict[str, torch.Tensor]:
    """The tensors of a file, on the CPU; what they are is not checked.

    Raises ValueError for what is not such a file, UserError (beginning with ``what``) without the
    package safetensors.
    """
    load = optional("safetensors.torch", "data", what).load
    try:
        # not mapped: the file may be replaced while the run uses its weights
        weights: dict[str, torch.Tensor] = load(Path(path).read_bytes())
    except Exception as error:  # the package has its own classes, torch and numpy theirs
        said = shortened(str(error) or type(error).__name__, 100)
        raise ValueError(f"damaged, cut off, or of another kind ({said})") from None
    return weights


def write_tensors(
    weights: Mapping[str, torch.Tensor], path: str | Path, about: Mapping[str, str], what: str
) -> None:
    """Write a state_dict (atomic) under its own names, with ``about`` as the file's metadata."""
    save = optional("safetensors.torch", "data", what).save
    # the format refuses tensors that share memory
    own = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    with atomic_write(path, "wb") as handle:
        handle.write(save(own, metadata=dict(about)))

"""How precisely networks multiply.

float32 is float32 everywhere. tf32 lets an NVIDIA GPU round the factors of products and
convolutions to 10 bits; other devices compute float32. bfloat16 runs encoders of images under
autocast, and everything else in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]


@contextmanager
def products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Multiply that way inside the block. On a GPU torch convolves in tf32 unless asked not to."""
    if device.type != "cuda":
        yield
        return
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, conv.allow_tf32
    matmul.allow_tf32 = conv.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, conv.allow_tf32 = before


def encoding(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Context in which encoders run."""
    if precision != "bfloat16" or device.type == "meta":  # meta: shapes without numbers
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)

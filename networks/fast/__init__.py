"""The hot operations of networks and the back ends that compute them.

``ops`` has the operations, ``table`` chooses the back end: C++ kernels (``cpu``), the fastest
library's matrix products (``products``) or plain torch (``plain``). ``process`` has settings of
the whole process.

Environment variables: ``IBRL_GEMM`` = auto, mkl, onednn or kernels chooses who multiplies float32
matrices on the CPU (``choice``, ``measure``); ``IBRL_MALLOC`` = keep or system (``process``).
"""

from networks.fast.layer import Layer
from networks.fast.measure import set_up
from networks.fast.ops import (
    channel_norm,
    conv2d,
    ensemble_matmul,
    linear,
    min_member,
    norm_relu,
    perceptron,
    sequential,
    soft_update,
    spatial_embed,
)
from networks.fast.process import keep_freed_memory, threads, use_threads

__all__ = [
    "Layer",
    "channel_norm",
    "conv2d",
    "ensemble_matmul",
    "keep_freed_memory",
    "linear",
    "min_member",
    "norm_relu",
    "perceptron",
    "sequential",
    "set_up",
    "soft_update",
    "spatial_embed",
    "threads",
    "use_threads",
]

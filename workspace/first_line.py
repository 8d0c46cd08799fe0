"""The first line of a run's log: the program and what it computes with."""

from __future__ import annotations

import importlib
import os

import torch

from common_utils.resources import cpu_name
from common_utils.version import __version__
from networks import fast
from networks.fast import choice


def what_runs_here(device: torch.device) -> str:
    """Version, device, kernels, matrix products and OpenGL back end, in one line."""
    if device.type == "cuda":
        where = f"{device} ({torch.cuda.get_device_name(device)})"
    else:
        threads = f"torch threads: {torch.get_num_threads()}"
        where = f"{device} ({cpu_name()}, {threads})"
    return (
        f"ibrl {__version__}, torch {torch.__version__} on {where}; kernels: {kernels()}; "
        f"OpenGL: {os.environ.get('MUJOCO_GL') or 'MUJOCO_GL is not set'}"
    )


def kernels() -> str:
    """The C++ kernels' instruction set, their threads, and who multiplies matrices on the CPU."""
    try:
        isa = importlib.import_module("common_utils.kernels").isa()
    except ImportError:
        return "plain torch, the C++ modules are not built"
    table = {kind: parts for kind, parts in choice.current().items() if kind != "perceptron"}
    products = sorted({way for parts in table.values() for way in parts.values()})
    return f"C++ {isa} (threads: {fast.threads()}), matrix products by {' and '.join(products)}"

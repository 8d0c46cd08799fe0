"""Functions of tensors as graphs: the one place where ``torch.compile`` is called.

A graph holds torch's own operations. Whatever the host decides or draws enters as a tensor, and
gradients and the steps of optimisers are part of it (``networks.optim.descend``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch

from common_utils.errors import UserError, shortened
from networks.captured import Captured

Compile = Literal["off", "default", "max"]
COMPILE = get_args(Compile)

BACKEND = "inductor"  # tests trace without generating code
_MODES = {"default": "default", "max": "max-autotune-no-cudagraphs"}
# variants of one function: with and without the actor's step, batches of several sizes, ...
_MOST_VARIANTS = 64


def compiled(
    function: Callable[..., Any], how: Compile, field: str, device: torch.device
) -> Callable[..., Any]:
    """``function`` as one graph, made at the first call; ``off``: ``function`` itself.

    ``max`` on a GPU: the graph's kernels are then captured in CUDA graphs (``networks.captured``).
    Results equal the function's except for the last bits. ``field`` names the setting in
    messages. Raises UserError where torch or this machine cannot make graphs, here or at a call.
    """
    if how == "off":
        return function
    # not above: this takes seconds, which runs that are not compiled need not wait
    from torch._dynamo import config as tracing
    from torch._dynamo.exc import TorchDynamoException

    if not hasattr(tracing, "trace_autograd_ops"):
        raise UserError(
            f"{field}: {how}, expected off with torch {torch.__version__}, which cannot compile "
            "gradients (2.14 can)"
        )
    mode = _MODES[how] if BACKEND == "inductor" else None
    graph = torch.compile(function, fullgraph=True, backend=BACKEND, mode=mode)

    def run(*args: Any) -> Any:
        try:
            with tracing.patch(trace_autograd_ops=True, recompile_limit=_MOST_VARIANTS):
                return graph(*args)
        except TorchDynamoException as error:
            why = shortened(str(error), 300)
            raise UserError(f"{field}: {how}, expected off here: {why}") from error

    return Captured(run) if how == "max" and device.type == "cuda" else run

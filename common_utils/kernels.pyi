"""Fused float32 kernels (csrc/kernels.cc). All arguments named like a tensor are addresses
(``Tensor.data_ptr()``) of contiguous float32 arrays, 0 for none; ``networks/fast.py`` is the
only caller. ``keep`` of 2**32 outcomes survive dropout (0: no dropout)."""

def norm_relu(
    groups: int,
    rows: int,
    width: int,
    x: int,
    bias: int,
    per_unit: bool,
    gamma: int,
    beta: int,
    eps: float,
    keep: int,
    scale: float,
    seed: int,
    stats: int,
    y: int,
    threads: int,
) -> None: ...
def norm_relu_grad(
    groups: int,
    rows: int,
    width: int,
    x: int,
    bias: int,
    per_unit: bool,
    gamma: int,
    beta: int,
    eps: float,
    keep: int,
    scale: float,
    seed: int,
    stats: int,
    dy: int,
    dx: int,
    dbias: int,
    dgamma: int,
    dbeta: int,
    threads: int,
) -> None: ...
def spatial(
    batch: int,
    rows: int,
    num: int,
    width: int,
    shared: int,
    action: int,
    gamma: int,
    beta: int,
    weight: int,
    eps: float,
    stats: int,
    out: int,
    threads: int,
) -> None: ...
def spatial_grad(
    batch: int,
    rows: int,
    num: int,
    width: int,
    shared: int,
    action: int,
    gamma: int,
    beta: int,
    weight: int,
    eps: float,
    stats: int,
    dz: int,
    dshared: int,
    daction: int,
    dparams: int,
    threads: int,
) -> None: ...
def isa() -> str:
    """The instruction set in use: base, v3 (AVX2) or v4 (AVX-512)."""

def use(isa: str) -> None:
    """Take another instruction set that this CPU has (for tests)."""

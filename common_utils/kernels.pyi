"""Fused float32 kernels (csrc/kernels.cc). All arguments named like a tensor are addresses
(``Tensor.data_ptr()``) of contiguous float32 arrays, 0 for none; ``networks/fast*.py`` are the
only callers. ``keep`` of 2**32 outcomes survive dropout (0: no
dropout)."""

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

Layer = tuple[int, int, int, bool, int, bool, int, int, float, int, float, int, bool]
"""in, out, weight, transposed, bias, bias per unit, gamma, beta, eps, keep, scale, seed, hidden"""

def mlp_saved_size(rows: int, members: list[int], layers: list[Layer], hidden: bool) -> int:
    """Floats that the backward pass needs; ``hidden``: for gradients of weights too."""

def mlp(
    rows: int,
    x: int,
    members: list[int],
    layers: list[Layer],
    out: int,
    saved: int,
    hidden: bool,
    threads: int,
) -> None: ...
def mlp_grad(
    rows: int,
    x: int,
    members: list[int],
    layers: list[Layer],
    saved: int,
    hidden: bool,
    dout: int,
    dx: int,
    grads: list[tuple[int, int, int, int]],
    threads: int,
) -> None:
    """grads per layer: weight, bias, gamma, beta; an empty list for none."""

def mlp_grad_picked(
    rows: int,
    x: int,
    members: list[int],
    layers: list[Layer],
    saved: int,
    hidden: bool,
    pick: int,
    dout: int,
    dx: int,
    threads: int,
) -> None:
    """pick: int64 [rows], the member whose value row r's gradient is of."""

def adam(
    tensors: list[tuple[int, int, int, int, int]],
    step_size: float,
    beta1: float,
    beta2: float,
    root: float,
    eps: float,
    threads: int,
) -> None:
    """tensors: elements, weights, gradient, first and second moment."""

def lerp(tensors: list[tuple[int, int, int]], weight: float, threads: int) -> None:
    """tensors: elements, to, from; to += weight * (from - to)."""

def gemm(
    m: int,
    n: int,
    k: int,
    a: int,
    lda: int,
    ta: bool,
    b: int,
    ldb: int,
    tb: bool,
    c: int,
    ldc: int,
    add: bool,
) -> None:
    """c [m, n] = (c +) op(a) op(b), on one thread."""

"""Fused float32 kernels (csrc/kernels/bind.cc); ``networks/fast/cpu`` is the only caller.

All arguments named like a tensor are addresses (``Tensor.data_ptr()``) of contiguous float32
arrays, 0 for none. A unit survives dropout with probability ``keep`` / 2**32 (0: no dropout).
"""

class NormRelu:
    """relu(dropout(layer_norm(x + bias)))."""

    def __init__(
        self,
        *,
        groups: int,
        rows: int,
        width: int,
        x: int,
        bias: int,
        bias_per_unit: bool,
        gamma: int,
        beta: int,
        eps: float,
        keep: int,
        scale: float,
        seed: int,
        stats: int,
        first_row: int = 0,
        others: int = 0,
    ) -> None: ...

class NormReluGrad:
    def __init__(self, *, dy: int, dx: int, dbias: int, dgamma: int, dbeta: int) -> None: ...

def norm_relu(operands: NormRelu, *, y: int, threads: int) -> None: ...
def norm_relu_grad(operands: NormRelu, grad: NormReluGrad, *, threads: int) -> None: ...

class ChannelNorm:
    """norm(x) (+ residual), each channel of each picture by itself."""

    def __init__(
        self,
        *,
        pictures: int,
        channels: int,
        size: int,
        x: int,
        channels_last: bool,
        gamma: int,
        beta: int,
        residual: int,
        eps: float,
        relu: bool,
    ) -> None: ...

def channel_norm(operands: ChannelNorm, *, y: int, threads: int) -> None: ...

class Spatial:
    """Sum over rows of relu(norm(shared + action)) * weight."""

    def __init__(
        self,
        *,
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
    ) -> None: ...

class SpatialGrad:
    def __init__(
        self, *, dz: int, dshared: int, daction: int, dgamma: int, dbeta: int, dweight: int
    ) -> None: ...

def spatial(operands: Spatial, *, out: int, threads: int) -> None: ...
def spatial_grad(operands: Spatial, grad: SpatialGrad, *, threads: int) -> None: ...

class Gemm:
    """op(a) op(b) + bias, op transposes where ``ta``, ``tb``; m x k times k x n."""

    def __init__(
        self,
        *,
        m: int,
        n: int,
        k: int,
        a: int,
        lda: int,
        ta: bool,
        b: int,
        ldb: int,
        tb: bool,
        bias: int,
    ) -> None: ...

def gemm(operands: Gemm, *, c: int, threads: int) -> None: ...

class MlpLayer:
    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        w: int,
        transposed: bool,
        bias: int,
        bias_per_unit: bool,
        gamma: int,
        beta: int,
        eps: float,
        keep: int,
        scale: float,
        seed: int,
        hidden: bool,
    ) -> None: ...

class Mlp:
    """Several perceptrons on the same rows."""

    def __init__(
        self,
        *,
        rows: int,
        x: int,
        members: list[int],
        layers: list[MlpLayer],
        first_row: int = 0,
        others: int = 0,
    ) -> None: ...
    def saved_size(self, *, hidden: bool) -> int:
        """Floats that the backward pass needs; ``hidden``: including gradients of weights."""

class MlpLayerGrad:
    def __init__(self, *, dw: int, dbias: int, dgamma: int, dbeta: int) -> None: ...

def mlp(operands: Mlp, *, out: int, saved: int, hidden: bool, threads: int) -> None: ...
def mlp_grad(
    operands: Mlp,
    *,
    saved: int,
    hidden: bool,
    dout: int,
    dx: int,
    layers: list[MlpLayerGrad],
    threads: int,
) -> None:
    """layers: one per layer, or an empty list for no gradients of weights."""

def mlp_grad_picked(
    operands: Mlp, *, saved: int, hidden: bool, pick: int, dout: int, dx: int, threads: int
) -> None:
    """pick: int64 [rows], the member whose output is differentiated in each row."""

class AdamRule:
    def __init__(self, *, lr: float, beta1: float, beta2: float, eps: float) -> None: ...

class AdamTensor:
    def __init__(
        self, *, n: int, weight: int, grad: int, exp_avg: int, exp_avg_sq: int, step: int
    ) -> None: ...

def adam(tensors: list[AdamTensor], rule: AdamRule, *, threads: int) -> None: ...

class LerpTensor:
    def __init__(self, *, n: int, to: int, from_: int) -> None: ...

def lerp(tensors: list[LerpTensor], *, weight: float, threads: int) -> None:
    """to += weight * (from - to)."""

class TdStep:
    """A step of an ensemble on its squared error, and its target's soft update.

    weights: of every layer the w, bias, gamma, beta that it has. follow: the target's, in order.
    """

    def __init__(
        self, *, layers: list[MlpLayer], members: int, weights: list[AdamTensor], follow: list[int]
    ) -> None: ...
    def run(
        self, *, rows: int, x: int, target: int, rule: AdamRule, tau: float, threads: int
    ) -> float:
        """The loss before the step."""

def isa() -> str:
    """The instruction set in use: base, v3 (AVX2) or v4 (AVX-512)."""

def use(isa: str) -> None:
    """Switch to another instruction set that this CPU has (for tests)."""

"""Energy networks (csrc/kernels/ebm_bind.cc). All arguments named like a tensor are addresses
(``Tensor.data_ptr()``) of contiguous arrays, or 0 for none: float32, except packed matrices and
``saved``. ``networks/ibc/fused.py`` is the only caller. Widths are padded to a multiple of 32."""

class Network:
    def __init__(
        self,
        *,
        build: str,
        kind: int,
        width: int,
        action: int,
        layers: int,
        forward: int,
        backward: int,
        bias: int,
        w_a: int,
        head: int,
        head_stream: int,
        constant: float,
    ) -> None: ...
    def saved_bytes(self, batch: int, num: int) -> int: ...
    def forward(
        self,
        *,
        batch: int,
        num: int,
        first: int,
        actions: int,
        f: int,
        grad: int,
        saved: int,
        stream: int,
        threads: int,
    ) -> None: ...
    def backward(
        self,
        *,
        batch: int,
        num: int,
        first: int,
        actions: int,
        scale: int,
        saved: int,
        stream: int,
        dfirst: int,
        layers: int,
        bias: int,
        w_a: int,
        head: int,
        head_stream: int,
        threads: int,
    ) -> None: ...

def builds() -> list[tuple[str, str]]: ...

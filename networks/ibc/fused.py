"""The passes of :mod:`networks.ibc.energy` in C++: ``common_utils.ebm_kernels``.

A block of rows goes through all layers, and back, while it is in the cache. Same interface as
:class:`networks.ibc.passes.TorchNet`. Sources: csrc/kernels/ebm*.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from common_utils.errors import UserError
from networks import fast
from networks.fast.cpu.module import address
from networks.ibc.energy_net import Kind, Weights

try:
    from common_utils import ebm_kernels
except ImportError:  # not built: everything works, slower
    ebm_kernels = None  # type: ignore[assignment]

# A larger matrix does not fit in the cache together with the rows, and torch's products are faster
MAX_WIDTH = 512
_KINDS: dict[Kind, int] = {"MLPDropout": 0, "ResNetOrig": 1, "ResNetPreActivation": 2}


@lru_cache(maxsize=1)
def _builds() -> list[tuple[str, str]]:
    return [] if ebm_kernels is None else ebm_kernels.builds()


def kernels_mode() -> str:
    """``IBC_KERNELS``: auto, off or the name of a build; UserError for anything else."""
    mode = os.environ.get("IBC_KERNELS", "auto")
    known = ["auto", "off", *(name for name, _ in _builds())]
    if mode not in known:
        raise UserError(f"IBC_KERNELS: {mode!r}, expected one of {', '.join(known)}")
    return mode


def choose(precision: str, width: int, layers: int) -> str | None:
    """The best build for a network on this CPU; None: use torch.

    ``IBC_KERNELS`` (environment) = auto, off, or the name of a build.
    """
    mode = kernels_mode()
    if precision == "bfloat16x3" and precision not in [p for _, p in _builds()]:
        precision = "float32"  # no tile registers: nothing to gain
    names = [name for name, p in _builds() if p == precision and mode in ("auto", name)]
    if not names or layers < 1 or width > MAX_WIDTH:
        return None
    return names[0]


@dataclass
class Saved:
    """What a backward pass needs from a forward pass; on tile registers it is computed again."""

    first: Tensor
    memory: Tensor | None = None
    stream: Tensor | None = None


class FusedNet:
    """Weights packed for one build."""

    def __init__(self, w: Weights, build: str) -> None:
        self.w, self.width = w, w.head.numel()
        self.padded = (self.width + 31) // 32 * 32
        layers = torch.stack([self._pad(m, 2) for m in w.layers])
        pad = self._pad
        self._packed = (
            *_pack(layers, build),
            torch.stack([pad(b) for b in w.biases]),
            pad(w.w_a.t().contiguous()),
            pad(w.head),
            None if w.head_stream is None else pad(w.head_stream),
        )
        forward, backward, bias, w_a, head, head_stream = (address(t) for t in self._packed)
        self._net = ebm_kernels.Network(
            build=build,
            kind=_KINDS[w.kind],
            width=self.padded,
            action=w.w_a.size(1),
            layers=len(w.layers),
            forward=forward,
            backward=backward,
            bias=bias,
            w_a=w_a,
            head=head,
            head_stream=head_stream,
            constant=float(w.const),
        )

    def _pad(self, x: Tensor, axes: int = 1) -> Tensor:
        return F.pad(x, (0, self.padded - self.width) * axes).contiguous()

    def forward(
        self, first: Tensor, actions: Tensor, with_grad: bool
    ) -> tuple[Tensor, Tensor | None]:
        """first [B, W], actions [B, N, A] -> f [B, N], df/da or None."""
        f, grad, _ = self._forward(first, actions, with_grad, False)
        return f, grad

    def forward_saving(
        self, first: Tensor, actions: Tensor, with_grad: bool
    ) -> tuple[Tensor, Tensor | None, Saved]:
        """f as above, and what :meth:`gradients` needs."""
        return self._forward(first, actions, with_grad, True)

    def _forward(
        self, first: Tensor, actions: Tensor, with_grad: bool, save: bool
    ) -> tuple[Tensor, Tensor | None, Saved]:
        b, n, _ = actions.shape
        saved, actions = Saved(self._pad(first)), actions.contiguous()
        f, grad = torch.empty(b, n), torch.empty_like(actions) if with_grad else None
        size = self._net.saved_bytes(b, n) if save else 0
        if size:
            saved.memory = torch.empty(size, dtype=torch.uint8)
            if self.w.head_stream is not None:
                saved.stream = torch.empty(b * n, self.padded)
        self._net.forward(
            batch=b,
            num=n,
            first=address(saved.first),
            actions=address(actions),
            f=address(f),
            grad=address(grad),
            saved=address(saved.memory),
            stream=address(saved.stream),
            threads=fast.threads(),
        )
        return f, grad, saved

    def gradients(self, saved: Saved, actions: Tensor, scale: Tensor) -> list[Tensor | None]:
        """d(sum scale f) / d(first, *Weights.tensors()); scale [rows]."""
        b, n, a = actions.shape
        layers, width, padded = len(self.w.layers), self.width, self.padded
        actions, scale = actions.contiguous(), scale.contiguous()
        first, w_a, head = torch.empty(b, padded), torch.empty(a, padded), torch.empty(padded)
        matrices, biases = torch.empty(layers, padded, padded), torch.empty(layers, padded)
        head_stream = None if self.w.head_stream is None else torch.empty(padded)
        self._net.backward(
            batch=b,
            num=n,
            first=address(saved.first),
            actions=address(actions),
            scale=address(scale),
            saved=address(saved.memory),
            stream=address(saved.stream),
            dfirst=address(first),
            layers=address(matrices),
            bias=address(biases),
            w_a=address(w_a),
            head=address(head),
            head_stream=address(head_stream),
            threads=fast.threads(),
        )
        return [
            first[:, :width],
            w_a[:, :width].t(),
            head[:width],
            None if head_stream is None else head_stream[:width],
            scale.sum(),
            *(m[:width, :width] for m in matrices),
            *(v[:width] for v in biases),
        ]


def _pack(layers: Tensor, build: str) -> tuple[Tensor, Tensor]:
    """[L, out, in] -> packed for the forward and for the backward pass, as ``build`` reads them."""
    count, width, _ = layers.shape
    if build in ("amx", "amx_x3"):
        parts = [layers.to(torch.bfloat16)]
        if build == "amx_x3":  # and the remainder of rounding
            parts.append((layers - parts[0].float()).to(torch.bfloat16))
        matrices = torch.stack(parts, 1).flatten(0, 1)  # the parts of a layer follow each other
        # the forward pass has it as the second factor, the backward pass as the first
        tiles = matrices.view(-1, width // 32, 32, width // 16, 16)
        return _panels(matrices, 2), tiles.permute(0, 3, 1, 4, 2).contiguous()
    if build == "v4_bf16":
        matrices = layers.to(torch.bfloat16)
        return _panels(matrices, 2), _panels(matrices.transpose(1, 2), 2)
    if build.endswith("_rounded"):
        layers = layers.to(torch.bfloat16).float()
    return _panels(layers, 1), _panels(layers.transpose(1, 2), 1)


def _panels(matrices: Tensor, pack: int) -> Tensor:
    """[L, n, k] -> [L, n/16, k/pack, 16, pack]."""
    count, n, k = matrices.shape
    panels = matrices.reshape(count, n // 16, 16, k // pack, pack)
    return panels.permute(0, 1, 3, 2, 4).contiguous()

"""All randomness of a run from one seed.

A component asks ``seed_for(seed, "replay")`` for a seed of its own, so that adding a
draw in one place never shifts another. The global generators (python, numpy, torch)
are seeded as the published program does, and can be captured, restored and shielded.
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_for(seed: int, *names: str | int, bits: int = 63) -> int:
    """A stable, well mixed seed in [0, 2**bits) for the component called ``names``.

    The same on every machine and Python version. Use ``bits=32`` for ``np.random.seed``.
    """
    if not 1 <= bits <= 64:
        raise ValueError(f"seed_for: bits must lie in 1..64, got {bits}")
    text = "\x1f".join([str(int(seed)), *(f"{type(n).__name__}:{n}" for n in names)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little") >> (64 - bits)


def set_all_seeds(seed: int) -> None:
    """Seed python with s, numpy with s+1, torch with s+2, CUDA with s+3, as the original does."""
    if not 0 <= seed < 2**32 - 3:
        raise ValueError(f"seed: {seed} is out of range, expected 0 <= seed < 2**32 - 3")
    random.seed(seed)
    np.random.seed(seed + 1)
    torch.manual_seed(seed + 2)
    torch.cuda.manual_seed_all(seed + 3)


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """The generator itself or, if it belongs to another kind of device (torch refuses to draw on
    ``device`` with it), a new one on ``device`` seeded from it.
    """
    if generator.device.type == device.type:
        return generator
    seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    return torch.Generator(device).manual_seed(seed)


_CUDA_BYTES = 16  # size of a CUDA generator's state: its seed and its position


def restore_generator(generator: torch.Generator, state: torch.Tensor) -> None:
    """Restore a state that ``get_state`` gave, bit for bit if it is of the same kind of device.

    A GPU's generator cannot use a CPU's state, nor the other way round. Then the generator is
    seeded with the first 63 bits of the state's SHA-256: the same state always gives the same
    numbers, but not those of the run that saved it. Raises ValueError if ``state`` is of neither.
    """
    if not other_device(generator, state):
        generator.set_state(state.cpu())
        return
    digest = hashlib.sha256(state.cpu().numpy().tobytes()).digest()
    generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def other_device(generator: torch.Generator, state: torch.Tensor) -> str:
    """A note if ``state`` is of a generator on another kind of device, else ""."""
    kinds = {_CUDA_BYTES: "a GPU", torch.Generator().get_state().numel(): "a CPU"}
    have, own = (x.numel() for x in (state, generator.get_state()))
    if state.dtype is not torch.uint8 or have not in {own, *kinds}:
        raise ValueError(
            f"{have} numbers of {state.dtype} are not the state of a random generator, expected "
            f"{own} of torch.uint8"
        )
    if have == own:
        return ""
    return (
        f"this state was saved on {kinds[have]}: random generators of this device are seeded "
        "from it, and the run goes on, but not bit for bit as there"
    )


def _cuda_in_use() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def global_rng_state() -> dict[str, Any]:
    """State of the python, numpy, torch CPU and (if in use) CUDA generators.

    Plain ints, lists and tensors: loads with ``torch.load(weights_only=True)``.
    """
    version, internal, gauss = random.getstate()
    name, keys, pos, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "internal": list(internal), "gauss": gauss},
        "numpy": {
            "name": str(name),
            "keys": [int(k) for k in keys],  # type: ignore[union-attr]
            "pos": int(pos),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if _cuda_in_use() else [],
    }


def set_global_rng_state(state: Mapping[str, Any]) -> None:
    """Inverse of :func:`global_rng_state`; without a GPU, CUDA's generators are left out."""
    py, npy = state["python"], state["numpy"]
    random.setstate((py["version"], tuple(py["internal"]), py["gauss"]))
    np.random.set_state(
        (npy["name"], np.array(npy["keys"], np.uint32), npy["pos"], npy["has_gauss"], npy["cached"])
    )
    torch.set_rng_state(state["torch"].cpu())
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not available:
        return
    if available < len(state["cuda"]):
        warnings.warn(
            f"the saved run used {len(state['cuda'])} CUDA generators, this machine has "
            f"{available}: the rest is dropped, and the run will not repeat exactly",
            stacklevel=2,
        )
    for device, cuda_state in enumerate(state["cuda"][:available]):
        torch.cuda.set_rng_state(cuda_state.cpu(), device)


@contextmanager
def preserve_rng() -> Iterator[None]:
    """Restores the global generators after the block, whatever it draws.

    Used around evaluations, so that the number of evaluations never changes training.
    """
    state = global_rng_state()
    try:
        yield
    finally:
        set_global_rng_state(state)


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """State of a numpy ``Generator`` as plain ints, strings and lists (JSON safe)."""
    return _plain(generator.bit_generator.state)


def set_generator_state(generator: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Inverse of :func:`generator_state`; the bit generator must be of the same kind."""
    have, want = type(generator.bit_generator).__name__, state["bit_generator"]
    if have != want:
        raise ValueError(f"generator state is of kind {want}, the generator is {have}")
    generator.bit_generator.state = _unplain(dict(state))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "values": [int(v) for v in value]}
    return int(value) if isinstance(value, np.integer) else value


def _unplain(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"dtype", "values"}:
            return np.array(value["values"], dtype=value["dtype"])
        return {k: _unplain(v) for k, v in value.items()}
    return value

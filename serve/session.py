"""One client of a policy server: its messages become observations, and its history is kept here.

A request is a map of observations by name (other entries, such as a prompt, are ignored). It holds

* one step of everything: ``[S]``, ``[3, H, W]`` or ``[H, W, 3]``. If the policy reads several
  steps, those of this client's earlier requests are added, newest first, as in training;
* or whole stacks, as environments of this program deliver them, ``[T * S]``, ``[T * 3, H, W]``;
* or a batch of whole stacks, ``[B, ...]``. These two need no history, and leave none.

``reset`` (true) begins an episode: what came before is forgotten. A connection begins one as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from common_utils.errors import UserError
from common_utils.specs import ArraySpec
from common_utils.stacking import ObservationStacks, StackPad

MAX_BATCH = 1024
RESET = "reset"


class RequestError(UserError):
    """A request that cannot be answered; the message names the key."""


class Request(NamedTuple):
    """What a message asks for: observations [...] or, if ``batched``, [B, ...]; none: a reset."""

    obs: dict[str, np.ndarray]
    batched: bool


@dataclass(frozen=True)
class Inputs:
    """What the served policy reads.

    specs: by its own names, stacks included.
    names: the client's name of each; a name with "/" is also looked up in nested maps.
    """

    specs: Mapping[str, ArraySpec]
    pad: StackPad
    names: Mapping[str, str]

    def described(self) -> dict[str, Any]:
        """By the clients' names, for the greeting."""
        return {
            self.names[key]: {"shape": list(s.shape), "dtype": s.dtype, "stack": s.stack}
            for key, s in self.specs.items()
        }


class Session:
    """Reads one client's requests."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self._stacks = ObservationStacks(inputs.specs, inputs.pad)

    def read(self, message: Any) -> Request:
        """The request in ``message``; RequestError says which key is wrong, and how."""
        if not isinstance(message, dict):
            raise RequestError(
                f"request: found a {type(message).__name__}, expected a map of observations"
            )
        reset = message.get(RESET, False)
        if not isinstance(reset, (bool, np.bool_)):
            raise RequestError(f"{RESET}: found {str(reset)[:40]}, expected true or false")
        if reset:
            self._stacks.reset()
        found = {key: _lookup(message, name) for key, name in self.inputs.names.items()}
        missing = [self.inputs.names[key] for key, value in found.items() if value is None]
        if reset and len(missing) == len(found):
            return Request({}, False)
        if missing:
            here = ", ".join(sorted(str(k)[:40] for k in message)[:20]) or "nothing"
            raise RequestError(f"{missing[0]}: missing, expected it beside what there is: {here}")
        return self._request({key: self._part(key, value) for key, value in found.items()})

    def _part(self, key: str, value: Any) -> tuple[np.ndarray, str]:
        """The value, in the policy's dtype and layout, and which form of it this is."""
        name, spec = self.inputs.names[key], self.inputs.specs[key]
        value = _as_dtype(name, value, np.dtype(spec.dtype))
        frame, whole = spec.frame_shape, spec.shape
        if len(frame) == 3 and value.shape == (*frame[1:], frame[0]) and value.shape != whole:
            value = np.ascontiguousarray(value.transpose(2, 0, 1))
        if value.shape == whole:
            return value, "step" if spec.stack == 1 else "stack"
        if value.shape == frame:
            return value, "step"
        if value.shape[1:] == whole and 1 <= len(value) <= MAX_BATCH:
            return value, "batch"
        steps = f"{list(frame)} (one step), " if spec.stack > 1 else ""
        raise RequestError(
            f"{name}: found {value.dtype}{list(value.shape)}, expected {spec.dtype} {steps}"
            f"{list(whole)}, or a batch [1..{MAX_BATCH}, ...] of that"
        )

    def _request(self, parts: dict[str, tuple[np.ndarray, str]]) -> Request:
        """All parts in the same form: whole stacks."""
        obs = {key: value for key, (value, _) in parts.items()}
        # without a history, one step is also a whole stack
        single = {k for k, s in self.inputs.specs.items() if s.stack == 1}
        forms = {f for k, (_, f) in parts.items() if not (k in single and f == "step")}
        if len(forms) > 1 or ("batch" in forms and any(f != "batch" for _, f in parts.values())):
            shown = ", ".join(f"{self.inputs.names[k]} a {form}" for k, (_, form) in parts.items())
            raise RequestError(f"request: found {shown}; expected all in one form")
        if "batch" in forms:
            return self._batch(obs)
        return Request(self._stacks.push(obs) if forms <= {"step"} else obs, False)

    def _batch(self, obs: dict[str, np.ndarray]) -> Request:
        sizes = {self.inputs.names[key]: len(value) for key, value in obs.items()}
        if len(set(sizes.values())) > 1:
            raise RequestError(f"request: found batches of {sizes}, expected all of one size")
        return Request(obs, True)


def _lookup(message: Mapping[Any, Any], name: str) -> Any:
    """The entry called ``name``, or ``a/b`` in the map that ``a`` holds; None without it."""
    if name in message:
        return message[name]
    first, _, rest = name.partition("/")
    inner = message.get(first)
    return _lookup(inner, rest) if rest and isinstance(inner, dict) else None


def _as_dtype(name: str, value: Any, dtype: np.dtype) -> np.ndarray:
    """``value`` as an array of ``dtype``: floats may differ in precision, nothing else may."""
    if isinstance(value, list) and value and all(type(x) in (int, float) for x in value):
        value = np.array(value, np.float64)
    if not isinstance(value, np.ndarray):
        raise RequestError(f"{name}: found a {type(value).__name__}, expected an array of {dtype}")
    if value.dtype != dtype and not (value.dtype.kind == dtype.kind == "f"):
        raise RequestError(
            f"{name}: found {value.dtype}{list(value.shape)}, expected an array of {dtype}"
        )
    with np.errstate(over="ignore"):
        value = value.astype(dtype, copy=False)
    if dtype.kind == "f" and not np.isfinite(value).all():
        at = np.argwhere(~np.isfinite(value))[0].tolist()
        raise RequestError(f"{name}: found NaN or infinity at {at}, expected finite numbers")
    return value

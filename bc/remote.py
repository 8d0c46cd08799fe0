"""A policy that another process answers for, over openpi's protocol (docs/deploy.md).

The server may run anything (pi0.5, GR00T, ACT, this program's own ``ibrl serve``); here it is a
frozen policy like any other, so its actions enter IBRL's candidates. It answers an observation with
a chunk of actions [T, A], of which ``execute`` are played before it is asked again (receding
horizon, as openpi's ``ActionChunkBroker`` does).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from bc.base import BasePolicy, PolicyConfig, PolicyInputs
from common_utils.chunks import ChunkPlayer
from common_utils.errors import UserError, shortened
from common_utils.link import Link, LinkLost, LinkRefused, check_url, renamed
from common_utils.ranges import NotNegativeNumber, Positive, PositiveNumber, Stack
from common_utils.specs import ArraySpec, Obs

LONGEST_DELAY = 15.0  # seconds between attempts to connect again
Row = dict[str, np.ndarray]


@dataclass
class RemotePolicyConfig(PolicyConfig):
    """A policy that a server answers for; nothing of it is trained here."""

    # ws://HOST:PORT or wss://HOST
    url: str = ""
    # the server's names of observations, where they differ from this program's: THEIRS=OURS
    names: list[str] = field(default_factory=list)
    # what is sent: stacks, as environments deliver them; newest, the newest step of each, images
    # as [H, W, 3] (openpi's policies)
    send: Literal["stacks", "newest"] = "stacks"
    # steps of proprioception that environments deliver, of which "newest" sends one
    prop_stack: Stack = 1
    # text that is sent with every observation; "": none
    prompt: str = ""
    # observations per request; 1: requests have no batch axis
    max_batch: Positive = 1
    # actions of each chunk that are played before the server is asked again
    execute: Positive = 1
    # seconds for one answer
    timeout: PositiveNumber = 30.0
    # seconds for which a lost connection is tried again
    patience: NotNegativeNumber = 60.0
    # SHA-256 of the weights that the server must name, as ibrl serve does; "": any
    weights: str = ""


class RemoteError(UserError):
    """The server's answer cannot be used."""


class RemotePolicy(BasePolicy):
    """{observations as the server reads them} -> its actions, within [-1, 1].

    With ``n`` candidates the server is asked n times: a policy that samples answers differently.
    It connects at the first request. Raises LinkLost if the server stays away for
    ``cfg.patience`` seconds, LinkRefused and RemoteError for answers that cannot be used.
    """

    chunked = True

    def __init__(self, inputs: PolicyInputs, cfg: RemotePolicyConfig) -> None:
        super().__init__()
        check_url(cfg.url, "url")
        self.inputs, self.cfg, self.action_dim = inputs, cfg, inputs.action_dim
        self._specs = _specs(inputs)
        self._names = renamed(cfg.names, list(self._specs), "names")
        self.link = Link(cfg.url, timeout=cfg.timeout, field="remote policy")
        # where actions go; not part of any checkpoint
        self.register_buffer("_place", torch.zeros(0), persistent=False)
        self.player = ChunkPlayer(cfg.execute)

    @classmethod
    def build(cls, inputs: PolicyInputs, cfg: RemotePolicyConfig) -> RemotePolicy:
        """See :class:`BasePolicy`; does not connect."""
        return cls(inputs, cfg)

    def input_specs(self) -> dict[str, ArraySpec]:
        """The state, or the cameras and (if the data have it) proprioception."""
        return dict(self._specs)

    def loss(self, batch: Any) -> torch.Tensor:
        """Raises RuntimeError: the server's policy is frozen."""
        raise RuntimeError("RemotePolicy has no loss: its weights are the server's")

    @property
    def chunk_length(self) -> None:
        """See :class:`BasePolicy`: the server decides."""

    @property
    def _device(self) -> torch.device:
        return self.get_buffer("_place").device

    # ------------------------------------------------------------- acting

    def _act(self, inputs: Obs, greedy: bool, generator: torch.Generator | None) -> torch.Tensor:
        return self._propose(inputs, 1, generator).squeeze(1)

    def _propose(self, inputs: Obs, n: int, generator: torch.Generator | None) -> torch.Tensor:
        rows = {key: inputs[key].cpu().numpy() for key in self._specs}
        return self._ask(rows, n).to(self._device)

    # ------------------------------------------------------------- asking

    def _ask(self, rows: Row, n: int) -> torch.Tensor:
        """Observations [B, ...] -> chunks float32 [B, n, T, A] on the CPU."""
        asked = [np.concatenate(list(self._requests(rows))) for _ in range(n)]
        return torch.from_numpy(np.stack(asked, axis=1))

    def _requests(self, rows: Row) -> Iterator[np.ndarray]:
        """Chunks [b, T, A] of as many rows as one request may have."""
        size = self.cfg.max_batch
        for first in range(0, len(next(iter(rows.values()))), size):
            part = {key: value[first : first + size] for key, value in rows.items()}
            if size == 1:
                part = {key: value[0] for key, value in part.items()}
            message: dict[str, Any] = {self._names[k]: self._sent(k, v) for k, v in part.items()}
            if self.cfg.prompt:
                message["prompt"] = self.cfg.prompt
            count = None if size == 1 else len(next(iter(part.values())))
            actions = self._chunk(self._exchange(message), count)
            yield actions[None] if size == 1 else actions

    def _sent(self, key: str, value: np.ndarray) -> np.ndarray:
        """One observation, or a batch of them, as the server reads it."""
        if self.cfg.send == "stacks":
            return value
        axis = value.ndim - len(self._specs[key].shape)
        steps = self.cfg.prop_stack if key == "prop" else self.inputs.stack
        newest = value.take(range(value.shape[axis] // steps), axis=axis)
        return np.moveaxis(newest, axis, -1) if key in self.inputs.cameras else newest

    def _chunk(self, answer: Any, count: int | None) -> np.ndarray:
        """The actions of an answer, float32 [T, A], or [count, T, A]; RemoteError for others."""
        actions = answer.get("actions") if isinstance(answer, dict) else None
        lead = () if count is None else (count,)
        shown = ", ".join(map(str, (*lead, "T", self.action_dim)))
        if not isinstance(actions, np.ndarray) or actions.dtype.kind != "f":
            what = actions.dtype if isinstance(actions, np.ndarray) else type(actions).__name__
            raise self._wrong(f"found {what}, expected floats [{shown}]")
        fits = actions.ndim == len(lead) + 2 and actions.shape[-1] == self.action_dim
        if not fits or actions.shape[:-2] != lead:
            raise self._wrong(f"found shape {list(actions.shape)}, expected [{shown}]")
        if actions.shape[-2] < self.cfg.execute:
            raise self._wrong(
                f"found chunks of {actions.shape[-2]}, expected at least {self.cfg.execute} "
                "(remote.execute)"
            )
        if not np.isfinite(actions).all():
            raise self._wrong("found NaN or infinity, expected finite numbers")
        return actions.astype(np.float32).clip(-1, 1)

    def _wrong(self, what: str) -> RemoteError:
        return RemoteError(f"remote policy: {self.cfg.url}: actions: {what}")

    def _exchange(self, message: Mapping[str, Any]) -> Any:
        """The server's answer; while the connection is lost it tries again, for a while."""
        deadline, delay = time.monotonic() + self.cfg.patience, 0.5
        while True:
            try:
                self._connect()
                return self.link.ask(message)
            except LinkLost as error:
                if time.monotonic() + delay > deadline:
                    raise
                print(f"{error}; trying again in {delay:g} s", flush=True)
            time.sleep(delay)
            delay = min(2 * delay, LONGEST_DELAY)

    def _connect(self) -> None:
        if self.link.is_open:
            return
        greeting, wanted = self.link.connect(), self.cfg.weights
        found = greeting.get("weights", wanted) if isinstance(greeting, dict) else wanted
        if wanted and found != wanted:
            self.link.close()
            raise LinkRefused(
                f"remote policy: {self.cfg.url}: serves other weights "
                f"({shortened(str(found), 16)}) than before ({wanted[:16]}...); expected those, "
                "or a new run"
            )


def _specs(inputs: PolicyInputs) -> dict[str, ArraySpec]:
    if not inputs.cameras:
        return {"state": ArraySpec(inputs.obs_shape)}
    specs = {camera: ArraySpec(inputs.obs_shape, "uint8") for camera in inputs.cameras}
    return specs | ({"prop": ArraySpec(inputs.prop_shape)} if inputs.prop_shape else {})

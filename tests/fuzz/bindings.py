"""The C++ modules called as nobody should: an exception, or what a plain reference gives.

A case runs in a forked child, where a signal is a crash. Kernels take addresses: what reads beyond
an array that it was given is called through ``networks.fast``, whose forms check their operands.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common_utils import rela
from networks.fast import table
from networks.fast.layer import Layer
from tests.fuzz.case import Case, Trial
from tests.infra import test_null_pointers as kernels

KIND = "bindings"
# what the bindings document: pybind11's classes for C++ exceptions
REFUSALS = (TypeError, ValueError, LookupError, RuntimeError, ArithmeticError, MemoryError)
NUMBERS: tuple[Any, ...] = (
    -1, 0, 1, 2, 3, 7, 2**31 - 1, 2**31, -(2**31), 2**40, 2**63 - 1, 2**63, 2**64, -(2**63), 1.5,
    float("nan"), float("inf"), None, "3", True, [], {}, np.int64(3), np.float32(2), b"x",
)  # fmt: skip


class Refusal(Exception):
    """One of the calls was refused."""


def cases(rng: random.Random) -> Iterator[Case]:
    while True:
        yield rng.choice([_replay, _replay, _threads, _addresses, _operation])(rng)


def trial(name: str, call: Callable[[Path], str | None]) -> Trial:
    return Trial(name, call, refusals=(Refusal,))


# ---------------------------------------------------------------- arrays


def array(rng: random.Random, rows: int) -> Any:
    """Something that stands where an array of so many rows belongs."""
    base = np.arange(rows * 6, dtype=np.float32).reshape(rows, 6)
    frozen = base.copy()
    frozen.flags.writeable = False
    return rng.choice([
        lambda: base[:, :3], lambda: base[:, ::2], lambda: base[::-1], lambda: base.T,
        lambda: np.asfortranarray(base), lambda: frozen, lambda: base.astype(np.float64),
        lambda: base.astype(">f4"), lambda: base.astype(np.float16), lambda: base.astype("c8"),
        lambda: base.astype(object), lambda: base.astype(str), lambda: base.astype(np.uint8),
        lambda: base.astype(bool), lambda: base.astype("V4"), lambda: base[..., None, None, None],
        lambda: base[:0], lambda: base[:, :0], lambda: base[0], lambda: base.sum(), lambda: 3.0,
        lambda: np.full_like(base, np.nan), lambda: np.full_like(base, np.inf),
        lambda: np.broadcast_to(np.float32(1), (2**40, 3)), lambda: base.tolist(), lambda: None,
        lambda: np.broadcast_to(np.float32(1), (rows, 2**40)), lambda: torch.from_numpy(base),
        lambda: torch.from_numpy(base).T, lambda: torch.zeros(rows, 3, requires_grad=True),
        lambda: torch.empty(rows, 3, device="meta"), lambda: torch.zeros(rows, 3).bfloat16(),
        lambda: "text", lambda: {}, lambda: np.zeros((rows, *[1] * 30), np.float32),
        lambda: np.lib.stride_tricks.as_strided(base, (rows, 3), (0, 4)),
        lambda: np.array(["2020-01-01"] * rows, "M8[D]"), lambda: memoryview(base),
    ])()  # fmt: skip


def episode(rng: random.Random, *, hostile: bool = False) -> tuple[rela.EpisodeData, Any]:
    """An episode and its rewards and observations as numpy knows them."""
    length = rng.choice([1, 2, 5, 9])
    obs: Any = {
        "x": np.array([[rng.random() for _ in range(3)] for _ in range(length)], np.float32),
        "cam": np.array([rng.randrange(256) for _ in range(length * 12)], np.uint8),
    }
    obs["cam"] = obs["cam"].reshape(length, 3, 2, 2)
    args: dict[str, Any] = {
        "obs": obs, "action": {"a": np.ones((length, 2), np.float32)},
        "reward": np.arange(length, dtype=np.float32), "terminated": True, "truncated": False,
        "final_obs": False, "nstep": 1, "gamma": 0.5,
    }  # fmt: skip
    if hostile:
        _spoil(rng, args, length)
    made = rela.episode_from_arrays(**args)
    return made, (obs, args["reward"])


def _spoil(rng: random.Random, args: dict[str, Any], length: int) -> None:
    key = rng.choice(sorted(args))
    if key in ("obs", "action") and rng.random() < 0.8:
        name = rng.choice([*args[key], "more", "", "\u00e9", 3, None])
        args[key] = {**args[key], name: array(rng, length)}
        if rng.random() < 0.2:
            args[key].pop(rng.choice(list(args[key])))
    elif key in ("obs", "action", "reward"):
        args[key] = array(rng, length)
    else:
        args[key] = rng.choice(NUMBERS)


# ---------------------------------------------------------------- replays


class Session:
    """A replay, and what is in it as far as that is known."""

    def __init__(self, rng: random.Random, folder: Path) -> None:
        self.rng, self.folder = rng, folder
        self.known: list[Any] | None = []
        self.refused = ""
        self.made: list[Any] = []
        self.replay = rela.SingleStepTransitionReplay(1, 1, 6, 1, rng.choice([0, 2]))
        for _ in range(2):
            self.add()

    # each method is a call that one may make
    def add(self) -> None:
        made, held = episode(self.rng)
        self.replay.add(made)
        if self.known is not None:
            self.known.append(held)

    def add_hostile(self) -> None:
        made, _ = episode(self.rng, hostile=True)
        self.known = None
        self.replay.add(made)

    def add_other(self) -> None:
        self.replay.add(self.rng.choice([None, 3, {}, self.replay, rela.Episode(1, 3, 0.9)]))

    def make(self) -> None:
        args: dict[str, Any] = {
            "frame_stack": 1, "n_step": 1, "capacity": 5, "seed": 1, "prefetch": 0, "extra": 0.1,
            "stacks": {}, "stack_order": "oldest_first", "bootstrap_truncated": False,
            "save_only": [], "storage": "ram", "num_threads": 1,
        }  # fmt: skip
        odd = [*NUMBERS, "", "/dev/null", "/dev/zero", str(self.folder), "gone", "newest_first",
               {"x": 2**31 - 1}, {"x": -1}, {"": 2}, {3: 2}, ["x"], [None], "ram"]  # fmt: skip
        for key in self.rng.sample(sorted(args), 2):
            args[key] = self.rng.choice(odd)
        kind = self.rng.choice([rela.SingleStepTransitionReplay, rela.MultiStepTransitionReplay])
        other = kind(**args)
        self.made.append(other)
        made, _ = episode(self.rng)
        other.add(made)
        other.sample(3, None)

    def sample(self) -> None:
        number = self.rng.choice([3, 64, *NUMBERS])
        where = self.rng.choice([None, "cpu", "cuda", "", 3, "meta"])
        batch = self.replay.sample(number, where, self.rng.choice([1, 1, 3, *NUMBERS]))
        if not bool(np.isfinite(np.asarray(batch.reward)).all()) and self.known is not None:
            raise AssertionError("rewards that were never added")

    def get(self) -> None:
        self.replay.get(self.rng.choice(NUMBERS))

    def get_range(self) -> None:
        begin, end = (self.rng.choice(NUMBERS) for _ in range(2))
        self.replay.get_range(begin, end, self.rng.choice([None, "cpu", 3]))

    def read(self) -> None:
        group = self.rng.choice(["obs", "action", "reward", "", None, 3, "\u00e9"])
        key = self.rng.choice(["x", "cam", "a", "", None, "gone"])
        self.replay.read(group, key, self.rng.choice(NUMBERS), self.rng.choice(NUMBERS))

    def state(self) -> None:
        """Its own state, in which something is another."""
        state = self.replay.state_dict()
        key = self.rng.choice(sorted(state))
        value = state[key]
        if isinstance(value, dict) and value and self.rng.random() < 0.8:
            value = {**value, self.rng.choice([*value, "more"]): array(self.rng, 5)}
        elif isinstance(value, np.ndarray) and value.size and self.rng.random() < 0.7:
            value = value.copy()
            with np.errstate(all="ignore"):
                number = self.rng.choice([-1, 0, 1, 2**31, 2**62, -(2**62)])
                value.flat[self.rng.randrange(value.size)] = number
        else:
            value = self.rng.choice([array(self.rng, 5), self.rng.choice(NUMBERS)])
        state[key] = value
        if self.rng.random() < 0.1:
            del state[key]
        self.known = None
        self.replay.load_state_dict(state)

    def own_state(self) -> None:
        self.replay.load_state_dict(self.replay.state_dict())

    def clear(self) -> None:
        self.replay.clear()
        self.known = [] if self.known is not None else None

    def donate(self) -> None:
        size = self.rng.choice([0, 1, 100, 10**6])
        buffer = np.zeros(size, np.uint8)
        if self.rng.random() < 0.6:
            buffer = array(self.rng, 4)
        self.replay.donate(buffer)

    def terminate(self) -> None:
        self.replay.terminate()

    def joint(self) -> None:
        others = [self.replay, None, self.replay, rela.MultiStepTransitionReplay(1, 1, 3, 1), 3]
        chosen = [self.rng.choice(others[:1] * 4 + others) for _ in range(self.rng.randrange(4))]
        joint = rela.JointSampler(chosen, prefetch=self.rng.choice([0, 1, *NUMBERS]),
                                  num_threads=self.rng.choice([1, 2, *NUMBERS]))  # fmt: skip
        self.made.append(joint)
        joint.sample([self.rng.choice([2, 5, *NUMBERS]) for _ in chosen], None)

    def builder(self) -> None:
        made = rela.Episode(*(self.rng.choice([1, 3, 5, *NUMBERS]) for _ in range(2)), 0.9)
        for _ in range(12):
            name = self.rng.choice(BUILDER)
            try:
                self._build(made, name)
            except REFUSALS as error:
                self.refused = f"{name}: {error}"

    def _build(self, made: rela.Episode, name: str) -> None:
        rng = self.rng
        call = getattr(made, name)
        if name in ("push_obs", "push_final_obs", "push_action"):
            call({"x": rng.choice([np.zeros(3, np.float32), array(rng, 1)])})
        elif name == "push_reward":
            call(rng.choice([0.5, *NUMBERS]))
        elif name == "push_terminal":
            call(rng.choice([0.0, 1.0, *NUMBERS]), rng.choice([True, False, None]))
        elif name == "pop_transition":
            done = call()
            done.to_dict()
            self.known = None
            self.replay.add(done)
        elif name == "reset_rewards":
            call(rng.choice([None, [], [1.0] * 9, [1.0], [None], "x", np.ones(3), [np.nan]]))
        elif name == "load_state_dict":
            state = made.state_dict()
            key = rng.choice(sorted(state))
            state[key] = rng.choice([array(rng, 3), {"x": array(rng, 3)}, *NUMBERS])
            call(state)
        else:
            call()

    def check(self) -> str | None:
        """What of it is not what was added."""
        if self.known is None:
            for number in range(self.replay.size()):
                self.replay.get(number)
            return None
        size = self.replay.size()
        if size > len(self.known):
            return f"{size} episodes, {len(self.known)} were added"
        for number, (obs, reward) in enumerate(self.known[len(self.known) - size :]):
            found = self.replay.get(number)
            for key, value in obs.items():
                if not np.array_equal(found["obs"][key], value):
                    return f"episode {number}: {key} is another"
            if not np.array_equal(found["raw_reward"], reward):
                return f"episode {number}: rewards are others"
        return None


BUILDER = (
    *("push_obs", "push_action", "push_reward", "push_terminal") * 3,
    *("push_final_obs", "pop_transition", "get_rewards", "reset_rewards", "init", "reset"),
    *("load_state_dict", "state_dict", "len"),
)
CALLS = (
    *("add", "add", "add_hostile", "add_other", "make", "sample", "sample", "get", "get_range"),
    *("read", "state", "own_state", "clear", "donate", "terminate", "joint", "builder"),
)


def _replay(rng: random.Random) -> Trial:
    own, names = random.Random(rng.random()), [rng.choice(CALLS) for _ in range(8)]

    def call(folder: Path) -> str | None:
        session = Session(own, folder)
        _make_calls(session, names)
        try:
            said = session.check()
        except REFUSALS as error:
            if "terminate" not in names and session.known is not None:
                raise
            said, session.refused = None, f"at the end: {error}"
        return _ended(session, said)

    return trial(f"replay: {', '.join(names)}", call)


def _make_calls(session: Session, names: list[str]) -> None:
    for name in names:
        try:
            getattr(session, name)()
        except REFUSALS as error:
            session.refused = f"{name}: {error or type(error).__name__}"


def _ended(session: Session, said: str | None) -> str | None:
    if said is None and session.refused:
        raise Refusal(session.refused.splitlines()[0])
    return said


def _threads(rng: random.Random) -> Trial:
    """Two threads do what they like with one replay."""
    seeds, names = (rng.random(), rng.random()), [rng.choice(CALLS) for _ in range(16)]

    def call(folder: Path) -> str | None:
        session = Session(random.Random(seeds[0]), folder)
        other = Session(random.Random(seeds[1]), folder)
        other.replay = session.replay
        session.known = other.known = None
        errors: list[BaseException] = []

        def run(mine: Session, calls: list[str]) -> None:
            try:
                _make_calls(mine, calls)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(session, names[:8])),
                   threading.Thread(target=run, args=(other, names[8:]))]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return _ended(session, None)

    return trial(f"two threads: {', '.join(names)}", call)


# ---------------------------------------------------------------- kernels

SIZES = (
    "m",
    "k",
    "lda",
    "ldb",
    "groups",
    "rows",
    "width",
    "batch",
    "num",
    "inputs",
    "outputs",
    "n",
    "layers",
    "action",
)
FIELDS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "NormRelu": (kernels.kernels.NormRelu, kernels.NORM),
    "NormReluGrad": (kernels.kernels.NormReluGrad, kernels.NORM_GRAD),
    "Spatial": (kernels.kernels.Spatial, kernels.SPATIAL),
    "SpatialGrad": (kernels.kernels.SpatialGrad, kernels.SPATIAL_GRAD),
    "MlpLayer": (kernels.kernels.MlpLayer, kernels.LAYER),
    "AdamTensor": (kernels.kernels.AdamTensor, kernels.ADAM),
    "LerpTensor": (kernels.kernels.LerpTensor, kernels.LERP),
    "Gemm": (kernels.kernels.Gemm, kernels.GEMM),
    "td step": (lambda **k: kernels.td_step().run(**k), kernels.TD_STEP),
    "Network": (kernels.ebm_kernels.Network, kernels.NETWORK),
    "forward": (lambda **k: kernels.network().forward(**k), kernels.FORWARD),
    "backward": (lambda **k: kernels.network().backward(**k), kernels.BACKWARD),
}


def _addresses(rng: random.Random) -> Trial:
    """One operand is of another type, null, or of a size that no array has."""
    name = rng.choice(sorted(FIELDS))
    make, fields = FIELDS[name]
    key = rng.choice(sorted(fields))
    odd: list[Any] = [None, "x", 1.5, [], -1, 2**64, -(2**63), b"x", np.zeros(3)]
    if key in SIZES:
        odd += [-1, -(2**31), 0]
    if key == "threads":
        odd += [0, -(2**31), 10**6]
    value = rng.choice([0, *odd] if isinstance(fields[key], int) else odd)

    def call(_: Path) -> str | None:
        try:
            make(**{**fields, key: value})
        except REFUSALS as error:
            raise Refusal(str(error).splitlines()[0]) from None
        return None

    return trial(f"{name}: {key} = {str(value)[:30]}", call)


def _tensor(rng: random.Random, *shape: int) -> torch.Tensor:
    """Numbers of that shape, or something near it; none without storage, which torch mixes up."""
    values = torch.tensor([rng.uniform(-1, 1) for _ in range(int(np.prod(shape)))])
    values = values.reshape(shape)
    if rng.random() < 0.6:
        return values
    odd: list[Callable[[], torch.Tensor]] = [
        lambda: values.double(), lambda: values.half(), lambda: values.bfloat16(),
        lambda: values.long(), lambda: values.bool(), lambda: values.to(torch.complex64),
        lambda: values.transpose(0, -1).contiguous().transpose(0, -1),
        lambda: values.flip(0), lambda: values[:0],
        lambda: values[..., :-1], lambda: values[..., None], lambda: values.sum(),
        lambda: torch.cat([values, values], -1), lambda: values.expand(3, *values.shape),
        lambda: values[:1].expand(values.shape), lambda: values * torch.nan,
        lambda: values.to_sparse(), lambda: values.requires_grad_(),
        lambda: torch.zeros(1).expand(shape[0], 2**40), lambda: values * torch.inf,
        lambda: torch.from_numpy(np.broadcast_to(np.float32(1), shape)),
    ]  # fmt: skip
    return rng.choice(odd)()


def _norm(rng: random.Random, width: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(rng.choice([width, width, width, width + 1, max(1, width // 2)]))
    if rng.random() < 0.3:
        norm.weight = nn.Parameter(_tensor(rng, width).float())
    return norm


def _layers(rng: random.Random, inputs: int) -> list[Layer]:
    layers = []
    for number in range(rng.choice([1, 2, 3])):
        outputs = rng.choice([1, 4, 8])
        wide = rng.choice([inputs, inputs, inputs, inputs + 3])
        norm = _norm(rng, outputs) if number == 0 and rng.random() < 0.5 else None
        # finite: before a norm a constant does not count, whatever it is
        bias = rng.choice([None, torch.rand(outputs), torch.rand(outputs).double(), torch.rand(3)])
        layers.append(Layer(_tensor(rng, outputs, wide), bias, norm, 0.0))
        inputs = outputs
    return layers


def _operands(rng: random.Random, name: str) -> tuple[Any, ...]:
    torch.manual_seed(rng.randrange(2**31))
    rows, width = rng.choice([1, 3, 8]), rng.choice([4, 8, 32])
    if name == "norm_relu":
        # one number before a norm does not count, whatever it is: finite
        bias = rng.choice([None, _tensor(rng, 2, width), torch.rand(2, 1), torch.rand(3, 1)])
        return _tensor(rng, 2, rows, width), rng.choice([None, _norm(rng, width)]), bias, 0.0
    if name == "spatial_embed":
        shared, action = _tensor(rng, rows, 4, width), _tensor(rng, rows, 2, width)
        return shared, action, _norm(rng, width), _tensor(rng, 1, 4, width)
    if name == "soft_update":
        net = [_tensor(rng, rows, width) for _ in range(rng.choice([1, 3]))]
        target = [torch.zeros(rows, width) for _ in net]
        return net, target, rng.choice([0.0, 0.3, 1.0, -1.0, float("nan")])
    layers = _layers(rng, width)
    if name == "min_member":
        return _tensor(rng, rows, width), layers
    return _tensor(rng, rows, width), layers, rng.choice([None, None, [0], [], [5], [-1]])


OPERATIONS = ("norm_relu", "perceptron", "min_member", "spatial_embed", "soft_update")


def _operation(rng: random.Random) -> Trial:
    """An operation on tensors that may not fit: as torch computes it, or an exception."""
    name, seed = rng.choice(OPERATIONS), rng.random()

    def call(_: Path) -> str | None:
        results = []
        for backend in (None, "plain"):
            args = _operands(random.Random(seed), name)
            found = table.find(name, *args) if backend is None else (backend, PLAIN[name])
            try:
                results.append(_result(name, args, found and found[1]))
            except (*REFUSALS, NotImplementedError) as error:
                results.append(error)
        fast, plain = results
        if isinstance(plain, Exception) and not isinstance(fast, Exception):
            return f"{name} was taken, torch says {str(plain).splitlines()[0][:200]}"
        if isinstance(fast, Exception):
            raise Refusal(str(fast).splitlines()[0] if str(fast) else type(fast).__name__)
        return None if _close(fast, plain) else f"{name}: torch has another result"

    return trial(f"{name} ({seed})", call)


PLAIN = {name: dict(table.rows()[name])["plain"] for name in OPERATIONS}


def _result(name: str, args: tuple[Any, ...], kernel: Any) -> list[torch.Tensor]:
    if kernel is None:
        raise NotImplementedError(name)
    with torch.no_grad():
        out = kernel.run(*args)
    return list(args[1]) if name == "soft_update" else [out]


def _close(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Of what is not finite it matters only that it is not."""
    return all(
        x.shape == y.shape
        and torch.equal(x.isfinite(), y.isfinite())
        and torch.allclose(*(t.nan_to_num(0, 0, 0) for t in (x, y)), rtol=1e-3, atol=1e-4)
        for x, y in zip(a, b, strict=True)
        if x.is_cpu and x.layout is torch.strided
    )

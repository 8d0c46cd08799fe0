"""Random damage to bytes, texts and nested values, drawn from a given generator."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Damage = tuple[str, bytes]


def flip_bits(rng: random.Random, data: bytes) -> Damage:
    changed = bytearray(data)
    places = sorted(rng.randrange(len(data)) for _ in range(rng.choice([1, 1, 1, 3, 20])))
    for place in places:
        changed[place] ^= 1 << rng.randrange(8)
    return f"bits flipped at {places[:5]}", bytes(changed)


def set_bytes(rng: random.Random, data: bytes) -> Damage:
    begin = rng.randrange(len(data))
    end = min(len(data), begin + rng.choice([1, 2, 4, 8, 64, 512]))
    value = rng.choice([0, 0xFF, rng.randrange(256)])
    return f"bytes {begin} to {end} are {value}", data[:begin] + bytes([value]) * (
        end - begin
    ) + data[end:]


def cut(rng: random.Random, data: bytes) -> Damage:
    end = rng.choice([0, 1, len(data) - 1, rng.randrange(len(data)), rng.randrange(len(data))])
    return f"cut off at {end}", data[:end]


def take_out(rng: random.Random, data: bytes) -> Damage:
    begin = rng.randrange(len(data))
    length = rng.choice([1, 4, 100, 4096])
    return f"{length} bytes missing at {begin}", data[:begin] + data[begin + length :]


def put_in(rng: random.Random, data: bytes) -> Damage:
    begin, length = rng.randrange(len(data)), rng.choice([1, 4, 100, 4096])
    return f"{length} bytes more at {begin}", data[:begin] + rng.randbytes(length) + data[begin:]


def move(rng: random.Random, data: bytes) -> Damage:
    """A block written to another place, as by a torn write."""
    length = min(len(data), rng.choice([8, 64, 512, 4096]))
    begin, to = (rng.randrange(len(data) - length + 1) for _ in range(2))
    block = data[begin : begin + length]
    return f"{length} bytes of {begin} at {to}", data[:to] + block + data[to + length :]


BYTES: tuple[Callable[[random.Random, bytes], Damage], ...] = (
    flip_bits, flip_bits, set_bytes, cut, take_out, put_in, move,
)  # fmt: skip


def of_bytes(rng: random.Random, data: bytes) -> Damage:
    """One of the above."""
    return rng.choice(BYTES)(rng, data)


ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**64), 10**40, 0.5, 1e308, float("nan"),
    float("inf"), "", " ", "x", "é\U0001f600", "a" * 5000, "../..", "/dev/zero", "1", "nan", "null",
    [], [None], [[[]]], [1] * 1000, {}, {"": None}, {"a": {"b": []}},
)  # fmt: skip


def odd_value(rng: random.Random) -> Any:
    """Something that rarely belongs where it is put."""
    return rng.choice(ODD)


def of_value(rng: random.Random, tree: Any) -> tuple[str, Any]:
    """A copy of nested dicts and lists in which one entry is another, missing, or one too many."""
    if not isinstance(tree, (dict, list)) or not tree:
        value = odd_value(rng)
        return f"= {str(value)[:40]!r}", value
    keys: list[Any] = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = rng.choice(keys)
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    deeper = isinstance(tree[key], (dict, list)) and rng.random() < 0.85
    if deeper:
        said, copy[key] = of_value(rng, tree[key])
        return f"{key}.{said}" if not said.startswith(("=", ":")) else f"{key} {said}", copy
    kind = rng.choice(["odd", "odd", "odd", "missing", "more", "another"])
    if kind == "missing":
        del copy[key]
    elif kind == "more" and isinstance(copy, dict):
        copy[rng.choice(["x", "", "é", str(key) + "x", 3])] = odd_value(rng)
    elif kind == "another":
        copy[key] = copy[rng.choice(keys)]
    else:
        copy[key] = odd_value(rng)
        return f"{key} = {str(copy[key])[:40]!r}", copy
    return f": {kind} at {key}", copy

"""Ranges as types: what they allow, what they say, and that run_config names the field."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest

from common_utils.config_types import Mismatch, coerce, expectation
from common_utils.ranges import (
    Above,
    AllOr,
    AtLeast,
    AtMost,
    Below,
    Between,
    Dropout,
    Infinite,
    Layers,
    MultipleOf,
    OneOf,
    Or,
    Seed,
    Share,
)
from common_utils.run_config import ConfigError, check, help_text, load, parse_args


@pytest.mark.parametrize(
    "kind, words, good, bad",
    [
        (Annotated[int, AtLeast(1)], "an integer of at least 1", [1, 2e5, "3"], [0, -1, 1.5]),
        (Annotated[float, Above(0)], "a number above 0", [1e-37, 1], [0, -0.0, -1, 1e-300]),
        (Annotated[float, AtMost(2)], "a number of at most 2", [2, -5], [2.1]),
        (Annotated[float, Below(2)], "a number below 2", [1.9, -5], [2]),
        (Annotated[float, Between(-1, 0.5)], "a number within [-1, 0.5]", [-1, 0.5], [0.6, -2]),
        (Annotated[float, Above(0), AtMost(1)], "a number within (0, 1]", [0.1, 1], [0, 1.1]),
        (Dropout, "a number within [0, 1)", [0, 0.5], [1, -1, 0.99999999999]),
        (AllOr, "-1 or an integer of at least 1", [-1, 1], [0, -2]),
        (Annotated[int, OneOf(0, 1, 2)], "one of 0, 1, 2", [0, 2], [3, -1, 0.5]),
        (Annotated[int, AtLeast(4), MultipleOf(4)], "an integer of at least 4, a multiple of 4",
         [4, 64], [0, 6, -4]),
        (Annotated[float, AtLeast(0), Or(-1)], "-1 or a number of at least 0", [-1, 0], [-0.5]),
        (Annotated[float, Above(0)] | None, "a number above 0 or null", [None, 1], [0]),
        (list[Share], "a list of a number within [0, 1] such as [a, b]", [[], [0, 1]], [[2], 1]),
        (Seed, "an integer within [0, 4294967292]", [0, 2**32 - 4], [-1, 2**32 - 3]),
    ],
)  # fmt: skip
def test_ranges(kind: Any, words: str, good: list[Any], bad: list[Any]) -> None:
    assert expectation(kind) == words
    for value in good:
        coerce(value, kind)
    for value in (*bad, math.nan, math.inf, -math.inf, 10**400, True, "x"):
        with pytest.raises(Mismatch):
            coerce(value, kind)


def test_integers_that_no_float_holds_are_refused() -> None:
    for value in (2**53 + 2, -(10**30), 1e30, "1e30"):
        with pytest.raises(Mismatch):
            coerce(value, int)
    assert coerce(2**53, int) == 2**53


def test_nothing_but_infinite_allows_infinity_and_nothing_nan() -> None:
    kind = Annotated[float, AtLeast(0), Infinite()]
    assert expectation(kind) == "a number of at least 0 or inf"
    assert coerce("inf", kind) == coerce(math.inf, kind) == math.inf
    for value, plain in ((math.nan, kind), (-math.inf, kind), (math.inf, float), (math.nan, float)):
        with pytest.raises(Mismatch):
            coerce(value, plain)
    assert coerce(5, kind) == 5.0


@pytest.mark.parametrize("value", [1e-300, -1e-300, 1e-320, 1e-45, 1e-39, 1e39, -1e39, "1e-300"])
@pytest.mark.parametrize("kind", [float, Share, Annotated[float, AtLeast(0)], float | None])
def test_what_float32_does_not_hold_is_refused(value: Any, kind: Any) -> None:
    with pytest.raises(Mismatch):
        coerce(value, kind)


def test_ends_of_ranges_are_compared_as_float32() -> None:
    # 1e-12 and 0.1 are no float32 numbers
    kind = Annotated[float, Between(1e-12, 0.1)]
    assert coerce(1e-12, kind) == 1e-12 and coerce(0.1, kind) == 0.1
    for value in (0.1 + 1e-12, 1e-12 - 1e-24):
        with pytest.raises(Mismatch):
            coerce(value, kind)
    with pytest.raises(Mismatch):  # rounded to 0.1
        coerce(0.1 + 1e-10, Annotated[float, Above(0.1)])


def test_minus_zero_is_zero() -> None:
    for kind in (float, Share, Annotated[float, AtLeast(0)], float | None):
        assert math.copysign(1, coerce(-0.0, kind)) == 1


@dataclass
class Net:
    depth: Layers = 2  # layers
    rate: Dropout = 0.0  # dropout

    def __post_init__(self) -> None:
        if self.depth % 2:
            raise ValueError(f"depth: {self.depth}, expected an even number")
        if self.depth > 4 and self.rate:
            raise ValueError("deep networks take no dropout")


@dataclass
class Main:
    net: Net = field(default_factory=Net)
    seed: Seed = 1  # of everything
    sizes: list[Layers] = field(default_factory=list)  # of all


@pytest.mark.parametrize(
    "args, message",
    [
        (["--net.depth", "0"], "net.depth: expected an integer within [1, 64], got 0"),
        (["--net.rate", ".nan"], "net.rate: expected a number within [0, 1), got nan"),
        (["--net.rate", "1e-300"], "net.rate: expected a number within [0, 1) that float32 holds "
         "(0, or 1.2e-38 to 3.4e+38 in size), got '1e-300'"),
        (["--net.rate", "0.99999999999"], "net.rate: expected a number within [0, 1), got 0.999"),
        (["--net.rate", "1e999"], "net.rate: expected a number within [0, 1), got '1e999'"),
        (["--seed", "-1"], "seed: expected an integer within [0, 4294967292], got -1"),
        (["--seed", "9" * 5000], "seed: cannot read "),
        (["--sizes", "[1, 0]"], "sizes: expected a list of an integer within [1, 64]"),
        (["--net.depth", "3"], "command line: net.depth: 3, expected an even number"),
        (["--net.depth", "6", "--net.rate", "0.1"], "command line: net: deep networks take no"),
    ],
)  # fmt: skip
def test_the_field_is_named(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_args(Main, args)
    assert message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_files_and_python_and_help(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for text in ("seed: " + "9" * 5000, "seed: 2001-99-99", "[" * 5000, "sizes: [.inf]"):
        file.write_text(text)
        with pytest.raises(ConfigError, match="c.yaml: (not valid YAML|sizes)"):
            load(Main, file)
    config = Main()
    check(config)
    config.net.rate = math.nan
    with pytest.raises(ConfigError, match="net.rate: expected a number within"):
        check(config)
    assert "--net.rate  (a number within [0, 1); default: 0.0)" in help_text(Main)

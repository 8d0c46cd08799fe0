"""Every number of every program: legal by its type and usable, or refused in words.

A message names the field with its dots, the value, and what was expected; it has at most three
lines. Legal extremes are built as well, or refused for the memory they need.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import evaluate.eval
from benchmarks import common as benchmarks
from common_utils import run_config
from common_utils.config_types import Mismatch, coerce, expectation
from common_utils.errors import UserError
from common_utils.options import Options
from common_utils.run_config import field_types
from common_utils.yaml_text import parse_yaml
from tests.cli.test_frozen import PROGRAMS as FROZEN
from tests.fuzz.configs import (
    PROGRAMS,
    ConfigCase,
    Draw,
    bounds_of,
    build,
    is_named,
    is_numeric,
    kinds_of,
    quick,
)
from tools import (
    dataset_states_to_obs,
    held_out_energy,
    plot_particle,
    plot_runs,
    report,
    robomimic_dataset_conversion,
)

UNFIT = ["1.0e-300", "1e-320", "-1e-40", "1e39", "-1e39"]  # float32 holds none of them
VALUES = ["-1", "0", "1000000000", "1000000000000000000", "1e30", ".nan", ".inf", "-.inf", "word",
          "-0.0", *UNFIT]  # fmt: skip
CASES = [
    pytest.param(program, own, options, id=" ".join([program, *options[:2]]))
    for program, config_class in PROGRAMS.items()
    for own, options in kinds_of(config_class)
]


def test_no_program_is_left_out() -> None:
    assert FROZEN.items() <= PROGRAMS.items()


def values_of(kind: Any) -> list[str]:
    return list(dict.fromkeys([*VALUES, *bounds_of(kind)]))


def is_legal(text: str, kind: Any) -> bool:
    try:
        coerce(parse_yaml(text), kind)
    except Mismatch:
        return False
    return True


@pytest.mark.parametrize("program, own, options", CASES)
def test_every_number_is_legal_or_refused_in_words(
    program: str, own: Any, options: list[str]
) -> None:
    tried = 0
    for name, kind in field_types(own).items():
        if not is_numeric(kind):
            continue
        for value in values_of(kind):
            tried += 1
            try:
                run_config.parse_args(own, [*options, f"--{name}={value}"])
                assert is_legal(value, kind), f"{name}: {value} was accepted"
                assert value not in UNFIT, f"{name}: {value} was accepted"
            except UserError as error:
                check_message(str(error), name, value, field_types(own))
    assert tried > len(VALUES) or program == "expert_frames"


def check_message(text: str, name: str, value: str, known: dict[str, Any]) -> None:
    assert text.count("\n") <= 2 and len(text) < 500, text
    assert "expected" in text, f"{name} = {value}: {text}"
    if is_legal(value, known[name]):  # it does not go with another field
        assert any(is_named(field, text) for field in known), f"{name} = {value}: {text}"
        assert name.rpartition(".")[2] in text, f"{name} = {value}: {text}"
    else:
        assert is_named(name, text), f"{name} = {value}: {text}"
        assert expectation(known[name]) in text, f"{name} = {value}: {text}"
        assert str(parse_yaml(value)) in text, f"{name} = {value}: {text}"


# ------------------------------------------------------------------------- legal extremes


def extremes(kind: Any) -> list[str]:
    """The least and the largest legal value, and the words among them."""
    values = [v for v in values_of(kind) if is_legal(v, kind) and v != "-0.0"]  # built as 0 is
    words = [v for v in values if not isinstance(parse_yaml(v), int | float)]
    numbers = sorted(set(values) - set(words), key=lambda v: float(parse_yaml(v)))
    return [*dict.fromkeys([*numbers[:1], *numbers[-1:]]), *words]


def narrow(own: Any, section: str) -> list[str]:
    """Layers of width 16 instead of 1024, where there are such fields: quickly built."""
    fields = [n for n in field_types(own) if n.startswith((section or "q_agent") + ".")]
    widths = ("hidden_dim", "feature_dim", "proj_dim")
    return [f"--{n}=16" for n in fields if n.rpartition(".")[2] in widths]


def trials() -> Iterator[Any]:
    """Each field once: what policies share with one kind, each section in what uses it."""
    seen = set()
    for program in ("train_rl", "train_bc"):
        for own, options in kinds_of(PROGRAMS[program]):
            section = own.sections()[own.KIND].name if options else ""
            names = [n for n in field_types(own) if (program, n) not in seen]
            seen |= {(program, n) for n in names}
            groups: dict[str, list[str]] = {}
            for name in names:
                groups.setdefault(name.split(".")[1] if name.startswith("q_agent.") and
                                  name.count(".") > 1 else "", []).append(name)  # fmt: skip
            for group, members in groups.items():
                yield pytest.param(own, program, options, group, members,
                                   id=f"{program} {section} {group}".strip())  # fmt: skip


@pytest.mark.parametrize("own, program, options, group, names", trials())
def test_legal_extremes_are_built_or_refused_for_their_memory(
    own: Any, program: str, options: list[str], group: str, names: list[str]
) -> None:
    if program == "train_rl":
        pixels = group and not group.startswith("state")
        options = ["--q_agent.enc_type", group] if group.startswith(("vit", "resnet")) else []
        options += ["--rl_image_size", "48"] if pixels else ["--use_state", "1"]
        options += narrow(own, "")
    else:
        options = [*options, *quick(options), *narrow(own, own.sections()[own.KIND].name)]
    defaults = {field: default for field, _, default, _ in run_config.describe(own)}
    for name in names:
        kind = field_types(own)[name]
        if not is_numeric(kind) or name in ("use_state", "dataset.use_state"):
            continue
        for value in extremes(kind):
            if coerce(parse_yaml(value), kind) != defaults[name]:
                drawn = Draw(program, [*options, f"--{name}={value}"], 40)
                outcome = ConfigCase(drawn, build).run()
                assert not outcome.verdict.is_fault, f"{drawn}: {outcome.detail}"


# ------------------------------------------------------------------------- argparse


PARSERS: dict[str, tuple[Any, list[str]]] = {
    "evaluate.eval": (evaluate.eval._parser, ["--weight", "x.pt"]),
    "plot_runs": (plot_runs.parser, ["run"]),
    "report": (report.parser, ["run"]),
    "plot_particle": (plot_particle._parser, ["--task", "PARTICLE_2d"]),
    "dataset_states_to_obs": (
        dataset_states_to_obs.parser, ["--dataset", "x", "--output_folder", "y"]
    ),
    "held_out_energy": (held_out_energy._parser, ["--weight", "x.pt", "--data", "y"]),
    "robomimic_dataset_conversion": (
        robomimic_dataset_conversion.parser, ["--dataset", "x", "--output_path", "y"]
    ),
    "benchmarks": (lambda: benchmarks.parser(None), []),
}  # fmt: skip


@pytest.mark.parametrize("program", PARSERS)
def test_numbers_of_argparse_have_ranges_too(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, needed = PARSERS[program]
    parser = make()
    assert isinstance(parser, Options)
    numbers = [a for a in parser._actions if a.type not in (None, str, Path)]
    assert numbers
    for action in numbers:
        assert action.type not in (int, float), f"{action.dest} has no range"
        for value in ("-5", "nan", "inf", "-inf", "1e300", "1.5", "word", "9" * 5000):
            check_option(parser, action, [*needed, f"{action.option_strings[0]}={value}"], value)
            if out := capsys.readouterr().err:
                if re.search(r"expected .* arguments?$", out):
                    continue  # in a list argparse takes -inf for an option
                assert out.startswith(f"error: {action.option_strings[0]}: expected ")
                assert value[:40] in out and out.count("\n") == 1 and len(out) < 300


def check_option(
    parser: argparse.ArgumentParser, action: argparse.Action, args: list[str], value: str
) -> None:
    if action.nargs not in (None, "?"):  # lists are given apart from their option
        args = [*args[:-1], action.option_strings[0], *([value] * (action.nargs if
                isinstance(action.nargs, int) else 1))]  # fmt: skip
    try:
        given = parser.parse_args(args)
    except SystemExit as stop:
        if stop.code != 2:
            raise
    else:
        taken = getattr(given, action.dest)
        assert value == "1.5" or taken == float(value), f"{args}: {taken}"

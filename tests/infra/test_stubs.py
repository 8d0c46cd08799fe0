"""The stubs of the C++ modules declare what the modules have, with the same arguments."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

STUBS = sorted((Path(__file__).resolve().parents[2] / "common_utils").glob("*.pyi"))
# clean up by themselves; not for callers
PRIVATE = {"_terminate_all", "_after_fork_in_child"}


def arguments(node: ast.FunctionDef) -> list[str]:
    args = [*node.args.args, *node.args.kwonlyargs]
    return [a.arg for a in args if a.arg != "self"]


def same(stub: list[str], module: list[str]) -> bool:
    """Whether the names are the same, or as many where the binding gives no names."""
    if all(re.fullmatch(r"arg\d+", name) for name in module):
        return len(stub) == len(module)
    return stub == module


def declared_in_cpp(function: object) -> list[str]:
    """Names of the arguments, from the first line that pybind11 writes."""
    line = (function.__doc__ or "").splitlines()[0]
    return [a for a in re.findall(r"[(,] ?(\w+): ", line) if a != "self"]


@pytest.mark.parametrize("stub", STUBS, ids=lambda p: p.stem)
def test_a_stub_is_its_module(stub: Path) -> None:
    module = importlib.import_module(f"common_utils.{stub.stem}")
    tree = ast.parse(stub.read_text())
    nodes = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    assert set(nodes) == {n for n in dir(module) if not n.startswith("__")} - PRIVATE
    compared = 0
    for name, node in nodes.items():
        there = getattr(module, name)
        if isinstance(node, ast.FunctionDef):
            assert same(arguments(node), declared_in_cpp(there)), name
            compared += 1
            continue
        for method in (n for n in node.body if isinstance(n, ast.FunctionDef)):
            found = getattr(there, method.name)
            if method.name not in ("__len__", "__init__") or declared_in_cpp(found):
                assert same(arguments(method), declared_in_cpp(found)), f"{name}.{method.name}"
                compared += 1
    assert compared > 3

"""docs/paper_map.md: every row names a file and something that is defined in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "docs" / "paper_map.md").read_text()
# the last two cells of a row: a file and a name
ROW = re.compile(r"^\| (.+) \| `([\w/]+\.py)` \| `([\w.]+)` \|$", flags=re.MULTILINE)
ROWS = ROW.findall(TEXT)
RELEASED = ROW.findall(TEXT.split("## Names of the released programs")[1])


def definitions(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What a module or class defines, by name: functions, classes, constants, fields."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        found |= {t.id: node for t in targets if isinstance(t, ast.Name)}
    return found


def test_every_row_is_read() -> None:
    rows = [r for r in TEXT.splitlines() if r.startswith("| ") and not r.startswith("| concept")]
    rows = [r for r in rows if not r.startswith("| released name")]
    assert len(ROWS) == len(rows) > 80


@pytest.mark.parametrize(("concept", "file", "name"), ROWS, ids=[f"{r[1]}:{r[2]}" for r in ROWS])
def test_the_name_is_defined_in_the_file(concept: str, file: str, name: str) -> None:
    body = ast.parse((REPO / file).read_text()).body
    for part in name.split("."):
        found = definitions(body)
        assert part in found, f"{concept}: {file} defines no {name}"
        node = found[part]
        body = node.body if isinstance(node, ast.ClassDef) else []


@pytest.mark.parametrize(("released", "file", "name"), RELEASED, ids=[r[0] for r in RELEASED])
def test_released_names_are_ours(released: str, file: str, name: str) -> None:
    assert name.rsplit(".", 1)[-1] == released.strip("`"), f"{released} is {name} in {file}"

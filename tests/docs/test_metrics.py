"""docs/metrics.md documents what the code logs, and nothing else.

What runs really write is compared where runs are tested (``tests/train``, ``tests/bc``).
"""

from __future__ import annotations

import ast
import re
from functools import cache

from tests.docs.metrics_page import REPO, documented

GROUPS = "actor|data|eval|other|pretrain|rft|score|score_diff|time|train"
KEY = re.compile(rf"(?:{GROUPS})/[\w\-]+")
# what logs: not the tools, which read these keys
TRAINING = ("train_rl.py", "train_bc.py", "workspace", "rl", "bc", "evaluate/protocol.py")
# names in demonstration files (LeRobot's tables, zarr's arrays), which look like keys
COLUMNS = {"data/chunk_index", "data/file_index", "data/action"}
# keys put together as f"{group}/{name}": where the names stand, and how
COMPOSED = {
    "time": (TRAINING, r'watch(?:\.move)?\((?:"([\w-]+)", )?"([\w-]+)"|seconds = \{"([\w-]+)"'),
    "train": (("bc",), r'self\.metrics(?:\[| = \{)"(\w+)"'),
    "score": (("env", "common_utils/specs.py"), r'"([a-z]\w*(?:[ _]\w+)*)"'),
}


@cache
def sources(rooms: tuple[str, ...]) -> list[str]:
    """The text of files and of all files in folders."""
    paths = [REPO / room for room in rooms]
    files = [f for p in paths for f in ([p] if p.suffix else sorted(p.rglob("*.py")))]
    return [f.read_text() for f in files]


def strings() -> set[str]:
    """Every string constant of what trains; of an f-string its constant parts."""
    trees = [ast.walk(ast.parse(text)) for text in sources(TRAINING)]
    constants = [n.value for tree in trees for n in tree if isinstance(n, ast.Constant)]
    return {value for value in constants if isinstance(value, str)}


def composed(group: str) -> set[str]:
    """The names that may follow ``group`` in a key that is put together."""
    assert f"{group}/" in strings(), f"no key is put together from '{group}/' any more"
    rooms, pattern = COMPOSED[group]
    found = [m.groups() for text in sources(rooms) for m in re.finditer(pattern, text)]
    names = {name for groups in found for name in groups if name}
    return {f"{group}/{name.replace(' ', '_')}" for name in names}


def test_every_logged_key_is_documented() -> None:
    logged = {s for s in strings() if KEY.fullmatch(s)} - COLUMNS
    assert len(logged) > 40
    assert (logged | composed("time") | composed("train")) - documented() == set()


def test_every_documented_key_is_logged() -> None:
    assert len(documented()) > 60
    logged = strings().union(*(composed(group) for group in COMPOSED))
    assert documented() - logged == set()

"""docs/extending.md: its examples, taken out of the page and added to a copy of the code, work.

Each addition touches the files that its part names and no others. The commands under "Try it" then
run in the copy, all in one process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch

from common_utils.records import read_metrics
from tests import forkserver

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs" / "extending.md").read_text()
ROOMS = ("bc", "common_utils", "env", "evaluate", "networks", "rl", "workspace", "tools", "mw_main")
# files that each kind of addition needs, the new one first
FILES = {
    "A BC policy": ["bc/explicit/linear_policy.py", "bc/registry.py"],
    "An agent": ["rl/shooting_agent.py", "rl/registry.py"],
    "A suite": ["env/point_mass.py", "env/suites.py", "env/experts.py"],
    "A kernel": ["networks/fast/batched.py", "networks/fast/table.py"],
}
SCRIPTS = ["compare.py"]  # files of the page that are no part of an addition

# runs the commands of sys.argv[1] (a JSON file), and counts what the new kernel computes
DRIVER = """
import json, runpy, sys
from networks.fast import table
calls, found = [], table.rows()
for i, (name, kernel) in enumerate(found["min_member"]):
    if name == "batched":
        run = lambda *args, run=kernel.run: calls.append(args) or run(*args)
        found["min_member"][i] = name, table.Kernel(kernel.takes, run)
for words in json.load(open(sys.argv[1])):
    module = words[0] == "-m"
    sys.argv = words[1:] if module else words
    before, code = len(calls), 0
    try:
        (runpy.run_module if module else runpy.run_path)(sys.argv[0], run_name="__main__",
                                                         **({"alter_sys": True} if module else {}))
    except SystemExit as done:
        code = done.code
    if code:
        sys.exit(f"{words}: exit status {code}")
    if "train_rl.py" in words and "shooting" not in words:
        assert len(calls) - before >= 10, "the kernel was hardly used"
"""


@cache
def part(heading: str) -> str:
    """The text of a part of the page."""
    return PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def blocks(heading: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", part(heading), re.DOTALL | re.MULTILINE)


def pieces(heading: str) -> dict[str, str]:
    """File -> what the page has for it: a whole file, or lines to add."""
    found = {}
    for block in blocks(heading, "python"):
        first, _, rest = block.partition("\n")
        found[first.removeprefix("# ")] = rest
    return found


def edit(text: str, change: str) -> str:
    """``text`` with the lines that begin with + after the line above them, without those with -."""
    at = text.splitlines()
    last = -1
    for line in change.splitlines():
        mark, rest = line[0], line[1:]
        if mark == "+":
            last += 1
            at.insert(last, rest)
            continue
        assert at.count(rest) == 1, f"expected once in the file: {rest}"
        last = at.index(rest)
        if mark == "-":
            del at[last]
            last -= 1
    return "\n".join(at) + "\n"


def add(tree: Path, heading: str) -> list[str]:
    """Make the addition of a part; returns the files touched."""
    for name, text in pieces(heading).items():
        file = tree / name
        file.write_text(edit(file.read_text(), text) if file.exists() else text)
    return list(pieces(heading))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with all additions of the page."""
    folder = tmp_path_factory.mktemp("tree")
    for file in [*REPO.glob("*.py"), *(f for room in ROOMS for f in (REPO / room).rglob("*"))]:
        if file.suffix in (".py", ".so", ".pyi") and file.is_file():  # builds leave x.so folders
            copy = folder / file.relative_to(REPO)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    for heading in FILES:
        add(folder, heading)
    return folder


def run(tree: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(tree), "MUJOCO_GL": "disabled", "OMP_NUM_THREADS": "1"}
    return forkserver.run(*args, variables=env, folder=tree, timeout=300)


def commands(heading: str) -> list[list[str]]:
    """The words of each command after "python"."""
    lines = "".join(blocks(heading, "bash")).replace("\\\n", " ").splitlines()
    return [line.split()[1:] for line in lines]


@pytest.mark.parametrize("heading", FILES)
def test_an_addition_is_a_file_and_rows(heading: str) -> None:
    touched = [name for name in pieces(heading) if name not in SCRIPTS]
    assert touched == FILES[heading]
    new = [name for name in touched if not (REPO / name).exists()]
    assert new == touched[:1]
    named = re.findall(r"^\| `([\w/]+\.py)`", part(heading), re.MULTILINE)
    assert set(touched[1:]) <= set(named), "the checklist names each file that is touched"


def test_the_examples_keep_the_house_rules(tree: Path) -> None:
    new = [str(tree / names[0]) for names in FILES.values()]
    for check in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        done = subprocess.run(
            ["ruff", *check, "--config", str(REPO / "pyproject.toml"), *new],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_everything_on_the_page_runs(tree: Path) -> None:
    todo = [c for heading in ("A suite", "A BC policy", "An agent") for c in commands(heading)]
    (tree / "todo.json").write_text(json.dumps([*todo, SCRIPTS]))
    done = run(tree, "-c", DRIVER, "todo.json")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.strip().endswith("equal")

    weights = torch.load(tree / "exps/linear/latest.pt", weights_only=True)
    assert float(weights["norm.std"].max()) != 1  # it was fitted to the demonstrations
    rows = read_metrics(tree / "exps/linear/metrics.jsonl")
    first, second = (row["train/loss"] for row in rows if "train/loss" in row)
    assert second < first
    last = read_metrics(tree / "exps/point_rl/metrics.jsonl")[-1]
    assert last["train/critic_loss"] > 0 and 0 <= last["score/score"] <= 1
    last = read_metrics(tree / "exps/shooting/metrics.jsonl")[-1]
    assert last["step"] == 60 and 0 < last["actor/bootstrap_bc"] < 1

"""Every command in the documents, and in programs' own, is one that its program takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.commands import REPO, check_command, commands, module_of

PAGES = ["README.md", "release/results/README.md"]
PAGES += sorted(
    p.relative_to(REPO).as_posix()
    for p in (REPO / "docs").rglob("*.md")
    # their programs know additions, or are on the page: test_extending and test_tutorials run them
    if p.stem not in ("extending", "own_task", "own_demonstrations", "read_a_run")
)
# what programs say of themselves
PAGES += ["train_rl.py", "train_bc.py", "quickstart.py", "evaluate/eval.py"]
PAGES += sorted(
    p.relative_to(REPO).as_posix()
    for room in ("tools", "mw_main")
    for p in (REPO / room).glob("*.py")
    if p.stem != "ci_train_resume"  # has no parser to ask
)


def written_out(command: str) -> list[str]:
    """Without the brackets of optional parts, {a,b} as one command each, N as a number."""
    command = command.replace("[--", "--").replace("] --", " --").removesuffix("]")
    start, brace, rest = command.partition("{")
    if not brace:
        return [command.replace("--seed N", "--seed 1")]
    choices, _, end = rest.partition("}")
    return [c for choice in choices.split(",") for c in written_out(f"{start}{choice}{end}")]


@pytest.mark.parametrize(
    "command", [pytest.param(c, id=f"{page}: {c[:60]}") for page in PAGES for c in commands(page)]
)
def test_commands_parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    for one in written_out(command):
        check_command(one)


def test_there_are_commands() -> None:
    found = {page: [module_of(c) for c in commands(page)] for page in PAGES}
    assert {Path(page).stem for page, there in found.items() if there} >= {
        "README", "algorithms", "configuration", "datasets", "environments", "evaluation", "ibc",
    }  # fmt: skip
    assert len(found["docs/algorithms.md"]) >= 10 and len(found["docs/ibc.md"]) >= 13
    assert set(found["docs/ibc.md"]) >= {
        "train_rl", "train_bc", "tools.collect_oracle", "tools.particle_dimensions",
        "tools.implicit_ibrl", "tools.plot_particle", "tools.held_out_energy", "evaluate.eval",
    }  # fmt: skip

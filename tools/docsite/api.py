"""The pages of the API reference: one per package, with its modules for mkdocstrings."""

from __future__ import annotations

import ast
from pathlib import Path

from tools.docsite.places import REPO

ROOMS = {
    "common_utils": "specs, configurations, logs, files",
    "networks": "encoders, trunks, energy networks",
    "env": "environments and experts",
    "bc": "behaviour cloning, explicit and implicit",
    "rl": "agents and the replay",
    "evaluate": "rollouts, statistics, videos",
    "workspace": "the parts of a run",
    "serve": "policies over the network",
    "launch": "many runs: trials, engines, results",
}


def modules(room: str) -> dict[str, str]:
    """Public module -> first line of its docstring, of a package."""
    found = {}
    for file in sorted((REPO / room).rglob("*.py")):
        parts = file.relative_to(REPO).with_suffix("").parts
        if parts[-1] == "__init__" or any(part.startswith("_") for part in parts):
            continue
        found[".".join(parts)] = summary(file)
    return found


def summary(file: Path) -> str:
    """The first paragraph of a module's docstring, in one line."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def page(room: str) -> str:
    """Markdown of a package's page."""
    found = modules(room)
    lines = [f"# {room}", "", f"{summary(REPO / room / '__init__.py')}", "", "| module | |"]
    lines += ["|---|---|", *(f"| [`{name}`](#{name}) | {text} |" for name, text in found.items())]
    for name in found:
        file = f"{name.replace('.', '/')}.py"
        lines += ["", f"::: {name}", "", f"The file is `{file}`."]
    return "\n".join(lines) + "\n"


def index() -> str:
    """Markdown of the page that lists the packages."""
    rows = [f"| [`{room}`]({room}.md) | {text} |" for room, text in ROOMS.items()]
    return (
        "# API reference\n\nThe public names of each package, with their docstrings. "
        "[Architecture](../architecture.md) describes how the packages fit together.\n\n"
        "| package | |\n|---|---|\n" + "\n".join(rows) + "\n"
    )

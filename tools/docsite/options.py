"""Pages that list every option of every program, from what ``--help`` prints."""

from __future__ import annotations

import argparse
import html
import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from common_utils import run_config
from common_utils.config_kinds import every_kind
from ibrl.commands import COMMANDS
from tools.docsite.places import REPO


@dataclass(frozen=True)
class Option:
    """A row: ``--name``, what it takes, its default (None: none), what it does."""

    name: str
    takes: str
    default: str | None
    does: str


@dataclass(frozen=True)
class Program:
    """A program with options: its module, and the command that runs it."""

    module: ModuleType
    command: str

    @property
    def name(self) -> str:
        """The name of its page: ``train_rl``, ``tools.generate_demos``."""
        return self.module.__name__

    @property
    def title(self) -> str:
        """The first line of its docstring, without the full stop."""
        return (self.module.__doc__ or "").strip().partition("\n")[0].rstrip(".")

    def sections(self) -> Iterable[tuple[str, list[Option]]]:
        """(heading, options) in the order of ``--help``."""
        config = getattr(self.module, "MainConfig", None) or getattr(
            self.module, "QuickstartConfig", None
        )
        if config is None:
            make = getattr(self.module, "parser", None) or self.module._parser
            yield "Options", list(_argparse_options(make()))
            return
        yield from _config_sections(config)


def programs() -> list[Program]:
    """Those of the command ``ibrl`` in its order, then the others of ``tools`` and ``mw_main``."""
    found = {c.module: f"ibrl {c.words}" for c in COMMANDS}
    for room in ("mw_main", "tools"):
        for file in sorted((REPO / room).glob("*.py")):
            if '__name__ == "__main__"' in file.read_text(encoding="utf-8"):
                found.setdefault(f"{room}.{file.stem}", f"python -m {room}.{file.stem}")
    loaded = [Program(importlib.import_module(name), run) for name, run in found.items()]
    makers = ("MainConfig", "QuickstartConfig", "parser", "_parser")
    return [p for p in loaded if any(hasattr(p.module, maker) for maker in makers)]


def _config_sections(config: Any) -> Iterable[tuple[str, list[Option]]]:
    """Options of a config class by section; for one with kinds, each kind's section once."""
    kinds = every_kind(config)
    seen: set[str] = set()
    for kind, own in kinds.items():
        rows: dict[str, list[Option]] = {}
        for name, takes, default, does in run_config.describe(own):
            section = name.rpartition(".")[0]
            if name not in seen:
                option = Option(name, takes, run_config._show(default), does)
                rows.setdefault(section, []).append(option)
                seen.add(name)
        for section, options in rows.items():
            belongs = kind and section.partition(".")[0] == own.sections()[kind].name  # type: ignore[attr-defined]
            only = f", with `{own.CHOSEN_BY} {kind}`" if belongs and len(kinds) > 1 else ""  # type: ignore[attr-defined]
            yield (f"`{section}`{only}" if section else "Options"), options


def _argparse_options(parser: argparse.ArgumentParser) -> Iterable[Option]:
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = action.option_strings[-1] if action.option_strings else action.metavar or action.dest
        takes = ", ".join(map(str, action.choices)) if action.choices else ""
        takes = f"one of {takes}" if takes else ("required" if action.required else "")
        default = None if action.default in (None, argparse.SUPPRESS) else str(action.default)
        does = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
        yield Option(str(name).removeprefix("--"), takes, default, does)


def page(program: Program) -> str:
    """Markdown of a program's page."""
    lines = [f"# {program.command.removeprefix('python -m ')}", "", f"{program.title}.", ""]
    script = program.name.replace(".", "/") + ".py"
    lines += [f"The file is `{script}`. `{program.command} --help` prints the same list.", ""]
    for heading, options in program.sections():
        lines += [f"## {heading}", "", _listing(options), ""]
    return "\n".join(lines)


def _listing(options: Iterable[Option]) -> str:
    rows = []
    for o in options:
        facts = [html.escape(o.takes)] if o.takes else []
        if o.default is not None:
            shown = html.escape(o.default)
            facts.append(f"default <code>{shown}</code>")
        dashes = "" if o.name.isupper() else "--"
        rows.append(
            f'<dt id="{html.escape(o.name)}"><a href="#{html.escape(o.name)}"><code>{dashes}'
            f"{html.escape(o.name)}</code></a> <small>{'; '.join(facts)}</small></dt>"
            f"<dd>{html.escape(o.does)}</dd>"
        )
    return '<dl class="options">' + "\n".join(rows) + "</dl>"


def index(found: Iterable[Program]) -> str:
    """Markdown of the page that lists the programs."""
    rows = [f"| [`{p.command}`]({p.name}.md) | {p.title} |" for p in found]
    intro = (
        "# Options\n\nEvery option of every program, as `--help` prints it. The pages are made "
        "from the configuration classes when the site is built. "
        "[Configuration](../configuration.md) describes files, overrides and how values are "
        "checked.\n\n| program | |\n|---|---|\n"
    )
    return intro + "\n".join(rows) + "\n"

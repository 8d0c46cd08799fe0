"""The report's page: one HTML file with everything in it, which opens without a network.

A content security policy forbids every request. Text from run folders is escaped; it may come from
other people.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common_utils.extras import optional
from common_utils.version import __version__
from tools.reporting.figures import Figure
from tools.reporting.tables import Table
from tools.reporting.videos import Video

MARK = "<!doctype html><!-- report of ibrl -->"  # how a file is known as one of ours
_HERE = Path(__file__).parent
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src data:"
)


@dataclass
class Page:
    """Sections are added in order; :meth:`render` gives the file's text."""

    title: str
    explorer: dict[str, Any] = field(default_factory=dict)
    _parts: list[str] = field(default_factory=list)
    _figures: dict[str, Figure] = field(default_factory=dict)
    _sections: list[tuple[str, str]] = field(default_factory=list)

    def section(self, title: str, about: str = "") -> None:
        """Begin a section, which the page's navigation lists."""
        name = title.lower().replace(" ", "-")
        self._sections.append((name, title))
        self._parts.append(f'<h2 id="{text(name)}">{text(title)}</h2>')
        if about:
            self.say(about)

    def heading(self, title: str) -> None:
        """A heading within a section."""
        self._parts.append(f"<h3>{text(title)}</h3>")

    def say(self, line: str) -> None:
        """A paragraph of small text."""
        self._parts.append(f'<p class="soft">{text(line)}</p>')

    def plot(self, name: str, figure: Figure) -> None:
        """A figure, in the element ``plot-NAME``."""
        self._figures[f"plot-{name}"] = figure
        self._parts.append(f'<div class="plot" id="plot-{text(name)}"></div>')

    def table(self, table: Table, name: str = "") -> None:
        """A table, in the element ``table-NAME``."""
        self._parts.append(table_html(table, name))

    def listed(self, lines: Iterable[str]) -> None:
        """Lines as a list."""
        items = "".join(f"<li>{text(line)}</li>" for line in lines)
        self._parts.append(f'<ul class="notes">{items}</ul>')

    def code(self, lines: Iterable[str]) -> None:
        """Lines as they are."""
        self._parts.append(f"<pre>{text(chr(10).join(lines))}</pre>")

    def folded(self, title: str, table: Table) -> None:
        """A table that opens when its title is clicked."""
        inner = table_html(table, "")
        self._parts.append(f"<details><summary>{text(title)}</summary>{inner}</details>")

    def videos(self, videos: Sequence[Video]) -> None:
        """The videos, each with its run and name."""
        figures = []
        for video in videos:
            caption = f"{video.run}: {video.name}" if video.run else video.name
            figures.append(
                f'<figure><video controls muted loop playsinline preload="metadata" '
                f'src="{video.uri}"></video><figcaption>{text(caption)}</figcaption></figure>'
            )
        self._parts.append(f'<div class="videos">{"".join(figures)}</div>')

    def metrics(self, lines: list[dict[str, Any]], labels: dict[str, str], layout: Any) -> None:
        """A choice of one of the logged keys, and its curves."""
        self.explorer = {"lines": lines, "labels": labels, "layout": layout}
        options = "".join(f'<option value="{text(k)}">{text(k)}</option>' for k in labels)
        self._parts.append(
            f'<p><label>Metric: <select id="metric">{options}</select></label></p>'
            '<div class="plot" id="explorer"></div>'
        )

    def render(self) -> str:
        """The whole file. Raises UserError if plotly is not installed."""
        plotly = optional("plotly.offline", "report", "report").get_plotlyjs()
        links = " ".join(f'<a href="#{text(n)}">{text(t)}</a>' for n, t in self._sections)
        made = f"Made by ibrl {__version__}, {time.strftime('%Y-%m-%d %H:%M %z')}."
        data = {"figures": escaped(self._figures), "explorer": escaped(self.explorer)}
        return "\n".join([
            MARK,
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(self.title)}</title>",
            f"<style>{(_HERE / 'page.css').read_text()}</style></head><body>",
            f'<header><h1>{text(self.title)}</h1><p class="soft">{text(made)}</p>',
            f"<nav>{links}</nav></header>",
            f"<main>{''.join(self._parts)}</main>",
            f'<script type="application/json" id="data">{script_json(data)}</script>',
            f"<script>{plotly}</script>",
            f"<script>{(_HERE / 'page.js').read_text()}</script>",
            "</body></html>",
        ])  # fmt: skip


def text(value: str) -> str:
    """Text for HTML, also in attributes. Bytes that were not UTF-8 become "?"."""
    return html.escape(value.encode("utf-8", "replace").decode())


def table_html(table: Table, name: str) -> str:
    """A table that scrolls sideways where it is too wide."""
    right = set(table.numbers)

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = [' class="number"' if i in right else "" for i in range(len(row))]
        return "".join(f"<{tag}{k}>{text(c)}</{tag}>" for k, c in zip(kinds, row, strict=True))

    head = f"<tr>{cells('th', table.head)}</tr>"
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    own = f' id="table-{text(name)}"' if name else ""
    return (
        f'<div class="scroll"><table{own}><thead>{head}</thead><tbody>{body}</tbody></table></div>'
    )


def escaped(value: Any) -> Any:
    """Plain data whose strings plotly shows as they are: it reads some HTML in them."""
    if isinstance(value, str):
        return html.escape(value.encode("utf-8", "replace").decode(), quote=False)
    if isinstance(value, dict):
        return {k: escaped(v) for k, v in value.items()}
    return [escaped(v) for v in value] if isinstance(value, (list, tuple)) else value


def script_json(value: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")

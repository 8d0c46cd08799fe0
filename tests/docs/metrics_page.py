"""What docs/metrics.md documents."""

from __future__ import annotations

import json
import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def documented() -> set[str]:
    """The keys in the first column of the page's tables."""
    text = (REPO / "docs" / "metrics.md").read_text()
    cells = re.findall(r"^\| (`[^|]+) \|", text, flags=re.MULTILINE)
    return {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}


def undocumented(save_dir: Path) -> set[str]:
    """What a run logged that the page does not have."""
    lines = (save_dir / "metrics.jsonl").read_text().splitlines()
    logged = {key for line in lines for key in json.loads(line)}
    assert "step" in logged
    logged = {re.sub(r"^actor/bc\d+_", "actor/bcN_", key) for key in logged}
    return logged - documented() - {"step", "wall"}

"""Files of results that a program adds to each time it is run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common_utils.run_config import ConfigError


def read_json(path: Path, field: str) -> dict[str, Any]:
    """An object from a JSON file; for anything else a ConfigError that names the option."""
    try:
        tree = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise _refused(path, field, f"is damaged ({error})") from None
    if not isinstance(tree, dict):
        raise _refused(path, field, f"holds a {type(tree).__name__}, expected an object")
    return tree


def earlier_results(
    path: Path,
    field: str,
    key: str = "results",
    settings: Mapping[str, Any] | None = None,
    section: str = "",
) -> list[dict[str, Any]]:
    """The list ``key`` of a file that an earlier command wrote; empty without the file.

    settings: what the results depend on, also stored in the file (under ``section``, if given).
    Raises a ConfigError that names the option ``field`` if the settings differ or the file is of
    another kind.
    """
    if not path.is_file():
        return []
    tree = read_json(path, field)
    results = tree.get(key)
    if not isinstance(results, list) or not all(isinstance(r, dict) for r in results):
        raise _refused(path, field, f"has no list of objects '{key}'")
    then = tree.get(section) if section else {k: tree.get(k) for k in settings or {}}
    if settings is not None and then != settings:
        raise _refused(path, field, f"has results of other settings, {then}; expected {settings}")
    return results


def _refused(path: Path, field: str, what: str) -> ConfigError:
    return ConfigError(f"{field}: '{path}' {what}; choose another, or remove the file")

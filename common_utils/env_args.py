"""How demonstration files say which environment they were recorded in.

robomimic's files carry ``data.attrs["env_args"]`` (JSON: env_name, env_version, type, env_kwargs),
with the controller in the words of robosuite 1.4 (``control_delta``) or 1.5 (``body_parts``,
``input_type``). robosuite's own recordings carry ``env``, ``env_info``, ``repository_version``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_env_args(attrs: Mapping[str, Any], side: Path) -> dict[str, Any]:
    """The environment of a file's ``data`` attributes, else of ``side`` (env_cfg.json), else {}.

    Raises ValueError saying which of them is not a JSON object.
    """
    # the attribute wins: it travels with the file, env_cfg.json may have been left behind
    if "env_args" in attrs:
        return _object(attrs["env_args"], "data.attrs['env_args']")
    if "env_info" in attrs:
        kwargs = _object(attrs["env_info"], "data.attrs['env_info']")
        name = kwargs.pop("env_name", attrs.get("env", ""))
        version = attrs.get("repository_version", "")
        return {"env_name": str(name), "env_version": str(version), "env_kwargs": kwargs}
    if side.is_file():
        return _object(side.read_text(), str(side))
    return {}


def _object(text: Any, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"'{where}': not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"'{where}': expected a JSON object, got {type(found).__name__}")
    kwargs = found.get("env_kwargs")
    if kwargs is not None and not isinstance(kwargs, dict):
        raise ValueError(f"'{where}', env_kwargs: expected an object, got {type(kwargs).__name__}")
    return found


def suite_of(env_args: Mapping[str, Any]) -> str:
    """ "metaworld", "robosuite", "d4rl", what the file says itself, or "" where nothing tells."""
    kwargs = env_args.get("env_kwargs") or {}
    if "suite" in env_args:
        return str(env_args["suite"])
    if env_args.get("type") == "d4rl":
        return "d4rl"
    if "action_repeat" in kwargs:
        return "metaworld"
    if "controller_configs" in kwargs:
        return "robosuite"
    return ""


def version_numbers(text: str) -> tuple[int, ...]:
    """(1, 4) of "1.4.1"; () where there are no numbers."""
    return tuple(int(n) for n in re.findall(r"\d+", text)[:2])


def arm_controller(env_args: Mapping[str, Any]) -> dict[str, Any]:
    """The (first) robot's arm controller as a flat dict, in robosuite 1.4's words.

    Of robosuite 1.5's composite form the part "right" is taken. ``control_delta`` and
    ``input_ref_frame`` (whose axes relative actions go along: "base" or "world", which is all
    that versions before 1.5 had) are always there.
    """
    kwargs = env_args.get("env_kwargs") or {}
    configs = kwargs.get("controller_configs") or {}
    if isinstance(configs, list):
        configs = configs[0] if configs else {}
    if not isinstance(configs, dict):
        configs = {}
    parts = configs.get("body_parts")
    if isinstance(parts, dict):
        parts = parts.get("arms", parts)
        flat = dict(parts.get("right") or {})
        flat["control_delta"] = flat.pop("input_type", "delta") == "delta"
        flat.setdefault("input_ref_frame", "base")
    else:
        flat = dict(configs)
        flat["control_delta"] = bool(flat.get("control_delta", True))
        old = version_numbers(str(env_args.get("env_version", ""))) < (1, 5)
        flat.setdefault("input_ref_frame", "world" if old else "base")
    return flat

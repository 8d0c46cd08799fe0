"""How demonstration files say which environment they were recorded in.

robomimic's files carry ``data.attrs["env_args"]`` (JSON: env_name, env_version, type, env_kwargs),
with the controller in the terms of robosuite 1.4 (``control_delta``) or 1.5 (``body_parts``,
``input_type``). robosuite's own recordings carry ``env``, ``env_info``, ``repository_version``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common_utils.errors import shortened
from common_utils.plain_file import read_small_text

# of JSON; robosuite's longest descriptions have 10 kB
MOST_TEXT = 2**20
MOST_DIGITS = 100


def read_env_args(attrs: Mapping[str, Any], side: Path) -> dict[str, Any]:
    """The environment in a file's ``data`` attributes, else in ``side`` (env_cfg.json), else {}.

    Raises ValueError naming the one that is not a JSON object, or a field that has the wrong type
    (only fields that this framework reads are checked).
    """
    # the attribute wins: it moves with the file, while env_cfg.json may have been left behind
    if "env_args" in attrs:
        return _object(attrs["env_args"], "data.attrs['env_args']")
    if "env_info" in attrs:
        where = "data.attrs['env_info']"
        kwargs = _json_object(attrs["env_info"], where)
        name = kwargs.pop("env_name", None) or _text(attrs, "env")
        version = _text(attrs, "repository_version")
        args = {"env_name": name, "env_version": version, "env_kwargs": kwargs}
        _check_fields(args, where)
        return args
    if side.is_file():
        try:
            text = read_small_text(side, MOST_TEXT)
        except (OSError, ValueError) as error:
            raise ValueError(f"'{side}': cannot be read: {error}") from error
        return _object(text, str(side))
    return {}


def _text(attrs: Mapping[str, Any], key: str) -> str:
    value = attrs.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"'data.attrs['{key}']': expected text, got {shown(value)}")
    return value


def _object(text: Any, where: str) -> dict[str, Any]:
    found = _json_object(text, where)
    _check_fields(found, where)
    return found


def _json_object(text: Any, where: str) -> dict[str, Any]:
    if not isinstance(text, (str, bytes)):
        raise ValueError(f"'{where}': expected a JSON object as text, got {shown(text)}")
    if len(text) > MOST_TEXT:
        raise ValueError(
            f"'{where}': more than {MOST_TEXT:,} characters, expected the description of an "
            "environment"
        )
    try:
        found = json.loads(text, parse_int=_integer)
    except RecursionError:
        raise ValueError(f"'{where}': not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"'{where}': not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"'{where}': expected a JSON object, got {type(found).__name__}")
    return found


def _integer(digits: str) -> int:
    # python's own message for the longest integers advises to lift a limit
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits, expected at most {MOST_DIGITS}")
    return int(digits)


def shown(value: Any, limit: int = 60) -> str:
    """``value`` and its type, shortened for messages."""
    return f"{shortened(repr(value), limit)} ({type(value).__name__})"


# ---------------------------------------------------------------- types of what is read


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_switch(value: Any) -> bool:
    return isinstance(value, (bool, int)) and value in (0, 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _or_list(one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: one(value) or (isinstance(value, list) and all(map(one, value)))


Rule = tuple[Callable[[Any], bool], str]
TEXT: Rule = (_is_text, "text")
TEXTS: Rule = (_or_list(_is_text), "text or a list of texts")
OBJECT: Rule = (_is_object, "an object")
COUNT: Rule = (_is_count, "a whole number of at least 1")
COUNTS: Rule = (_or_list(_is_count), "a whole number of at least 1, or a list of such")
SWITCH: Rule = (_is_switch, "true or false")
NUMBERS: Rule = (_or_list(_is_number), "a number or a list of numbers")

ARGS: dict[str, Rule] = {"env_name": TEXT, "env_version": TEXT, "suite": TEXT, "env_kwargs": OBJECT}
KWARGS: dict[str, Rule] = {
    "robots": TEXTS,
    "action_repeat": COUNT,
    "controller_configs": (_or_list(_is_object), "an object or a list of objects"),
    "camera_names": TEXTS,
    "camera_heights": COUNTS,
    "camera_widths": COUNTS,
    "rl_image_size": COUNT,
    "render_quality": TEXT,
    "hide_velocity": SWITCH,
}
CONTROLLER: dict[str, Rule] = {
    "type": TEXT,
    "output_max": NUMBERS,
    "output_min": NUMBERS,
    "kp": NUMBERS,
    "damping_ratio": NUMBERS,
    "impedance_mode": TEXT,
    "control_delta": SWITCH,
    "input_type": TEXT,
    "input_ref_frame": TEXT,
    "body_parts": OBJECT,
}
NULL_IS_ABSENT = ("env_kwargs", "controller_configs", "body_parts", "right")


def _check_fields(args: dict[str, Any], where: str) -> None:
    """Raise ValueError for a field of the wrong type."""
    kwargs = _fields(args, ARGS, where, "").get("env_kwargs") or {}
    configs = _fields(kwargs, KWARGS, where, "env_kwargs.").get("controller_configs") or {}
    for config in configs if isinstance(configs, list) else [configs]:
        path = "env_kwargs.controller_configs."
        parts = _fields(config, CONTROLLER, where, path).get("body_parts") or {}
        path += "body_parts."
        _fields(parts, {"arms": OBJECT}, where, path)
        for part in (parts, parts.get("arms") or {}):
            right = _fields(part, {"right": OBJECT}, where, path).get("right") or {}
            _fields(right, CONTROLLER, where, f"{path}right.")


def _fields(
    found: dict[str, Any], rules: Mapping[str, Rule], where: str, prefix: str
) -> dict[str, Any]:
    for key, (holds, expected) in rules.items():
        value = found.get(key)
        absent = key not in found or (value is None and key in NULL_IS_ABSENT)
        if not absent and not holds(value):
            raise ValueError(f"'{where}', {prefix}{key}: expected {expected}, got {shown(value)}")
    return found


def suite_of(env_args: Mapping[str, Any]) -> str:
    """The suite the file names, else "d4rl", "metaworld" or "robosuite" by its fields, else ""."""
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


def plain_task(name: str) -> str:
    """A task's name without what its spellings differ in: HandInsert = hand-insert-v3."""
    return re.sub(r"[^a-z0-9]|v\d+$", "", name.lower())


def version_numbers(text: str) -> tuple[int, ...]:
    """(1, 4) for "1.4.1"; () if there are no numbers."""
    return tuple(int(n) for n in re.findall(r"\d+", text)[:2])


def arm_controller(env_args: Mapping[str, Any]) -> dict[str, Any]:
    """The (first) robot's arm controller as a flat dict, in robosuite 1.4's terms.

    From robosuite 1.5's composite form it takes the part "right". ``control_delta`` and
    ``input_ref_frame`` are always set. The latter is the frame of relative actions: "base" or
    "world" (the only one before 1.5).
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

"""Run configurations: pyrallis dataclasses, read strictly.

``--config_path file.yaml`` first, then dotted overrides (``--q_agent.lr 1e-3``). Unknown
keys, wrong types and impossible combinations are refused with the field's dotted name,
the value and what was expected. pyrallis supplies the conventions (nested dataclasses,
one-line documentation next to each field, dotted names); values are checked here, because
pyrallis itself would turn ``--seed 1.5`` into 1 and ``batch_size: "12"`` into a silent 12.

Rules for config dataclasses:

* every field has a default and a comment next to (or above) it;
* 0/1 switches are typed ``Flag``, closed choices ``Literal[...]``, numbers have their range in
  their type (``Annotated[int, AtLeast(1)]``, ``Width``, ``Share``: common_utils/ranges.py);
* ``__post_init__`` or ``validate`` raise ``ValueError("field: ...")`` on impossible combinations
  of fields and may tidy values up, but only idempotently: what is dumped must load unchanged.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import os
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pyrallis.utils import CONFIG_ARG, deflatten, flatten
from pyrallis.wrappers.docstring import get_attribute_docstring

from common_utils import config_kinds
from common_utils.atomic import atomic_yaml
from common_utils.config_types import Flag, Mismatch, coerce, expectation, is_switch
from common_utils.errors import ConfigError, UserError
from common_utils.paths import beside, config_file, expand_home, is_input, locate_input
from common_utils.plain_file import read_small_text
from common_utils.yaml_text import MAX_BYTES, parse_yaml

T = TypeVar("T")

CFG_NAME = "cfg.yaml"
_PRESET = "_preset"


@dataclass
class RunConfig:
    """What every run has; the root of the main configs."""

    use_wb: Flag = 0  # 1: also log to Weights & Biases (WANDB_MODE=offline works)
    use_trackio: Flag = 0  # 1: also record for the local dashboard of trackio, in save_dir/trackio
    save_dir: str = ""  # folder of the run: config, logs, checkpoints

    @property
    def preset(self) -> str:
        """The file that it was read from; "" for one from options, or made in code. It is not a
        field: it describes how the values were given, and nothing depends on it."""
        return str(self.__dict__.get(_PRESET, ""))

    @property
    def wb_project(self) -> str:
        """Second last part of ``save_dir``."""
        return Path(self.save_dir).parent.name

    @property
    def run_name(self) -> str:
        """Last part of ``save_dir``."""
        return Path(self.save_dir).name

    @property
    def group(self) -> str:
        """Run name without its ``_``-separated parts that mention a seed."""
        return "_".join(p for p in self.run_name.split("_") if "seed" not in p)

    @property
    def cfg_path(self) -> str:
        return os.path.join(self.save_dir, CFG_NAME)

    @property
    def log_path(self) -> str:
        return os.path.join(self.save_dir, "train.log")


# ---------------------------------------------------------------- reading


def parse(config_class: type[T], args: Sequence[str] | None = None) -> T:
    """Config from the command line, or the help text if asked for; raises ConfigError."""
    args = list(sys.argv[1:] if args is None else args)
    if "--help" in args or "-h" in args:
        print(help_text(config_class, [a for a in args if a not in ("--help", "-h")]))
        raise SystemExit(0)
    return parse_args(config_class, args)


def parse_args(config_class: type[T], args: Sequence[str]) -> T:
    """Config from these options alone; raises ConfigError."""
    given, path, tree = _sources(config_class, args)
    own = _chosen(config_class, given, path, tree)
    _refuse_other_kinds(own, given)
    known, source = field_types(own), "command line"
    # each source is checked alone first, so that an error names the right one
    _checked(own, deflatten(given), source)
    given = _with_paths(given, known, [Path.cwd()])
    if path is not None:
        _checked(own, tree, path)
        tree = deflatten(_with_paths(flatten(tree), known, beside(path)))
        source = f"{path} and command line" if given else path
    return _from(path, _checked(own, deflatten({**flatten(tree), **given}), source, build=True))


def _from(path: str | os.PathLike[str] | None, config: Any) -> Any:
    """``config``, which knows the file that it was read from."""
    if isinstance(config, RunConfig) and path is not None:
        config.__dict__[_PRESET] = os.fspath(path)
    return config


def changes(config: RunConfig) -> list[str]:
    """What differs from the defaults and from the file that it was read from, which come first,
    as :func:`diff` shows it. A file that is gone counts as empty."""
    own = type(config)
    known = field_types(own)
    before = defaults(own)
    try:
        tree = flatten(read_yaml(config.preset)) if config.preset else {}
        located = _with_paths(tree, known, beside(config.preset))
    except ConfigError:
        located = {}
    # a file may hold sections of other kinds, and retired fields
    before |= {k: _as_read(v, known[k]) for k, v in located.items() if k in known}
    return diff(before, config)


def _as_read(value: Any, kind: Any) -> Any:
    """A value of a file as a config holds it: YAML takes 5e-4 for text."""
    try:
        return coerce(value, kind)
    except Mismatch:
        return value


def _sources(
    config_class: Any, args: Sequence[str]
) -> tuple[dict[str, Any], str | None, dict[str, Any]]:
    """The given options (dotted name -> value), and the YAML file's path and contents."""
    known: dict[str, Any] = {}
    for kind in config_kinds.every_kind(config_class).values():
        known |= field_types(kind)
    overrides = _tokens(list(args), known)
    path = overrides.pop(CONFIG_ARG, None)
    given = {k: _from_text(k, v, known[k]) for k, v in overrides.items()}
    if path is None:
        return given, None, {}
    try:
        path = config_file(path)
    except ValueError as error:
        raise ConfigError(f"{CONFIG_ARG}: {error}") from None
    return given, path, read_yaml(path, CONFIG_ARG)


def _chosen(
    config_class: Any, given: Mapping[str, Any], path: str | None, tree: Mapping[str, Any]
) -> Any:
    """The class of the kind that the options and the file choose. An unknown kind is refused
    here, before its sections would be reported as unknown.
    """
    in_file = flatten(tree)
    own = config_kinds.chosen(config_class, {**in_file, **given})
    field = getattr(own, "CHOSEN_BY", "")
    for values, source in ((given, "command line"), (in_file, str(path))):
        _checked(own, deflatten({k: v for k, v in values.items() if k == field}), source)
    return own


def _refuse_other_kinds(config_class: Any, given: Mapping[str, Any]) -> None:
    """Refuse options of other kinds. A file may hold such sections (old files hold all of them)."""
    others = config_kinds.other_sections(config_class)
    for name in given:
        if kinds := others.get(name.partition(".")[0]):
            field, own = config_class.CHOSEN_BY, config_class.KIND
            raise ConfigError(
                f"--{name}: an option of {field} {' or '.join(kinds)}, but the chosen {field} is "
                f"{own} (--{field} {own} --help lists its options)"
            )


def load(config_class: type[T], path: str | os.PathLike[str]) -> T:
    """Read the config that a run wrote, just as strictly; raises ConfigError."""
    tree = read_yaml(path)
    if not tree:  # runs write all fields
        raise ConfigError(f"{path}: holds no fields (empty, or cut off)")
    own = _chosen(config_class, {}, str(path), tree)
    _checked(own, tree, str(path))
    located = deflatten(_with_paths(flatten(tree), field_types(own), beside(path)))
    return _from(path, _checked(own, located, str(path), build=True))


def _with_paths(
    values: Mapping[str, Any], known: Mapping[str, Any], folders: Sequence[Path]
) -> dict[str, Any]:
    """Flat values, with paths found as in :mod:`common_utils.paths`; raises ConfigError."""
    out = dict(values)
    for name, value in values.items():
        try:
            if isinstance(value, str) and is_input(known.get(name)):
                out[name] = locate_input(value, known[name], folders)
            elif isinstance(value, str):
                out[name] = expand_home(value)
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None
    return out


def from_dict(config_class: type[T], tree: Mapping[str, Any], source: str = "config") -> T:
    """Config from a nested dict (as :func:`to_dict` gives it); raises ConfigError."""
    flat = flatten(dict(tree))
    return _checked(config_kinds.chosen(config_class, flat), deflatten(flat), source, build=True)


def check(config: Any) -> None:
    """Raise ConfigError unless ``config`` is one that could be read; for values set in code."""
    from_dict(type(config), to_dict(config))


def read_yaml(path: str | os.PathLike[str], option: str = "") -> dict[str, Any]:
    """A YAML mapping as a nested dict; raises ConfigError on anything else.

    option: the one that named the file, if one did; for the message where there is no such file.
    """
    try:
        text = read_small_text(path, MAX_BYTES)
    except OSError as error:
        named = f"{option}: " if option else ""
        raise ConfigError(f"{named}cannot read '{path}': {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        tree = parse_yaml(text)
    except ValueError as error:  # also for a date like 2001-99-99
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected 'field: value' lines, got {type(tree).__name__}")
    try:
        return deflatten(flatten(tree))
    except TypeError:
        raise ConfigError(f"{path}: a field is given both as a value and as a section") from None


def _tokens(args: list[str], known: Mapping[str, Any]) -> dict[str, str]:
    """``--a.b v`` / ``--a.b=v`` tokens as a flat dict of raw strings."""
    out: dict[str, str] = {}
    while args:
        token = args.pop(0)
        if not token.startswith("--") or len(token) < 3:
            raise ConfigError(f"'{token}': expected an option such as --save_dir exp/run")
        name, eq, value = token[2:].partition("=")
        if name != CONFIG_ARG and name not in known:
            raise ConfigError(_unknown("--" + name, name, [*known, CONFIG_ARG], "option"))
        if not eq:
            if args and not args[0].startswith("--"):
                value = args.pop(0)
            elif is_switch(known.get(name)):
                value = "1"
            else:
                raise ConfigError(f"--{name}: a value is missing")
        out[name] = value
    return out


def _from_text(name: str, text: str, kind: Any) -> Any:
    """A command line string, as YAML would read it; strings stay as typed."""
    if (
        kind is str
        or is_input(kind)
        or (get_origin(kind) is Literal and all(isinstance(a, str) for a in get_args(kind)))
    ):
        return text
    try:
        return parse_yaml(text)
    except ValueError:
        raise ConfigError(
            f"{name}: cannot read {_shortened(text)}, expected {expectation(kind)}"
        ) from None


def _shortened(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "an integer too long to print"
    return text if len(text) <= 120 else text[:117] + "..."


# ---------------------------------------------------------------- types


@functools.cache  # evaluating annotations takes most of the time needed to read a config
def _hints(config_class: Any) -> Mapping[str, Any]:
    """Resolved annotations of the init fields (they may be strings), in declaration order."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(config_class) if f.init}


def field_types(config_class: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type of every leaf field."""
    out: dict[str, Any] = {}
    for name, kind in _hints(config_class).items():
        if dataclasses.is_dataclass(kind):
            out.update(field_types(kind, f"{prefix}{name}."))
        else:
            out[prefix + name] = kind
    return out


# ---------------------------------------------------------------- checking and building


def _unknown(shown: str, name: str, known: Sequence[str], what: str) -> str:
    section, _, leaf = name.rpartition(".")
    leaves: dict[str, list[str]] = {}
    for option in known:
        leaves.setdefault(option.rpartition(".")[2], []).append(option)
    here = {o.rpartition(".")[2]: o for o in known if o.rpartition(".")[0] == section}
    # a typo in the leaf, the right leaf in the wrong section, or a typo anywhere
    close = [here[c] for c in difflib.get_close_matches(leaf, here, n=2)]
    close = close or leaves.get(leaf, [])[:3] or difflib.get_close_matches(name, known, n=2)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    return f"{shown}: unknown {what}{hint}"


def _checked(config_class: Any, tree: Mapping[str, Any], source: str, build: bool = False) -> Any:
    # sections of other kinds are not read
    others = config_kinds.other_sections(config_class)
    tree = {k: v for k, v in tree.items() if k not in others}
    values = _check_section(config_class, tree, source, "", list(field_types(config_class)))
    return _build(config_class, values, source, "") if build else None


def _check_section(
    config_class: Any, tree: Mapping[str, Any], source: str, prefix: str, known: list[str]
) -> dict[str, Any]:
    """Type-checked nested dict; raises ConfigError on unknown keys and wrong types."""
    hints = _hints(config_class)
    out: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        retired = dict(getattr(config_class, "RETIRED", ()))
        if key in retired:
            if value != retired[key]:
                raise ConfigError(
                    f"{source}: {name}: {value!r}: this option was removed; expected no such field "
                    f"(or {retired[key]!r}, which changes nothing)"
                )
            continue
        if key not in hints:
            raise ConfigError(f"{source}: " + _unknown(name, name, known, "field"))
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                first = next(iter(field_types(kind)), "")
                raise ConfigError(
                    f"{source}: {name}: is a section, expected fields such as {name}.{first}, "
                    f"got {_shortened(value)}"
                )
            out[key] = _check_section(kind, value, source, name + ".", known)
            continue
        try:
            out[key] = coerce(value, kind)
        except Mismatch as mismatch:
            wanted = f"{expectation(kind)}{mismatch}"
            raise ConfigError(
                f"{source}: {name}: expected {wanted}, got {_shortened(value)}"
            ) from None
    return out


def _build(config_class: Any, values: Mapping[str, Any], source: str, prefix: str) -> Any:
    hints = _hints(config_class)
    defaults = {f.name: f for f in dataclasses.fields(config_class)}
    kwargs: dict[str, Any] = {}
    for key, kind in hints.items():
        if dataclasses.is_dataclass(kind):
            # start from the parent's own default for the section, which may differ from the class's
            base = _default(defaults[key])
            given = {**base, **_deep(base, values.get(key, {}))}
            kwargs[key] = _build(kind, given, source, f"{prefix}{key}.")
        elif key in values:
            kwargs[key] = values[key]
    try:
        config = config_class(**kwargs)
        if hasattr(config, "validate"):
            config.validate()
    except ConfigError:
        raise
    except (UserError, ValueError, TypeError) as error:
        raise ConfigError(f"{source}: {_named(str(error), hints, prefix)}") from None
    return config


def _named(message: str, fields: Mapping[str, Any], prefix: str) -> str:
    """A section's message; if it begins with a field, that field's dotted name is used."""
    if re.split(r"[^\w]", message, maxsplit=1)[0] in fields:
        return prefix + message
    return f"{prefix[:-1]}: {message}" if prefix else message


def _default(field: dataclasses.Field[Any]) -> Any:
    """A field's default as plain values; {} for a section without one."""
    if field.default_factory is not dataclasses.MISSING:
        return _to_plain(field.default_factory())
    return {} if field.default is dataclasses.MISSING else _to_plain(field.default)


def _deep(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` with nested sections filled up from ``base``."""
    return {
        k: {**base[k], **_deep(base[k], v)}
        if isinstance(v, dict) and isinstance(base.get(k), dict)
        else v
        for k, v in given.items()
    }


# ---------------------------------------------------------------- writing and comparing


def to_dict(config: Any) -> dict[str, Any]:
    """Nested dict of plain values (tuples become lists), YAML safe, in field order."""
    return {
        f.name: _to_plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init
    }


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, (list, tuple)):
        return [_to_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _to_plain(v) for k, v in value.items()}
    return value


def dump(config: Any, path: str | os.PathLike[str]) -> None:
    """Write the config as YAML (atomic); ``load`` gives back exactly the same values.

    Raises ConfigError if it would not, that is if a ``__post_init__`` changes values that
    it already changed before.
    """
    tree = to_dict(config)
    again = from_dict(type(config), tree, source=str(path))
    changed = diff(config, again)
    if changed:
        raise ConfigError(
            f"{path}: {type(config).__name__} would not load as it was saved "
            f"({'; '.join(changed)}): its __post_init__ must leave already tidied values alone"
        )
    atomic_yaml(tree, path)


def diff(a: Any, b: Any) -> list[str]:
    """What changed from ``a`` to ``b`` (configs or nested dicts): ``field: old -> new`` lines."""
    old = flatten(a if isinstance(a, dict) else to_dict(a))
    new = flatten(b if isinstance(b, dict) else to_dict(b))
    missing = "(absent)"
    return [
        f"{k}: {_show(old.get(k, missing))} -> {_show(new.get(k, missing))}"
        for k in dict.fromkeys([*old, *new])
        if k not in old or k not in new or old[k] != new[k]
    ]


def _show(value: Any) -> str:
    return '""' if value == "" else str(value)


# ---------------------------------------------------------------- documentation


def describe(config_class: Any) -> list[tuple[str, str, Any, str]]:
    """(dotted name, expectation, default, documentation) of every option, in order.

    For a class with kinds (``config_kinds``): those of the default kind.
    """
    config_class = config_kinds.or_default(config_class)
    if len(config_kinds.every_kind(config_class)) > 1:
        # from the fields, not an instance: a kind may conflict with the other fields' defaults
        values = defaults(config_class)
    else:
        values = flatten(to_dict(config_class()))
    docs = _docs(config_class, "")
    return [
        (name, expectation(kind), values.get(name), docs[name])
        for name, kind in field_types(config_class).items()
    ]


def defaults(config_class: Any) -> dict[str, Any]:
    """Dotted name -> default of every field of a class."""
    fields = [f for f in dataclasses.fields(config_class) if f.init]
    return flatten({f.name: _default(f) for f in fields})


def _docs(config_class: Any, prefix: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for name, kind in _hints(config_class).items():
        if dataclasses.is_dataclass(kind):
            out.update(_docs(kind, f"{prefix}{name}."))
            continue
        # a subclass that only changes a default need not repeat the documentation
        owners = [c for c in config_class.__mro__ if name in inspect.get_annotations(c)]
        texts = (_comment(owner, name) for owner in owners)
        out[prefix + name] = " ".join(next((t for t in texts if t), "").split())
    return out


@functools.cache  # it parses the class's whole file
def _comment(owner: type, field: str) -> str:
    found = get_attribute_docstring(owner, field)
    return str(found.comment_inline or found.docstring_below or found.comment_above)


def help_text(config_class: Any, args: Sequence[str] = ()) -> str:
    """What ``--help`` prints: each option with its kind, default and documentation.

    For a class with kinds, the options of the kind that ``args`` choose.
    """
    lines = [f"usage: {Path(sys.argv[0]).name} [--config_path FILE.yaml] [--option value ...]", ""]
    kinds = config_kinds.every_kind(config_class)
    given, path, tree = _sources(config_class, args)
    config_class = _chosen(config_class, given, path, tree)
    if len(kinds) > 1:
        field, own = config_class.CHOSEN_BY, config_class.KIND
        others = ", ".join(kind for kind in kinds if kind != own)
        lines += [f"Options with {field} {own}; others with {field} {others}:", ""]
    lines += [
        "  --config_path FILE.yaml",
        "      fields from a YAML file; options below override it",
    ]
    for name, kind, default, doc in describe(config_class):
        lines.append(f"  --{name}  ({kind}; default: {_show(default)})")
        if doc:
            lines.append(f"      {doc}")
    return "\n".join(lines)

"""Configurations of several kinds: of the kinds' sections only the chosen one's fields exist.

``train_bc.py --policy_type mse`` has a section ``mse`` and none of the other policies'. A config
class says which kinds there are and which one a configuration chooses (:class:`Kinded`);
``run_config`` then reads, shows and writes the class of that kind, a subclass with its section.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, cast

from pyrallis.utils import flatten

T = TypeVar("T")


class Section(NamedTuple):
    """A kind's own section: its name in configurations, and its dataclass."""

    name: str
    config: type


class Kinded:
    """Base of a config class with kinds. It is what the kinds share: making one makes the chosen
    kind's, a subclass.
    """

    # the field that chooses, with its dots
    CHOSEN_BY: ClassVar[str]
    # in a kind's class: which, and what all kinds share
    KIND: ClassVar[str] = ""
    SHARED: ClassVar[type[Kinded] | None] = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.KIND:
            return super().__new__(cls)
        plain = {
            k: dataclasses.asdict(v)
            if dataclasses.is_dataclass(v) and not isinstance(v, type)
            else v
            for k, v in kwargs.items()
        }
        return super().__new__(chosen(cls, flatten(plain)))

    @classmethod
    def sections(cls) -> Mapping[str, Section]:
        """Kind -> its section."""
        raise NotImplementedError

    @classmethod
    def choices(cls) -> tuple[str, ...]:
        """Values of the field that chooses, where it is one of this class's own."""
        return tuple(cls.sections())

    @classmethod
    def kind_of(cls, values: Mapping[str, Any]) -> str:
        """The kind that values (dotted name -> value, not checked yet) choose."""
        raise NotImplementedError

    @property
    def own_section(self) -> Any:
        """The chosen kind's section."""
        return getattr(self, self.sections()[self.KIND].name)


# a class is made once, so that configurations of one kind are of one class
_classes: dict[tuple[Any, ...], type[Kinded]] = {}


def _class_of(shared: type[Kinded], kind: str, section: Section) -> type[Kinded]:
    choices = shared.choices()
    key = (shared, kind, section, choices)
    if key not in _classes:
        _classes[key] = _make_class(shared, kind, section, choices)
    return _classes[key]


def _make_class(
    shared: type[Kinded], kind: str, section: Section, choices: tuple[str, ...]
) -> type[Kinded]:
    fields: list[Any] = [
        (section.name, section.config, dataclasses.field(default_factory=section.config))
    ]
    for own in dataclasses.fields(cast(Any, shared)):
        if own.name == shared.CHOSEN_BY:
            fields.append((own.name, Literal[choices], dataclasses.field(default=own.default)))
    namespace = {"KIND": kind, "SHARED": shared, "__module__": shared.__module__}
    return dataclasses.make_dataclass(shared.__name__, fields, bases=(shared,), namespace=namespace)


def every_kind(config_class: type[T]) -> dict[str, type[T]]:
    """Kind -> its class; {"": the class itself} for one that has no kinds."""
    if not issubclass(config_class, Kinded):
        return {"": config_class}
    shared = config_class.SHARED or config_class
    kinds = {kind: _class_of(shared, kind, section) for kind, section in shared.sections().items()}
    return cast("dict[str, type[T]]", kinds)


def chosen(config_class: type[T], values: Mapping[str, Any]) -> type[T]:
    """The class of the kind that ``values`` (dotted names) choose."""
    if not issubclass(config_class, Kinded):
        return config_class
    return every_kind(config_class)[config_class.kind_of(values)]


def or_default(config_class: type[T]) -> type[T]:
    """A kind's class itself; of what kinds share, the class that is chosen by default."""
    if issubclass(config_class, Kinded) and config_class.KIND:
        return config_class
    return chosen(config_class, {})


def other_sections(config_class: Any) -> dict[str, list[str]]:
    """Of a kind's class, the sections that other kinds have: name -> those kinds."""
    out: dict[str, list[str]] = {}
    if issubclass(config_class, Kinded):
        sections = config_class.sections()
        own = sections[config_class.KIND].name
        for kind, section in sections.items():
            if section.name != own:
                out.setdefault(section.name, []).append(kind)
    return out

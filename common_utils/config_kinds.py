"""Configurations that come in several kinds: only the section of the chosen kind exists.

``train_bc.py --policy_type mse`` has a section ``mse`` and no section of another policy. A config
class declares its kinds and which of them a configuration chooses (:class:`Kinded`);
``run_config`` then reads, shows and writes that kind's class: a subclass with its section.
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
    """Base of a config class with kinds, which holds what they share. Constructing it makes an
    instance of the chosen kind's subclass.
    """

    # dotted name of the field that chooses the kind
    CHOSEN_BY: ClassVar[str]
    # set in the class of a kind: the kind, and the class that all kinds share
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
        """Values of the choosing field, if this class declares it itself."""
        return tuple(cls.sections())

    @classmethod
    def kind_of(cls, values: Mapping[str, Any]) -> str:
        """The kind chosen by ``values`` (dotted name -> value, not checked yet)."""
        raise NotImplementedError

    @property
    def own_section(self) -> Any:
        """The chosen kind's section."""
        return getattr(self, self.sections()[self.KIND].name)


# each class is made once, so that all configurations of a kind have the same class
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
    """Kind -> its class; {"": the class itself} if it has no kinds."""
    if not issubclass(config_class, Kinded):
        return {"": config_class}
    shared = config_class.SHARED or config_class
    kinds = {kind: _class_of(shared, kind, section) for kind, section in shared.sections().items()}
    return cast("dict[str, type[T]]", kinds)


def chosen(config_class: type[T], values: Mapping[str, Any]) -> type[T]:
    """The class of the kind chosen by ``values`` (dotted name -> value)."""
    if not issubclass(config_class, Kinded):
        return config_class
    return every_kind(config_class)[config_class.kind_of(values)]


def or_default(config_class: type[T]) -> type[T]:
    """The class of a kind unchanged; for the shared class, the kind it chooses by default."""
    if issubclass(config_class, Kinded) and config_class.KIND:
        return config_class
    return chosen(config_class, {})


def other_sections(config_class: Any) -> dict[str, list[str]]:
    """The sections that only other kinds have: name -> those kinds."""
    out: dict[str, list[str]] = {}
    if issubclass(config_class, Kinded):
        sections = config_class.sections()
        own = sections[config_class.KIND].name
        for kind, section in sections.items():
            if section.name != own:
                out.setdefault(section.name, []).append(kind)
    return out

"""Explicit tables from names to classes, and the building of a member from plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, get_type_hints

from antibackdoor import plugins
from antibackdoor.errors import ConfigError, UnknownNameError

__all__ = ["NO_PARAMETER", "Registry", "parameters_of"]

T = TypeVar("T")
# Metadata of a field that is no hyper-parameter: configurations cannot set it, records do not have it.
NO_PARAMETER = {"antibackdoor": "no hyper-parameter"}


class Registry(Generic[T]):
    """A table ``name -> dataclass``; every family (attacks, defences, signals) has one.

    Beside its own members it shows those that plugins bring, which never hide its own; see ``plugins``.

    Args:
        kind: What a member is called in messages, such as "attack"; a plugin's table is its plural in capitals.
        table: The members; each is a frozen dataclass whose fields are its hyper-parameters.
        base: What members from outside must derive from.
        gone: Names that members had, and what to say to somebody who gives one.
    """

    def __init__(
        self,
        kind: str,
        table: Mapping[str, type[T]],
        *,
        base: type = object,
        gone: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self._table = dict(sorted(table.items()))
        self._base = base
        self._gone = dict(gone or {})
        self._name = f"{kind.upper()}S"

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._members()))

    def __len__(self) -> int:
        return len(self._members())

    def __contains__(self, name: object) -> bool:
        return name in self._table or name in self._members()

    def add(self, name: str, member: type[T]) -> None:
        """Add a member to this process alone; adding the same again does nothing.

        Methods in a plugin file (``antibackdoor.load_plugin``) are known to the worker processes of a grid, and
        recorded in runs; what is added here is not.

        Args:
            name: Its name.
            member: A dataclass of the family.

        Raises:
            ConfigError: The name is taken by another class, or the class is none of the family.
        """
        fault = self._fault(name, member, self._members(installed=False))
        if fault is not None:
            raise ConfigError(f"{self.kind} {name!r}: {fault}")
        self._table[name] = member

    def check_files(self) -> None:
        """Check what the plugin files bring to this table.

        Raises:
            ConfigError: A name is taken, or a class is none of the family.
        """
        self._members(installed=False)

    def get(self, name: str) -> type[T]:
        """Return the class called ``name``.

        Raises:
            UnknownNameError: No member has that name; the message lists all and the nearest.
            ConfigError: A plugin file brings what does not fit into the table, or the name is one that is no longer.
        """
        if name in self._table:
            return self._table[name]
        members = self._members(installed=False)
        if name not in members:
            members = self._members()
        if name not in members and name in self._gone:
            raise ConfigError(f"{self.kind} {name!r} {self._gone[name]}")
        if name not in members:
            raise UnknownNameError(self.kind, name, members)
        return members[name]

    def build(self, name: str, params: Mapping[str, object], *, path: str | None = None) -> T:
        """Build the member ``name`` from plain values.

        Args:
            name: A name in the table.
            params: Hyper-parameters by field name; what is left out keeps its default.
            path: Where the values stand in the configuration, for messages; the kind by default.

        Returns:
            The member.

        Raises:
            UnknownNameError: Unknown member or unknown hyper-parameter.
            ConfigError: A value of the wrong type or outside its range.
        """
        cls = self.get(name)
        return _build_dataclass(cls, params, path or self.kind)

    def _members(self, *, installed: bool = True) -> dict[str, type[T]]:
        """Return all members; from an installed plugin, what does not fit is left out, not refused."""
        members = dict(self._table)
        for plugin in plugins.from_files():
            for name, cls in plugin.tables.get(self._name, {}).items():
                fault = self._fault(name, cls, members)
                if fault is not None:
                    raise ConfigError(f"{plugin.source}: {self._name}[{name!r}]: {fault}")
                members[name] = cls  # type: ignore[index, assignment]  # what _fault looked at
        for plugin in plugins.installed() if installed else ():
            for name, cls in plugin.tables.get(self._name, {}).items():
                fault = self._fault(name, cls, members)
                if fault is not None:
                    plugins.warn_left_out(f"{self._name}[{name!r}] of {plugin.source}", fault)
                    continue
                members[name] = cls  # type: ignore[index, assignment]
        return members

    def _fault(self, name: object, cls: object, members: Mapping[str, type[T]]) -> str | None:
        """Return why a class cannot be a member under a name, or None."""
        if not isinstance(name, str) or not name.strip():
            return "a name must be a string that is not empty"
        if not isinstance(cls, type):
            return f"must be a class, not {cls!r}"
        if members.get(name, cls) is not cls:
            return f"the name is taken by {members[name].__name__}; choose another"
        if name == "none" and name not in members:
            return f"the name is taken: it says that there is no {self.kind}"
        if not issubclass(cls, self._base):
            return f"{cls.__name__} must derive from {self._base.__name__} to be a member of this family"
        if "__dataclass_params__" not in vars(cls):
            return f"{cls.__name__} is no dataclass; put @dataclass(frozen=True) above it"
        missing = sorted(getattr(cls, "__abstractmethods__", ()))
        if missing:
            return f"{cls.__name__} does not define {', '.join(missing)}"
        try:
            get_type_hints(cls)
        except Exception as error:  # noqa: BLE001 - an annotation may be any expression
            return f"the type of a hyper-parameter of {cls.__name__} cannot be read: {error}"
        return None


def parameters_of(member: object) -> dict[str, object]:
    """Return the hyper-parameters of a built member by field name."""
    if not dataclasses.is_dataclass(member):
        raise ConfigError(f"{type(member).__name__} is not a dataclass, so its hyper-parameters cannot be recorded")
    return {name: getattr(member, name) for name in _parameters(type(member))}


def _parameters(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a dataclass that are hyper-parameters, by name."""
    return {field.name: field for field in dataclasses.fields(cls) if field.init and field.metadata != NO_PARAMETER}


def _build_dataclass(cls: type[T], params: Mapping[str, object], path: str) -> T:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    fields = _parameters(cls)
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, given in params.items():
        if key not in fields:
            raise UnknownNameError(f"setting below {path}:", key, fields)
        try:
            # Strict for true and false alone, which would count as 1 and 0.
            strict = isinstance(given, bool)
            adapter = TypeAdapter(hints[key], config=ConfigDict(strict=strict, arbitrary_types_allowed=True))
            values[key] = adapter.validate_python(given)
        except ValidationError as error:
            raise ConfigError(f"{path}.{key}: {error.errors()[0]['msg']}, got {given!r}") from None
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{path}.{missing[0]}: missing, and it has no default")
    try:
        return cls(**values)
    except ConfigError as error:
        raise type(error)(f"{path}.{error}") if not isinstance(error, UnknownNameError) else error from None

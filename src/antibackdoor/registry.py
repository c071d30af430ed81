"""Explicit tables from names to classes, and the building of a member from plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar, get_type_hints

from antibackdoor.errors import ConfigError, UnknownNameError

__all__ = ["Registry", "parameters_of"]

T = TypeVar("T")


class Registry(Generic[T]):
    """A read-only table ``name -> dataclass``; every family (attacks, defences, signals) has one.

    Args:
        kind: What a member is called in messages, such as "attack".
        table: The members; each is a frozen dataclass whose fields are its hyper-parameters.
    """

    def __init__(self, kind: str, table: Mapping[str, type[T]]) -> None:
        self.kind = kind
        self._table = dict(sorted(table.items()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def get(self, name: str) -> type[T]:
        """Return the class called ``name``.

        Raises:
            UnknownNameError: No member has that name; the message lists all and the nearest.
        """
        if name not in self._table:
            raise UnknownNameError(self.kind, name, self._table)
        return self._table[name]

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


def parameters_of(member: object) -> dict[str, object]:
    """Return the hyper-parameters of a built member by field name."""
    if not dataclasses.is_dataclass(member):
        raise ConfigError(f"{type(member).__name__} is not a dataclass, so its hyper-parameters cannot be recorded")
    return {field.name: getattr(member, field.name) for field in dataclasses.fields(member) if field.init}


def _build_dataclass(cls: type[T], params: Mapping[str, object], path: str) -> T:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
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

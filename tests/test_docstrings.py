"""Docstrings: every public thing has one, and what they list is what the signatures have."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

import antibackdoor

SECTIONS = r"Args|Attributes|Returns|Raises|Source|Example|Yields|Note"


def modules() -> Iterator[str]:
    yield "antibackdoor"
    for info in pkgutil.walk_packages(antibackdoor.__path__, "antibackdoor."):
        if not info.name.endswith("__main__"):
            yield info.name


def public() -> dict[str, object]:
    """Public classes, functions and methods, each under the module that defines it."""
    found: dict[str, object] = {}
    for module_name in modules():
        module = importlib.import_module(module_name)
        for name, item in vars(module).items():
            if name.startswith("_") or getattr(item, "__module__", None) != module_name:
                continue
            if inspect.isclass(item) or inspect.isfunction(item):
                found[f"{module_name}.{name}"] = item
            if inspect.isclass(item):
                for method, value in vars(item).items():
                    plain = value.__func__ if isinstance(value, staticmethod | classmethod) else value
                    plain = plain.fget if isinstance(plain, property) else plain
                    plain = getattr(plain, "func", plain)  # cached_property
                    if inspect.isfunction(plain) and not method.startswith("_") and "<" not in plain.__qualname__:
                        found[f"{module_name}.{name}.{method}"] = plain
    return found


PUBLIC = public()


def listed(docstring: str, section: str) -> list[str] | None:
    """The names under a section of a Google docstring, or None where it has no such section."""
    text = inspect.cleandoc(docstring)
    match = re.search(rf"^{section}:\n(.*?)(?=^(?:{SECTIONS}):\n|\Z)", text, re.DOTALL | re.MULTILINE)
    if match is None:
        return None
    return re.findall(r"^    \*{0,2}(\w+)(?: \([^)]*\))?:", match.group(1), re.MULTILINE)


def parameters(function: object) -> list[str]:
    names = list(inspect.signature(function).parameters)  # type: ignore[arg-type]
    return [name for name in names if name not in {"self", "cls"}]


def fields(cls: type) -> list[str] | None:
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    return list(cls.model_fields) if issubclass(cls, BaseModel) else None


def test_the_parser_of_docstrings():
    text = """One line.

    Args:
        first: Something: with a colon,
            and a second line.
        second (int): More.
        **rest: All else.

    Returns:
        nothing: at all.
    """
    assert listed(text, "Args") == ["first", "second", "rest"]
    assert listed(text, "Attributes") is None
    assert len(PUBLIC) > 100


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_has_a_docstring(name):
    text = getattr(PUBLIC[name], "__doc__", None)
    assert text
    assert text.strip()
    assert not text.startswith(f"{name.rsplit('.', 1)[-1]}("), "the docstring is the one that dataclasses make up"


WITH_ARGS = [name for name, item in PUBLIC.items() if listed(item.__doc__ or "", "Args") is not None]


@pytest.mark.parametrize("name", WITH_ARGS)
def test_args_are_the_parameters(name):
    item = PUBLIC[name]
    wanted = parameters(item.__init__ if inspect.isclass(item) else item)
    assert listed(item.__doc__ or "", "Args") == wanted


WITH_FIELDS = [
    name
    for name, item in PUBLIC.items()
    if inspect.isclass(item) and listed(item.__doc__ or "", "Attributes") is not None
]


@pytest.mark.parametrize("name", WITH_FIELDS)
def test_attributes_are_the_fields(name):
    cls = PUBLIC[name]
    assert isinstance(cls, type)
    names = listed(cls.__doc__ or "", "Attributes") or []
    own = fields(cls)
    assert own is not None, "Attributes are listed for dataclasses and settings only"
    assert [item for item in names if item not in own] == []
    inherited = {field for base in cls.__mro__[1:] for field in (fields(base) or [] if base is not object else [])}
    assert [item for item in own if item not in inherited and item not in names] == []

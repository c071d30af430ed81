"""What the pages of this package have in common: how their templates are read, and how their text can be stored."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

import jinja2

__all__ = ["storable", "template"]


def template(package: str, name: str, **filters: Callable[..., object]) -> jinja2.Template:
    """Return a template that lies in a package, with everything escaped that is put into it.

    Args:
        package: Such as "antibackdoor.report".
        name: Of the file.
        **filters: What the template may call, by name.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(filters)
    return environment.from_string(files(package).joinpath(name).read_text(encoding="utf-8"))


def storable(page: str) -> str:
    """Return the text as a file can hold it: a path or a name that is not valid text carries lone surrogates."""
    return page.encode("utf-8", "backslashreplace").decode("utf-8")

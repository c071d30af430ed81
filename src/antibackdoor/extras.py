"""Packages that only some uses need."""

from __future__ import annotations

import importlib.util

from antibackdoor.errors import ConfigError

__all__ = ["need"]


def need(package: str, extra: str, what: str = "this") -> None:
    """Check that a package is installed, without importing it.

    Args:
        package: As it is imported.
        extra: Of this package, which brings it.
        what: What needs it, in the message.

    Raises:
        ConfigError: It is not.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{what} needs the package {package!r}, which is not installed: pip install 'antibackdoor[{extra}]'"
        )

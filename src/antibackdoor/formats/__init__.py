"""The result of a finished run for people and for pipelines: one module a format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from antibackdoor.errors import UnknownNameError
from antibackdoor.formats import github, intoto, json_, junit, sarif, text
from antibackdoor.formats.findings import Findings
from antibackdoor.storage import load_run

__all__ = ["FORMATS", "read", "render"]

FORMATS: Mapping[str, Callable[[Findings], str]] = MappingProxyType(
    {
        "text": text.render,
        "json": json_.render,
        "sarif": sarif.render,
        "junit": junit.render,
        "github": github.render,
        "intoto": intoto.render,
    }
)


def read(run: Path) -> Findings:
    """Read a finished run folder.

    Raises:
        StorageError: A file is missing or damaged.
    """
    return Findings(load_run(run), run)


def render(findings: Findings, name: str) -> str:
    """Return a finished run in a format, as text that ends with a line feed.

    Args:
        findings: From :func:`read`.
        name: A key of ``FORMATS``.

    Raises:
        UnknownNameError: There is no such format.
        StorageError: The run lacks what the format needs.
    """
    if name not in FORMATS:
        raise UnknownNameError("format", name, FORMATS)
    return FORMATS[name](findings)

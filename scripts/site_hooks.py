"""What mkdocs does with the pages of docs/ beyond Markdown.

A page that holds ``<!-- table: FAMILY -->`` gets the table of a family (attacks, defences, signals, models, datasets)
in its place, ``<!-- settings: FAMILY -->`` the hyper-parameters of the methods that the page introduces, and
``<!-- api -->`` the public names of the package. Links to files outside docs/ lead to the repository. Names, first
lines, defaults and meanings are read from the code when the site is built, so they cannot grow old.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from antibackdoor import ATTACKS, DEFENCES, SIGNALS
from antibackdoor import __all__ as PUBLIC
from antibackdoor.attacks import Attack, CleanLabelAttack, DirtyLabelAttack
from antibackdoor.catalogue import describe

__all__ = ["links_out", "on_page_content", "on_page_markdown", "page_of", "settings", "table"]

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
REGISTRIES: dict[str, Any] = {"attacks": ATTACKS, "defences": DEFENCES, "signals": SIGNALS}
# Where a method may be introduced, in the order of search.
PAGES = {
    "attacks": ("attacks/static.md", "attacks/optimised.md", "attacks/generators.md", "attacks/feature.md"),
    "defences": ("defences/abl.md", "defences/baselines.md", "defences.md"),
    "signals": ("defences.md",),
}
_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")
_MARK = re.compile(r"^<!-- (table|settings): (\w+) -->$", re.MULTILINE)


def page_of(family: str, name: str) -> str | None:
    """Return the page below docs/ that introduces a method, or None.

    That is the first with a heading of this name, a row of a table that begins with it, or a paragraph that does.
    """
    quoted = rf"(?:\| )?(?:`[\w-]+`, )*`{re.escape(name)}`[ ,:]"
    heading = rf"#+ (?:[\w-]+, )*{re.escape(name)}\b"
    for page in PAGES[family]:
        if re.search(rf"^(?:{quoted}|{heading})", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE):
            return page
    return None


def _plain(text: str) -> str:
    """Return a piece of a docstring as Markdown that stays within a cell of a table."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`").replace("|", "\\|").replace("<", "&lt;")


def _kind(cls: type) -> str:
    if issubclass(cls, CleanLabelAttack):
        return "kept"
    if issubclass(cls, DirtyLabelAttack):
        return "changed"
    if getattr(cls, "needs_trusted", False):
        return "trusted images"
    return "the rate of poison" if getattr(cls, "needs_rate", False) else "-"


def table(family: str, page: str) -> str:
    """Return the Markdown table of a family: a row a member, with a link to the page that introduces it.

    Args:
        family: attacks, defences, signals, models or datasets.
        page: The page below docs/ that the table stands on.
    """
    third = {"attacks": " labels of the poison |", "defences": " is given beyond the data |"}.get(family, "")
    lines = [f"| name | |{third}", f"|---|---|{'---|' if third else ''}"]
    for name, words in describe(family):
        home = page_of(family, name) if family in PAGES else None
        shown = f"`{name}`" if home is None or home == page else f"[`{name}`]({_relative(home, page)})"
        last = f" {_kind(REGISTRIES[family].get(name))} |" if third else ""
        lines.append(f"| {shown} | {_plain(words)} |{last}")
    return "\n".join(lines)


def _relative(target: str, page: str) -> str:
    return Path(os.path.relpath(DOCS / target, (DOCS / page).parent)).as_posix()


def settings(family: str, page: str) -> str:
    """Return the hyper-parameters of the methods that a page introduces: a table a method, from the docstrings.

    Args:
        family: attacks, defences or signals.
        page: The page below docs/; what no page introduces stands with the family's table, on ``index.md``.
    """
    homes = {name: page_of(family, name) for name in REGISTRIES[family]}
    here = [name for name, home in homes.items() if home == page or (home is None and page not in PAGES[family])]
    parts = []
    for name in here:
        rows = list(_rows(REGISTRIES[family].get(name)))
        body = "\n".join(["| setting | default | |", "|---|---|---|", *rows]) if rows else "It has none."
        parts.append(f"### Settings of {name}\n\n{body}\n")
    return "\n".join(parts)


def _rows(cls: type) -> Iterator[str]:
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        meanings |= _attributes(vars(base).get("__doc__") or "")
    prefix = {"Attack": "attack", "Defence": "defence"}
    section = next((prefix[base.__name__] for base in cls.__mro__ if base.__name__ in prefix), "signal")
    common = {field.name for base in (Attack, DirtyLabelAttack) for field in dataclasses.fields(base)}
    for field in dataclasses.fields(cls):
        if not field.init or (section == "attack" and field.name in common):
            continue
        default = "required" if field.default is dataclasses.MISSING else _shown(field.default)
        if field.default_factory is not dataclasses.MISSING:
            default = _shown(field.default_factory())
        yield f"| `{section}.{field.name}` | {default} | {_plain(meanings.get(field.name, ''))} |"


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return _plain(f"{value:g}" if isinstance(value, float) else str(value))


def _attributes(docstring: str) -> dict[str, str]:
    """Return the meaning of every name under ``Attributes:`` of a Google docstring."""
    block = re.search(r"^Attributes:\n((?:    .*\n|\n)*)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    found: dict[str, str] = {}
    for line in (block[1] if block else "").splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name, found[start[1]] = start.groups()
        elif line.strip() and found:
            found[name] += " " + line.strip()
    return found


def _api() -> str:
    """Return a directive for every public class and function, and a line for every table of methods."""
    import antibackdoor

    parts = []
    for name in sorted(PUBLIC, key=str.lower):
        item = getattr(antibackdoor, name)
        if inspect.isclass(item) or inspect.isfunction(item):
            heading = f"    options: {{heading: {name}, toc_label: {name}}}\n" if item.__name__ != name else ""
            parts.append(f"::: {item.__module__}.{item.__name__}\n{heading}")
    return "\n".join(parts)


def links_out(text: str, page: str, repository: str) -> str:
    """Return a page whose links to files outside docs/ lead to the repository, or name the file where none is known.

    Args:
        text: Markdown.
        page: The page below docs/, such as ``attacks/static.md``.
        repository: Address without a slash at its end, or "".
    """

    def replaced(match: re.Match[str]) -> str:
        words, link = match.groups()
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath(DOCS / Path(page).parent / path))
        if target.is_relative_to(DOCS):
            return match[0]
        place = target.relative_to(ROOT).as_posix()
        if repository:
            return f"[{words}]({repository}/blob/main/{place}{'#' + anchor if anchor else ''})"
        return words if words.strip("`") == place else f"{words} (`{place}`)"

    return _LINK.sub(replaced, text)


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Change a page before it becomes HTML; mkdocs calls this."""
    place = page.file.src_uri
    made = {"table": table, "settings": settings}
    text = _MARK.sub(lambda match: made[match[1]](match[2], place), markdown)
    text = text.replace("<!-- api -->", _api()) if "<!-- api -->" in text else text
    return links_out(text, place, (config.repo_url or "").rstrip("/"))


def on_page_content(html: str, *, page: Any, config: Any, files: Any) -> str:
    """Take the roles of reStructuredText out of docstrings that became HTML; mkdocs calls this."""
    return re.sub(r":(?:class|func|meth|mod|attr|data):<code>~?", "<code>", html)

"""CSV that a spreadsheet may open: a name that begins like a formula is written as text, and read back as it was."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

__all__ = ["as_text", "lines_of", "read_back"]

_MARK = "'"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_text(name: str) -> str:
    """Return a cell that no spreadsheet takes for a formula; :func:`read_back` undoes it.

    Args:
        name: What is to be written. An apostrophe is put before what begins with ``=``, ``+``, ``-``, ``@``, a tab or a
            carriage return, with any number of apostrophes before; every other name is written as it is.

    Source:
        OWASP, CSV injection: https://owasp.org/www-community/attacks/CSV_Injection.
    """
    return _MARK + name if _like_a_formula(name) else name


def read_back(cell: str) -> str:
    """Return the name that :func:`as_text` wrote as this cell."""
    return cell[1:] if cell.startswith(_MARK) and _like_a_formula(cell) else cell


def lines_of(rows: Iterable[Sequence[object]], *, delimiter: str = ",") -> str:
    """Return rows as CSV, each with a line feed after it; names of others have to go through :func:`as_text` before."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", delimiter=delimiter).writerows(rows)
    return text.getvalue()


def _like_a_formula(name: str) -> bool:
    return name.lstrip(_MARK).startswith(_FORMULA)

"""Names of files and classes come from outside: what keeps them from being more than names, format by format."""

from __future__ import annotations

import string
import unicodedata
from urllib.parse import quote

__all__ = ["address", "command_data", "command_property", "markdown", "sarif_text", "visible"]

# Controls, invisible marks (those that turn the direction of writing among them), halves of pairs, line separators.
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_SPECIAL = str.maketrans({sign: f"&#{ord(sign)};" for sign in string.punctuation})


def visible(text: str) -> str:
    r"""Return one line in which every character is seen: a line feed is ``\x0a``, a turn of writing ``\u202e``."""
    return "".join(_escaped(sign) if unicodedata.category(sign) in _UNSEEN else sign for sign in text)


def _escaped(sign: str) -> str:
    number = ord(sign)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def address(path: str) -> str:
    """Return a path as a relative reference of RFC 3986; all but letters, digits and ``-._~/`` is percent-encoded."""
    encoded = quote(path.encode("utf-8", "surrogatepass"), safe="/")
    # A name with a slash at its start would lead elsewhere, and an empty one nowhere.
    return encoded.lstrip("/") or "."


def command_data(text: str) -> str:
    """Return the message of a workflow command of GitHub Actions."""
    return visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def command_property(text: str) -> str:
    """Return a property, such as the title, of a workflow command of GitHub Actions."""
    return command_data(text).replace(":", "%3A").replace(",", "%2C")


def markdown(text: str) -> str:
    """Return a text that Markdown and HTML show as it is: no mark-up, no link, no mention, no end of a table's cell."""
    return visible(text).translate(_SPECIAL)


def sarif_text(text: str) -> str:
    """Return a text for a SARIF message, in which brackets would make links (3.11.6)."""
    return visible(text).replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")

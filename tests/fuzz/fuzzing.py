"""Give a reader one changed file after the other, and count what comes of it."""

from __future__ import annotations

import time
import traceback
import warnings
from dataclasses import dataclass, field

from hypothesis import HealthCheck, Phase, given, seed, settings
from readers import Reader

from antibackdoor.errors import AntiBackdoorError

BATCH = 100


@dataclass
class Tried:
    """What came of a reader.

    Attributes:
        count: How many files it was given.
        read: How many of them it read.
        refused: How many it refused in one line that names the file.
        faults: What else came, each with where it was raised; each kind once.
        failing: One file for each of those.
    """

    count: int = 0
    read: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    failing: list[bytes] = field(default_factory=list)


def try_one(reader: Reader, content: bytes) -> str:
    """Give a reader one file.

    Returns:
        "read", "refused", or what is wrong.
    """
    reader.path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            reader.read()
    except AntiBackdoorError as error:
        said = str(error)
        if "\n" in said:
            return f"more than one line: {said[:200]!r}"
        if reader.named and reader.path.name not in said and str(reader.path.parent) not in said:
            return f"does not name the file: {said[:200]}"
        return "refused"
    except Exception as error:  # noqa: BLE001 - this is what must never happen
        last = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in last if "antibackdoor" in frame.filename] or last
        return f"{type(error).__name__}: {str(error)[:150]} ({ours[-1].filename.rsplit('/', 1)[-1]}:{ours[-1].lineno})"
    return "read"


def fuzz(reader: Reader, *, examples: int = 0, seconds: float = 0.0, start: int = 0) -> Tried:
    """Change what is valid in many ways.

    Args:
        reader: Who is to read it.
        examples: How many changes; or else
        seconds: for how long.
        start: Seed of the first batch.
    """
    tried, kinds, ends, batch = Tried(), set(), time.monotonic() + seconds, start

    def look(content: bytes) -> None:
        if tried.count > examples and time.monotonic() > ends:
            return
        came = try_one(reader, content)
        tried.count += 1
        tried.read += came == "read"
        tried.refused += came == "refused"
        kind = came.rsplit("(", 1)[-1] if came.endswith(")") else came[:40]
        if came not in ("read", "refused") and kind not in kinds:
            kinds.add(kind)
            tried.faults.append(came)
            tried.failing.append(content)

    while tried.count < examples or time.monotonic() < ends:
        quick = settings(
            max_examples=min(BATCH, examples or BATCH),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        seed(batch)(quick(given(reader.changes)(look)))()
        batch += 1
    return tried

"""The options ``--format`` and ``--fail-on``: in which formats a result is given out, and when a pipeline stops."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from antibackdoor.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from antibackdoor.stored import StoredRun
    from antibackdoor.types import RunRecord

__all__ = [
    "Baseline",
    "BaselineRun",
    "FailOn",
    "FailOns",
    "Formats",
    "Request",
    "documents",
    "emit",
    "found",
    "requests",
]

_VERDICTS = ("no sign of poison", "undecided", "poisoned")  # from good to bad
NAMES = ("text", "json", "sarif", "junit", "github", "intoto")


class FailOn(StrEnum):
    """What makes a scan end with exit code 3."""

    POISONED = "poisoned"
    UNDECIDED = "undecided"
    SUSPECTS = "suspects"


Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="NAME[=FILE]",
        help=f"{', '.join(NAMES[:-1])} or {NAMES[-1]}, to standard output or to FILE; repeatable. See "
        "docs/pipelines.md. [default: text]",
    ),
]
BaselineRun = Annotated[
    Path | None,
    typer.Option(
        "--baseline", metavar="RUN", help="An earlier run; report only what is new since. See docs/pipelines.md."
    ),
]
FailOns = Annotated[
    list[FailOn] | None,
    typer.Option(
        "--fail-on",
        help="Exit with 3 if the verdict is poisoned; if it is poisoned or undecided; if any image is flagged. "
        "Repeatable.",
    ),
]


@dataclass(frozen=True)
class Request:
    """One format that was asked for.

    Attributes:
        name: The format.
        file: Where it goes; None for standard output.
    """

    name: str
    file: Path | None


def requests(given: Sequence[str] | None) -> tuple[Request, ...]:
    """Return what ``--format`` asks for; text goes to standard output where nothing else does.

    Raises:
        UnknownNameError: There is no such format.
        ConfigError: Two formats would share standard output, or a file; or a file has no name.
    """
    found: list[Request] = []
    for text in given or ():
        name, equals, file = text.partition("=")
        if name not in NAMES:
            raise UnknownNameError("format", name, NAMES)
        if equals and not file:
            raise ConfigError(f"--format {text}: the name of the file is missing")
        found.append(Request(name, Path(file) if equals else None))
    if sum(request.file is None for request in found) > 1:
        raise ConfigError(
            "--format: one alone can go to standard output; give the others a file, as in sarif=scan.sarif"
        )
    files = [request.file for request in found if request.file is not None]
    if len(set(files)) < len(files):
        raise ConfigError("--format: two formats cannot share a file")
    if len(files) == len(found):
        found.append(Request("text", None))
    return tuple(found)


def documents(asked: Sequence[Request]) -> bool:
    """Say whether standard output is to hold a document and nothing else."""
    return any(request.file is None and request.name != "text" for request in asked)


def emit(run: Path, asked: Sequence[Request], baseline: Baseline | None = None) -> None:
    """Give a finished run out, in every format asked for; the first process alone does.

    Args:
        run: Its folder.
        asked: The formats.
        baseline: An earlier run, whose suspects are left out.

    Raises:
        StorageError: A file cannot be read or written.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    from antibackdoor.formats import github, read, render
    from antibackdoor.serialising import write_text

    findings = read(run)
    if baseline is not None:
        from antibackdoor.comparing import since

        findings = replace(findings, run=since(findings.run, baseline.run, str(baseline.folder)))
    for request in asked:
        text = render(findings, request.name)
        if request.file is None:
            typer.echo(text, nl=False)
        else:
            write_text(request.file, text)
        if request.name == "github":
            github.append_summary(findings)


def found(
    record: RunRecord, fail_on: Sequence[FailOn] | None, run: Path | None = None, baseline: Baseline | None = None
) -> bool:
    """Say whether what ``--fail-on`` names was found.

    Args:
        record: Of the run.
        fail_on: What was named.
        run: Its folder; needed with a baseline.
        baseline: An earlier run: what it had found already does not count. A verdict counts where it is worse than that
            of the earlier run, or where images are flagged that were not.
    """
    suspects, known = bool(record.metrics.n_flagged), "no sign of poison"
    if run is not None and baseline is not None:
        if os.environ.get("RANK", "0") != "0":
            return False  # The first process tells; it may still be writing the run.
        from antibackdoor.comparing import since
        from antibackdoor.storage import load_run

        suspects = bool(since(load_run(run), baseline.run, str(baseline.folder)).flagged.any())
        known = known if suspects else baseline.run.record.verdict or "undecided"
    worse = _VERDICTS.index(record.verdict or "undecided") > _VERDICTS.index(known)
    met = {
        FailOn.POISONED: worse and record.verdict == "poisoned",
        FailOn.UNDECIDED: worse,
        FailOn.SUSPECTS: suspects,
    }
    return any(met[level] for level in fail_on or ())


@dataclass(frozen=True, eq=False)
class Baseline:
    """An earlier run, with which another is compared.

    Attributes:
        folder: Where it lies.
        run: What is in it.
    """

    folder: Path
    run: StoredRun

    @staticmethod
    def read(folder: Path | None) -> Baseline | None:
        """Read the run that ``--baseline`` names, before anything is done; None where none is named.

        Raises:
            StorageError: It is no finished run.
        """
        from antibackdoor.storage import load_run

        return None if folder is None else Baseline(folder, load_run(folder))

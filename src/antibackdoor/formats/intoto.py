"""The result as a statement of in-toto, to be signed and to travel with the set: a test result about its digest."""

from __future__ import annotations

import base64
import json
import os

from antibackdoor.content import set_digest
from antibackdoor.errors import StorageError
from antibackdoor.files import sha256_of
from antibackdoor.formats.escaping import address, visible
from antibackdoor.formats.findings import Findings
from antibackdoor.types import Json

__all__ = ["render"]

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"
_SET = "set"


def render(findings: Findings) -> str:
    """Return the statement, unsigned.

    Its subject is the set, by :func:`antibackdoor.content.set_digest`; its tests are the set and every class; its
    configuration names the code, the defence and all settings.

    Source:
        in-toto Attestation Framework, predicate "Test Result" 0.1.

    Raises:
        StorageError: The run is of a version that did not keep the content of images, so it has no subject.
    """
    run = findings.run
    if run.content is None:
        raise StorageError(f"{findings.folder}: the run keeps no SHA-256 of its images; scan the set again")
    passed, warned, failed = _tests(findings)
    predicate: dict[str, Json] = {
        "result": "FAILED" if failed else "WARNED" if warned else "PASSED",
        "configuration": _configuration(findings),
        "passedTests": passed,
        "warnedTests": warned,
        "failedTests": failed,
        # Fields of our own, which others pass over.
        "antibackdoor_verdict": findings.verdict,
        "antibackdoor_evidence": [visible(sentence) for sentence in run.record.evidence],
        "antibackdoor_images": len(run.ids),
        "antibackdoor_flagged": len(findings.flagged),
    }
    if url := _url():
        predicate["url"] = url
    digest = set_digest(run.content, [run.classes[label] for label in run.labels])
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": findings.name, "digest": {"sha256": digest}}],
        "predicateType": PREDICATE,
        "predicate": predicate,
    }
    return json.dumps(statement, indent=1, allow_nan=False).replace("\x7f", "\\u007f") + "\n"


def _tests(findings: Findings) -> tuple[list[Json], list[Json], list[Json]]:
    """Return the names of the tests that passed, that passed with a warning, and that failed."""
    poisoned = findings.verdict == "poisoned"
    lists: tuple[list[Json], list[Json], list[Json]] = ([], [], [])
    lists[2 if poisoned else 0 if findings.verdict == "no sign of poison" else 1].append(_SET)
    for label, rows in findings.by_class.items():
        doubtful = len(rows) or findings.run.class_verdicts[label] == "undecided"
        place = 0 if not doubtful else 2 if poisoned and len(rows) else 1
        lists[place].append(f"class {visible(findings.run.classes[label])}")
    return lists


def _configuration(findings: Findings) -> list[Json]:
    """Return the descriptors of what the test was made with: code, defence, settings."""
    record = findings.run.record
    version = record.versions.get("antibackdoor", "")
    defence = record.config.get("defence")
    name = defence.get("name") if isinstance(defence, dict) else defence
    code: dict[str, Json] = {
        "name": "antibackdoor",
        "uri": f"pkg:pypi/antibackdoor@{address(version)}",
        "annotations": {"versions": dict(record.versions)},
    }
    return [code, _content(f"defence {name}", defence), _content("settings", record.config)]


def _content(name: str, values: Json) -> dict[str, Json]:
    text = json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
    return {
        "name": name,
        "mediaType": "application/json",
        "digest": {"sha256": sha256_of(text)},
        "content": base64.b64encode(text).decode("ascii"),
    }


def _url() -> str | None:
    """Return the address of the run of GitHub Actions that this is, if it is one."""
    parts = [os.environ.get(f"GITHUB_{name}") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID")]
    return f"{parts[0]}/{parts[1]}/actions/runs/{parts[2]}" if all(parts) else None

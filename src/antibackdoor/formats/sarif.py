"""The result as SARIF 2.1.0 (OASIS), as code scanning reads it."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import PurePath, PurePosixPath

from antibackdoor.formats.escaping import address, sarif_text, visible
from antibackdoor.formats.findings import Findings
from antibackdoor.formats.rules import AISVS, ATLAS, RULES, Rule
from antibackdoor.types import Json

__all__ = ["MOST_RESULTS", "render"]

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
MOST_RESULTS = 25_000  # a run; GitHub refuses more
_MOST_LOCATIONS = 1_000  # a result; GitHub refuses more
_ROOT = "DATA"
_POISONED, _UNDECIDED, _SUSPECT = RULES


def render(findings: Findings) -> str:
    """Return one run: a result for the set where it is not above suspicion, and one for each suspect.

    Where there are more suspects than a run may hold, those of a class share results of up to 1,000 places each.
    Results are recognised in the next run by the content of the image (``partialFingerprints``).
    """
    record = findings.run.record
    version = record.versions.get("antibackdoor", "")
    driver: dict[str, Json] = {"name": "antibackdoor", "rules": [_rule(rule) for rule in RULES]}
    if version:
        driver["version"] = version
    if code := record.versions.get("antibackdoor code"):
        driver["properties"] = {"code": code}
    run: dict[str, Json] = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"antibackdoor/{visible(findings.name)}/"},
        "originalUriBaseIds": {_ROOT: {"description": {"text": f"The folder of the set {sarif_text(findings.name)}."}}},
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": _notifications(findings)}],
        "results": [*_of_the_set(findings), *_of_images(findings)],
        "columnKind": "unicodeCodePoints",
        "properties": {
            "verdict": findings.verdict,
            "evidence": [visible(sentence) for sentence in record.evidence],
            "images": len(findings.run.ids),
            "flagged": len(findings.flagged),
        },
    }
    values = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(values, indent=1, allow_nan=False).replace("\x7f", "\\u007f") + "\n"


def _rule(rule: Rule) -> dict[str, Json]:
    return {
        "id": rule.id,
        "name": rule.name,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.title},
        "help": {"text": rule.help, "markdown": rule.help},
        "helpUri": f"https://atlas.mitre.org/techniques/{ATLAS[0]}",
        "defaultConfiguration": {"level": rule.level},
        "properties": {
            "tags": ["security", "data-poisoning", "backdoor"],
            "precision": "medium",
            "security-severity": f"{rule.severity:.1f}",
            "owasp-aisvs": list(AISVS),
            "mitre-atlas": list(ATLAS),
        },
    }


def _notifications(findings: Findings) -> list[Json]:
    return [
        {
            "level": "warning",
            "message": {"text": f"Left out, since it cannot be read: {sarif_text(findings.short(name))}"},
        }
        for name in findings.skipped[:100]
    ]


def _of_the_set(findings: Findings) -> Iterator[dict[str, Json]]:
    rule = {"poisoned": _POISONED, "no sign of poison": None}.get(findings.verdict, _UNDECIDED)
    if rule is None:
        return
    evidence = " ".join((findings.advice.next, *findings.run.record.evidence))
    text = f"{findings.name}: {findings.verdict}; {findings.count()}. {evidence}"
    place: dict[str, Json] = {"physicalLocation": _physical(findings, "")}
    yield _result(rule, text, [place], hashlib.sha256(f"{rule.id}\0{findings.name}".encode()).hexdigest(), 1, {})


def _of_images(findings: Findings) -> Iterator[dict[str, Json]]:
    groups = _grouped(findings)
    seen: Counter[str] = Counter()
    for label, rows in groups:
        whole = [findings.fingerprint(row) for row in rows]
        fingerprint = whole[0] if len(rows) == 1 else hashlib.sha256("\n".join(sorted(whole)).encode()).hexdigest()
        seen[fingerprint] += 1
        name = findings.run.classes[label]
        one, many = "is suspected to carry a backdoor", "are suspected to carry a backdoor"
        if findings.compared:
            one, many = "stands out from the earlier set", "stand out from the earlier set"
        if len(rows) == 1:
            text = f"{findings.short(findings.run.ids[rows[0]])} {one}; its class is {name}."
        else:
            text = f"{len(rows):,} images of class {name} {many}."
        score = float(findings.run.scores[rows[0]])
        properties: dict[str, Json] = {"label": visible(name), "images": len(rows)}
        if math.isfinite(score):
            properties["score"] = score
        places: list[Json] = [_location(findings, row) for row in rows]
        yield _result(_SUSPECT, text, places, fingerprint, seen[fingerprint], properties)


def _grouped(findings: Findings) -> list[tuple[int, list[int]]]:
    """Return the flagged rows, each for itself where a run may hold so many results, else in parts of their classes."""
    most = MOST_RESULTS - 1  # the one for the set
    for size in (1, 10, 100, _MOST_LOCATIONS):
        if sum(-(-len(rows) // size) for rows in findings.by_class.values()) <= most:
            break
    groups = [
        (label, rows[start : start + size].tolist())
        for label, rows in findings.by_class.items()
        for start in range(0, len(rows), size)
    ]
    return groups[:most]


def _result(
    rule: Rule, text: str, places: list[Json], fingerprint: str, occurrence: int, properties: dict[str, Json]
) -> dict[str, Json]:
    return {
        "ruleId": rule.id,
        "ruleIndex": RULES.index(rule),
        "level": rule.level,
        "message": {"text": sarif_text(text)},
        "locations": places[:_MOST_LOCATIONS],
        # The first is ours; the second, the only one that GitHub goes by, is "hash:occurrence".
        "partialFingerprints": {
            "antibackdoorContent/v1": fingerprint,
            "primaryLocationLineHash": f"{fingerprint[:16]}:{occurrence}",
        },
        "properties": properties,
    }


def _location(findings: Findings, row: int) -> dict[str, Json]:
    id_ = findings.short(findings.run.ids[row])
    return {
        "physicalLocation": _physical(findings, id_),
        "logicalLocations": [{"name": visible(id_)}],
    }


def _physical(findings: Findings, id_: str) -> dict[str, Json]:
    """Return where an image lies: below the source where that was named from here, else below the root of the set."""
    source = PurePosixPath(findings.source).as_posix()
    if source.endswith((".csv", ".tsv", ".parquet", ".tar")):  # their paths are below the folder that they lie in
        source = PurePosixPath(source).parent.as_posix() if id_ else source
    inside = source.endswith(".npz") or source.startswith("hub:") or source in {"", "embedded"}
    here = not PurePath(source).is_absolute() and ".." not in PurePath(source).parts
    parts = [source if here and not source.startswith("hub:") else ""]
    if not inside:
        parts.append(id_)
    elif not parts[0]:
        parts.append(id_ or findings.name)
    place: dict[str, Json] = {"uri": address("/".join(part.strip("/") for part in parts if part not in {"", "."}))}
    if not here:
        place["uriBaseId"] = _ROOT
    # GitHub asks for a line, which pixels do not have.
    return {"artifactLocation": place, "region": {"startLine": 1}}

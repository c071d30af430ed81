"""The result as JUnit's XML: a case for the set, and one a class."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from antibackdoor.formats.escaping import visible
from antibackdoor.formats.findings import Findings

__all__ = ["render"]

_LISTED = 50  # suspects of a class whose names are written; suspects.csv has all


def render(findings: Findings) -> str:
    """Return one test suite.

    The case of the set fails where the verdict is "poisoned" and is skipped where it is "undecided"; the case of a
    class fails where images of it are flagged, and is skipped where it is not above suspicion.
    """
    record = findings.run.record
    cases = [_set_case(findings), *(_class_case(findings, label) for label in range(len(findings.run.classes)))]
    totals = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": "0",
        "skipped": str(sum(case.find("skipped") is not None for case in cases)),
        "time": f"{sum(record.seconds.values()):.3f}",
    }
    root = ET.Element("testsuites", {"name": "antibackdoor", **totals})
    suite = ET.SubElement(root, "testsuite", {"name": f"antibackdoor {findings.name}", **totals})
    properties = ET.SubElement(suite, "properties")
    for name, value in {"verdict": findings.verdict, **_versions(findings)}.items():
        ET.SubElement(properties, "property", {"name": name, "value": visible(value)})
    suite.extend(cases)
    ET.indent(root)
    return f"<?xml version='1.0' encoding='utf-8'?>\n{ET.tostring(root, encoding='unicode')}\n"


def _versions(findings: Findings) -> dict[str, str]:
    versions = findings.run.record.versions
    return {name: versions[name] for name in ("antibackdoor", "antibackdoor code") if name in versions}


def _set_case(findings: Findings) -> ET.Element:
    case = ET.Element("testcase", {"classname": "antibackdoor", "name": "set"})
    message = f"{findings.verdict}: {findings.count()}"
    advice = findings.advice
    sentences = (advice.next, *findings.run.record.evidence, advice.looked)
    evidence = "\n".join(f"- {visible(sentence)}" for sentence in sentences)
    if findings.verdict == "poisoned":
        ET.SubElement(case, "failure", {"type": "poisoned", "message": message}).text = evidence
    elif findings.verdict != "no sign of poison":
        ET.SubElement(case, "skipped", {"message": message})
        ET.SubElement(case, "system-out").text = evidence
    else:
        ET.SubElement(case, "system-out").text = evidence
    return case


def _class_case(findings: Findings, label: int) -> ET.Element:
    name, rows = visible(findings.run.classes[label]), findings.by_class[label]
    case = ET.Element("testcase", {"classname": "antibackdoor.class", "name": name})
    if len(rows):
        message = f"{len(rows):,} of {int(findings.sizes[label]):,} images of this class flagged"
        shown = [f"- {visible(findings.run.ids[row])} (score {findings.run.scores[row]:.6g})" for row in rows[:_LISTED]]
        if len(rows) > _LISTED:
            shown.append(f"- and {len(rows) - _LISTED:,} more, see suspects.csv")
        ET.SubElement(case, "failure", {"type": "suspects", "message": message}).text = "\n".join(shown)
    elif findings.run.class_verdicts[label] == "undecided":
        ET.SubElement(case, "skipped", {"message": "not above suspicion"})
    return case

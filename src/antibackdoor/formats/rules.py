"""The findings that there are, with what a reader needs to act on each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["AISVS", "ATLAS", "RULES", "Rule"]

# OWASP AI Security Verification Standard, chapter on training data; MITRE ATLAS "Poison Training Data".
AISVS = ("1.4.2", "1.4.6", "1.4.7")
ATLAS = ("AML.T0020",)


@dataclass(frozen=True)
class Rule:
    """One kind of finding.

    Attributes:
        id: Stable; results refer to it.
        name: In one word.
        title: In one sentence.
        help: What it means and what to do.
        level: How grave it is, in SARIF's words.
        severity: 0.0 to 10.0, as GitHub orders alerts by.
    """

    id: str
    name: str
    title: str
    help: str
    level: Literal["error", "warning", "note"]
    severity: float


RULES = (
    Rule(
        "ABD001",
        "PoisonedSet",
        "The training set holds a backdoor.",
        "A part of a class is learned as only triggers are. Do not train on this set as it is: look at the suspects in "
        "report.html, remove what should not be there, find out where it came from, and scan again; or train with "
        "`antibackdoor train`, which leaves the suspects out.",
        "error",
        8.0,
    ),
    Rule(
        "ABD002",
        "UndecidedSet",
        "Whether the training set holds a backdoor could not be decided.",
        "Something looks unlike clean data and not enough like a backdoor, or there was too little to look at; the "
        "message says which. Do not take it for clean: look at the classes it names in report.html, and run "
        "`antibackdoor train`, which trains to the end and sees more than a scan.",
        "warning",
        5.0,
    ),
    Rule(
        "ABD003",
        "SuspectImage",
        "An image of the training set is suspected to carry a backdoor.",
        "It belongs to the part of its class that was learned as only triggers are. Look at it beside others of its "
        "class in report.html; remove it or mend its label. Some clean images may be among the suspects.",
        "warning",
        6.0,
    ),
)

"""The formats: what each says, that others can read it, and that no name is more than a name in it."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from antibackdoor import cli_formats
from antibackdoor.content import content_hashes, set_digest
from antibackdoor.errors import StorageError, UnknownNameError
from antibackdoor.formats import FORMATS, github, render, sarif
from antibackdoor.formats.escaping import address, visible
from antibackdoor.formats.findings import Findings
from antibackdoor.formats.rules import RULES

SCHEMA = json.loads((Path(__file__).parent / "schemas" / "sarif-2.1.0-rtm.5.json").read_text(encoding="utf-8"))
VALIDATOR = jsonschema.Draft4Validator(SCHEMA)
Make = Callable[..., Findings]
# What a stranger may call a file or a class to be more than its name somewhere.
NASTY = (
    "<script>alert(1)</script>",
    "a|b",
    "[x](http://evil.example)",
    "**bold** _i_ `code` @someone #1",
    "::error::injected",
    "##[error]injected",
    "new\nline\r\n::warning::x",
    "\x1b[31mred\x07\x00\x7f\x9b",
    "\u202egnp.tac\u2028\u200b",
    "100%25 %0A",
    "]]>&amp;\"'",
    "{0} {{x}} ${{ secrets.X }}",
    "half \ud800",
)


def log_of(findings: Findings) -> dict[str, Any]:
    """The one run of the SARIF of a run, checked against the schema."""
    log = json.loads(render(findings, "sarif"))
    VALIDATOR.validate(log)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    return run


def suite_of(findings: Findings) -> ET.Element:
    root = ET.fromstring(render(findings, "junit"))
    (suite,) = root
    for name in ("tests", "failures", "errors", "skipped"):
        assert root.get(name) == suite.get(name)
    cases = suite.findall("testcase")
    assert int(suite.get("tests", "")) == len(cases)
    assert int(suite.get("failures", "")) == len(suite.findall("testcase/failure"))
    assert int(suite.get("skipped", "")) == len(suite.findall("testcase/skipped"))
    return suite


def test_the_option_names_every_format() -> None:
    assert tuple(FORMATS) == cli_formats.NAMES


def test_an_unknown_format_is_named(make: Make) -> None:
    with pytest.raises(UnknownNameError, match="sarif"):
        render(make(), "serif")


def test_text_says_what_was_found_and_where_more_is(make: Make) -> None:
    assert render(make(), "text").splitlines() == [
        "flagged: 2 of 15 training images",
        "verdict: poisoned. Do not train on this set as it is: look at the 2 suspects, first those of class 'dog', "
        "take out what does not belong there, and scan again.",
        "  Class 'dog' is poisoned.",
        "  Looked at: 15 images in 3 classes of 5, after 1 epoch, when the network was sure of 100 % of the labels "
        "(probability over one half). What a network does not learn, it does not show.",
        "suspects: run/suspects.csv",
        "report: run/report.html",
    ]


def test_json_holds_every_suspect_most_suspect_first(make: Make) -> None:
    findings = make()
    values = json.loads(render(findings, "json"))
    assert (values["format"], values["verdict"], values["images"], values["flagged"]) == (1, "poisoned", 15, 2)
    assert [(s["rank"], s["id"], s["label"], s["score"]) for s in values["suspects"]] == [
        (1, "dog/004.png", "dog", 1004.0),
        (2, "dog/001.png", "dog", 1001.0),
    ]
    assert values["suspects"][0]["content"] == findings.fingerprint(4)
    assert values["classes"][1] == {"name": "dog", "images": 5, "flagged": 2, "verdict": "poisoned"}
    assert [entry["verdict"] for entry in values["classes"]] == ["no sign of poison", "poisoned", "undecided"]
    assert values["next"].startswith("Do not train")
    assert values["looked"].startswith("Looked at: 15 images")
    assert values["surer"] == []
    assert values["config"]["defence"]["name"] == "witnesses"
    assert re.fullmatch("[0-9a-f]{64}", values["set"])
    assert json.loads(render(make(content=False), "json"))["set"] is None


@pytest.mark.parametrize(
    ("verdict", "rule", "level"),
    [("poisoned", "ABD001", "error"), ("undecided", "ABD002", "warning"), (None, "ABD002", "warning")],
)
def test_sarif_has_a_result_for_the_set_and_one_a_suspect(make: Make, verdict: str, rule: str, level: str) -> None:
    run = log_of(make(verdict=verdict))
    whole, *images = run["results"]
    assert (whole["ruleId"], whole["level"]) == (rule, level)
    assert whole["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": "photos"}
    places = [result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in images]
    assert places == ["photos/dog/004.png", "photos/dog/001.png"]
    assert {result["ruleId"] for result in images} == {"ABD003"}


def test_sarif_of_a_set_without_findings_is_empty(make: Make) -> None:
    run = log_of(make(verdict="no sign of poison", flagged=()))
    assert run["results"] == []
    assert run["properties"]["verdict"] == "no sign of poison"


def test_the_rules_say_what_to_do_and_which_requirements_they_serve(make: Make) -> None:
    rules = log_of(make())["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.id for rule in RULES]
    for rule in rules:
        assert len(rule["help"]["text"]) > 100
        assert rule["properties"]["owasp-aisvs"] == ["1.4.2", "1.4.6", "1.4.7"]
        assert rule["properties"]["mitre-atlas"] == ["AML.T0020"]
        assert 0 < float(rule["properties"]["security-severity"]) <= 10
        assert len(rule["properties"]["tags"]) <= 10


def test_fingerprints_go_by_content_and_not_by_name(make: Make) -> None:
    def prints(findings: Findings) -> list[str]:
        return [r["partialFingerprints"]["antibackdoorContent/v1"] for r in log_of(findings)["results"][1:]]

    first = make()
    renamed = make(ids=[f"moved/{row}.png" for row in range(15)])
    assert prints(first) == prints(renamed) == [first.fingerprint(4), first.fingerprint(1)]
    # Where the content was not kept, class and id stand in.
    assert prints(make(content=False)) != prints(first)
    every = [r["partialFingerprints"]["primaryLocationLineHash"] for r in log_of(first)["results"]]
    assert len(set(every)) == len(every)


def test_copies_of_an_image_are_told_by_their_number(make: Make) -> None:
    findings = make()
    assert findings.run.content is not None
    findings.run.content[4] = findings.run.content[1]
    hashes = [r["partialFingerprints"]["primaryLocationLineHash"] for r in log_of(findings)["results"][1:]]
    assert [h.split(":")[1] for h in hashes] == ["1", "2"]


@pytest.mark.parametrize(
    ("source", "uri", "base"),
    [
        ("photos", "photos/dog/004.png", None),
        ("./a b/", "a%20b/dog/004.png", None),
        (".", "dog/004.png", None),
        ("/elsewhere/photos", "dog/004.png", "DATA"),
        ("../photos", "dog/004.png", "DATA"),
        ("set.npz", "set.npz", None),
        ("/elsewhere/set.npz", "dog/004.png", "DATA"),
        ("sets/table.csv", "sets/dog/004.png", None),
        ("/elsewhere/table.parquet", "dog/004.png", "DATA"),
        ("embedded", "embedded", None),
        ("hub:cifar10", "dog/004.png", None),
    ],
)
def test_addresses_are_relative_and_give_no_folder_of_the_machine_away(
    make: Make, source: str, uri: str, base: str | None
) -> None:
    run = log_of(make(source=source))
    place = run["results"][1]["locations"][0]["physicalLocation"]["artifactLocation"]
    assert (place["uri"], place.get("uriBaseId")) == (uri, base)
    assert "/elsewhere" not in json.dumps(run)
    ids = [f"{source}/{row:05d}" for row in range(15)]  # as those of a .npz
    named = make(source=source, name=source, ids=ids)
    for text in (json.dumps(log_of(named)), render(named, "github"), github.summary(named)):
        assert "elsewhere" not in text


def test_many_suspects_share_results_below_the_limit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sarif, "MOST_RESULTS", 20)
    findings = make(per_class=60, flagged=range(120))
    run = log_of(findings)
    assert len(run["results"]) <= 20
    places = [place["logicalLocations"][0]["name"] for result in run["results"][1:] for place in result["locations"]]
    assert sorted(places) == sorted(findings.run.ids[:120])
    assert all(len(result["locations"]) <= 1000 for result in run["results"])
    for result in run["results"][1:]:
        assert len({place["logicalLocations"][0]["name"].split("/")[0] for place in result["locations"]}) == 1
    assert sarif.MOST_RESULTS == 20


def test_what_could_not_be_read_is_a_notification(make: Make) -> None:
    (invocation,) = log_of(make(skipped=["cat/bad.png"]))["invocations"]
    assert "cat/bad.png" in invocation["toolExecutionNotifications"][0]["message"]["text"]


def test_junit_has_a_case_for_the_set_and_one_a_class(make: Make) -> None:
    suite = suite_of(make())
    failed = {case.get("name"): case.find("failure") is not None for case in suite.findall("testcase")}
    assert failed == {"set": True, "cat": False, "dog": True, "owl": False}
    skipped = {case.get("name") for case in suite.findall("testcase") if case.find("skipped") is not None}
    assert skipped == {"owl"}
    text = suite.findtext("testcase[@name='dog']/failure") or ""
    assert "dog/004.png" in text
    undecided = suite_of(make(verdict="undecided", flagged=()))
    assert undecided.get("skipped") == "2"  # the set, and the class in doubt
    assert undecided.get("failures") == "0"
    clean = suite_of(make(verdict="no sign of poison", flagged=()))
    assert (clean.get("skipped"), clean.get("failures")) == ("0", "0")


def test_junit_lists_the_first_suspects_of_a_class_and_counts_the_others(make: Make) -> None:
    suite = suite_of(make(per_class=60, flagged=range(0, 180, 3)))
    text = suite.findtext("testcase[@name='cat']/failure") or ""
    assert len(text.splitlines()) == 51
    assert text.endswith("- and 10 more, see suspects.csv")


@pytest.mark.parametrize(
    ("verdict", "level"), [("poisoned", "error"), ("undecided", "warning"), ("no sign of poison", "notice")]
)
def test_github_gets_one_annotation(make: Make, verdict: str, level: str) -> None:
    text = render(make(verdict=verdict, evidence=["100 % sure.", "Two."]), "github")
    assert text.startswith(f"::{level} title=antibackdoor::photos: {verdict}; 2 of 15 training images flagged. ")
    assert text.endswith(" 100 %25 sure. Two.\n")
    assert text.count("\n") == 1


def test_the_summary_of_a_step_is_appended(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert not github.append_summary(make())
    file = tmp_path / "summary.md"
    file.write_text("# before\n\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    assert github.append_summary(make())
    page = MarkdownIt("commonmark").enable("table").render(file.read_text(encoding="utf-8"))
    assert "<h1>before</h1>" in page
    assert "<h2>antibackdoor: poisoned</h2>" in page
    assert "dog/004.png" in html.unescape(page)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    with pytest.raises(StorageError, match="GITHUB_STEP_SUMMARY"):
        github.append_summary(make())


def test_a_long_summary_stays_below_what_github_takes(make: Make) -> None:
    classes = [f"{number:05d}" + "<" * 250 for number in range(500)]
    text = github.summary(make(classes=classes, per_class=2, flagged=range(1000)))
    assert len(text.encode()) < 1024 * 1024
    assert "and 400 more" in text


@pytest.mark.parametrize(
    ("verdict", "flagged", "result", "warned", "failed"),
    [
        ("poisoned", (1, 4), "FAILED", ["class owl"], ["set", "class dog"]),
        ("undecided", (), "WARNED", ["set", "class owl"], []),
        ("undecided", (1,), "WARNED", ["set", "class dog", "class owl"], []),
        ("no sign of poison", (1,), "WARNED", ["class dog"], []),
        ("no sign of poison", (), "PASSED", [], []),
    ],
)
def test_the_statement_says_which_tests_a_set_went_through(
    make: Make, verdict: str, flagged: tuple[int, ...], result: str, warned: list[str], failed: list[str]
) -> None:
    statement = json.loads(render(make(verdict=verdict, flagged=flagged), "intoto"))
    assert set(statement) == {"_type", "subject", "predicateType", "predicate"}
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    predicate = statement["predicate"]
    assert (predicate["result"], predicate["warnedTests"], predicate["failedTests"]) == (result, warned, failed)
    every = {*predicate["passedTests"], *warned, *failed}
    assert every == {"set", "class cat", "class dog", "class owl"}


def test_the_statement_names_the_set_by_content_and_what_it_was_tested_with(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SERVER_URL", "REPOSITORY", "RUN_ID"):
        monkeypatch.delenv(f"GITHUB_{name}", raising=False)
    findings = make()
    statement = json.loads(render(findings, "intoto"))
    (subject,) = statement["subject"]
    assert subject == {"name": "photos", "digest": {"sha256": json.loads(render(findings, "json"))["set"]}}
    code, defence, everything = statement["predicate"]["configuration"]
    assert code["uri"] == "pkg:pypi/antibackdoor@0.1.0"
    assert code["annotations"]["versions"]["antibackdoor code"] == "0123456789ab"
    assert defence["name"] == "defence witnesses"
    for part, values in ((defence, findings.run.record.config["defence"]), (everything, findings.run.record.config)):
        content = base64.b64decode(part["content"])
        assert json.loads(content) == values
        assert hashlib.sha256(content).hexdigest() == part["digest"]["sha256"]
    assert "url" not in statement["predicate"]
    for name, value in (("SERVER_URL", "https://github.com"), ("REPOSITORY", "a/b"), ("RUN_ID", "7")):
        monkeypatch.setenv(f"GITHUB_{name}", value)
    assert json.loads(render(findings, "intoto"))["predicate"]["url"] == "https://github.com/a/b/actions/runs/7"


def test_a_run_without_content_has_no_statement(make: Make) -> None:
    with pytest.raises(StorageError, match="scan the set again"):
        render(make(content=False), "intoto")


def test_the_digest_of_a_set_goes_by_images_and_labels_alone() -> None:
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    hashes = content_hashes(images)
    assert bytes(hashes[2]).hex() == hashlib.sha256(b"3x5x6\n" + images[2].numpy().tobytes()).hexdigest()
    assert content_hashes(images[:0]).shape == (0, 32)
    labels = ["a", "a", "b", "b"]
    digest = set_digest(hashes, labels)
    lines = sorted(f"{bytes(row).hex()}  {label}\n".encode() for row, label in zip(hashes, labels, strict=True))
    assert digest == hashlib.sha256(b"".join(lines)).hexdigest()
    assert digest == set_digest(hashes[::-1], labels[::-1])
    assert digest != set_digest(hashes, ["a", "b", "a", "b"])
    assert digest != set_digest(hashes[:3], labels[:3])
    assert not np.array_equal(content_hashes(images.view(4, 3, 6, 5)), hashes)


def check_names(findings: Findings) -> None:
    """No format lets a name of a class or a file be more than a name."""
    classes, ids = findings.run.classes, findings.run.ids
    for name in FORMATS:
        text = render(findings, name)
        text.encode("utf-8")
        unseen = {sign for sign in text if unicodedata.category(sign) in {"Cc", "Cf", "Cs", "Zl", "Zp"}} - {"\n"}
        assert not unseen, (name, unseen)
        if name != "github":
            assert not [line for line in text.splitlines() if line.strip().startswith("::")], name
    run = log_of(findings)
    suspects = [result for result in run["results"] if result["ruleId"] == "ABD003"]
    names = {place["logicalLocations"][0]["name"] for result in suspects for place in result["locations"]}
    assert names == {visible(ids[row]) for row in findings.flagged}
    for result in run["results"]:
        assert not re.search(r"(?<!\\)[\[\]]", result["message"]["text"].replace("\\\\", ""))
        uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
        assert re.fullmatch(r"[A-Za-z0-9._~/%-]+", uri)
    values = json.loads(render(findings, "json"))
    assert [entry["name"] for entry in values["classes"]] == list(classes)
    cases = [case.get("name") for case in suite_of(findings).findall("testcase")]
    assert cases == ["set", *map(visible, classes)]
    assert render(findings, "github").count("\n") == 1
    page = MarkdownIt("commonmark").enable("table").render(github.summary(findings))
    tags = set(re.findall(r"</?([a-z0-9]+)", page))
    assert tags <= {"h2", "p", "strong", "ul", "li", "code", "table", "thead", "tbody", "tr", "th", "td"}, tags
    assert html.unescape(page).count("\x1b") == 0


def test_names_are_nothing_but_names(make: Make) -> None:
    classes = NASTY
    evidence = [f"Class {name} is poisoned." for name in NASTY]
    findings = make(classes=classes, per_class=2, flagged=range(2 * len(classes)), evidence=evidence, name=NASTY[0])
    check_names(findings)
    for name in NASTY:
        check_names(make(classes=("a", "b"), ids=[f"{name}/{row}" for row in range(10)], name=name, source=name))


@settings(max_examples=40, deadline=None)
@given(name=st.text(min_size=1, max_size=40), verdict=st.sampled_from(["poisoned", "undecided", "no sign of poison"]))
def test_any_name_is_nothing_but_a_name(make: Make, name: str, verdict: str) -> None:
    check_names(
        make(
            classes=(name, "other"),
            ids=[f"{name}/{row}" for row in range(10)],
            evidence=(f"{name} is odd.",),
            verdict=verdict,
        )
    )


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_an_address_leads_back_to_the_path(path: str) -> None:
    assert unquote(address(path)) == (path.lstrip("/") or ".")

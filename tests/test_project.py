"""What surrounds the package: workflows, forms, hooks and the project's description agree with one another."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
YAML = sorted([*GITHUB.rglob("*.yml"), *ROOT.glob(".*.yaml"), ROOT / "CITATION.cff"])
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAMED = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job.get("steps", [])]


@pytest.mark.parametrize("path", YAML, ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_is_read(path):
    assert read(path)


@NAMED
def test_make_targets_of_a_workflow_exist(path):
    lines = [line.strip() for step in steps(path) for line in step.get("run", "").splitlines()]
    called = {word for line in lines if line.startswith("make ") for word in shlex.split(line)[1:]}
    phony = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split())
    assert called <= phony
    assert phony <= set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))


@NAMED
def test_a_workflow_asks_for_no_more_than_it_needs(path):
    assert read(path)["permissions"] == {"contents": "read"}
    for step in steps(path):
        assert "${{" not in step.get("run", ""), "what comes from outside is not pasted into a shell"
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w/-]+@(v\d+|release/v\d+)", step["uses"])
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False
    for job in read(path)["jobs"].values():
        assert "uses" in job or job["timeout-minutes"] <= 60


def test_ci_tests_the_versions_that_the_project_names():
    matrix = read(GITHUB / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    named = [
        match[1] for line in PROJECT["classifiers"] if (match := re.search(r"Python :: (3\.\d+)$", line)) is not None
    ]
    assert matrix["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]


def test_a_release_is_tested_audited_attested_and_published_without_a_password():
    jobs = read(GITHUB / "workflows" / "release.yml")["jobs"]
    assert jobs["build"]["needs"] == "test"
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    text = (GITHUB / "workflows" / "release.yml").read_text(encoding="utf-8")
    for what in ("make dist", "pip-audit", "cyclonedx-py", "attest-build-provenance", "attest-sbom", "gh-action-pypi"):
        assert what in text
    assert "password" not in text.replace("there is no password", "")


def test_forms_are_those_of_the_host():
    for path in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml"):
        form = read(path)
        if path.stem == "config":
            continue
        assert {"name", "description", "body"} <= set(form), path.name
        names = [field["id"] for field in form["body"] if field["type"] != "markdown"]
        assert len(names) == len(set(names)) > 0
        for field in form["body"]:
            assert field["type"] in {"textarea", "input", "dropdown", "checkboxes", "markdown"}
            assert field["attributes"].get("label") or field["attributes"].get("value")


def test_hooks_run_what_make_check_runs():
    hooks = [hook for repo in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    tools = [Path(shlex.split(hook["entry"])[0]).name for hook in hooks]
    checked = re.search(r"^check:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    assert tools == re.findall(r"\$\(BIN\)/(\w+)", checked) == ["ruff", "ruff", "mypy"]


def test_what_to_cite_is_this_version():
    cited = read(ROOT / "CITATION.cff")
    assert (cited["title"], cited["version"], cited["license"]) == (
        PROJECT["name"],
        PROJECT["version"],
        PROJECT["license"],
    )
    assert cited["repository-code"] == PROJECT["urls"]["Source"]


def test_addresses_of_the_project_are_of_one_repository():
    [home] = {re.match(r"https://github\.com/[^/]+/[^/]+", address)[0] for address in PROJECT["urls"].values()}
    assert home == PROJECT["urls"]["Source"]


def test_extras_of_the_site_and_of_releases_are_pinned():
    pinned = {re.split("==", line)[0].lower() for line in (ROOT / "constraints.txt").read_text().split()}
    for extra in ("docs", "release"):
        names = {re.match(r"[\w-]+", need)[0].lower() for need in PROJECT["optional-dependencies"][extra]}
        assert names <= pinned
    assert set(PROJECT["optional-dependencies"]["docs"]) <= set(PROJECT["optional-dependencies"]["dev"])

"""What people copy into their own continuous integration runs: the commands in it, on a small set."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from end_to_end import FAST, write_folder

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / "examples" / "ci" / "github-scan.yml"
PRE_COMMIT = ROOT / "examples" / "ci" / "pre-commit-config.yaml"


def steps() -> list[dict[str, Any]]:
    return yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]["scan"]["steps"]


def hook() -> dict[str, Any]:
    (only,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    return only


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder with a small set, and an environment in which ``antibackdoor`` trains for an epoch."""
    write_folder(tmp_path / "repo" / "data" / "train", 8)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "antibackdoor"
    quick = " ".join(f"'{option}'" for option in FAST)
    command.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m antibackdoor \"$@\" {quick}\n", encoding="utf-8")
    command.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    return tmp_path / "repo", kept | {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}


def ran(command: list[str], folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120)


def test_the_workflow_scans_annotates_and_leaves_what_it_uploads(repository: tuple[Path, dict[str, str]]) -> None:
    folder, env = repository
    job = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]["scan"]
    env |= job["env"] | {"GITHUB_STEP_SUMMARY": str(folder.parent / "summary.md")}
    codes = {}
    for step in steps():
        if step.get("name") in {"Scan", "Annotate"}:
            done = ran(["bash", "-e", "-o", "pipefail", "-c", step["run"]], folder, env)
            codes[step["name"]] = done.returncode
            assert done.stderr == "", done.stderr
            if step["name"] == "Scan":
                assert "verdict: undecided" in done.stdout
            else:
                assert done.stdout.startswith("::warning title=antibackdoor::")
    assert codes == {"Scan": 3, "Annotate": 0}
    results = json.loads((folder / "scan.sarif").read_text(encoding="utf-8"))["runs"][0]["results"]
    place = results[1]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert (folder / place).is_file(), "an alert leads to the file, from the root of the repository"
    assert (folder.parent / "summary.md").read_text(encoding="utf-8").startswith("## antibackdoor: undecided")
    uploaded = next(step["with"]["path"] for step in steps() if "upload-artifact" in step.get("uses", ""))
    assert [name for name in uploaded.split() if not (folder / name).is_file()] == []


def test_the_workflow_asks_for_no_more_than_it_needs() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read", "security-events": "write"}
    for step in steps():
        # Nothing from outside is pasted into a shell.
        assert "${{" not in step.get("run", "")
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w/-]+@v\d+", step["uses"])


def test_the_hook_runs_as_pre_commit_would_run_it(repository: tuple[Path, dict[str, str]]) -> None:
    folder, env = repository
    (repo,) = yaml.safe_load(PRE_COMMIT.read_text(encoding="utf-8"))["repos"]
    (used,) = repo["hooks"]
    assert used["id"] == hook()["id"]
    assert not hook()["pass_filenames"]
    assert re.search(used["files"], "data/train/cat/000.png")
    for code in (3, 3):  # the second time over the run of the first
        done = ran([*hook()["entry"].split(), *used["args"]], folder, env)
        assert (done.returncode, done.stderr) == (code, "")
        assert "verdict: undecided" in done.stdout

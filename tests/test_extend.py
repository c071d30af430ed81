"""docs/extend.md, followed to the letter in an empty folder: its files are saved, its code and commands run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from end_to_end import invoke

from antibackdoor import plugins

TEXT = (Path(__file__).parents[1] / "docs" / "extend.md").read_text(encoding="utf-8")
# Language, file to save the block as (or "installed"), content.
BLOCKS = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
FILES = {name: content for _, name, content in BLOCKS if "." in name}
COMMANDS = [
    line for language, name, content in BLOCKS if language == "sh" and not name for line in content.splitlines()
]
PYTHON = [content for language, name, content in BLOCKS if language == "python" and not name]
AFTER_INSTALLING = [line for _, name, content in BLOCKS if name == "installed" for line in content.splitlines()]
OURS = [line for line in COMMANDS if line.startswith("antibackdoor ")]
OTHERS = [line for line in COMMANDS if line not in OURS]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the page, and no plugin loaded."""
    monkeypatch.setattr(plugins, "_known", plugins._Known())
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path


def run(folder: Path, *command: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_the_page_has_what_the_tests_look_for() -> None:
    assert set(FILES) == {"methods.py", "test_methods.py", "grid.yaml", "pyproject.toml"}
    assert {shlex.split(line)[1] for line in OURS if "--plugin" not in shlex.split(line)[1]} == {
        "list",
        "train",
        "bench",
    }
    assert len(OTHERS) == len(PYTHON) == len(AFTER_INSTALLING) == 1
    assert len(BLOCKS) == TEXT.count("\n```") / 2, "a block that nobody runs"


def test_the_tests_of_the_page_pass(folder: Path) -> None:
    [line] = OTHERS
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "pytest"]
    done = run(folder, sys.executable, "-W", "error", *words[1:])
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


@pytest.mark.parametrize("line", OURS)
def test_a_command_of_the_page(line: str, folder: Path) -> None:
    done = invoke(*shlex.split(line)[1:])
    assert done.code == 0, done
    if " list " in line:
        assert re.search(r"^(frame|drop-early) +[A-Z].*\.$", done.out, re.MULTILINE)
    if " train " in line:
        assert "plugin methods" in (folder / "run" / "run.json").read_text(encoding="utf-8")
        assert (folder / "run" / "report.html").exists()
    if " bench " in line:
        assert "4 cells: 4 run now, 0 from before, 0 failed" in done.out
        table = (folder / "grid" / "table.md").read_text(encoding="utf-8")
        assert "frame" in table
        assert "drop-early" in table
        assert (folder / "grid" / "leaderboard.html").exists()


def test_the_python_of_the_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(PYTHON[0], "extend.md", "exec"), {"__name__": "__main__"})
    assert re.fullmatch(r"\d+% of the flagged images are poison; .*\n", capsys.readouterr().out)


def test_the_package_of_the_page_is_found(folder: Path) -> None:
    project = tomllib.loads(FILES["pyproject.toml"])
    name, release = project["project"]["name"], project["project"]["version"]
    # What ``pip install .`` leaves behind: the modules, and a folder that describes them.
    site = folder / "site"
    described = site / f"{name.replace('-', '_')}-{release}.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n", encoding="utf-8")
    lines = []
    for group, entries in project["project"]["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (described / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    for module in project["tool"]["setuptools"]["py-modules"]:
        (site / f"{module}.py").write_text(FILES[f"{module}.py"], encoding="utf-8")
    [line] = AFTER_INSTALLING
    empty = folder / "empty"
    empty.mkdir()
    done = run(empty, sys.executable, "-W", "error", "-m", *shlex.split(line), path=str(site))
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^frame +A chequered frame around the image\.$", done.stdout, re.MULTILINE)


def test_files_and_links_of_the_text_exist() -> None:
    root = Path(__file__).parents[1]
    for place in re.findall(r"`((?:src|docs|tests)/[^` ]+)`", TEXT):
        assert (root / place).exists(), place

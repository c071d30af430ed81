"""The tutorials, followed to the letter in an empty folder, on fewer images; and the commands of every page parse."""

from __future__ import annotations

import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from end_to_end import FAST, invoke

from antibackdoor.cli import app

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(\w*)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
PAGES = [
    DOCS / "index.md",
    DOCS / "usage.md",
    *TUTORIALS,
    DOCS / "attacks" / "index.md",
    DOCS / "defences" / "overview.md",
]
COMMAND = typer.main.get_command(app)


def blocks(name: str) -> list[tuple[str, str, str]]:
    """Return (language, file to save it as, content) of every block of a tutorial."""
    return BLOCK.findall((DOCS / "tutorials" / name).read_text(encoding="utf-8"))


def commands(page: Path) -> list[str]:
    shell = [code for language, _, code in BLOCK.findall(page.read_text(encoding="utf-8")) if language in {"", "sh"}]
    return [line for code in shell for line in code.splitlines() if line.startswith("antibackdoor ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_commands_parse(page):
    for line in commands(page):
        _, name, *args = shlex.split(line, comments=True)
        COMMAND.commands[name].make_context(name, args)


def test_is_my_folder_poisoned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = commands(DOCS / "tutorials" / "scan.md")
    names = [shlex.split(line)[1] for line in given]
    assert names == ["poison", "scan", "scan", "review", "export", "scan", "train", "predict"]
    for line in given:
        _, name, *args = shlex.split(line.replace("data.limit=3000", "data.limit=200"), comments=True)
        if name == "review":  # a server; what it would write is a table on the page
            [(_, written, table)] = [block for block in blocks("scan.md") if block[0] == "csv"]
            assert written == "decisions.csv"
            with Path("run/suspects.csv").open(encoding="utf-8", newline="") as file:
                dresses = [row["id"] for row in csv.DictReader(file) if row["label"] == "dress"]
            shown = re.findall(r"^(train/dress/\d+\.png),", table, re.MULTILINE)
            for ours, there in zip(shown, dresses, strict=False):
                table = table.replace(ours, there)
            Path("run/decisions.csv").write_text(table, encoding="utf-8")
            continue
        small = [*FAST] if name in {"scan", "train"} else []
        if name == "train":
            args = args[: args.index("--epochs")]
        done = invoke(name, *args, *small)
        assert done.code == 0, (line, done)
    for place in ("run/report.html", "run/suspects.csv", "cleaned/clean", "cleaned/quarantine", "cleaned/images.csv"):
        assert Path(place).exists(), place
    assert len(list(Path("cleaned/quarantine").rglob("*.png"))) >= 1
    assert len(Path("predictions.csv").read_text(encoding="utf-8").splitlines()) == 1 + 1800


def test_my_own_training_loop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [(_, name, loop), (_, _, whole)] = [block for block in blocks("training-loop.md") if block[0] == "python"]
    (tmp_path / name).write_text(loop, encoding="utf-8")
    done = subprocess.run([sys.executable, "-W", "error", name], capture_output=True, text=True, check=True)
    flagged, hits = map(int, re.fullmatch(r"(\d+) flagged, (\d+)% of them planted; .*\n", done.stdout).groups())
    assert flagged == 50
    assert hits > 50, "by chance it would be 5"
    found: dict[str, object] = {}
    exec(compile(whole, "training-loop.md", "exec"), found)
    assert len(found["keep"]) == 400


def test_a_fair_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for language, name, content in blocks("table.md"):
        if language == "yaml" and name:
            (tmp_path / name).write_text(content, encoding="utf-8")
    [line] = commands(DOCS / "tutorials" / "table.md")
    done = invoke(*shlex.split(line)[1:])
    assert done.code == 0, done
    assert ", 0 failed" in done.out
    table = Path("grid/table.md").read_text(encoding="utf-8")
    for words in ("badnets", "blend", "spectral", "control", "seed"):
        assert words in table
    for name in ("table.csv", "table.tex", "leaderboard.html", "cells"):
        assert (tmp_path / "grid" / name).exists()

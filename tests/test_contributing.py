"""CONTRIBUTING.md, walked: the attack in one file passes the checks of every attack, and its own test."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import typer.main

from antibackdoor.cli import app
from antibackdoor.testing import check_attack

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
ATTACK, ITS_TEST = (code for language, code in BLOCKS if language == "python")


@pytest.fixture
def attack(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module of the page, as if it lay in the package."""
    module = types.ModuleType("antibackdoor.attacks.scanlines")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(ATTACK, "scanlines.py", "exec"), vars(module))
    return module


def test_the_attack_is_one(attack):
    check_attack(attack.Scanlines())


def test_the_test_of_the_page_passes(attack):
    written: dict[str, object] = {}
    exec(compile(ITS_TEST, "test_scanlines.py", "exec"), written)
    written["test_rows_at_the_distance_are_darker_and_no_others"]()
    refuses = written["test_what_is_out_of_range_is_refused"]
    for name, value in refuses.pytestmark[0].args[1]:
        refuses(name, value)


def test_commands_parse_and_targets_exist():
    commands = typer.main.get_command(app).commands
    lines = [line for language, code in BLOCKS if language != "python" for line in code.splitlines()]
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[0] == "antibackdoor":
            commands[words[1]].make_context(words[1], words[2:])
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), line
        else:
            assert words[:3] == [".venv/bin/python", "-m", "pytest"]
            assert (ROOT / words[3]).exists()


def test_links_lead_to_files():
    for link in re.findall(r"\]\(([^)#\s]+)", TEXT):
        assert (ROOT / link).exists(), link

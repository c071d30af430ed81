"""The README cannot rot: its Python runs, its commands parse, its settings and files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from antibackdoor.attacks import ATTACKS
from antibackdoor.cli import app
from antibackdoor.config import RunConfig, apply_settings
from antibackdoor.defences import DEFENCES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
SHELL = [
    line.strip() for language, code in BLOCKS if language in {"", "bash", "sh", "shell"} for line in code.splitlines()
]
COMMANDS = [line for line in SHELL if line.startswith("antibackdoor ")]
COMMAND = typer.main.get_command(app)


def check_settings(settings: list[str]) -> None:
    config = RunConfig.parse(apply_settings(RunConfig().dump(), settings))
    DEFENCES.build(config.defence.name, config.defence.params)
    if config.attack is not None:
        ATTACKS.build(config.attack.name, config.attack.params)


def test_there_is_something_to_check() -> None:
    assert PYTHON
    assert COMMANDS


@pytest.mark.parametrize("code", PYTHON, ids=[f"block {i}" for i in range(len(PYTHON))])
def test_python_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str) -> None:
    _, name, *args = shlex.split(line, comments=True)
    assert name in COMMAND.commands, f"there is no command {name}"  # type: ignore[attr-defined]
    parsed = COMMAND.commands[name].make_context(name, args).params  # type: ignore[attr-defined]
    check_settings(parsed.get("settings") or [])
    if parsed.get("defence"):
        DEFENCES.get(parsed["defence"])
    if parsed.get("attack"):
        ATTACKS.get(parsed["attack"])


def test_options_named_in_the_text_exist() -> None:
    known = {option for command in COMMAND.commands.values() for param in command.params for option in param.opts}  # type: ignore[attr-defined]
    prose = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    ours = re.sub(r"`(?:python|pip) [^`]*`", "", prose)
    assert set(re.findall(r"`(--[a-z][a-z-]*)", ours)) <= known


def test_settings_named_in_the_text_exist() -> None:
    for setting in re.findall(r"--set ([\w.]+=[^\s`]+)", TEXT):
        if not setting.startswith("section."):
            check_settings([setting])


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {line.split()[1] for line in SHELL if line.startswith("make ")} <= targets


def test_links_lead_to_files() -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", TEXT):
        if not re.match(r"[a-z]+:", link):
            assert (ROOT / link).exists(), link
    for script in re.findall(r"`python (\S+\.py)", TEXT):
        assert (ROOT / script).exists(), script

"""Functions and files stay short: a long one is a question about the design, asked before the next feature goes in."""

from __future__ import annotations

import ast
from pathlib import Path

import antibackdoor

ROOT = Path(antibackdoor.__file__).parent
LONGEST_FUNCTION, LONGEST_FILE = 60, 350  # lines, with docstrings
# What may be longer, and why; names as in the message of the test.
EXCEPTIONS: dict[str, str] = {}


def functions() -> dict[str, int]:
    """Lines of every function and method, decorators aside, by file and name; of several of a name the longest."""
    lengths: dict[str, int] = {}
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.relative_to(ROOT).as_posix()}:{node.name}"
                lengths[name] = max(lengths.get(name, 0), node.end_lineno - node.lineno + 1)
    return lengths


def files() -> dict[str, int]:
    return {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted(ROOT.rglob("*.py"))
    }


def too_long(lengths: dict[str, int], most: int) -> dict[str, int]:
    return {name: lines for name, lines in lengths.items() if lines > most and name not in EXCEPTIONS}


def test_no_function_is_long():
    assert len(functions()) > 1000
    assert too_long(functions(), LONGEST_FUNCTION) == {}


def test_no_file_is_long():
    assert "cli.py" in files()
    assert too_long(files(), LONGEST_FILE) == {}


def test_exceptions_have_a_reason_and_are_needed():
    lengths = functions() | files()
    for name, reason in EXCEPTIONS.items():
        assert len(reason.split()) >= 4, f"{name}: say why it has to be long"
        most = LONGEST_FUNCTION if ":" in name else LONGEST_FILE
        assert lengths.get(name, 0) > most, f"{name} is short enough; take it off the list"

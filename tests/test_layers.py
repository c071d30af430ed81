"""The layering of the package, and what holds for every source file."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import antibackdoor

ROOT = Path(antibackdoor.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
LAYERS = (
    {"csvs", "errors", "extras", "files", "seeds", "plugins", "registry", "types", "config", "progress"},
    {"ops"},
    {"data", "models", "training"},
    {"attacks", "isolation", "defences"},
    {
        *("advice", "claiming", "content", "deciding", "decisions", "evaluation", "exporting"),
        *("imagelist", "naming", "preparing", "recording", "run_setup", "saved", "serialising"),
        *("storage", "stored", "tracking", "verifying"),
    },
    {
        *("pipeline", "estimating", "benchmark", "cleaned", "result", "comparing", "report", "review", "api"),
        *("formats", "typed"),
    },
)
# Anything else at the top level is a command, which may import everything.
COMMANDS = len(LAYERS)
# Families: a file that defines a member imports no other file that does.
FAMILIES = {"attacks": "Attack", "isolation/signals": "Signal", "defences": "Defence"}
# Whose standard output is their purpose.
MAY_PRINT = {"cli"}


def dotted(file: Path) -> str:
    parts = ("antibackdoor", *file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> list[str]:
    """The modules of this package that a file imports anywhere in it, also inside functions."""
    found: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute here"
            whole = node.module or ""
            for alias in node.names:
                # ``from antibackdoor import storage`` imports a module, not a name of the package.
                inner = ROOT / Path(*whole.split(".")[1:]) / alias.name
                is_module = whole.startswith("antibackdoor") and (inner.is_dir() or inner.with_suffix(".py").exists())
                found.append(f"{whole}.{alias.name}" if is_module else whole)
    return [name for name in found if name.split(".")[0] == "antibackdoor"]


def layer_of(module: str) -> int:
    parts = module.split(".")
    if len(parts) == 1:
        return COMMANDS
    return next((level for level, names in enumerate(LAYERS) if parts[1] in names), COMMANDS)


NAMED = pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
BELOW_COMMANDS = [file for file in FILES if layer_of(dotted(file)) < COMMANDS]


def test_every_layer_is_there():
    present = {dotted(file).split(".")[1] for file in FILES if file.parent != ROOT or file.stem != "__init__"}
    # The grid of runs is still to come.
    assert set().union(*LAYERS) - present <= {"benchmark"}
    assert any(imports(file) for file in FILES)


@pytest.mark.parametrize("file", BELOW_COMMANDS, ids=[str(f.relative_to(ROOT)) for f in BELOW_COMMANDS])
def test_each_layer_imports_only_itself_and_those_before(file):
    own = layer_of(dotted(file))
    assert [name for name in imports(file) if layer_of(name) > own] == []


def bases(file: Path) -> set[str]:
    return {
        base.id
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
        if isinstance(base, ast.Name)
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_members_of_a_family_do_not_import_one_another(family):
    prefix = f"antibackdoor.{family.replace('/', '.')}"
    files = [file for file in (ROOT / family).glob("*.py") if file.stem not in {"__init__", "base"}]
    members = {dotted(file) for file in files if any(base.endswith(FAMILIES[family]) for base in bases(file))}
    assert members
    # What members share (base, pictures) stands before them, so it imports none either. The table is not for them.
    for file in files:
        assert [name for name in imports(file) if name in members | {prefix}] == [], file.name


@NAMED
def test_nothing_below_the_command_prints(file):
    if file.parent == ROOT and file.stem in MAY_PRINT:
        return
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


def isort_style(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest, each by name; ruff's order of ``__all__``."""
    if name.isupper():
        return 0, name
    return (1 if name.lstrip("_")[:1].isupper() else 2), name


@NAMED
def test_all_is_there_sorted_and_true(file):
    name = dotted(file)
    if name.endswith("__main__"):
        return
    tree = ast.parse(file.read_text(encoding="utf-8"))
    public = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    listed = next(
        (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "__all__"
        ),
        None,
    )
    if listed is None:
        assert not public, f"{name} has public names and no __all__"
        return
    assert listed == sorted(listed, key=isort_style)
    assert len(set(listed)) == len(listed)
    module = importlib.import_module(name)
    assert [item for item in listed if not hasattr(module, item)] == []
    if name != "antibackdoor.cli":  # its functions are the commands, not a library's names
        assert [item for item in public if item not in listed] == []


def test_the_package_says_that_it_is_typed():
    assert resources.files("antibackdoor").joinpath("py.typed").is_file()


@pytest.mark.parametrize("module", ["antibackdoor", "antibackdoor.cli"])
def test_importing_is_light(module):
    if not (ROOT / "cli.py").exists() and module.endswith("cli"):
        pytest.skip("there is no command yet")
    heavy = ["torch", "sklearn", "matplotlib", "accelerate", "PIL", "numpy"]
    if module.endswith("cli"):
        heavy = heavy[:-1]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_public_names_come_when_asked_for():
    for name in antibackdoor.__all__:
        assert getattr(antibackdoor, name) is not None
    assert set(antibackdoor.__all__) <= set(dir(antibackdoor))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = antibackdoor.nonsense

"""Methods from outside the package: plugin files, installed plugins, what goes wrong in them, and what a run says."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from end_to_end import Finished, invoke, write_npz

import antibackdoor
from antibackdoor import ATTACKS, DEFENCES, SIGNALS, plugins
from antibackdoor.defences import NoDefence
from antibackdoor.errors import ConfigError, UnknownNameError

MINE = '''from dataclasses import dataclass
from antibackdoor.defences import NoDefence


@dataclass(frozen=True)
class Mine(NoDefence):
    """Ordinary training, by me."""

    level: int = 1


DEFENCES = {"mine": Mine}
'''
STAMP = '''from dataclasses import dataclass
from antibackdoor.attacks import DirtyLabelAttack


@dataclass(frozen=True)
class Dot(DirtyLabelAttack):
    """A dot."""

    def stamp(self, images, index, labels):
        {body}


ATTACKS = {{"dot": Dot}}
'''
FAST = ("--device", "cpu", "--model", "wrn-10-1", "--epochs", "1", "--set", "train.batch_size=16")


@pytest.fixture(autouse=True)
def _no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_known", plugins._Known())


@pytest.fixture
def plugin(tmp_path: Path) -> Callable[..., Path]:
    """Writes a plugin file."""

    def write(content: str = MINE, name: str = "my.py") -> Path:
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return path

    return write


def assert_refused(done: Finished, *named: str) -> None:
    assert done.code == 2, done
    [line] = done.err.strip().splitlines()
    assert line.startswith("antibackdoor: ")
    for text in named:
        assert text in line, line


# --- files -------------------------------------------------------------------------------------------------------


def test_a_plugin_is_known_by_name_once_it_is_loaded(plugin: Callable[..., Path]) -> None:
    count, path = len(DEFENCES), plugin()
    with pytest.raises(UnknownNameError, match="unknown defence 'mine'"):
        DEFENCES.get("mine")
    antibackdoor.load_plugin(path)
    antibackdoor.load_plugin(str(path))  # loading it again does nothing
    built = DEFENCES.build("mine", {"level": "3"})
    assert (type(built).__name__, built.level) == ("Mine", 3)  # type: ignore[attr-defined]
    assert "mine" in DEFENCES
    assert "mine" in list(DEFENCES)
    assert list(DEFENCES) == sorted(DEFENCES)
    assert len(DEFENCES) == count + 1
    assert "mine" not in ATTACKS
    assert "mine" not in SIGNALS
    with pytest.raises(UnknownNameError, match="Did you mean 'mine'"):
        DEFENCES.get("mime")
    with pytest.raises(UnknownNameError, match="Did you mean 'level'"):
        DEFENCES.build("mine", {"levle": 3})


BEFORE = "from dataclasses import dataclass\nfrom antibackdoor.defences import Defence, NoDefence\n"
FAULTY = {
    "nothing in it": ("x = 1\n", ["it brings nothing", "ATTACKS, DEFENCES, SIGNALS"]),
    "an empty table": ("DEFENCES = {}\n", ["it brings nothing"]),
    "a list": ("DEFENCES = [1]\n", ["DEFENCES must be a dict", "not a list"]),
    "no python": ("x = 1\nthis is no python\n", ["my.py:2: SyntaxError: "]),
    "a missing import": ("x = 1\n\nimport not_there\n", ["my.py:3: ModuleNotFoundError: ", "not_there"]),
    "an error further in": ("import json\n\njson.loads('{')\n", ["my.py:3: JSONDecodeError: "]),
    "a message of two lines": ("raise ValueError('a\\nb')\n", ["my.py:1: ValueError: a b"]),
    "an exit": ("import sys\nsys.exit(3)\n", ["my.py:2: SystemExit: 3"]),
    "another family": (
        "from antibackdoor.attacks import BadNets\nDEFENCES = {'mine': BadNets}\n",
        ["DEFENCES['mine']: BadNets must derive from Defence"],
    ),
    "no class": (
        f"{BEFORE}DEFENCES = {{'mine': NoDefence()}}\n",
        ["DEFENCES['mine']: must be a class, not NoDefence()"],
    ),
    "no dataclass": (
        f"{BEFORE}class Mine(NoDefence):\n    level: int = 1\nDEFENCES = {{'mine': Mine}}\n",
        ["Mine is no dataclass; put @dataclass(frozen=True) above it"],
    ),
    "not frozen": (f"{BEFORE}@dataclass\nclass Mine(NoDefence):\n    pass\n", ["my.py:3: TypeError: ", "frozen"]),
    "half written": (
        f"{BEFORE}@dataclass(frozen=True)\nclass Mine(Defence):\n    run = 1\nDEFENCES = {{'mine': Mine}}\n",
        ["Mine does not define scan"],
    ),
    "a type that is not there": (
        f"from __future__ import annotations\n{BEFORE}@dataclass(frozen=True)\nclass Mine(NoDefence):\n"
        "    level: Nowhere = 1\nDEFENCES = {'mine': Mine}\n",
        ["the type of a hyper-parameter of Mine cannot be read", "Nowhere"],
    ),
    "a name that is taken": (
        MINE.replace('{"mine"', '{"witnesses"'),
        ["DEFENCES['witnesses']: the name is taken by Witnesses; choose another"],
    ),
    "a name without letters": (MINE.replace('{"mine"', '{" "'), ["a name must be a string that is not empty"]),
    "a name that is a number": (MINE.replace('{"mine"', "{3"), ["DEFENCES[3]: a name must be a string"]),
    "no attack": (
        "from antibackdoor.attacks import BadNets\nATTACKS = {'none': BadNets}\n",
        ["it says that there is no attack"],
    ),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_plugin_is_refused_in_one_line(fault: str, plugin: Callable[..., Path]) -> None:
    content, named = FAULTY[fault]
    path = plugin(content)
    assert_refused(invoke("list", "defences", "--plugin", path), "plugin ", str(path), *named)
    assert plugins.loaded() == ()
    assert not [name for name in sys.modules if name == "antibackdoor_plugin_my"]
    antibackdoor.load_plugin(plugin())  # once it is repaired
    assert DEFENCES.get("mine").__name__ == "Mine"


def test_a_file_that_is_not_there_and_a_folder(tmp_path: Path) -> None:
    assert_refused(invoke("--plugin", tmp_path / "none.py", "list", "attacks"), "none.py: there is no such file")
    assert_refused(invoke("list", "attacks", "--plugin", tmp_path), "it is a folder; a plugin is one Python file")


def test_of_a_plugin_with_one_fault_nothing_is_kept(plugin: Callable[..., Path]) -> None:
    good = STAMP.format(body="return 1 - images")
    antibackdoor.load_plugin(plugin(MINE.replace("mine", "first"), "first.py"))
    with pytest.raises(ConfigError, match="the name is taken by Witnesses"):
        antibackdoor.load_plugin(plugin(f"{good}\n{MINE.replace('mine', 'witnesses')}"))
    assert "dot" not in ATTACKS
    assert "first" in DEFENCES
    assert [file.path.rpartition("/")[2] for file in plugins.loaded()] == ["first.py"]


def test_two_plugins_with_one_name(plugin: Callable[..., Path], tmp_path: Path) -> None:
    antibackdoor.load_plugin(plugin())
    (tmp_path / "other").mkdir()
    antibackdoor.load_plugin(plugin(name="other/my.py"))  # a copy
    with pytest.raises(ConfigError, match=r"same name with another content; rename"):
        antibackdoor.load_plugin(plugin(MINE + "# more\n"))
    with pytest.raises(ConfigError, match=r"yours\.py: DEFENCES\['mine'\]: the name is taken by Mine"):
        antibackdoor.load_plugin(plugin(name="yours.py"))
    assert len(plugins.loaded()) == 1
    assert DEFENCES.get("mine").__name__ == "Mine"


def test_another_process_runs_what_this_one_read(plugin: Callable[..., Path], tmp_path: Path) -> None:
    path = plugin()
    antibackdoor.load_plugin(path)
    path.unlink()
    (tmp_path / "sent").write_bytes(pickle.dumps(plugins.loaded()))
    code = (
        "import pickle, pathlib; from antibackdoor import DEFENCES, plugins; "
        "files = pickle.loads(pathlib.Path('sent').read_bytes()); plugins.load_all(files); plugins.load_all(files); "
        "print(DEFENCES.build('mine', {'level': 2}), plugins.behind(DEFENCES.build('mine', {})))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout.strip() == f"Mine(level=2) {plugins.behind(DEFENCES.build('mine', {}))}"


def test_the_option_stands_anywhere_and_more_than_once(plugin: Callable[..., Path]) -> None:
    one, two = plugin(), plugin(MINE.replace("mine", "yours"), "yours.py")
    for args in (
        ("--plugin", one, "list", "defences", "--plugin", two),
        ("list", "--plugin", one, f"--plugin={two}", "defences"),
        ("--plugin", one, "--plugin", two, "list", "defences"),
    ):
        plugins._known.files.clear()
        done = invoke(*args)
        assert done.code == 0, done
        lines = [line.split(maxsplit=1) for line in done.out.splitlines()]
        assert ["mine", "Ordinary training, by me."] in lines
        assert ["yours", "Ordinary training, by me."] in lines


def test_every_command_has_the_option() -> None:
    import typer.main

    from antibackdoor.cli import app

    root = typer.main.get_command(app)
    for command in (root, *root.commands.values()):  # type: ignore[attr-defined]
        assert [param.name for param in command.params].count("plugin") == 1


# --- what a run says ---------------------------------------------------------------------------------------------


def test_a_record_names_the_plugins_behind_it(plugin: Callable[..., Path], tmp_path: Path) -> None:
    path, data = plugin(), write_npz(tmp_path / "pets.npz")
    run = (*("train", data, "--out", tmp_path / "run", "--plugin", path, "--defence", "mine"), *FAST)
    assert invoke(*run).code == 0
    versions = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["versions"]
    assert versions["plugin my"] == plugins.from_files()[0].version
    assert invoke(*run, "--resume").code == 0
    plugins._known.files.clear()  # as another process begins
    plugin(MINE + "# changed\n")
    assert_refused(invoke(*run, "--resume"), "was started with other settings (plugins differ)")
    # A plugin that had no part in a run is not named.
    without = ("train", data, "--out", tmp_path / "other", "--plugin", path, "--defence", "none", *FAST)
    assert invoke(*without).code == 0
    record = json.loads((tmp_path / "other" / "run.json").read_text(encoding="utf-8"))
    assert not [name for name in record["versions"] if name.startswith("plugin")]
    assert "plugins" not in json.loads((tmp_path / "other" / "config.json").read_text(encoding="utf-8"))


def test_a_signal_of_a_plugin_counts_as_its_part(plugin: Callable[..., Path]) -> None:
    content = MINE.replace("defences import NoDefence", "isolation import Loss").replace("NoDefence", "Loss")
    antibackdoor.load_plugin(plugin(content.replace("DEFENCES", "SIGNALS")))
    assert list(plugins.behind(DEFENCES.build("abl-modified", {"signal": "mine"}), None)) == ["my"]
    assert plugins.behind(DEFENCES.build("abl-modified", {}), ATTACKS.build("badnets", {})) == {}


def test_an_error_in_a_plugin_is_the_plugins(plugin: Callable[..., Path], tmp_path: Path) -> None:
    data = write_npz(tmp_path / "pets.npz")
    common = ("train", data, "--defence", "none", "--set", "attack.name=dot", *FAST, "--plugin")
    raises = plugin(STAMP.format(body="return images.no_such_thing()"), "raises.py")
    done = invoke(*common, raises, "--out", tmp_path / "one")
    assert_refused(done, f"plugin {raises}:10: AttributeError: ", "no_such_thing", "ANTIBACKDOOR_DEBUG=1")
    plugins._known.files.clear()
    wrong = plugin(STAMP.format(body="return images[:, :, :3]"), "wrong.py")
    done = invoke(*common, wrong, "--out", tmp_path / "two")
    assert done.code == 1
    assert "a fault of ours, or of what the plugin wrong returned: RuntimeError" in done.err


# --- installed plugins -------------------------------------------------------------------------------------------


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Leaves behind what the installation of a distribution with one module would."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def make(name: str, module: str, content: str | None) -> Path:
        described = site / f"{name}-1.0.dist-info"
        described.mkdir()
        (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
        entry = f"[{plugins.GROUP}]\nmethods = {module}\n"
        (described / "entry_points.txt").write_text(entry, encoding="utf-8")
        monkeypatch.delitem(sys.modules, module, raising=False)
        file = site / f"{module.replace('.', '/')}.py"
        file.parent.mkdir(exist_ok=True)
        if content is not None:
            file.write_text(content, encoding="utf-8")
        return file

    return make


def test_an_installed_plugin_is_found_by_its_entry_point(install: Callable[..., Path]) -> None:
    install("greenhouse", "greenhouse_methods", MINE)
    done = invoke("list", "defences")
    assert (done.code, done.err) == (0, "")
    assert ["mine", "Ordinary training, by me."] in [line.split(maxsplit=1) for line in done.out.splitlines()]
    built = DEFENCES.build("mine", {"level": 2})
    assert list(plugins.behind(built)) == ["greenhouse"]
    assert plugins.behind(built)["greenhouse"].startswith("1.0 ")
    assert plugins.loaded() == ()  # Workers find it as this process does.


def test_it_is_not_looked_for_without_need(install: Callable[..., Path]) -> None:
    install("greenhouse", "greenhouse_methods", MINE)
    assert DEFENCES.get("none") is NoDefence
    assert "none" in DEFENCES
    assert "greenhouse_methods" not in sys.modules
    assert DEFENCES.get("mine").__module__ == "greenhouse_methods"


def test_every_file_of_an_installed_package_counts(install: Callable[..., Path]) -> None:
    helper = install("greenhouse", "greenhouse.methods", MINE).with_name("helper.py")
    (helper.parent / "__init__.py").touch()
    versions = []
    for content in ("x = 1\n", "x = 2\n"):
        helper.write_text(content, encoding="utf-8")
        plugins._known.installed = None
        versions.append(plugins.behind(DEFENCES.build("mine", {}))["greenhouse"])
    assert versions[0] != versions[1]
    for module in ("greenhouse", "greenhouse.methods"):
        sys.modules.pop(module, None)


BROKEN = {
    "does not import": ("x = 1\nimport not_there\n", "broken_methods.py:2: ModuleNotFoundError: No module named"),
    "no python": ("x = \n", "broken_methods.py:1: SyntaxError: "),
    "is not there": (None, "ModuleNotFoundError: No module named 'broken_methods'"),
    "brings nothing": ("x = 1\n", "it brings nothing"),
    "takes a name of ours": (MINE.replace('{"mine"', '{"witnesses"'), "the name is taken by Witnesses"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_installed_plugin_is_left_out_and_said_once(
    fault: str, install: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    content, reason = BROKEN[fault]
    install("swamp", "broken_methods", content)
    install("greenhouse", "greenhouse_methods", MINE)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            done = invoke("list", "defences")
            assert done.code == 0, done
            assert "\nmine " in done.out
            assert "\nwitnesses " in done.out
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "'methods' of swamp 1.0 is left out: " in record.getMessage()
    assert reason in record.getMessage()
    assert "\n" not in record.getMessage()
    assert DEFENCES.get("witnesses").__module__ == "antibackdoor.defences.witnesses"


def test_the_line_about_a_broken_plugin_reaches_people(install: Callable[..., Path]) -> None:
    site = install("swamp", "broken_methods", "1 / 0\n").parent
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); sys.argv[0] = 'a'; from antibackdoor.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "list", "signals"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "trajectory" in done.stdout
    [line] = done.stderr.splitlines()
    assert "of swamp 1.0 is left out: " in line
    assert "ZeroDivisionError" in line


def test_a_file_goes_before_what_is_installed(
    install: Callable[..., Path], plugin: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    install("greenhouse", "greenhouse_methods", MINE)
    antibackdoor.load_plugin(plugin())
    assert DEFENCES.get("mine").__module__ == "antibackdoor_plugin_my"
    assert "mine" in list(DEFENCES)
    assert "DEFENCES['mine'] of the installed plugin 'methods' of greenhouse 1.0 is left out" in caplog.text


def test_a_plugin_may_ask_for_names_while_it_is_imported(install: Callable[..., Path]) -> None:
    install("greenhouse", "greenhouse_methods", f"from antibackdoor import DEFENCES as OURS\nlist(OURS)\n{MINE}")
    assert "mine" in list(DEFENCES)

"""Methods from outside the package: a Python file of the user's, or an installed module that an entry point names.

A plugin holds tables with the names of ours, such as ``DEFENCES = {"mine": Mine}``; nothing else of it is looked at.
Nothing is registered: a ``registry.Registry`` asks here for what plugins bring. Files are loaded when they are named,
installed modules when a name is asked for that nothing else has, or when a table is listed.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from antibackdoor.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "GROUP",
    "TABLES",
    "Plugin",
    "PluginFile",
    "behind",
    "blame",
    "forget",
    "from_files",
    "installed",
    "load",
    "load_all",
    "loaded",
    "warn_left_out",
]

GROUP = "antibackdoor.plugins"
TABLES = ("ATTACKS", "DEFENCES", "SIGNALS")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PluginFile:
    """A plugin file as it was read: whatever becomes of the file, another process that is given this runs the same.

    Attributes:
        path: Where it lay.
        content: Its bytes.
    """

    path: str
    content: bytes

    @staticmethod
    def read(path: Path) -> PluginFile:
        """Read a file.

        Raises:
            ConfigError: It is not there, a folder, or cannot be read.
        """
        if path.is_dir():
            raise ConfigError(f"plugin {path}: it is a folder; a plugin is one Python file, or an installed package")
        try:
            return PluginFile(str(path), path.read_bytes())
        except FileNotFoundError:
            raise ConfigError(f"plugin {path}: there is no such file") from None
        except OSError as error:
            raise ConfigError(f"plugin {path}: it cannot be read: {error.strerror}") from None


@dataclass(frozen=True, eq=False)
class Plugin:
    """A plugin that was loaded.

    Attributes:
        name: The file's name without its ending, or the name of the distribution.
        source: Where it comes from, for messages.
        version: A hash of its code; of an installed one the version of the distribution comes first.
        module: Its module, or the package that this is in.
        tables: Those of ``TABLES`` that it has.
        file: What was read; None where it is installed.
    """

    name: str
    source: str
    version: str
    module: str
    tables: Mapping[str, Mapping[object, object]]
    file: PluginFile | None = None

    def owns(self, module: str) -> bool:
        """Say whether a module, given by its name, is part of the plugin."""
        return _inside(self.module, module)

    def made(self, member: object) -> bool:
        """Say whether a member of a family is of this plugin, derives from a class of it, or names a signal of it."""
        classes = type(member).__mro__
        if any(self.owns(cls.__module__) for cls in classes):
            return True
        if any(type(member) is cls for table in self.tables.values() for cls in table.values()):
            return True
        signals = self.tables.get("SIGNALS", {})
        values = getattr(member, "__dict__", {}).values()
        names = (name for value in values for name in (value if isinstance(value, tuple) else (value,)))
        return any(isinstance(name, str) and name in signals for name in names)


@dataclass
class _Known:
    """The plugins of this process: files by name, and installed ones once they were looked for."""

    files: dict[str, Plugin] = field(default_factory=dict)
    installed: tuple[Plugin, ...] | None = None
    said: set[str] = field(default_factory=set)


_known = _Known()


def load(file: PluginFile) -> Plugin:
    """Run a plugin file and keep what it brings, for the rest of this process; loading it again does nothing.

    The registries check its members when they are asked; ``antibackdoor.load_plugin`` does that at once.

    Args:
        file: What was read.

    Raises:
        ConfigError: It does not run, has no table, or another file of that name is loaded.
    """
    name = Path(file.path).stem
    before = _known.files.get(name)
    if before is not None and before.file is not None:
        if before.file.content == file.content:
            return before
        raise ConfigError(
            f"plugin {file.path}: {before.file.path} is loaded under the same name with another content; rename one of "
            "the files, or start Python anew if it is one file that changed"
        )
    module = ModuleType(f"antibackdoor_plugin_{name}")
    module.__file__ = file.path
    sys.modules[module.__name__] = module  # Dataclasses look their module up while they are made.
    source = f"plugin {file.path}"
    try:
        _execute(file, module)
        tables = _tables_of(module, source)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    plugin = Plugin(name, source, _digest([file.content]), module.__name__, tables, file)
    _known.files[name] = plugin
    return plugin


def load_all(files: Iterable[PluginFile]) -> None:
    """Load what another process had loaded, which checked it; a worker calls this first.

    Args:
        files: What :func:`loaded` returned there.

    Raises:
        ConfigError: One of them does not run here.
    """
    for file in files:
        load(file)


def loaded() -> tuple[PluginFile, ...]:
    """Return the plugin files of this process, for :func:`load_all` in another one."""
    return tuple(plugin.file for plugin in _known.files.values() if plugin.file is not None)


def forget(plugin: Plugin) -> None:
    """Drop a plugin file whose members turned out not to fit."""
    _known.files.pop(plugin.name, None)
    sys.modules.pop(plugin.module, None)


def from_files() -> tuple[Plugin, ...]:
    """Return the plugins that were loaded from files, in the order of loading."""
    return tuple(_known.files.values())


def installed() -> tuple[Plugin, ...]:
    """Return the installed plugins, loading them the first time; one that is broken is left out, and said so once."""
    if _known.installed is None:
        _known.installed = ()  # A plugin that lists a table while it is imported does not see the installed ones.
        _known.installed = tuple(_installed())
    return _known.installed


def behind(*members: object) -> dict[str, str]:
    """Return the plugins that members of families come from, as they stand in a record: version by name.

    Args:
        *members: Built attacks, defences or signals; None is no member.
    """
    plugins = (*from_files(), *(_known.installed or ()))
    found = [plugin for plugin in plugins if any(m is not None and plugin.made(m) for m in members)]
    return {plugin.name: plugin.version for plugin in sorted(found, key=lambda plugin: plugin.name)}


def blame(error: BaseException) -> str | None:
    """Return where in a plugin an error arose, and which, in one line; None where no plugin had a part in it.

    Args:
        error: As it was caught.
    """
    for plugin in (*from_files(), *(_known.installed or ())):
        if _place(error, plugin.owns) is not None:
            return _explained(error, plugin.owns)
    return None


def warn_left_out(source: str, reason: str) -> None:
    """Say once, through the log, that an installed plugin or a part of it cannot be used, and go on without it.

    Args:
        source: See :class:`Plugin`.
        reason: What is wrong.
    """
    text = f"{source} is left out: {reason}"
    if text not in _known.said:
        _known.said.add(text)
        _LOG.warning(text)


def _execute(file: PluginFile, module: ModuleType) -> None:
    try:
        exec(compile(file.content, file.path, "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        raise ConfigError(f"plugin {_explained(error, partial(_inside, module.__name__))}") from error


def _tables_of(module: ModuleType, source: str) -> dict[str, Mapping[object, object]]:
    tables: dict[str, Mapping[object, object]] = {}
    for name in TABLES:
        table = getattr(module, name, None)
        if table is None:
            continue
        if not isinstance(table, Mapping):
            raise ConfigError(f"{source}: {name} must be a dict of names to classes, not a {type(table).__name__}")
        tables[name] = dict(table)
    if not any(tables.values()):
        raise ConfigError(
            f"{source}: it brings nothing; a plugin has at least one of the tables {', '.join(TABLES)}, such as "
            'DEFENCES = {"mine": Mine}'
        )
    return tables


def _installed() -> Iterator[Plugin]:
    from importlib.metadata import entry_points

    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        dist = entry.dist
        name, release = (dist.name, dist.version) if dist is not None else (entry.name, "0")
        source = f"the installed plugin {entry.name!r} of {name} {release}"
        try:
            yield _from_entry_point(entry, name, release, source)
        except ConfigError as error:
            warn_left_out(source, str(error).removeprefix(f"{source}: "))
        except (Exception, SystemExit) as error:  # noqa: BLE001 - one broken package must not stop the others
            warn_left_out(source, _explained(error, partial(_inside, entry.module.partition(".")[0])))


def _from_entry_point(entry: EntryPoint, name: str, release: str, source: str) -> Plugin:
    module = importlib.import_module(entry.module)
    package = sys.modules[entry.module.partition(".")[0]]
    code: list[bytes] = []
    root = package if getattr(package, "__file__", None) else module  # A namespace package has no file.
    if root.__file__ is not None:
        path = Path(root.__file__)
        files = sorted(path.parent.rglob("*.py")) if hasattr(root, "__path__") else [path]
        code = [each.read_bytes() for each in files]
    return Plugin(name, source, f"{release} {_digest(code)}", package.__name__, _tables_of(module, source))


def _inside(package: str, module: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def _explained(error: BaseException, owns: Callable[[str], bool]) -> str:
    """Return the error in one line, after "file:line" of the innermost frame of a module that is meant."""
    place, message = _place(error, owns), str(error)
    if isinstance(error, SyntaxError):
        place, message = place or f"{error.filename}:{error.lineno}", error.msg
    return f"{f'{place}: ' if place else ''}{type(error).__name__}: {' '.join(message.split()) or 'no message'}"


def _place(error: BaseException, owns: Callable[[str], bool]) -> str | None:
    place, step = None, error.__traceback__
    while step is not None:
        if owns(str(step.tb_frame.f_globals.get("__name__"))):
            place = f"{step.tb_frame.f_code.co_filename}:{step.tb_lineno}"
        step = step.tb_next
    return place


def _digest(contents: Iterable[bytes]) -> str:
    total = hashlib.blake2b(digest_size=8)
    for content in contents:
        total.update(len(content).to_bytes(8, "little") + content)
    return total.hexdigest()

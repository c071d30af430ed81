"""What keeps processes that decode in bounds: how much they may take, and large images one at a time.

POSIX limits a process's memory and its time on a processor, and locks a file that it inherited. Windows has neither
``resource`` nor ``fcntl``: there the lock is one of a file by its name, and nothing limits memory.
"""

from __future__ import annotations

import contextlib
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType, TracebackType

fcntl: ModuleType | None
resource: ModuleType | None
try:
    import fcntl
except ImportError:
    fcntl = None
try:
    import resource
except ImportError:
    resource = None

__all__ = ["Queue", "limit", "limits_time", "turn"]


class Queue:
    """The lock by which processes do one thing at a time, as the process that starts them holds it.

    A process is told its ``name``, for :func:`turn`, and has to inherit the open files ``handles``.

    Raises:
        OSError: No temporary file can be made.
    """

    def __init__(self) -> None:
        self.name: str
        self.handles: tuple[int, ...]
        self._held: contextlib.ExitStack = contextlib.ExitStack()
        if fcntl is not None:
            file = self._held.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - left by the stack
            self.name, self.handles = str(file.fileno()), (file.fileno(),)
        else:
            folder = self._held.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            self.name, self.handles = str(Path(folder) / "turn.lock"), ()

    def close(self) -> None:
        """Give the file up."""
        self._held.close()


def turn(name: str) -> AbstractContextManager[object]:
    """Return the lock of a :class:`Queue` in a process that was told its name."""
    if name.isdecimal():
        return _Inherited(int(name))
    from filelock import FileLock

    return FileLock(name)


def limits_time() -> bool:
    """Say whether the system can end a process that takes too long on a processor."""
    return resource is not None


def limit(kind: str, most: int) -> None:
    """Set a limit of this process, where the system has it; what the user allows at most stays.

    Args:
        kind: "memory" (bytes), "core" (bytes of the file that a crash leaves) or "processor" (seconds).
        most: The limit.
    """
    if resource is None:
        return
    number = {"memory": resource.RLIMIT_AS, "core": resource.RLIMIT_CORE, "processor": resource.RLIMIT_CPU}[kind]
    with contextlib.suppress(OSError, ValueError):
        soft, hard = resource.getrlimit(number)
        held = (hard,) if kind == "processor" else (soft, hard)  # the processor's is ours, and rises
        least = min([most, *(value for value in held if value != resource.RLIM_INFINITY)])
        resource.setrlimit(number, (least, hard))


class _Inherited:
    """A lock between processes: an open file, which the system unlocks when its holder ends."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __enter__(self) -> None:
        if fcntl is not None:
            fcntl.lockf(self._handle, fcntl.LOCK_EX)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if fcntl is not None:
            fcntl.lockf(self._handle, fcntl.LOCK_UN)

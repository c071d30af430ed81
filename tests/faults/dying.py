"""A process that runs the command many times, each in a fork of itself, and kills it where it is told to.

Started by ``killing.Mortal``. One line of JSON in, one out: ``{"args": [...], "log": path, "at": N, "torn": bool,
"after": seconds}``. ``at`` counts what changes the disk: files opened to be written, forced out (fsync), renamed,
removed, folders made or removed. At the N-th of them the fork ends by SIGKILL, before it happens; with ``torn``, an
fsync first loses half of its file, as in a power cut. ``after`` kills at a moment instead. With ``refuse``, the name of
an error such as "ENOSPC", nobody is killed: the change number ``at`` is refused with it. ``limits`` sets limits of the
system by name ("NOFILE": most open files, "AS": bytes of memory beyond those that the process has, "FSIZE": bytes of a
file), ``plain_user`` gives up the right of the superuser to pass over permissions, and ``clock`` is a list of seconds
that the clock is off, one after the other for each time it is read. ``delete`` is a folder that somebody removes at the
first change. The answer is
``{"code": exit code or None, "killed": bool, "events": how many there were, "seconds": s}``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import itertools
import json
import os
import resource
import select
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

REMOVALS = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}  # where the folder's handle stands, if there is one
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_fsync = os.fsync
_LONGEST = 300.0  # seconds that a fork may take


class Events:
    """Counts what changes the disk, and dies at one of them, or refuses it."""

    def __init__(self, at: int | None, torn: bool, refuse: str | None) -> None:
        self.count, self.at, self.torn = 0, at, torn
        self.condemned: str | None = None
        self.refuse = None if refuse is None else getattr(errno, refuse)

    def happen(self, handle: int | None = None) -> None:
        self.count += 1
        if self.condemned is not None:
            gone, self.condemned = self.condemned, None
            shutil.rmtree(gone)
        if self.count == self.at and self.refuse is not None:
            raise OSError(self.refuse, os.strerror(self.refuse))
        if self.count == self.at:
            if self.torn and handle is not None:
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(path, str | bytes) and flags & WRITES and not os.fsdecode(path).startswith("/dev/"):
                self.happen()
        elif event in {"os.rename", "os.truncate"} or event in REMOVALS:
            self.happen()

    def fsync(self, handle: int) -> None:
        self.happen(handle)
        _fsync(handle)


class Header(ctypes.Structure):
    """Of the system call capset; see capset(2)."""

    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def obey_permissions() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(ctypes.byref(Header(0x20080522, 0)), (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def hold_back(job: dict[str, Any]) -> None:
    """Set the limits that a job asks for."""
    for name, most in job.get("limits", {}).items():
        if name == "AS":
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            most += pages * resource.getpagesize()
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    if job.get("plain_user"):
        obey_permissions()
    if job.get("clock"):
        now, off = time.time, itertools.cycle(job["clock"])
        time.time = lambda: now() + next(off)


def decide(run: Path) -> int:
    """Decide about the images of a run as the page of ``review`` does, and tell what was acknowledged."""
    from antibackdoor.errors import AntiBackdoorError
    from antibackdoor.review.journal import Journal
    from antibackdoor.storage import load_run

    stored = load_run(run)
    try:
        journal = Journal(run / "decisions.csv", "test")
        for row, name in enumerate(stored.ids):
            own = stored.classes[int(stored.labels[row])]
            other = next(known for known in stored.classes if known != own)
            choice = (("drop", own), ("keep", own), ("relabel", other))[row % 3]
            journal.decide({name: choice})
            os.write(1, f"saved {json.dumps([name, *choice])}\n".encode())
            if row % 5 == 4:  # taken back, and made again
                journal.undo()
                journal.decide({name: choice})
    except AntiBackdoorError as error:
        os.write(2, f"antibackdoor: {error}\n".encode())
        return 2
    return 0


def run_command(job: dict[str, Any], events: Events) -> int:
    from antibackdoor.cli import main

    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(job.get("env", {}))
    sys.argv = ["antibackdoor", *job["args"]]
    events.condemned = job.get("delete")
    sys.addaudithook(events.audit)
    os.fsync = events.fsync
    hold_back(job)
    try:
        if job["args"][0] == "decide":
            return decide(Path(job["args"][1]))
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def end(job: dict[str, Any], events: Events, writer: int, code: int) -> None:
    """Leave a fork, whatever it was refused."""
    try:
        os.write(writer, str(events.count).encode())
        events.at = None
        sys.stdout.flush()
        sys.stderr.flush()
        with open(job["log"] + ".modules", "w", encoding="utf-8") as file:
            json.dump([name for name in sys.modules if name not in job["known"]], file)
    finally:
        os._exit(code)


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Run a job; and beside it, at the same time, those that it brings, whose answers are under "beside"."""
    others = [start(other) for other in job.get("beside", [])]
    answer = finish(*start(job))
    return answer | {"beside": [finish(*other) for other in others]}


def start(job: dict[str, Any]) -> tuple[dict[str, Any], int, int, float]:
    reader, writer = os.pipe()
    job["known"] = set(sys.modules)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code, events = 70, Events(job.get("at"), bool(job.get("torn")), job.get("refuse"))
        try:
            code = run_command(job, events)
        finally:
            end(job, events, writer, code)
    os.close(writer)
    return job, child, reader, started


def _ended(child: int) -> tuple[int, int]:
    """Wait for a child, but not for ever: one that hangs is killed, and counts as killed."""
    until = time.monotonic() + _LONGEST
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return pid, status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)


def finish(job: dict[str, Any], child: int, reader: int, started: float) -> dict[str, Any]:
    if job.get("after") is not None:
        select.select([reader], [], [], job["after"])
        os.kill(child, signal.SIGKILL)
    _, status = _ended(child)
    count = int(os.read(reader, 20) or 0)
    os.close(reader)
    with contextlib.suppress(OSError, ValueError):
        for name in json.loads(Path(job["log"] + ".modules").read_text(encoding="utf-8")):
            with contextlib.suppress(Exception):
                importlib.import_module(name)  # The next fork need not.
    code = os.waitstatus_to_exitcode(status)
    killed = code == -signal.SIGKILL
    return {
        "code": None if killed else code,
        "killed": killed,
        "events": count,
        "seconds": time.monotonic() - started,
    }


def serve() -> None:
    import torch

    torch.set_num_threads(1)
    import antibackdoor.api  # noqa: F401 - forks start with all of it imported
    import antibackdoor.cli  # noqa: F401
    import antibackdoor.pipeline  # noqa: F401

    for line in sys.stdin:
        sys.stdout.write(json.dumps(work(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()

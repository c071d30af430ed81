"""A process that runs the command many times, each in a fork of itself, and kills it where it is told to.

Started by ``killing.Mortal``. One line of JSON in, one out: ``{"args": [...], "log": path, "at": N, "torn": bool,
"after": seconds}``. ``at`` counts what changes the disk: files opened to be written, forced out (fsync), renamed,
removed, folders made or removed. At the N-th of them the fork ends by SIGKILL, before it happens; with ``torn``, an
fsync first loses half of its file, as in a power cut. ``after`` kills at a moment instead. The answer is
``{"code": exit code or None, "killed": bool, "events": how many there were, "seconds": s}``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

REMOVALS = {"os.remove": 1, "os.rmdir": 1, "os.mkdir": 2}  # where the folder's handle stands, if there is one
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_fsync = os.fsync


class Events:
    """Counts what changes the disk, and dies at one of them."""

    def __init__(self, at: int | None, torn: bool) -> None:
        self.count, self.at, self.torn = 0, at, torn

    def happen(self, handle: int | None = None) -> None:
        self.count += 1
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


def run_command(job: dict[str, Any], events: Events) -> int:
    from antibackdoor.cli import main

    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(job.get("env", {}))
    sys.argv = ["antibackdoor", *job["args"]]
    sys.addaudithook(events.audit)
    os.fsync = events.fsync
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    return 0


def work(job: dict[str, Any]) -> dict[str, Any]:
    reader, writer = os.pipe()
    job["known"] = set(sys.modules)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code, events = 70, Events(job.get("at"), bool(job.get("torn")))
        try:
            code = run_command(job, events)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(writer, str(events.count).encode())
            with open(job["log"] + ".modules", "w", encoding="utf-8") as file:
                json.dump([name for name in sys.modules if name not in job["known"]], file)
            os._exit(code)
    os.close(writer)
    if job.get("after") is not None:
        select.select([reader], [], [], job["after"])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
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

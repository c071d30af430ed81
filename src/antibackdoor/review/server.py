"""The review of a run from its start to Ctrl-C: find what is needed, serve it on this machine alone."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import socket
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from antibackdoor.errors import ConfigError
from antibackdoor.files import locked
from antibackdoor.progress import SILENT, Progress
from antibackdoor.storage import load_run

if TYPE_CHECKING:
    from antibackdoor.review.board import Board

__all__ = ["LOOPBACK", "open_board", "review_run"]

LOOPBACK = "127.0.0.1"
_DECISIONS, _LOCK = "decisions.csv", ".review.lock"


def open_board(
    run: Path,
    *,
    data: str | None = None,
    who: str | None = None,
    near: int | None = None,
    progress: Progress = SILENT,
) -> Board:
    """Read a run, its images and its decisions.

    Args:
        run: A finished run folder.
        data: Where its images are now; None where they were.
        who: Noted with each decision; None for the name of the user.
        near: See :class:`antibackdoor.review.board.Board`.
        progress: Told how far it is.

    Raises:
        StorageError: The run is damaged or not finished.
        DataError: Its images are not there, or ``decisions.csv`` is no file of decisions.
    """
    from antibackdoor.review.board import Board
    from antibackdoor.review.journal import Journal
    from antibackdoor.review.pictures import find_pictures

    stored = load_run(run)
    journal = Journal(run / _DECISIONS, _user() if who is None else who)
    board = Board(stored, find_pictures(stored, data, progress), journal, near, progress)
    gone = int((board.pictures.places < 0).sum())
    if gone:
        progress.say(f"{gone:,} of {board.count:,} images of the run are gone; their pictures are left blank")
    changed = int(board.pictures.changed.sum())
    if changed:
        progress.say(f"{changed:,} of {board.count:,} images are not those that the run saw; they were changed since")
    _ = board.clusters  # now, and not when the page first asks
    return board


def review_run(
    run: Path,
    *,
    data: str | None = None,
    who: str | None = None,
    near: int | None = None,
    port: int = 0,
    browser: bool = True,
    progress: Progress = SILENT,
    say: Callable[[str], object],
) -> None:
    """Serve the page until the process is interrupted.

    Args:
        run: A finished run folder.
        data: See :func:`open_board`.
        who: See :func:`open_board`.
        near: See :func:`open_board`.
        port: 0 for any that is free.
        browser: Open the page in the user's browser, where there is a screen.
        progress: Told how far it is.
        say: Given the line with the address, once the page is there.

    Raises:
        ConfigError: The server is not installed, or the port is taken.
        RunExistsError: Another process reviews this run.
        AntiBackdoorError: See :func:`open_board`.
    """
    try:
        import uvicorn

        from antibackdoor.review.app import build_app
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"review needs {error.name}, which is not installed: pip install 'antibackdoor[review]'"
        ) from None
    if not run.is_dir():
        load_run(run)  # says what is wrong, and makes no folder
    busy = f"{run}: another process{{by}} reviews this run; stop that one first"
    with locked(run / _LOCK, busy=busy, leave=False), _listen(port) as listener:
        board = open_board(run, data=data, who=who, near=near, progress=progress)
        number = listener.getsockname()[1]
        token = secrets.token_urlsafe(24)
        app = build_app(board, token, [f"{LOOPBACK}:{number}", f"localhost:{number}"])
        address = f"http://{LOOPBACK}:{number}/{token}/"
        say(f"review: {address} (Ctrl-C ends it)")
        if browser and _has_screen():
            webbrowser.open(address)
        settings = uvicorn.Config(
            app, log_level="error", access_log=False, server_header=False, timeout_graceful_shutdown=1, lifespan="off"
        )
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(settings).run(sockets=[listener])
        tally = board.tally()
    decided = tally["images"] - tally["undecided"]
    say(f"decisions: {run / _DECISIONS} ({decided:,} of {tally['images']:,} images decided)")


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        listener.listen(128)  # a browser that is faster than the server waits
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--port {port}: cannot listen there: {reason}") from None
    return listener


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container whose user has no name
        return ""


def _has_screen() -> bool:
    """Say whether a browser can be shown; without a screen, a text browser would take over the terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))

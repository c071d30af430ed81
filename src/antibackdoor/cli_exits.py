"""Every way out of the command, each with its exit code and one line of what was wrong."""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import NoReturn

import typer

from antibackdoor.errors import AntiBackdoorError, one_line

__all__ = ["EXIT_FOUND", "run"]

# What a system says no with, where nobody nearer to it has said what was wanted; and what torch and threads say.
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.EFBIG)
NO_MEMORY = re.compile(r"can't (allocate memory|start new thread)|out of memory|Cannot allocate memory|bad_alloc")
EXIT_OURS, EXIT_USER, EXIT_FOUND, EXIT_INTERRUPTED = 1, 2, 3, 130

# What typer raises when the command line itself is wrong; it keeps a click of its own, so click's class is another.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def run(app: typer.Typer) -> None:
    """Run the command on the arguments of this process, and leave the process with the exit code of how it went."""
    if any(given == "" or given in {"--out=", "--test=", "--config="} for given in sys.argv[1:]):
        _fail("an argument is empty; was a shell variable not set?", EXIT_USER)
    try:
        code = app(standalone_mode=False) or 0
        if code == EXIT_INTERRUPTED:  # typer turns an interrupt into this code
            raise KeyboardInterrupt
        sys.exit(code)
    except UsageError as error:
        message = error.format_message()  # type: ignore[attr-defined]
        _fail(f"{message}{'' if message.endswith(('.', '?')) else '.'} Try --help", EXIT_USER)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except AntiBackdoorError as error:
        _fail(str(error), EXIT_USER)
    except (KeyboardInterrupt, typer.Abort):
        _fail(
            "interrupted; `train` and `scan` go on from the last epoch with --resume, `bench` with the same command",
            EXIT_INTERRUPTED,
        )
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader, such as `head`, has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _fail(f"the disk is full ({error.filename or 'no file named'})", EXIT_USER)
        if error.errno in REFUSED:
            _fail(f"the system refused: {error.strerror} ({error.filename or 'no file named'})", EXIT_USER)
        _ours(error)
    except Exception as error:  # noqa: BLE001 - the last resort of the command
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
            _fail(
                "there is not enough memory; smaller images (--image-size) and batches (--set train.batch_size=N) take "
                "less",
                EXIT_USER,
            )
        _ours(error)


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"antibackdoor: {one_line(message)}", err=True)
    sys.exit(code)


def _ours(error: Exception) -> NoReturn:
    if os.environ.get("ANTIBACKDOOR_DEBUG"):
        raise error
    from antibackdoor import plugins

    if (fault := plugins.blame(error)) is not None:
        _fail(f"plugin {fault}; ANTIBACKDOOR_DEBUG=1 shows the traceback", EXIT_USER)
    names = " and ".join(plugin.name for plugin in plugins.from_files())
    ours = f"a fault of ours, or of what the plugin {names} returned" if names else "a fault of ours"
    _fail(
        f"{ours}: {type(error).__name__}: {error}. Please report it; ANTIBACKDOOR_DEBUG=1 shows the traceback",
        EXIT_OURS,
    )

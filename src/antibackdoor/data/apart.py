"""Decoding in processes of its own: a decoder that crashes, loops or fills the memory loses one image, not the run.

A worker reads jobs from its standard input and writes answers to its standard output, in a form that carries nothing
but numbers, text and pixels: an image that takes a worker over can do there what the user can, but what it answers is
never executed. A worker has at most ``MEMORY`` bytes of memory, and ``SECONDS`` of a processor for an image; where the
system limits neither (Windows), ``PATIENCE`` seconds by the clock. One that ends is replaced; idle ones wait for the
next image, and end with the process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from antibackdoor.data import bounds
from antibackdoor.data import decode as decoding
from antibackdoor.data.decode import BadImageError, Header
from antibackdoor.data.opening import LARGEST, Payload, Piece
from antibackdoor.errors import StorageError

__all__ = ["MEMORY", "SECONDS", "brightest", "close", "decode", "inspect", "serve", "warm"]

MEMORY, SECONDS = 4 << 30, 60  # bytes of a worker; seconds of a processor for one image
PATIENCE = 600  # seconds by the clock, in which a large image may wait for its turn
_PIXELS, _NUMBERS, _BAD = b"p", b"n", b"b"
_JOB, _ANSWER = struct.Struct("<II"), struct.Struct("<cII")  # (kind,) bytes of text, bytes of content
_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from antibackdoor.data.apart import serve; serve()"


def inspect(payload: Payload) -> Header:
    """Read the header of an image file in a worker; see :func:`antibackdoor.data.decode.inspect`.

    Raises:
        BadImageError: It cannot be read, or whoever read it ended.
        StorageError: No worker can be started.
    """
    with _plausible():
        width, height, grey, wide = _ask("inspect", payload)
        return Header(int(width), int(height), bool(grey), bool(wide))


def brightest(payload: Payload) -> int:
    """Return the highest value of an image in a worker; see :func:`antibackdoor.data.decode.brightest`.

    Raises:
        BadImageError: It cannot be read, or whoever read it ended.
        StorageError: No worker can be started.
    """
    with _plausible():
        return int(_ask("brightest", payload)[0])


def decode(
    payload: Payload, *, channels: int, height: int, width: int, white: int = decoding.WHITE
) -> NDArray[np.uint8]:
    """Decode an image file in a worker; see :func:`antibackdoor.data.decode.decode`.

    Raises:
        BadImageError: It cannot be decoded, or whoever decoded it ended.
        StorageError: No worker can be started.
    """
    given = {"channels": channels, "height": height, "width": width, "white": white}
    with _plausible():
        pixels: NDArray[np.uint8] = np.asarray(_ask("decode", payload, **given))
        return pixels.reshape(channels, height, width)


def warm() -> None:
    """Start a worker, if none waits."""
    _give_back(_taken())


def close() -> None:
    """End the idle workers of this process; the next image starts a new one."""
    with _lock:
        ended = [_idle.pop() for _ in range(len(_idle))]
        while _turn:
            _turn.pop().close()
    for worker in ended:
        if worker.owner == os.getpid():
            worker.end()


@contextlib.contextmanager
def _plausible() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        raise BadImageError("its decoder answered with what is no image") from None


class _GoneError(Exception):
    """A worker has ended; the message says of what."""


class _Worker:
    """One process that decodes, and the pipes to it.

    Args:
        turn: By which workers decode large images one at a time.

    Raises:
        StorageError: It cannot be started.
    """

    def __init__(self, turn: bounds.Queue) -> None:
        self.owner = os.getpid()
        self._late = False
        try:
            command = [sys.executable, "-c", _START, json.dumps(sys.path), turn.name]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self._process = subprocess.Popen(command, **pipes, env=environment, pass_fds=turn.handles)  # type: ignore[call-overload]
            self._receive()  # that it is there
        except (OSError, _GoneError) as error:
            reason = getattr(error, "strerror", None) or f"it {error}"
            raise StorageError(f"cannot start a process that decodes images: {reason}") from None

    def ask(self, job: dict[str, object], content: bytes) -> Any:
        """Have a job done, and return numbers or pixels.

        Raises:
            BadImageError: The image is bad.
            _GoneError: The worker has ended.
        """
        text = json.dumps(job).encode()
        try:
            self._process.stdin.write(_JOB.pack(len(text), len(content)) + text + content)
            self._process.stdin.flush()
        except OSError:
            raise self._gone() from None
        with self._watched():
            return self._receive()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """End the worker if the block takes too long, where the system does not."""
        if bounds.limits_time():
            yield
            return
        timer = threading.Timer(PATIENCE, self._be_late)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _be_late(self) -> None:
        self._late = True
        self._process.kill()

    def _receive(self) -> Any:
        kind, length, size = _ANSWER.unpack(self._read(_ANSWER.size))
        if length + size > LARGEST:
            raise ValueError
        text, content = self._read(length), self._read(size)
        if kind == _PIXELS:
            return np.frombuffer(bytearray(content), dtype=np.uint8)
        if kind == _NUMBERS:
            return json.loads(text)
        raise BadImageError(text.decode("utf-8", "replace"))

    def _read(self, size: int) -> bytes:
        content: bytes = self._process.stdout.read(size)
        if len(content) != size:
            raise self._gone()
        return content

    def _gone(self) -> _GoneError:
        self.end(patience=10)  # for what it ends with
        code = self._process.returncode
        if self._late:
            return _GoneError(f"took more than {PATIENCE} seconds")
        if code == -getattr(signal, "SIGXCPU", 0):
            return _GoneError(f"took more than {SECONDS} seconds")
        return _GoneError(f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}")

    def end(self, patience: float = 1) -> None:
        """Close the pipes, at which a worker ends, and wait for that; after so many seconds it is killed."""
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


_idle: list[_Worker] = []
_lock = threading.Lock()
_turn: list[bounds.Queue] = []  # one, there as long as the process is


def _ask(name: str, payload: Payload, **given: int) -> Any:
    job: dict[str, object] = {"do": name, "given": given, "seconds": SECONDS}
    content = b""
    if isinstance(payload, bytes):
        if not 0 < len(payload) <= LARGEST:
            return getattr(decoding, name)(payload, **given)  # refused, and not sent to and fro
        content = payload
    else:
        path = payload.path if isinstance(payload, Piece) else payload
        job["path"] = str(path if path.is_absolute() else Path.cwd() / path)  # a worker stays where it was started
        if isinstance(payload, Piece):
            job["piece"] = (payload.offset, payload.size)
    worker = _taken()
    try:
        answer = worker.ask(job, content)
    except _GoneError as gone:
        raise BadImageError(f"its decoder {gone}") from None
    except BadImageError:
        _give_back(worker)
        raise
    except BaseException:  # an interrupt: the answer may still come
        worker.end()
        raise
    _give_back(worker)
    return answer


def _taken() -> _Worker:
    with _lock:
        while _idle:
            worker = _idle.pop()
            if worker.owner == os.getpid():  # not one of the process that this one was forked from
                return worker
        try:
            if not _turn:
                _turn.append(bounds.Queue())
        except OSError as error:
            raise StorageError(f"cannot write a temporary file: {error.strerror or error}") from None
    return _Worker(_turn[0])


def _give_back(worker: _Worker) -> None:
    with _lock:
        _idle.append(worker)


atexit.register(close)


# --- in the worker ---------------------------------------------------------------------------------------------------


def serve() -> None:
    """Do jobs from standard input until it ends; what a process of this module runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks is interrupted, and closes the pipe
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1):  # a decoder that prints something must not answer
        os.dup2(nothing, handle)
    decoding.take_turns(bounds.turn(sys.argv[2]))
    warnings.simplefilter("ignore")
    bounds.limit("memory", MEMORY)
    bounds.limit("core", 0)
    _answer(answers, _NUMBERS, b"[]")
    while len(head := jobs.read(_JOB.size)) == _JOB.size:
        length, size = _JOB.unpack(head)
        job, content = json.loads(jobs.read(length)), jobs.read(size)
        bounds.limit("processor", int(time.process_time()) + 1 + job["seconds"])
        try:
            _answer(answers, *_done(job, content))
        except BadImageError as error:
            _answer(answers, _BAD, str(error).encode("utf-8", "backslashreplace"))
        except MemoryError:
            _answer(answers, _BAD, f"there is not enough memory to decode it (at most {MEMORY >> 30} GiB)".encode())


def _done(job: dict[str, Any], content: bytes) -> tuple[bytes, bytes, bytes]:
    payload: Payload = content
    if "piece" in job:
        payload = Piece(Path(job["path"]), *job["piece"])
    elif "path" in job:
        payload = Path(job["path"])
    if job["do"] == "decode":
        return _PIXELS, b"", decoding.decode(payload, **job["given"]).tobytes()
    numbers = decoding.inspect(payload) if job["do"] == "inspect" else [decoding.brightest(payload)]
    return _NUMBERS, json.dumps(numbers).encode(), b""


def _answer(answers: IO[bytes], kind: bytes, text: bytes, content: bytes = b"") -> None:
    answers.write(_ANSWER.pack(kind, len(text), len(content)) + text + content)
    answers.flush()

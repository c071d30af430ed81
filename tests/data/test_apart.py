"""Decoding in processes of its own: what ends a decoder loses one image, and the run goes on."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from antibackdoor.data import apart, decode
from antibackdoor.data.decode import BadImageError
from antibackdoor.data.opening import LARGEST, Piece
from antibackdoor.errors import DataError, StorageError

pytestmark = pytest.mark.timeout(120)

# A decoder with a fault for every image whose first pixel says so.
FAULTY = """
import sys, json, os, signal
sys.path[:] = json.loads(sys.argv[1])
from antibackdoor.data import apart, decode
whole = decode.decode
def faulty(payload, **given):
    pixels = whole(payload, **given)
    fault = int(pixels[0, 0, 0])
    if fault == 1: os.kill(os.getpid(), signal.SIGSEGV)
    if fault == 2: os.abort()
    if fault == 3: sys.exit(7)
    if fault == 4: bytearray(2**40)
    if fault == 5: print("out of place", flush=True)
    if fault == 6: os._exit(0)
    while fault == 7: pass
    return pixels
decode.decode = faulty
apart.serve()
"""
ENDED = {1: r"crashed \(SIGSEGV\)", 2: r"crashed \(SIGABRT\)", 3: "ended with exit code 7", 6: "ended with exit code 0"}


@pytest.fixture
def faulty(monkeypatch):
    apart.close()
    monkeypatch.setattr(apart, "_START", FAULTY)
    monkeypatch.setattr(apart, "SECONDS", 0)
    yield
    monkeypatch.undo()
    apart.close()


def png(value, side=12):
    content = io.BytesIO()
    Image.fromarray(np.full((side, side), value, np.uint8)).save(content, "PNG")
    return content.getvalue()


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(value))


def read_apart(payload):
    return apart.decode(payload, channels=1, height=12, width=12)


def test_the_same_as_in_this_process(tmp_path, noise):
    path = tmp_path / "a\udcff é.png"
    Image.fromarray(noise(40, 30, 3)).save(path)
    whole = path.read_bytes()
    (tmp_path / "held").write_bytes(b"before" + whole + b"after")
    settings = {"channels": 3, "height": 16, "width": 20}
    wanted = decode.decode(path, **settings)
    for payload in (path, whole, Piece(tmp_path / "held", 6, len(whole))):
        assert np.array_equal(apart.decode(payload, **settings), wanted)
        assert apart.inspect(payload) == decode.inspect(path)
        assert apart.brightest(payload) == 0
    wide = tmp_path / "wide.png"
    Image.fromarray(np.full((9, 9), 4095, np.uint16)).save(wide)
    assert apart.brightest(wide) == decode.brightest(wide) == 4095
    assert apart.decode(whole, **settings).flags.writeable


@pytest.mark.parametrize("payload", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"P6 99999 99999 255\n"])
def test_a_bad_image_is_bad_in_the_same_words(payload, tmp_path):
    with pytest.raises(BadImageError) as there:
        apart.inspect(payload)
    with pytest.raises(BadImageError) as here:
        decode.inspect(payload)
    assert str(there.value) == str(here.value)
    with pytest.raises(BadImageError, match="No such file"):
        apart.inspect(tmp_path / "gone.png")


def test_too_many_bytes_are_refused_before_they_are_sent(monkeypatch):
    monkeypatch.setattr(apart, "_taken", lambda: pytest.fail("sent"))
    with pytest.raises(BadImageError, match="more than .* are not read from inside another file"):
        apart.inspect(bytes(LARGEST + 1))


@pytest.mark.parametrize("fault", ENDED)
def test_a_decoder_that_ends_loses_one_image(fault, faulty):
    assert (read_apart(png(0)) == 0).all()
    with pytest.raises(BadImageError, match=f"^its decoder {ENDED[fault]}$"):
        read_apart(png(fault))
    assert (read_apart(png(9)) == 9).all()


def test_a_decoder_without_end_is_ended(faulty):
    with pytest.raises(BadImageError, match="^its decoder took more than 0 seconds$"):
        read_apart(png(7))
    assert (read_apart(png(9)) == 9).all()


def test_a_decoder_that_takes_all_memory(faulty):
    with pytest.raises(BadImageError, match=r"^there is not enough memory to decode it \(at most 4 GiB\)$"):
        read_apart(png(4))
    assert (read_apart(png(9)) == 9).all()


def test_what_a_decoder_prints_is_no_answer(faulty):
    assert (read_apart(png(5)) == 5).all()


def test_a_run_goes_on_without_the_image(faulty, tmp_path, read, said):
    for number, value in enumerate((20, 1, 30, 40)):
        write(tmp_path / "set" / "cat" / f"{number}.png", value)
        write(tmp_path / "set" / "dog" / f"{number}.png", 100 + value)
    with pytest.raises(DataError, match=r"cat/1\.png: its decoder crashed \(SIGSEGV\) .*--skip-bad"):
        read(tmp_path / "set")
    train = read(tmp_path / "set", skip_bad=True).train
    assert train.skipped == ("cat/1.png",)
    assert len(train) == 7


def test_many_threads_at_once():
    contents = [png(value) for value in range(20, 60)]
    found = [None] * len(contents)

    def work(first):
        for at in range(first, len(contents), 4):
            found[at] = read_apart(contents[at])[0, 0, 0]

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == list(range(20, 60))


def test_a_fork_has_workers_of_its_own():
    apart.warm()
    (mine,) = {worker.owner for worker in apart._idle}
    assert mine == os.getpid()
    code = (
        "import os, sys; from antibackdoor.data import apart\n"
        f"content = bytes.fromhex({png(33).hex()!r})\n"
        "read = lambda: int(apart.decode(content, channels=1, height=12, width=12)[0, 0, 0])\n"
        "assert read() == 33\n"
        "child = os.fork()\n"
        "assert read() == 33\n"
        "os._exit(0) if child == 0 else sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_workers_end_with_their_process():
    code = (
        "import os, signal, sys; from antibackdoor.data import apart\n"
        "apart.warm(); print(apart._idle[0]._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            break
        if state == "Z":
            break
        threading.Event().wait(0.05)
    else:
        pytest.fail("the worker outlived its process")


def test_no_process_can_be_started(monkeypatch):
    apart.close()
    monkeypatch.setattr(sys, "executable", "/no/python")
    with pytest.raises(StorageError, match="cannot start a process that decodes images: No such file"):
        apart.inspect(png(0))
    monkeypatch.undo()
    monkeypatch.setattr(apart, "_START", "raise SystemExit(3)")
    with pytest.raises(StorageError, match="cannot start a process that decodes images: it ended with exit code 3"):
        apart.inspect(png(0))


@pytest.mark.parametrize(
    ("kind", "text", "content", "said"),
    [
        (b"b", "cos\nsystem\n(S'touch {trap}'\ntR.", b"", "system"),
        (b"n", "cos\nsystem\n(S'touch {trap}'\ntR.", b"", "what is no image"),
        (b"n", "{{}}", b"", "what is no image"),
        (b"n", "[1e999, 1, 1, 1]", b"", "what is no image"),
        (b"p", "", b"12345", "what is no image"),
    ],
)
def test_an_answer_is_never_executed(kind, text, content, said, monkeypatch, tmp_path):
    """A worker that somebody has taken over sends a pickle, or what is no answer to what was asked."""
    apart.close()
    trap = tmp_path / "executed"
    answer = (
        struct.pack("<cII", kind, len(text.format(trap=trap)), len(content)) + text.format(trap=trap).encode() + content
    )
    code = (
        "import sys, struct; answers = sys.stdout.buffer; jobs = sys.stdin.buffer\n"
        "answers.write(struct.pack('<cII', b'n', 2, 0) + b'[]'); answers.flush()\n"
        "a, b = struct.unpack('<II', jobs.read(8)); jobs.read(a + b)\n"
        f"answers.write({answer!r}); answers.flush()\n"
    )
    monkeypatch.setattr(apart, "_START", code)
    with pytest.raises(BadImageError, match=said):
        apart.inspect(png(0))
    apart.close()
    assert not trap.exists()

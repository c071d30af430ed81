"""What Windows lacks: without ``fcntl`` and ``resource`` every module is imported, and images are decoded."""

from __future__ import annotations

import io
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from antibackdoor import estimating
from antibackdoor.data import apart, bounds
from antibackdoor.data.decode import BadImageError

WITHOUT = "import sys\nfor name in ('fcntl', 'resource', 'termios', 'pwd', 'grp'): sys.modules[name] = None\n"
# A worker as on Windows, where filelock has a lock of the system; every image is a large one, and white ones loop.
WORKER = f"""
import filelock
{WITHOUT}
import json
sys.path[:] = json.loads(sys.argv[1])
from antibackdoor.data import apart, decode
decode.LARGE_PIXELS = 0
whole = decode.decode
def decoded(payload, **given):
    pixels = whole(payload, **given)
    while pixels.min() == 255: pass
    return pixels
decode.decode = decoded
apart.serve()
"""
EVERY_MODULE = """
import importlib, pkgutil
import antibackdoor
names = [found.name for found in pkgutil.walk_packages(antibackdoor.__path__, "antibackdoor.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""


SETTINGS = {"channels": 1, "height": 12, "width": 12}


def png(value: int, side: int = 12) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((side, side), value, np.uint8)).save(content, "PNG")
    return content.getvalue()


def test_every_module_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT + EVERY_MODULE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 200


@pytest.fixture
def windows(monkeypatch):
    """Decoding as on Windows, in this process and in those that it starts."""
    apart.close()
    for name in ("fcntl", "resource"):
        monkeypatch.setattr(bounds, name, None)
    monkeypatch.setattr(apart, "_START", WORKER)
    yield
    monkeypatch.undo()
    apart.close()


def test_images_are_decoded_one_large_one_at_a_time(windows) -> None:
    for value in (7, 9):
        assert (apart.decode(png(value), **SETTINGS) == value).all()
    lock = bounds.turn(apart._turn[0].name)
    assert lock.lock_file.endswith("turn.lock")
    with lock:
        waiting = threading.Thread(target=apart.decode, args=(png(5),), kwargs=SETTINGS, daemon=True)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(60)
    assert not waiting.is_alive()
    with pytest.raises(BadImageError, match="known format"):
        apart.inspect(b"no image")


def test_the_clock_ends_a_decoder_where_the_system_does_not(windows, monkeypatch) -> None:
    monkeypatch.setattr(apart, "PATIENCE", 0.2)
    with pytest.raises(BadImageError, match=r"^its decoder took more than 0\.2 seconds$"):
        apart.decode(png(255), **SETTINGS)


def run(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_limits_are_set_where_the_system_has_them() -> None:
    limits = "from antibackdoor.data import bounds; bounds.limit('core', 0); bounds.limit('memory', 2**33)\n"
    shown = (
        "import resource; print([resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_CORE, resource.RLIMIT_AS)])"
    )
    assert run(f"{limits}{shown}") == ["[0,", f"{2**33}]"]
    assert run(f"{WITHOUT}{limits}print(bounds.limits_time())") == ["False"]


def test_a_run_says_that_its_memory_is_not_known(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert estimating._memory(1000, 10) is None
    assert estimating.Duration(60, 60, 60, None).lines()[1].startswith("memory: not known on this system")

"""What a stranger's set may hold: one clear line, or left out and counted; soon, and in bounded memory."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from antibackdoor.data import decode as decoding
from antibackdoor.data.decode import BadImageError, decode, inspect, quiet
from antibackdoor.data.formats import EXTENSIONS
from antibackdoor.errors import DataError, one_line
from antibackdoor.prediction import find_images

pytestmark = pytest.mark.timeout(60)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width=16, height=16, extra=b"", rows=b"\0" * 49 * 16):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(kind, size=(64, 64), **settings):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, kind, **settings)
    return bytearray(file.getvalue())


def changed(content, place, value):
    content[place : place + len(value)] = value
    return bytes(content)


def tiff(**changes):
    """A grey TIFF of 16x16 with other tags: number=(type, count, value)."""
    tags = {256: (4, 1, 16), 257: (4, 1, 16), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 200)}
    tags |= {277: (3, 1, 1), 278: (4, 1, 16), 279: (4, 1, 256)}
    tags |= {int(name[1:]): value for name, value in changes.items()}
    entries = b"".join(struct.pack("<HHII", tag, *values) for tag, values in sorted(tags.items()))
    # The next folder of tags is this one again.
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 8) + b"\0" * 4096


BLOWN_UP = zlib.compress(b"A" * 2**26)
FRAME = b"\x21\xf9\x04\0\0\0\0\0\x2c" + struct.pack("<HHHHB", 0, 0, 16, 16, 0) + b"\x08\x01\0\0"
GIF, WEBP, JPEG = saved("GIF"), saved("WEBP", lossless=True), saved("JPEG")
TILED = {"t322": (4, 1, 60000), "t323": (4, 1, 60000), "t324": (4, 1, 200), "t325": (4, 1, 256)}
BOMBS = {
    "png": png(20000, 20000),
    "jpeg": changed(saved("JPEG"), JPEG.index(b"\xff\xc0") + 5, struct.pack(">HH", 65000, 65000)),
    "gif, the screen": changed(saved("GIF"), 6, struct.pack("<HH", 60000, 60000)),
    "gif, a frame": changed(saved("GIF"), GIF.index(b"\x2c") + 5, struct.pack("<HH", 65000, 65000)),
    "bmp": changed(saved("BMP"), 18, struct.pack("<ii", 50000, 50000)),
    "bmp, from the top": changed(saved("BMP"), 18, struct.pack("<ii", 50000, -50000)),
    "ppm": b"P6 99999 99999 255\n",
    "webp": changed(saved("WEBP", lossless=True), WEBP.index(b"VP8L") + 9, struct.pack("<I", 2**28 - 1)),
    "tiff": tiff(t256=(4, 1, 10**6), t257=(4, 1, 10**6)),
}
if "avif" in EXTENSIONS:
    BOMBS["avif"] = changed(saved("AVIF"), saved("AVIF").index(b"ispe") + 8, struct.pack(">II", 60000, 60000))
if "heic" in EXTENSIONS:
    BOMBS["heif"] = changed(saved("HEIF"), saved("HEIF").index(b"ispe") + 8, struct.pack(">II", 60000, 60000))
BROKEN = {
    "a text of megabytes in a png": png(extra=chunk(b"zTXt", b"x\0\0" + BLOWN_UP)),
    "a colour profile of megabytes in a png": png(extra=chunk(b"iCCP", b"x\0\0" + BLOWN_UP)),
    "a thousand texts in a png": png(extra=chunk(b"zTXt", b"x\0\0" + zlib.compress(b"A" * 900_000)) * 100),
    "a ppm that is all comment": b"P6 #" + b"x" * 10**6,
    "a ppm of comments": b"P6\n" + b"#\n" * 10**6 + b"8 8 255\n" + b"x" * 192,
    "a ppm with a long number": b"P6 " + b"9" * 10**6,
    "a tiff of 2**30 strips": tiff(t273=(4, 2**30, 200), t279=(4, 2**30, 200)),
    "a tiff with a tile of gigabytes": tiff(**TILED, t259=(3, 1, 5)),
    "a tiff with 60,000 channels": tiff(t277=(3, 1, 60000)),
    "a bmp without its pixels": changed(saved("BMP"), 18, struct.pack("<ii", 9000, 9000)),
    "a page": b"<html><script>alert(1)</script></html>",
    "a program": b"\x7fELF" + b"\0" * 1000,
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
}
FINE = {
    "a million frames in a gif": bytes(GIF[:-1]) + FRAME * 10**6 + b";",
    "2**31 frames promised by a png": png(extra=chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    "folders of tags in a circle": tiff(),
    "a profile of gigabytes promised by a tiff": tiff(t34675=(7, 2**31 - 1, 8)),
    "a png and a zip": png() + b"PK\x03\x04" + b"\0" * 100,
    "a jpeg and a page": bytes(JPEG) + b"<script>alert(1)</script>",
}


def look(path):
    with quiet():
        inspect(path)
        return decode(path, channels=3, height=16, width=16)


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_are_refused_from_their_headers(case, tmp_path):
    (tmp_path / "x.png").write_bytes(BOMBS[case])
    with pytest.raises(BadImageError, match="more than 100 megapixels|not an image"), quiet():
        inspect(tmp_path / "x.png")
    with pytest.raises(BadImageError, match="more than 100 megapixels|not an image"):
        look(tmp_path / "x.png")


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_image_is_a_bad_one(case, tmp_path, capfd):
    (tmp_path / "x.png").write_bytes(BROKEN[case])
    with pytest.raises(BadImageError):
        look(tmp_path / "x.png")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("case", FINE)
def test_what_is_an_image_and_more_is_that_image(case, tmp_path):
    (tmp_path / "x.png").write_bytes(FINE[case])
    assert look(tmp_path / "x.png").shape == (3, 16, 16)


KINDS = ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"]
KINDS += [kind for kind, extension in (("AVIF", "avif"), ("HEIF", "heic")) if extension in EXTENSIONS]


@pytest.mark.parametrize("kind", KINDS)
def test_files_cut_off_or_with_bytes_changed_are_images_or_bad_ones(kind, tmp_path, noise):
    file = io.BytesIO()
    Image.fromarray(noise(32, 32, 3)).save(file, kind)
    whole = file.getvalue()
    random = np.random.default_rng(0)
    bad = 0
    for k in range(60):
        content = bytearray(whole[: int(random.integers(len(whole)))] if k % 2 else whole)
        for place in random.integers(0, max(1, min(len(content), 200)), 3 if k % 2 == 0 else 0):
            content[place] = random.integers(256)
        (tmp_path / "x.png").write_bytes(content)
        try:
            assert look(tmp_path / "x.png").shape == (3, 16, 16)
        except BadImageError:
            bad += 1
    assert bad > 20


def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 100)
    (tmp_path / "x.png").write_bytes(png())
    look(tmp_path / "x.png")
    assert not decoding._ONE_LARGE.locked()
    (tmp_path / "x.png").write_bytes(png()[:-30])
    with pytest.raises(BadImageError):
        look(tmp_path / "x.png")
    assert not decoding._ONE_LARGE.locked()


# --- folders ---------------------------------------------------------------------------------------------


def test_links_to_themselves_are_no_traceback(two_classes, read, said):
    (two_classes / "cat" / "loop").symlink_to("loop")
    (two_classes / "loop").symlink_to(two_classes / "loop")
    (two_classes / "a").symlink_to(two_classes / "b")
    (two_classes / "b").symlink_to(two_classes / "a")
    (two_classes / "dog" / "up").symlink_to("..")
    assert len(read(two_classes).train) == 6
    (two_classes / "cat" / "loop.png").symlink_to("loop.png")
    with pytest.raises(DataError, match=r"cat/loop\.png: Too many levels of symbolic links"):
        read(two_classes)
    assert read(two_classes, skip_bad=True).train.skipped == ("cat/loop.png",)
    with pytest.raises(DataError, match="loop: no such folder or file"):
        read(two_classes / "loop")


@pytest.mark.parametrize("name", ["d", "long name"])
def test_a_path_1500_folders_deep(two_classes, read, name):
    start = os.open(two_classes / "cat", os.O_RDONLY)
    at, opened = start, []
    try:
        for _ in range(1500):
            os.mkdir(name, dir_fd=at)
            opened.append(at)
            at = os.open(name, os.O_RDONLY, dir_fd=at)
            if len(opened) > 1:
                os.close(opened[-1])
        os.close(at)
        if len(name) * 1500 < 2000:
            assert len(read(two_classes).train) == 6
        else:
            with pytest.raises(DataError, match=r"cannot read the folder .*\.\.\. \(4,\d+ characters\): File name too"):
                read(two_classes)
            with pytest.raises(DataError, match="File name too long"):
                find_images([two_classes])
    finally:
        os.close(start)
        subprocess.run(["rm", "-rf", two_classes / "cat"], check=True)


def test_pipes_sockets_and_devices(two_classes, read, said, tmp_path):
    os.mkfifo(two_classes / "cat" / "pipe.png")
    (two_classes / "cat" / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(os.path.relpath(two_classes / "dog" / "s.png"))
        assert len(read(two_classes).train) == 6
    assert said.lines == [f"{two_classes}: left out: 3 pipes or devices"]
    assert len(find_images([two_classes])) == 6
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(BadImageError, match="not a file but a pipe, a socket or a device"):
            inspect(two_classes / "cat" / name)


def test_folders_to_predict(two_classes, monkeypatch):
    (two_classes / "cat" / ".hidden").mkdir()
    (two_classes / "cat" / ".hidden" / "x.png").write_bytes(b"x")
    (two_classes / "loop").symlink_to("loop")
    (two_classes / "cat" / "up").symlink_to("..")
    wanted = [os.path.join(name, f"{k}.png") for name in ("cat", "dog") for k in range(3)]
    assert [str(path) for path in find_images([two_classes])] == [str(two_classes / name) for name in wanted]
    monkeypatch.chdir(two_classes)
    for start in (".", "./", "cat", "../pets"):
        found = find_images([type(two_classes)(start)])
        assert len(found) == (3 if start == "cat" else 6)
        assert all(path.is_file() and not path.is_absolute() for path in found)


NAMES = {
    "a newline": b"a\nb.png",
    "quotes": b"\"a' <b>&.png",
    "no UTF-8": b"\xff\xfe.png",
    "right to left": "a\u202egnp.exe\u202c.png".encode(),
    "a leading dash": b"--help.png",
    "a formula": b"=cmd|'!A1.png",
    "255 bytes": b"x" * 251 + b".png",
    "an escape": b"\x1b[31mred\x07.png",
    "brackets": b"[red]{}*?$(id)`.png",
}


@pytest.mark.parametrize("case", NAMES)
def test_names_of_files_and_classes(case, two_classes, read):
    name = NAMES[case]
    os.rename(two_classes / "cat", os.path.join(os.fsencode(two_classes), name))
    os.rename(
        os.path.join(os.fsencode(two_classes), name, b"0.png"), os.path.join(os.fsencode(two_classes), name, name)
    )
    train = read(two_classes).train
    assert len(set(train.ids)) == 6
    shown = name.decode("utf-8", "backslashreplace")
    assert f"{shown}/{shown}" in train.ids
    assert shown in train.classes
    for text in (*train.ids, *train.classes):
        assert text.encode()


def test_two_names_that_would_be_written_alike(two_classes, read):
    os.rename(two_classes / "cat" / "0.png", os.path.join(os.fsencode(two_classes), b"cat", b"\xff.png"))
    os.rename(two_classes / "cat" / "1.png", two_classes / "cat" / "\\xff.png")
    with pytest.raises(DataError, match=r"two images are called 'cat/\\\\xff\.png'"):
        read(two_classes)


def test_messages_are_one_line_without_controls():
    assert one_line("a\nb\x1b[31m \u202e é\udcff") == "a b\\x1b[31m \\u202e é\\udcff"


@pytest.mark.timeout(300)  # two processes that import torch
def test_the_command_in_a_hostile_folder(two_classes, tmp_path):
    """One run of the command over names and files of all kinds: it ends well, and its output is plain."""
    for k, name in enumerate(NAMES.values()):
        path = os.path.join(os.fsencode(two_classes), b"cat", name)
        Image.fromarray(np.full((12, 10, 3), k, np.uint8)).save(os.fsdecode(path), "PNG")
    os.mkfifo(two_classes / "cat" / "pipe.png")
    (two_classes / "cat" / "bad\x1b.png").write_bytes(BOMBS["png"])
    command = [sys.executable, "-m", "antibackdoor", "scan", two_classes, "--out", tmp_path / "run", "--epochs", "1"]
    environment = os.environ | {"ANTIBACKDOOR_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"cat/bad\\x1b.png: " in done.stderr
    done = subprocess.run([*command, "--skip-bad"], capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\x1b" not in done.stdout
    text = (tmp_path / "run" / "suspects.csv").read_bytes()
    assert b"\\xff\\xfe.png" in text

"""Formats beside the common ones, and grey of more than 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from antibackdoor.data import formats
from antibackdoor.data.decode import brightest, decode, inspect
from antibackdoor.data.formats import EXTENSIONS, FORMATS


def rgb(path, side):
    return decode(path, channels=3, height=side, width=side).transpose(1, 2, 0)


def test_what_is_read_here():
    assert {"BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"} <= set(FORMATS)
    assert {"gif", "tif", "tiff"} <= set(EXTENSIONS)
    assert ("avif" in EXTENSIONS) == ("AVIF" in FORMATS) == (formats.missing("avif") is None)
    assert ("heic" in EXTENSIONS) == ("HEIF" in FORMATS) == (formats.missing("heic") is None)
    assert formats.missing("txt") is None


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "jpeg"])
def test_tiff(tmp_path, noise, compression):
    values = noise(16, 16, 3)
    Image.fromarray(values).save(tmp_path / "a.tif", compression=compression)
    assert inspect(tmp_path / "a.tif") == (16, 16, False, False)
    if compression != "jpeg":
        np.testing.assert_array_equal(rgb(tmp_path / "a.tif", 16), values)


@pytest.mark.parametrize("name", ["a.gif", "a.tif"])
def test_of_several_frames_the_first_is_taken(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert (rgb(tmp_path / name, 8) == (255, 0, 0)).all()


@pytest.mark.parametrize("extension", ["avif", "heic"])
def test_photographs_of_telephones(tmp_path, extension, read):
    if extension not in EXTENSIONS:
        pytest.skip(f"{extension}: {formats.missing(extension)}")
    for name, colour in (("a", (250, 10, 10)), ("b", (10, 10, 250))):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(2):
            kind = "HEIF" if extension == "heic" else None
            Image.new("RGB", (32, 24), colour).save(tmp_path / "d" / name / f"{i}.{extension}", kind, quality=95)
    train = read(tmp_path / "d").train
    assert train.ids == tuple(f"{name}/{i}.{extension}" for name in "ab" for i in range(2))
    assert train.shape == (3, 24, 32)
    means = train.images.float().mean((2, 3))
    assert (means[:2, 0] > 200).all()
    assert (means[2:, 0] < 60).all()


def test_a_format_that_needs_something_says_so(two_classes, read, said, monkeypatch):
    monkeypatch.setitem(formats._MISSING, "heic", "needs a plugin")
    monkeypatch.setattr("antibackdoor.data.walk.EXTENSIONS", ("png",))
    (two_classes / "cat" / "x.heic").write_bytes(b"x")
    assert len(read(two_classes).train) == 6
    (line,) = said.lines
    assert line.endswith("left out: 1 file of a type that is not read (.heic 1, which needs a plugin)")


# --- more than 8 bits ------------------------------------------------------------------------------------


def wide(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint16)).save(path)


@pytest.fixture
def twelve_bits(tmp_path):
    """Two classes of 16-bit files whose values end at 4000, the highest in one of them only."""
    for k in range(6):
        ramp = np.arange(64).reshape(8, 8) * (4000 // 63 if k == 5 else 20)
        ramp[7, 7] = 4000 if k == 5 else 1260
        wide(tmp_path / "d" / "ab"[k % 2] / f"{k}.{'png' if k < 3 else 'tif'}", ramp)
    return tmp_path / "d"


def test_the_range_of_the_set_is_white(twelve_bits, read, said):
    train = read(twelve_bits).train
    assert train.white == 4095
    assert said.lines == ["6 images of more than 8 bits hold values up to 4,000: 12 bits, so 4,095 is white"]
    for image, name in zip(train.images, train.ids, strict=True):
        values = np.asarray(Image.open(twelve_bits / name)).astype(float)
        np.testing.assert_array_equal(image[0], np.floor(values * 255 / 4095 + 0.5))
    assert read(twelve_bits).train.white == 4095  # from the cache


def test_a_test_set_has_the_white_of_the_training_set(twelve_bits, tmp_path, read):
    wide(tmp_path / "t" / "a" / "x.png", np.full((8, 8), 1000))
    wide(tmp_path / "t" / "a" / "y.png", np.full((8, 8), 60000))
    test = read(twelve_bits, test=tmp_path / "t").test
    assert test is not None
    assert test.white == 4095
    assert test.images[:, 0, 0, 0].tolist() == [62, 255]


def test_a_full_range_goes_without_a_word(tmp_path, read, said):
    for k in range(4):
        wide(tmp_path / "d" / "ab"[k % 2] / f"{k}.png", np.full((8, 8), 65535 if k else 257))
    train = read(tmp_path / "d").train
    assert train.white == 65535
    assert sorted(train.images[:, 0, 0, 0].tolist()) == [1, 255, 255, 255]
    assert said.lines == []


@pytest.mark.parametrize(("highest", "white"), [(0, 255), (200, 255), (256, 511), (1023, 1023), (16000, 16383)])
def test_bits(tmp_path, read, highest, white):
    for k in range(4):
        wide(tmp_path / "d" / "ab"[k % 2] / f"{k}.png", np.full((8, 8), highest))
    assert read(tmp_path / "d").train.white == white


def test_brightest(tmp_path, noise):
    wide(tmp_path / "a.png", np.arange(64).reshape(8, 8))
    Image.fromarray(noise(8, 8)).save(tmp_path / "b.png")
    assert brightest(tmp_path / "a.png") == 63
    assert brightest(tmp_path / "b.png") == 0


def test_floating_point_has_no_white(tmp_path, read):
    for k in range(4):
        (tmp_path / "d" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "d" / "ab"[k % 2] / f"{k}.tif")
    with pytest.raises(Exception, match=r"0\.tif: its pixels are floating point"):
        read(tmp_path / "d")

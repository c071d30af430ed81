from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from antibackdoor.data import decode as module
from antibackdoor.data.decode import BadImageError, decode, inspect, pixels, quiet

WIDTH, HEIGHT = 10, 8


def rgb(path: Path) -> np.ndarray:
    return decode(path, channels=3, height=HEIGHT, width=WIDTH).transpose(1, 2, 0)


def grey(path: Path) -> np.ndarray:
    return decode(path, channels=1, height=HEIGHT, width=WIDTH)[0]


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.ppm", "a.PNG"])
def test_lossless_rgb_is_kept_exactly(tmp_path, noise, name):
    values = noise(HEIGHT, WIDTH, 3)
    Image.fromarray(values).save(tmp_path / name)
    np.testing.assert_array_equal(rgb(tmp_path / name), values)
    assert inspect(tmp_path / name) == (WIDTH, HEIGHT, False, False)


def test_lossless_webp_is_kept_exactly(tmp_path, noise):
    values = noise(HEIGHT, WIDTH, 3)
    Image.fromarray(values).save(tmp_path / "a.webp", lossless=True)
    np.testing.assert_array_equal(rgb(tmp_path / "a.webp"), values)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.pgm"])
def test_grey_is_kept_exactly_and_repeats_as_rgb(tmp_path, noise, name):
    values = noise(HEIGHT, WIDTH)
    Image.fromarray(values).save(tmp_path / name)
    assert inspect(tmp_path / name).grey
    np.testing.assert_array_equal(grey(tmp_path / name), values)
    np.testing.assert_array_equal(rgb(tmp_path / name), np.repeat(values[..., None], 3, axis=2))


def test_one_bit_becomes_black_and_white(tmp_path, noise):
    values = noise(HEIGHT, WIDTH) > 127
    Image.fromarray(values).save(tmp_path / "a.png")
    assert inspect(tmp_path / "a.png").grey
    np.testing.assert_array_equal(grey(tmp_path / "a.png"), values * 255)


@pytest.mark.parametrize("name", ["a.png", "a.pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    values = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    Image.fromarray(values).save(tmp_path / name)
    assert inspect(tmp_path / name).grey
    np.testing.assert_array_equal(grey(tmp_path / name), np.round(values / 257).astype(np.uint8))


def test_palette_gives_its_colours(tmp_path):
    image = Image.new("P", (WIDTH, HEIGHT), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "a.png")
    assert not inspect(tmp_path / "a.png").grey
    assert (rgb(tmp_path / "a.png") == (200, 100, 50)).all()


def test_transparent_palette_lies_over_white(tmp_path):
    image = Image.new("P", (WIDTH, HEIGHT), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=bytes([0, 255]))
    values = rgb(tmp_path / "a.png")
    assert values[0, 0].tolist() == [255, 255, 255]
    assert values[0, 1].tolist() == [200, 100, 50]


def test_rgba_lies_over_white(tmp_path):
    values = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    values[..., 0], values[..., 3] = 200, 51  # alpha one fifth
    values[0, 0, 3] = 0
    Image.fromarray(values).save(tmp_path / "a.png")
    shown = rgb(tmp_path / "a.png")
    assert shown[0, 0].tolist() == [255, 255, 255]
    np.testing.assert_allclose(shown[1, 1], [244, 204, 204], atol=1)


def test_grey_with_alpha_is_grey_over_white(tmp_path, noise):
    values = np.stack([noise(HEIGHT, WIDTH), np.full((HEIGHT, WIDTH), 255, np.uint8)], axis=2)
    values[0, 0] = (7, 0)
    bands = [Image.fromarray(np.ascontiguousarray(values[..., k])) for k in range(2)]
    Image.merge("LA", bands).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        assert stored.mode == "LA"
    assert inspect(tmp_path / "a.png").grey
    shown = grey(tmp_path / "a.png")
    assert shown[0, 0] == 255
    np.testing.assert_array_equal(shown[1:], values[1:, :, 0])


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    assert not inspect(tmp_path / "a.jpg").grey
    np.testing.assert_allclose(rgb(tmp_path / "a.jpg")[4, 4], [255, 0, 0], atol=8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    values = np.zeros((16, 32, 3), np.uint8)
    values[:8, :16] = 255
    stored = Image.fromarray(values)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    turn = module.TURNS.get(orientation)
    upright = np.asarray(stored if turn is None else stored.transpose(turn))
    height, width = upright.shape[:2]
    assert inspect(tmp_path / "a.jpg") == (width, height, False, False)
    shown = decode(tmp_path / "a.jpg", channels=3, height=height, width=width).transpose(1, 2, 0)
    np.testing.assert_array_equal(shown > 127, upright > 127)


def test_orientation_six_is_a_quarter_turn_clockwise(tmp_path):
    values = np.zeros((16, 32), np.uint8)
    values[:, :16] = 255  # left half white: on top once turned clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "a.jpg", exif=exif)
    shown = decode(tmp_path / "a.jpg", channels=1, height=32, width=16)[0]
    assert (shown[:14] > 127).all()
    assert (shown[18:] < 127).all()


def test_damaged_exif_leaves_the_image_upright(tmp_path, noise):
    Image.fromarray(noise(HEIGHT, WIDTH, 3)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff junk")
    with quiet():
        assert inspect(tmp_path / "a.jpg") == (WIDTH, HEIGHT, False, False)
        assert rgb(tmp_path / "a.jpg").shape == (HEIGHT, WIDTH, 3)


def test_large_jpeg_shrinks_to_its_mean_colours(tmp_path):
    values = np.zeros((600, 800, 3), np.uint8)
    values[:, 400:] = (250, 120, 10)
    Image.fromarray(values).save(tmp_path / "a.jpg", quality=95)
    shown = decode(tmp_path / "a.jpg", channels=3, height=16, width=16)
    np.testing.assert_allclose(shown[:, 8, 12], [250, 120, 10], atol=4)
    np.testing.assert_allclose(shown[:, 8, 3], 0, atol=4)


def test_shrinking_averages_instead_of_dropping_pixels():
    board = np.indices((64, 64)).sum(0) % 2 * 255
    image = Image.fromarray(board.astype(np.uint8))
    np.testing.assert_allclose(pixels(image, channels=1, height=8, width=8), 127.5, atol=2)


def test_luma_is_used_for_grey_of_colour():
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    assert (pixels(image, channels=1, height=8, width=8) == 76).all()


def test_extension_does_not_decide_the_format(tmp_path, noise):
    values = noise(HEIGHT, WIDTH, 3)
    Image.fromarray(values).save(tmp_path / "real.png")
    (tmp_path / "real.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(rgb(tmp_path / "a.jpg"), values)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n broken"])
def test_garbage_is_a_bad_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BadImageError, match="not an image"):
        inspect(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.ppm", "a.webp"])
def test_truncated_is_a_bad_image(tmp_path, noise, name):
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadImageError):
        decode(tmp_path / name, channels=3, height=64, width=64)


def test_missing_file_is_a_bad_image(tmp_path):
    with pytest.raises(BadImageError, match="No such file"):
        inspect(tmp_path / "gone.png")


@pytest.mark.parametrize("side", [10_001, 20_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_from_the_header(tmp_path, side):
    # Only the header is written: decoding it would fail otherwise.
    (tmp_path / "a.pgm").write_bytes(f"P5 {side} {side} 255\n".encode())
    for attempt in (inspect, lambda path: decode(path, channels=1, height=8, width=8)):
        with pytest.raises(BadImageError, match="more than 100 megapixels"):
            attempt(tmp_path / "a.pgm")


def test_other_formats_are_not_opened(tmp_path, noise):
    Image.fromarray(noise(HEIGHT, WIDTH, 3)).save(tmp_path / "real.tga")
    (tmp_path / "real.tga").rename(tmp_path / "a.png")
    with pytest.raises(BadImageError, match="not an image"):
        inspect(tmp_path / "a.png")

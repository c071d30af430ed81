from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from antibackdoor.data import walk
from antibackdoor.data.folder import scan
from antibackdoor.data.reader import Reader
from antibackdoor.errors import ConfigError, DataError


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def fill(root, sizes, noise, channels=(3,)):
    for name in ("a", "b"):
        for i, (width, height) in enumerate(sizes):
            save(root / name / f"{i}.png", noise(height, width, *channels, seed=i))
    return root


# --- what is found, and in which order -------------------------------------------------------------------


def test_classes_ids_and_labels_are_sorted(two_classes, read):
    train = read(two_classes).train
    assert train.classes == ("cat", "dog")
    assert train.ids == ("cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png", "dog/2.png")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.labels.dtype == torch.int64
    assert train.images.shape == (6, 3, 12, 10)
    assert train.images.dtype == torch.uint8
    assert train.images.is_contiguous()
    for image, name in zip(train.images, train.ids, strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0), np.asarray(Image.open(two_classes / name)))


def test_nested_folders_belong_to_their_class(two_classes, noise, read):
    save(two_classes / "cat" / "2024" / "june" / "x.png", noise(12, 10, 3))
    train = read(two_classes).train
    assert "cat/2024/june/x.png" in train.ids
    assert train.labels[train.ids.index("cat/2024/june/x.png")] == 0


def test_hidden_and_other_files_are_ignored(two_classes, noise, read):
    save(two_classes / ".thumbs" / "x.png", noise(12, 10, 3))
    save(two_classes / "cat" / ".x.png", noise(12, 10, 3))
    save(two_classes / "cat" / ".hidden" / "x.png", noise(12, 10, 3))
    (two_classes / "cat" / "notes.txt").write_text("no image")
    (two_classes / "manifest.csv").write_text("id,label\n")
    assert len(read(two_classes).train) == 6


def test_the_manifest_that_poison_writes_is_not_reported_as_left_out(two_classes):
    table = two_classes / walk.TRUTH
    header = ",".join(walk.TRUTH_COLUMNS)

    def told() -> list[str]:
        lines: list[str] = []
        assert len(scan(two_classes, say=lines.append)) == 6
        return lines

    for ours in (header, header.removesuffix(",source")):
        table.write_text(f"{ours}\ncat/0.png,cat,cat,0,0,cat/0.png\n")
        assert told() == []
    counted = [f"{two_classes}: left out: 1 file of a type that is not read (.csv 1)"]
    for other in (b"id,label\n", f"{header},more\n".encode(), f"{header}{'x' * 1000}".encode(), b"", b"\xff\xfe"):
        table.write_bytes(other)
        assert told() == counted
    table.rename(two_classes / "truth.csv").write_text(f"{header}\n")
    assert told() == counted


def test_train_and_test_folders(two_classes, noise, read):
    base = two_classes.parent / "split"
    base.mkdir()
    two_classes.rename(base / "train")
    (base / "train" / "manifest.csv").write_text("id,label\n")
    save(base / "test" / "dog" / "t.png", noise(30, 30, 3))
    loaded = read(base)
    assert loaded.train.ids[0] == "train/cat/0.png"
    assert loaded.test is not None
    assert loaded.test.ids == ("test/dog/t.png",)
    assert loaded.test.classes == ("cat", "dog")
    assert loaded.test.labels.tolist() == [1]
    assert loaded.test.images.shape == (1, 3, 12, 10)


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation", "dev", "Val"])
def test_what_a_test_folder_may_be_called(two_classes, noise, read, name, said):
    base = two_classes.parent / "split"
    base.mkdir()
    two_classes.rename(base / "Train")
    save(base / name / "dog" / "t.png", noise(12, 10, 3))
    loaded = read(base)
    assert loaded.train.ids[0] == "Train/cat/0.png"
    assert loaded.test is not None
    assert loaded.test.ids == (f"{name}/dog/t.png",)
    assert said.lines == []


def test_parts_that_are_not_used_are_named(two_classes, noise, read, said):
    base = two_classes.parent / "split"
    base.mkdir()
    two_classes.rename(base / "train")
    for name in ("val", "test", "extra"):
        save(base / name / "dog" / "t.png", noise(12, 10, 3))
    loaded = read(base)
    assert loaded.test is not None
    assert loaded.test.ids == ("test/dog/t.png",)
    assert said.lines == [
        f"{base / 'extra'} is not used: train/ is",
        f"{base / 'val'} is not used: test/ is",
    ]


def test_parts_without_one_to_train_on(two_classes, noise, read):
    base = two_classes.parent / "split"
    base.mkdir()
    two_classes.rename(base / "test")
    save(base / "val" / "dog" / "t.png", noise(12, 10, 3))
    with pytest.raises(DataError, match="split: test/ and val/, but no train/ to train on"):
        read(base)


def test_a_class_may_be_called_train(two_classes, read):
    (two_classes / "cat").rename(two_classes / "train")
    assert read(two_classes).train.classes == ("dog", "train")


def test_a_test_folder_without_classes_is_named(two_classes, noise, read, said):
    base = two_classes.parent / "split"
    base.mkdir()
    two_classes.rename(base / "train")
    save(base / "test" / "t.png", noise(12, 10, 3))
    assert read(base).test is None
    assert any("test is not used" in line for line in said.lines)


def test_links_in_a_circle_end(two_classes, read):
    (two_classes / "cat" / "self").symlink_to(two_classes / "cat")
    (two_classes / "cat" / "up").symlink_to(two_classes)
    assert len(read(two_classes).train) == 6


def test_linked_class_is_followed(two_classes, tmp_path, noise, read):
    for i in range(2):
        save(tmp_path / "elsewhere" / f"{i}.png", noise(12, 10, 3, seed=i))
    (two_classes / "fox").symlink_to(tmp_path / "elsewhere")
    assert read(two_classes).train.ids[-1] == "fox/1.png"


def test_pipes_are_not_read(two_classes, read):
    os.mkfifo(two_classes / "cat" / "pipe.png")
    assert len(read(two_classes).train) == 6


def test_a_name_that_is_not_utf8_is_escaped(two_classes, read):
    os.rename(two_classes / "cat" / "0.png", os.fsencode(two_classes / "cat") + b"/\xff.png")
    assert "cat/\\xff.png" in read(two_classes).train.ids


# --- size and channels -----------------------------------------------------------------------------------


def test_one_size_is_kept_without_a_word(tmp_path, noise, read, said):
    assert read(fill(tmp_path / "d", [(40, 24)] * 2, noise)).train.shape == (3, 24, 40)
    assert said.lines == []


def test_mixed_sizes_take_the_nearest_common_side(tmp_path, noise, read, said):
    root = fill(tmp_path / "d", [(15, 25), (41, 44), (48, 48)], noise)
    assert read(root).train.shape == (3, 48, 48)
    assert said.lines == [
        "images come in 3 sizes (15x25 to 48x48, median shorter side 41); all are resized to 48x48; "
        "--image-size N changes it"
    ]


def test_large_images_shrink(tmp_path, noise, read, said):
    root = fill(tmp_path / "d", [(300, 200)] * 2, noise)
    assert read(root).train.shape == (3, 128, 128)
    assert said.lines == ["images are 300x200; all are resized to 128x128; --image-size N changes it"]


def test_image_size_is_obeyed(tmp_path, noise, read):
    root = fill(tmp_path / "d", [(300, 200), (20, 20)], noise)
    assert read(root, image_size=20).train.shape == (3, 20, 20)


@pytest.mark.parametrize("size", [7, 1025, 0, -3])
def test_image_size_out_of_range(two_classes, read, size):
    with pytest.raises(ConfigError, match=f"image_size: {size} is outside 8 to 1024"):
        read(two_classes, image_size=size)


def test_tiny_images_need_a_size(tmp_path, noise, read):
    root = fill(tmp_path / "d", [(4, 6)] * 2, noise)
    with pytest.raises(DataError, match="4x6; at least 8x8"):
        read(root)
    assert read(root, image_size=8).train.shape == (3, 8, 8)


def test_all_grey_stays_grey_and_one_colour_image_makes_all_rgb(tmp_path, noise, read):
    root = fill(tmp_path / "d", [(10, 10)] * 2, noise, channels=())
    assert read(root).train.shape == (1, 10, 10)
    save(root / "a" / "colour.png", noise(10, 10, 3))
    assert read(root).train.shape == (3, 10, 10)


def test_test_set_takes_the_channels_of_the_training_set(tmp_path, noise, read):
    root = fill(tmp_path / "d", [(10, 10)] * 2, noise, channels=())
    save(tmp_path / "t" / "b" / "x.png", noise(20, 20, 3))
    loaded = read(root, test=tmp_path / "t")
    assert loaded.test is not None
    assert loaded.test.shape == (1, 10, 10)
    assert loaded.test.ids == ("b/x.png",)
    assert loaded.test.labels.tolist() == [1]


# --- what is refused -------------------------------------------------------------------------------------


def test_no_such_folder(tmp_path, read):
    with pytest.raises(DataError, match="no such folder or file"):
        read(tmp_path / "gone")


def test_a_file_that_is_no_npz(tmp_path, read):
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"a file, but not a \.npz or a table"):
        read(tmp_path / "x.zip")


def test_no_images(tmp_path, read):
    (tmp_path / "d" / "a").mkdir(parents=True)
    message = r"no images found \(class folders without files: a\).*bmp, gif, .*jpeg, jpg, pgm, png, ppm, tif"
    with pytest.raises(DataError, match=message):
        read(tmp_path / "d")


def test_images_without_class_folders(tmp_path, noise, read):
    save(tmp_path / "d" / "x.png", noise(10, 10))
    with pytest.raises(DataError, match="one subfolder a class"):
        read(tmp_path / "d")


def test_an_empty_class_is_left_out_with_a_word(two_classes, read, said):
    (two_classes / "fox").mkdir()
    (two_classes / "bat" / "deep").mkdir(parents=True)
    assert read(two_classes).train.classes == ("cat", "dog")
    assert said.lines == [f"{two_classes}: left out: class folders without files: bat, fox"]


def test_a_class_of_files_that_are_not_read(two_classes, read):
    (two_classes / "fox").mkdir()
    for name in ("a.txt", "b.TXT", "c"):
        (two_classes / "fox" / name).write_bytes(b"x")
    message = r"class folder 'fox' holds no images but 3 files of types that are not read \(\.txt 2, no extension 1\)"
    with pytest.raises(DataError, match=message):
        read(two_classes)


def test_what_is_left_out_is_named_and_counted(two_classes, read, said, noise):
    for name in ("notes.txt", "clip.mp4", "a.txt", ".hidden.png", ".DS_Store", "Thumbs.db", "clip.xyz"):
        (two_classes / "cat" / name).write_bytes(b"x")
    save(two_classes / "__MACOSX" / "cat" / "x.png", noise(10, 10))
    save(two_classes / "cat" / "__MACOSX" / "x.png", noise(10, 10))
    os.mkfifo(two_classes / "dog" / "pipe.png")
    (two_classes / "readme").write_bytes(b"x")
    assert len(read(two_classes).train) == 6
    assert said.lines == [
        f"{two_classes}: left out: 5 files of types that are not read (.txt 2, no extension 1, .mp4 1, .xyz 1); "
        "1 hidden files or folders; 1 pipes or devices; .DS_Store, Thumbs.db, __MACOSX"
    ]


def test_one_class(tmp_path, noise, read):
    save(tmp_path / "d" / "a" / "x.png", noise(10, 10))
    with pytest.raises(DataError, match=r"only one class \(a\); at least 2"):
        read(tmp_path / "d")


def test_a_class_with_one_image(two_classes, noise, read):
    save(two_classes / "fox" / "x.png", noise(12, 10, 3))
    with pytest.raises(DataError, match="class 'fox' has one image; at least 2"):
        read(two_classes)


def test_a_folder_that_cannot_be_listed(two_classes, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(walk.os, "scandir", refuse)
    with pytest.raises(DataError, match="cannot read the folder .*: Permission denied"):
        scan(two_classes)


def test_test_classes_must_be_known(two_classes, tmp_path, noise, read):
    save(tmp_path / "t" / "fox" / "x.png", noise(12, 10, 3))
    with pytest.raises(DataError, match="class 'fox' is not in the training data.*Known: cat, dog"):
        read(two_classes, test=tmp_path / "t")


# --- bad images ------------------------------------------------------------------------------------------


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - len(content) // 3])


def test_the_first_bad_image_is_named(two_classes, read):
    (two_classes / "cat" / "1.png").write_bytes(b"no image")
    (two_classes / "dog" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/1\.png: not an image.* \(2 bad so far\).*--skip-bad"):
        read(two_classes)


def test_a_truncated_image_is_named(two_classes, read):
    truncate(two_classes / "dog" / "0.png")
    with pytest.raises(DataError, match=r"dog/0\.png: .*--skip-bad leaves"):
        read(two_classes)


def test_a_broken_link_is_named(two_classes, read):
    (two_classes / "dog" / "gone.png").symlink_to(two_classes / "nowhere.png")
    with pytest.raises(DataError, match=r"dog/gone\.png: No such file"):
        read(two_classes)


def test_skip_bad_leaves_them_out_and_lists_them(two_classes, noise, read):
    (two_classes / "cat" / "0.png").write_bytes(b"no image")  # known from the header
    truncate(two_classes / "dog" / "1.png")  # known once decoded
    train = read(two_classes, skip_bad=True).train
    assert train.skipped == ("cat/0.png", "dog/1.png")
    assert train.ids == ("cat/1.png", "cat/2.png", "dog/0.png", "dog/2.png")
    assert train.labels.tolist() == [0, 0, 1, 1]
    for image, name in zip(train.images, train.ids, strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0), np.asarray(Image.open(two_classes / name)))


def test_too_few_left_after_skipping(two_classes, read):
    (two_classes / "cat" / "0.png").write_bytes(b"no image")
    truncate(two_classes / "cat" / "1.png")
    with pytest.raises(DataError, match="class 'cat' has one image"):
        read(two_classes, skip_bad=True)


def test_none_left_after_skipping(two_classes, read):
    for file in two_classes.rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 6 images can be read"):
        read(two_classes, skip_bad=True)


def test_a_bomb_is_named_without_a_warning(two_classes, read):
    (two_classes / "cat" / "bomb.pgm").write_bytes(b"P5 10001 10001 255\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"cat/bomb\.pgm: 10001x10001 is more than 100 megapixels"):
            read(two_classes)


def test_pillow_warnings_do_not_leak(two_classes, read):
    (two_classes / "cat" / "large.pgm").write_bytes(b"P5 9900 9500 255\n")  # warned of, then truncated
    with pytest.raises(DataError, match=r"cat/large\.pgm"):
        read(two_classes)


def test_many_files_keep_their_order(tmp_path, noise, reader: Reader):
    for i in range(150):
        save(tmp_path / "d" / "ab"[i % 2] / f"{i:03d}.png", np.full((8, 8), i, np.uint8))
    data = reader.read(scan(tmp_path / "d"))
    assert [int(image[0, 0, 0]) for image in data.images] == [int(name[2:5]) for name in data.ids]

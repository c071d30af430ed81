from __future__ import annotations

import errno
import json
import os
import time

import numpy as np
import pytest
from PIL import Image

from antibackdoor.data import cache, reader
from antibackdoor.data.cache import default_cache_dir
from antibackdoor.errors import ConfigError, DataError, StorageError
from antibackdoor.progress import SILENT


@pytest.fixture
def no_decoding(monkeypatch):
    def activate():
        def fail(*args, **kwargs):
            raise AssertionError("decoded although the cache holds it")

        monkeypatch.setattr(reader, "decode", fail)
        monkeypatch.setattr(reader, "inspect", fail)

    return activate


def entry_of(cache_dir):
    (entry,) = cache_dir.iterdir()
    return entry


def test_second_load_does_not_decode(two_classes, read, said, cache_dir, no_decoding):
    first = read(two_classes).train
    no_decoding()
    second = read(two_classes).train
    assert (first.images == second.images).all()
    assert (first.labels == second.labels).all()
    assert (first.ids, first.classes, first.skipped) == (second.ids, second.classes, second.skipped)
    assert said.lines == [f"6 images of 10x12 taken from the cache ({entry_of(cache_dir)})"]


def test_a_moved_folder_is_found_again(two_classes, read, no_decoding):
    read(two_classes)
    no_decoding()
    assert len(read(two_classes.rename(two_classes.parent / "moved")).train) == 6


def test_a_pixel_changed_behind_the_same_size_and_time_is_seen(tmp_path, read):
    file = tmp_path / "d" / "a" / "0.bmp"
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "d" / name / f"{i}.bmp")
    before = file.stat()
    assert read(tmp_path / "d").train.images.sum() == 0
    content = bytearray(file.read_bytes())
    content[-1] = 9
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert read(tmp_path / "d").train.images.sum() == 9


def test_a_file_moved_to_another_class_is_seen(two_classes, read):
    assert read(two_classes).train.labels.sum() == 3
    (two_classes / "dog" / "0.png").rename(two_classes / "cat" / "9.png")
    assert read(two_classes).train.labels.sum() == 2


def test_settings_make_entries_of_their_own(two_classes, read, cache_dir):
    read(two_classes)
    assert read(two_classes, image_size=16).train.shape == (3, 16, 16)
    assert read(two_classes).train.shape == (3, 12, 10)
    assert len(list(cache_dir.iterdir())) == 2


def truncate_images(entry):
    os.truncate(entry / "images.u8", 100)


def break_json(entry):
    (entry / "meta.json").write_text("{")


def forget_labels(entry):
    meta = json.loads((entry / "meta.json").read_text())
    (entry / "meta.json").write_text(json.dumps({**meta, "labels": meta["labels"][1:]}))


def label_beyond_classes(entry):
    meta = json.loads((entry / "meta.json").read_text())
    (entry / "meta.json").write_text(json.dumps({**meta, "labels": [7] * 6}))


def replace_json_by_a_list(entry):
    (entry / "meta.json").write_text("[]")


def other_format(entry):
    meta = json.loads((entry / "meta.json").read_text())
    (entry / "meta.json").write_text(json.dumps({**meta, "format": 0}))


def remove_images(entry):
    (entry / "images.u8").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        truncate_images,
        break_json,
        forget_labels,
        label_beyond_classes,
        replace_json_by_a_list,
        other_format,
        remove_images,
    ],
)
def test_a_damaged_entry_is_rebuilt(two_classes, read, said, cache_dir, damage):
    expected = read(two_classes).train.images.clone()
    damage(entry_of(cache_dir))
    assert (read(two_classes).train.images == expected).all()
    assert said.lines == []
    read(two_classes)
    assert len(said.lines) == 1


def test_a_failing_decode_leaves_nothing_behind(two_classes, read, cache_dir, monkeypatch):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(reader, "decode", fail)
    with pytest.raises(KeyboardInterrupt):
        read(two_classes)
    assert list(cache_dir.iterdir()) == []


def test_a_bad_image_leaves_nothing_behind(two_classes, read, cache_dir):
    content = (two_classes / "dog" / "2.png").read_bytes()
    (two_classes / "dog" / "2.png").write_bytes(content[:-200])
    with pytest.raises(DataError):
        read(two_classes)
    assert list(cache_dir.iterdir()) == []


def test_what_a_kill_left_is_removed_after_a_day(two_classes, read, cache_dir):
    old, fresh = cache_dir / ".building-old", cache_dir / ".building-fresh"
    old.mkdir(parents=True)
    fresh.mkdir()
    os.utime(old, (time.time() - 90_000,) * 2)
    read(two_classes)
    assert not old.exists()
    assert fresh.exists()


def test_a_full_disk_while_writing(two_classes, read, cache_dir, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(StorageError, match="no space left for the decoded images.*ANTIBACKDOOR_CACHE"):
        read(two_classes)
    assert list(cache_dir.iterdir()) == []


def test_a_full_disk_is_known_before_the_work(two_classes, read, cache_dir, monkeypatch, no_decoding):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(StorageError, match="no space left"):
        read(two_classes)


def test_a_cache_that_cannot_be_made(two_classes, tmp_path, read):
    (tmp_path / "cache").write_text("a file where the cache should be")
    with pytest.raises(StorageError, match="cannot write the image cache.*ANTIBACKDOOR_CACHE"):
        read(two_classes)


def test_another_process_may_be_first(cache_dir):
    meta = cache.Meta((2, 1, 1, 2), (0, 1), ("a", "b"), ("x", "y"), (), 65535)

    def write(stream):
        stream.write(b"\1\2\3\4")
        return meta

    def write_late(stream):
        cache.store(cache_dir, "key", 4, write)
        return write(stream)

    cache.store(cache_dir, "key", 4, write_late)
    assert [entry.name for entry in cache_dir.iterdir()] == ["key"]
    found = cache.fetch(cache_dir, "key")
    assert found is not None
    assert found[0] == meta
    assert found[1].flatten().tolist() == [1, 2, 3, 4]


def test_the_mapping_is_private(cache_dir):
    meta = cache.Meta((1, 1, 1, 2), (0,), ("a",), ("x",), (), 65535)
    cache.store(cache_dir, "key", 2, lambda stream: stream.write(b"\1\2") and meta)
    images = cache.fetch(cache_dir, "key")[1]
    images.fill_(9)
    assert (cache_dir / "key" / "images.u8").read_bytes() == b"\1\2"


def test_key_depends_on_paths_contents_and_settings(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"1")
    (tmp_path / "c").write_bytes(b"2")
    keys = {
        cache.content_key(tmp_path, files, settings, SILENT)
        for files, settings in ((["a"], "s"), (["b"], "s"), (["c"], "s"), (["a"], "t"), (["a", "b"], "s"))
    }
    assert len(keys) == 5
    assert cache.content_key(tmp_path, ["a"], "s", SILENT) in keys


def test_default_place(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ANTIBACKDOOR_CACHE", raising=False)
    assert default_cache_dir() == tmp_path / ".cache" / "antibackdoor"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "antibackdoor"
    monkeypatch.setenv("ANTIBACKDOOR_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"


META = cache.Meta((1, 1, 1, 1000), (0,), ("a",), ("x",), (), 65535)
KEYS = ["a" * 64, "b" * 64, "c" * 64]
HOUR, KIB = 3600, 2**-20  # KIB: a KiB in GiB


def put(cache_dir, key, *, hours=2.0):
    """Make an entry of a little more than 1,000 bytes that was last used some hours ago."""
    cache.store(cache_dir, key, 1000, lambda stream: stream.write(b"\1" * 1000) and META)
    os.utime(cache_dir / key, (time.time() - hours * HOUR,) * 2)


def names(cache_dir):
    return sorted(path.name for path in cache_dir.iterdir())


def test_the_least_recently_used_entries_make_room(cache_dir, monkeypatch):
    put(cache_dir, KEYS[0], hours=3)
    put(cache_dir, KEYS[1], hours=4)
    monkeypatch.setenv("ANTIBACKDOOR_CACHE_GB", str(2.5 * KIB))
    put(cache_dir, KEYS[2])
    assert names(cache_dir) == [KEYS[0], KEYS[2]]


def test_use_is_what_counts(cache_dir, monkeypatch):
    put(cache_dir, KEYS[0], hours=4)
    put(cache_dir, KEYS[1], hours=3)
    assert cache.fetch(cache_dir, KEYS[0]) is not None
    monkeypatch.setenv("ANTIBACKDOOR_CACHE_GB", str(2.5 * KIB))
    put(cache_dir, KEYS[2])
    assert names(cache_dir) == [KEYS[0], KEYS[2]]


def test_an_entry_in_use_stays_whatever_the_limit(cache_dir, monkeypatch):
    monkeypatch.setenv("ANTIBACKDOOR_CACHE_GB", "0")
    put(cache_dir, KEYS[0], hours=0.5)
    put(cache_dir, KEYS[1], hours=0.5)
    assert names(cache_dir) == KEYS[:2]
    put(cache_dir, KEYS[0], hours=2)
    put(cache_dir, KEYS[2])
    assert names(cache_dir) == KEYS[1:]


def test_what_is_not_an_entry_stays(cache_dir, monkeypatch):
    others = [cache_dir / "photos", cache_dir / ("d" * 63), cache_dir / ("e" * 64)]
    for other in others:
        other.mkdir(parents=True)
        (other / "mine.txt").write_text("mine" * 1000)
        os.utime(other, (0, 0))
    monkeypatch.setenv("ANTIBACKDOOR_CACHE_GB", "0")
    put(cache_dir, KEYS[0])
    assert all((other / "mine.txt").exists() for other in others)


def test_nothing_is_deleted_below_the_limit(cache_dir, monkeypatch):
    monkeypatch.delenv("ANTIBACKDOOR_CACHE_GB", raising=False)
    for key in KEYS:
        put(cache_dir, key, hours=1000)
    assert names(cache_dir) == KEYS


@pytest.mark.parametrize("size", ["many", "-1", "nan"])
def test_a_limit_that_is_no_size(two_classes, read, monkeypatch, size):
    monkeypatch.setenv("ANTIBACKDOOR_CACHE_GB", size)
    with pytest.raises(ConfigError, match=f"ANTIBACKDOOR_CACHE_GB: .*got '{size}'"):
        read(two_classes)

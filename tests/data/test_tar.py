"""Tar files as WebDataset lays them out."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from antibackdoor.data import opening, tar
from antibackdoor.data.shards import is_pattern, shards_of_pattern
from antibackdoor.errors import DataError


def png(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def write(path, members):
    """Write a tar of (name, bytes) and of ready headers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                file.addfile(member)
                continue
            name, content = member
            header = tarfile.TarInfo(name)
            header.size = len(content)
            file.addfile(header, io.BytesIO(content))
    return path


@pytest.fixture
def samples(noise):
    """Members of four samples, two a class, with ids 0 to 3 and pixels by the id."""

    def make(label=lambda k: (f"{k}.cls", b"dog" if k % 2 else b"cat\n"), first=0):
        pairs = [[(f"{k}.png", png(noise(12, 10, 3, seed=k))), label(k)] for k in range(first, first + 4)]
        return [member for pair in pairs for member in pair]

    return make


def test_one_file(tmp_path, samples, read, noise):
    train = read(write(tmp_path / "a.tar", samples())).train
    assert train.ids == tuple(f"a.tar/{k}.png" for k in range(4))
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == [0, 1, 0, 1]
    for k in range(4):
        np.testing.assert_array_equal(train.images[k].permute(1, 2, 0), noise(12, 10, 3, seed=k))


def test_labels_in_json_by_number(tmp_path, samples, read):
    def label(k):
        return f"{k}.json", json.dumps({"label": 10 - k % 2, "caption": "x"}).encode()

    train = read(write(tmp_path / "a.tar", samples(label))).train
    assert train.classes == ("9", "10")
    assert train.labels.tolist() == [1, 0, 1, 0]


def test_a_folder_with_parts(tmp_path, samples, read, said):
    for name, first in (("train-000", 0), ("train-001", 4), ("val-000", 8), ("extra-000", 12)):
        write(tmp_path / "d" / f"set-{name}.tar", samples(first=first))
    loaded = read(tmp_path / "d")
    assert len(loaded.train) == 8
    assert loaded.train.ids[4] == "set-train-001.tar/4.png"
    assert loaded.test is not None
    assert loaded.test.ids[0] == "set-val-000.tar/8.png"
    assert said.lines == [f"{tmp_path / 'd'}: 1 of 4 files are not used, of the split ''"]


def test_parts_in_folders(tmp_path, samples, read):
    write(tmp_path / "d" / "train" / "0.tar", samples())
    write(tmp_path / "d" / "test" / "0.tar", samples(first=8))
    loaded = read(tmp_path / "d")
    assert loaded.train.ids[0] == "train/0.tar/0.png"
    assert loaded.test is not None
    assert loaded.test.ids[0] == "test/0.tar/8.png"


def test_patterns(tmp_path, samples, read):
    for i in range(3):
        write(tmp_path / f"s-{i:03d}.tar", samples(first=4 * i))
    assert len(read(f"{tmp_path}/s-{{000..001}}.tar").train) == 8
    assert len(read(f"{tmp_path}/s-*.tar").train) == 12
    loaded = read(f"{tmp_path}/s-{{000,001}}.tar", test=f"{tmp_path}/s-002.tar")
    assert loaded.test is not None
    assert loaded.test.ids[0] == "s-002.tar/8.png"


def test_braces(tmp_path):
    for name in ("a-8.tar", "a-9.tar", "a-10.tar", "b-8.tar", "b-9.tar", "b-10.tar"):
        (tmp_path / name).touch()
    found = shards_of_pattern(f"{tmp_path}/{{b,a}}-{{8..10}}.tar").files
    assert found == ("b-8.tar", "b-9.tar", "b-10.tar", "a-8.tar", "a-9.tar", "a-10.tar")
    (tmp_path / "x{1..2}.tar").touch()
    assert not is_pattern(f"{tmp_path}/x{{1..2}}.tar")
    for pattern, message in (
        ("s-{0..9999999}.tar", "must rise, by at most 100,000"),
        ("s-{5..2}.tar", "must rise"),
        ("s-{0..999}-{0..999}.tar", "stands for 1,000,000 files"),
        ("a-{8..11}.tar", r"a-11\.tar: no such file"),
        ("c-*.tar", r"c-\*\.tar: no such file"),
    ):
        with pytest.raises(DataError, match=message):
            shards_of_pattern(f"{tmp_path}/{pattern}")


def test_the_only_image_may_have_a_longer_ending(tmp_path, samples, read):
    members = [(name.replace(".png", ".input.png"), content) for name, content in samples()]
    assert read(write(tmp_path / "a.tar", members)).train.ids[0] == "a.tar/0.input.png"
    with_masks = [(f"{k}.mask.png", b"x") for k in range(4)]
    mixed = sorted([*samples(), *with_masks], key=lambda member: member[0])
    assert read(write(tmp_path / "b.tar", mixed)).train.ids[0] == "b.tar/0.png"


def test_long_names_folders_and_samples_without_an_image(tmp_path, samples, read, said):
    deep = "x" * 90 + "/" + "y" * 120
    folder = tarfile.TarInfo("d")
    folder.type = tarfile.DIRTYPE
    members = [folder, ("notes.txt", b"x")]
    members += [(f"{deep}/{name}", content) for name, content in samples()]
    train = read(write(tmp_path / "a.tar", members)).train
    assert train.ids[0] == f"a.tar/{deep}/0.png"
    assert said.lines == [f"{tmp_path / 'a.tar'}: 1 samples without an image are left out"]


def link(kind):
    header = tarfile.TarInfo("9.png")
    header.type, header.linkname = kind, "/etc/passwd"
    return header


REFUSED = {
    "a symbolic link": (lambda own: [*own, link(tarfile.SYMTYPE)], "'9.png' is a link"),
    "a hard link": (lambda own: [*own, link(tarfile.LNKTYPE)], "'9.png' is a link"),
    "a device": (lambda own: [*own, link(tarfile.CHRTYPE)], "'9.png' is no plain file"),
    "a pipe": (lambda own: [*own, link(tarfile.FIFOTYPE)], "'9.png' is no plain file"),
    "no label": (lambda own: [*own, ("9.png", b"x")], "'9.png' has no label; expected a member ending in cls"),
    "an empty label": (lambda own: [*own, ("9.png", b"x"), ("9.cls", b"")], "'9.cls' is empty"),
    "a blank label": (lambda own: [*own, ("9.png", b"x"), ("9.cls", b" \n")], r"a\.tar/9\.png: no label"),
    "a label of megabytes": (lambda own: [*own, ("9.png", b"x"), ("9.cls", b"1" * 2**21)], "which is no label"),
    "a label that is no text": (lambda own: [*own, ("9.png", b"x"), ("9.cls", b"\xff\xfe\xfd")], "cannot be read"),
    "JSON that is none": (lambda own: [*own, ("9.png", b"x"), ("9.json", b"{")], "'9.json' cannot be read"),
    "JSON without end": (lambda own: [*own, ("9.png", b"x"), ("9.json", b"[" * 10**5)], "'9.json' cannot be read"),
    "JSON without label": (lambda own: [*own, ("9.png", b"x"), ("9.json", b'{"a": 1}')], "holds no label; expected"),
    "JSON of true": (lambda own: [*own, ("9.png", b"x"), ("9.json", b"true")], "holds no label"),
    "two images": (lambda own: [*own, ("9.png", b"x"), ("9.jpg", b"x")], "2 images, 9.png and 9.jpg"),
    "a name twice": (lambda own: [*own, ("9.png", b"x"), ("9.PNG", b"x")], "two members are called '9.PNG'"),
    "a sample twice": (lambda own: own + own, r"two members are called 'a\.tar/0\.png'"),
    "no images": (lambda own: [("a.txt", b"x")], "no images; looked for"),
    "nothing": (lambda own: [], "no images"),
    "not an image": (lambda own: [*own, ("9.png", b"no"), ("9.cls", b"cat")], r"a\.tar/9\.png: not an image"),
    "an image of no bytes": (lambda own: [*own, ("9.png", b""), ("9.cls", b"cat")], r"a\.tar/9\.png: not an image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, tmp_path, samples, read):
    change, message = REFUSED[case]
    with pytest.raises(DataError, match=message) as caught:
        read(write(tmp_path / "a.tar", change(samples())))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "a.tar") in str(caught.value)


@pytest.mark.parametrize(
    ("label", "message"),
    [(b"1.0", r"0\.png: label 1\.0 is not a whole number"), (b"-1", r"0\.png: label -1 is negative")],
)
def test_labels_that_are_no_classes(tmp_path, samples, read, label, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "a.tar", samples(lambda k: (f"{k}.cls", label))))


def test_every_length_of_a_file_cut_off_is_refused(tmp_path, samples, read):
    whole = write(tmp_path / "a.tar", samples()).read_bytes()
    end = whole.rstrip(b"\0")
    for length in (0, 1, 511, 512, 700, 1024, len(whole) // 2, len(end) - 1, (len(end) // 512 + 1) * 512):
        (tmp_path / "a.tar").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.tar: (cut off|cannot be read|no images)"):
            read(tmp_path / "a.tar")


def test_other_things_called_tar(tmp_path, samples, read):
    import gzip

    whole = write(tmp_path / "a.tar", samples()).read_bytes()
    (tmp_path / "a.tar").write_bytes(gzip.compress(whole))
    with pytest.raises(DataError, match=r"a\.tar: compressed; .*uncompress it first"):
        read(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(DataError, match=r"a\.tar: cannot be read as a tar file"):
        read(tmp_path / "a.tar")


def test_a_header_of_gigabytes_is_not_read(tmp_path, samples, read):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**33
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**33 + 2048)  # sparse
    with pytest.raises(DataError, match=r"a\.tar: cannot be read as a tar file: a header of 8,589,934,592 bytes"):
        read(tmp_path / "a.tar")


def test_an_image_of_gigabytes_is_not_read(tmp_path, samples, read):
    rest = write(tmp_path / "rest.tar", samples()[1:]).read_bytes()
    header = tarfile.TarInfo("0.png")
    header.size = opening.LARGEST + 1
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.seek(512 + opening.LARGEST + 512)  # sparse
        file.write(rest)
    (tmp_path / "rest.tar").unlink()
    with pytest.raises(DataError, match=r"a\.tar/0\.png: .* bytes; more than 268,435,456 are not read"):
        read(tmp_path / "a.tar")


def test_bad_images_can_be_skipped(tmp_path, samples, read):
    members = [*samples(), ("9.png", b"no"), ("9.cls", b"cat")]
    train = read(write(tmp_path / "a.tar", members), skip_bad=True).train
    assert len(train) == 4
    assert train.skipped == ("a.tar/9.png",)


def test_headers_are_not_kept(tmp_path, samples, read, monkeypatch):
    kept = []
    monkeypatch.setattr(tar, "_check_member", lambda path, member: kept.append(member.name))
    assert len(read(write(tmp_path / "a.tar", samples())).train) == 4
    assert len(kept) == 8

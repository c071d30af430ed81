"""Images as bytes in parquet files, and what ``save_to_disk`` writes."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

from antibackdoor.data import columns, files_of
from antibackdoor.errors import DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NAMES = ["dog", "cat"]
FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": NAMES}}


def png(values):
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def table(noise):
    """A table of images in bytes, and labels 0, 1, 0, 1 and so on."""

    def make(count=4, first=0, *, features=FEATURES, paths=None, drop=(), **more):
        images = [
            {"bytes": png(noise(12, 10, 3, seed=first + k)), "path": paths[k] if paths else None} for k in range(count)
        ]
        values = {
            "image": pyarrow.array(images, pyarrow.struct({"bytes": "binary", "path": "string"})),
            "label": [k % 2 for k in range(count)],
            **more,
        }
        made = pyarrow.table({name: column for name, column in values.items() if name not in drop})
        if features is None:
            return made
        return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})

    return make


def write(path, table, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, **settings)
    return path


def save(folder, table, files=("data-00000-of-00002.arrow", "data-00001-of-00002.arrow")):
    """Write what ``Dataset.save_to_disk`` writes."""
    folder.mkdir(parents=True, exist_ok=True)
    share = -(-len(table) // len(files))
    for i, name in enumerate(files):
        part = table.slice(i * share, share)
        with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            for batch in part.to_batches(max_chunksize=3):
                stream.write_batch(batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    return folder


def test_parquet(tmp_path, table, read, noise):
    train = read(write(tmp_path / "a.parquet", table())).train
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == [1, 0, 1, 0]
    assert train.ids == tuple(f"a.parquet/{k:05d}" for k in range(4))
    for k in range(4):
        np.testing.assert_array_equal(train.images[k].permute(1, 2, 0), noise(12, 10, 3, seed=k))
    assert files_of.files_of(tmp_path / "a.parquet") is None


def test_ids(tmp_path, table, read):
    paths = ["x/a.png", "b.png", "c.png", "d.png"]
    assert read(write(tmp_path / "a.parquet", table(paths=paths))).train.ids == tuple(paths)
    twice = write(tmp_path / "a.parquet", table(paths=["a.png"] * 4))
    assert read(twice).train.ids[3] == "a.parquet/00003"
    own = write(tmp_path / "a.parquet", table(paths=paths, id=[7, 5, 6, 9]))
    assert read(own).train.ids == ("7", "5", "6", "9")


def test_names_and_numbers_without_features(tmp_path, table, read):
    names = write(tmp_path / "a.parquet", table(features=None, label=["x", "y", "x", "y"]))
    assert read(names).train.classes == ("x", "y")
    numbers = write(tmp_path / "a.parquet", table(features=None, label=[10, 9, 10, 9]))
    assert read(numbers).train.classes == ("9", "10")


def test_plain_bytes(tmp_path, table, read, noise):
    images = pyarrow.array([png(noise(12, 10, 3, seed=k)) for k in range(4)])
    assert read(write(tmp_path / "a.parquet", table(image=images, features=None))).train.shape == (3, 12, 10)


def test_a_folder_of_parts_in_many_row_groups(tmp_path, table, read, noise):
    write(tmp_path / "d" / "data" / "train-00000-of-00002.parquet", table(40), row_group_size=7)
    write(tmp_path / "d" / "data" / "train-00001-of-00002.parquet", table(3, first=40))
    write(tmp_path / "d" / "data" / "test-00000-of-00001.parquet", table(2, first=50))
    (tmp_path / "d" / "README.md").write_text("x")
    loaded = read(tmp_path / "d")
    assert len(loaded.train) == 43
    assert loaded.train.ids[40] == "data/train-00001-of-00002.parquet/00000"
    for k in (0, 6, 7, 39, 40, 42):
        np.testing.assert_array_equal(loaded.train.images[k].permute(1, 2, 0), noise(12, 10, 3, seed=k))
    assert loaded.test is not None
    assert len(loaded.test) == 2


def test_saved_to_disk(tmp_path, table, read, noise):
    train = read(save(tmp_path / "d", table(20))).train
    assert train.classes == ("cat", "dog")
    assert train.ids[10] == "data-00001-of-00002.arrow/00000"
    for k in (0, 2, 3, 9, 10, 19):
        np.testing.assert_array_equal(train.images[k].permute(1, 2, 0), noise(12, 10, 3, seed=k))


def test_saved_to_disk_with_parts(tmp_path, table, read, said):
    save(tmp_path / "d" / "train", table(6))
    save(tmp_path / "d" / "validation", table(2))
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    loaded = read(tmp_path / "d")
    assert loaded.test is not None
    assert (len(loaded.train), len(loaded.test)) == (6, 2)
    assert loaded.test.ids[1] == "validation/data-00001-of-00002.arrow/00000"
    save(tmp_path / "d" / "validation", table(2, label=[-1, -1]))
    assert read(tmp_path / "d").test is None
    assert f"{tmp_path / 'd'}: validation is not used: it has no labels" in said.lines


def test_bad_images(tmp_path, table, read):
    images = [{"bytes": png(np.zeros((9, 9), np.uint8))}] * 4 + [{"bytes": b"no"}, None, {"path": "x.png"}]
    made = table(7, features=None, image=pyarrow.array(images, pyarrow.struct({"bytes": "binary", "path": "string"})))
    file = write(tmp_path / "a.parquet", made)
    with pytest.raises(DataError, match=r"a\.parquet, row 4: not an image"):
        read(file)
    train = read(file, skip_bad=True).train
    assert train.skipped == tuple(f"a.parquet/{k:05d}" for k in (4, 5, 6))
    assert train.ids == tuple(f"a.parquet/{k:05d}" for k in range(4))


REFUSED = {
    "fractions": ({"features": None, "label": [0.0, 1.0, 0.0, 1.0]}, "the column 'label' is double"),
    "a label that is missing": ({"features": None, "label": [0, None, 0, 1]}, "row 1: no label"),
    "a negative label": ({"features": None, "label": [0, -1, 0, 1]}, "row 1: label -1 is negative"),
    "no names for it": ({"label": [0, 1, 2, 1]}, "row 2: label 2 has no name; there are 2, from 0"),
    "no labels": ({"drop": ("label",), "features": None}, r"has no column of labels \(label\)"),
    "none but -1": ({"label": [-1] * 4}, "all labels are -1"),
    "true and false": ({"features": None, "label": [True, False] * 2}, "the column 'label' is bool"),
    "an id twice": ({"id": ["a", "b", "a", "c"]}, "row 0: the id 'a' is that of another row"),
    "an id of lists": ({"id": [[1]] * 4}, "the column 'id' is list"),
    "no rows": ({"count": 0, "label": pyarrow.array([], "int64")}, "no rows"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, tmp_path, table, read):
    settings, message = REFUSED[case]
    with pytest.raises(DataError, match=message) as caught:
        read(write(tmp_path / "a.parquet", table(**settings)))
    assert "\n" not in str(caught.value)


def test_files_of_other_columns(tmp_path, table, read):
    write(tmp_path / "d" / "0.parquet", table())
    write(tmp_path / "d" / "1.parquet", table(features=None))
    with pytest.raises(DataError, match=r"1\.parquet: its columns are not those of the first file"):
        read(tmp_path / "d")


def test_a_row_group_of_gigabytes_is_not_read(tmp_path, table, read, monkeypatch):
    monkeypatch.setattr(columns, "LARGEST_GROUP", 100)
    with pytest.raises(DataError, match=r"a\.parquet: row group 0 holds .* bytes; at most 100 are read"):
        read(write(tmp_path / "a.parquet", table()))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_files_cut_off_are_refused(tmp_path, table, read, kind):
    if kind == "parquet":
        source = file = write(tmp_path / "a.parquet", table())
    else:
        source = save(tmp_path / "d", table(), ("a.arrow",))
        file = source / "a.arrow"
    whole = file.read_bytes()
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 200):
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.(parquet|arrow): cannot be read") as caught:
            read(source)
        assert "\n" not in str(caught.value)


def test_offsets_that_lead_out_of_an_arrow_file(tmp_path, table, read):
    source = save(tmp_path / "d", table(features=None), ("a.arrow",))
    whole = (source / "a.arrow").read_bytes()
    lengths = [len(value.as_py()["bytes"]) for value in table()["image"]][:3]
    offsets = np.cumsum([0, *lengths]).astype("<i4").tobytes()
    assert offsets in whole
    far = struct.pack("<4i", 0, *[2**30] * 3)
    (source / "a.arrow").write_bytes(whole.replace(offsets, far))
    with pytest.raises(DataError, match=r"a\.arrow: cannot be read as Arrow"):
        read(source)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("state.json", "{", r"state\.json: cannot be read"),
        ("state.json", "[]", r"state\.json: cannot be read: no object"),
        ("state.json", '{"_data_files": []}', r"state\.json: no list of files"),
        ("state.json", '{"_data_files": [{"filename": "../x"}]}', r"state\.json: no list of files"),
        ("dataset_dict.json", '{"splits": ["../x"]}', r"dataset_dict\.json: no list of splits"),
    ],
)
def test_damaged_descriptions(tmp_path, table, read, file, text, message):
    source = save(tmp_path / "d", table())
    (source / file).write_text(text)
    with pytest.raises(DataError, match=message):
        read(source)

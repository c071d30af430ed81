"""A table of paths and labels as data."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from PIL import Image

from antibackdoor.errors import DataError

ROWS = [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]


@pytest.fixture
def write(two_classes):
    """Write a table beside the class folders of ``two_classes``."""

    def make(text, name="photos.csv"):
        (two_classes / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return two_classes / name

    return make


def table(rows, header="path,label"):
    return "\n".join([header, *rows]) + "\n"


def labelled(label=lambda path: path.split("/")[0]):
    return [f"{path},{label(path)}" for path in ROWS]


def test_paths_and_ids_are_those_of_the_table(write, read, two_classes):
    train = read(write(table(reversed(labelled())))).train
    assert train.ids == tuple(reversed(ROWS))
    assert train.classes == ("cat", "dog")
    assert train.labels.tolist() == [1, 1, 1, 0, 0, 0]
    for image, name in zip(train.images, train.ids, strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0), np.asarray(Image.open(two_classes / name)))


def test_own_ids_and_other_columns(write, read):
    rows = [f"{k},x y,{path},é{k % 2}" for k, path in enumerate(ROWS)]
    train = read(write(table(rows, "ID, source,Path ,label"))).train
    assert train.ids == ("0", "1", "2", "3", "4", "5")
    assert train.classes == ("é0", "é1")


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_delimiters_and_a_byte_order_mark(write, read, mark):
    text = "\ufeff" + table(labelled()).replace(",", mark).replace("\n", "\r\n")
    assert read(write(text, "photos.tsv")).train.ids == tuple(ROWS)


def test_quotes_and_newlines_in_names(write, read, two_classes):
    (two_classes / "cat" / "0.png").rename(two_classes / "cat" / 'a,"b"\n.png')
    text = table(['"cat/a,""b""\n.png",cat', *labelled()[1:]])
    assert read(write(text)).train.ids[0] == 'cat/a,"b"\n.png'


def test_whole_numbers_are_classes_in_their_order(write, read):
    numbers = {path: (10, 9, 100)[k // 2] for k, path in enumerate(ROWS)}
    train = read(write(table(labelled(numbers.get)))).train
    assert train.classes == ("9", "10", "100")
    assert train.labels.tolist() == [1, 1, 0, 0, 2, 2]


def test_splits(write, read, said):
    splits = ["train", "Train", "val", "train", "train", "extra"]
    text = table([f"{row},{split}" for row, split in zip(labelled(), splits, strict=True)], "path,label,split")
    loaded = read(write(text))
    assert loaded.train.ids == ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    assert loaded.test is not None
    assert loaded.test.ids == ("cat/2.png",)
    assert said.lines == [f"{write(text)}: 1 of 6 rows are not used, of the split 'extra'"]


def test_as_a_test_set(write, read, two_classes):
    both = write(
        table([f"{row},{'test' if '2' in row else 'train'}" for row in labelled()], "path,label,split"), "b.csv"
    )
    for file, ids in ((both, ("cat/2.png", "dog/2.png")), (write(table(labelled()[:4])), tuple(ROWS[:4]))):
        loaded = read(two_classes, test=file)
        assert loaded.test is not None
        assert loaded.test.ids == ids


def test_relabelled_rows_are_another_set_in_the_cache(write, read):
    first = read(write(table(labelled()))).train
    swapped = read(write(table(labelled(lambda path: "dog" if path.startswith("cat") else "cat")))).train
    assert first.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert swapped.labels.tolist() == [1, 1, 1, 0, 0, 0]


def test_absolute_paths(write, read, two_classes):
    rows = [f"{two_classes / path},{path.split('/')[0]}" for path in ROWS]
    assert read(write(table(rows))).train.ids[0] == str(two_classes / "cat/0.png")


REFUSED = {
    "an empty file": ("", r"no column 'path'; it is empty"),
    "a header alone": ("path,label\n", r"photos\.csv: no rows"),
    "no label column": (table(["a,b"], "path,class"), r"no column 'label'; it has 'path', 'class'.*Rename 'class'"),
    "no path column": (table(["a,b"], "filename,label"), r"no column 'path'.*Rename 'filename'"),
    "two columns of a name": (table(["a,b,c"], "path,label,path"), r"two columns are called 'path'"),
    "floats": (table(labelled(lambda path: "1.0")), r"line 2: label 1\.0 is not a whole number"),
    "a float among integers": (table([*labelled(lambda path: "1"), "x,2.5"]), r"line 8: label 2\.5 is not a whole"),
    "not a number": (table(labelled(lambda path: "nan")), r"line 2: label nan is not a whole number"),
    "a negative label": (table([*labelled(lambda path: "1"), "x,-1"]), r"line 8: label -1 is negative"),
    "no label": (table([*labelled(), "x, "]), r"line 8: no label"),
    "no path": (table([*labelled(), ",cat"]), r"line 8: no path"),
    "a path twice": (
        table([*labelled(), "cat/1.png,cat"]),
        r"line 8: the path 'cat/1\.png' is that of line 3 too; a col",
    ),
    "an id twice": (
        table([f"7,{row}" for row in labelled()], "id,path,label"),
        r"line 3: the id '7' is that of line 2",
    ),
    "too few fields": (table([*labelled(), "x"]), r"line 8: 1 fields, but the header has 2"),
    "a file that is not there": (table([*labelled(), "no.png,cat"]), r"line 8: 'no\.png': No such file.*--skip-bad"),
    "many": (table([*labelled(), "no.png,cat", "na.png,cat"]), r"\(2 of 8 paths lead to no file\)"),
    "a folder": (table([*labelled(), "cat,cat"]), r"line 8: 'cat': not a file"),
    "an address": (table(["ftp://x/a.png,cat"]), r"line 2: ftp://x/a\.png is no address that is read"),
    "a NUL": (table([*labelled(), "a\0.png,cat"]), r"line 8: 'a\\x00\.png': embedded null|cannot be read as CSV"),
    "Latin-1": (table(labelled()).replace("cat", "é").encode("latin-1"), r"not UTF-8 text"),
    "an open quote": (table(['"cat/0.png,cat']), r"cannot be read as CSV"),
    "no training rows": (
        table([f"{r},a" for r in labelled()], "path,label,split"),
        r"no rows of the split 'train' to train on; it has 'a'",
    ),
    "one class": (table(labelled(lambda path: "cat")), r"only one class \(cat\)"),
    "not an image": (table([*labelled(), "photos.csv,cat"]), r"photos\.csv: not an image in a known format"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, write, read):
    text, message = REFUSED[case]
    with pytest.raises(DataError, match=message) as caught:
        read(write(text))
    assert "\n" not in str(caught.value)


def test_skip_bad_leaves_out_paths_without_a_file(write, read, two_classes):
    os.mkfifo(two_classes / "pipe.png")
    text = table([*labelled(), "no.png,cat", "pipe.png,dog", "photos.csv,dog"])
    train = read(write(text), skip_bad=True).train
    assert train.ids == tuple(ROWS)
    assert train.skipped == ("no.png", "pipe.png", "photos.csv")


# --- parquet ---------------------------------------------------------------------------------------------


@pytest.fixture
def parquet(two_classes):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as files

    def make(**columns):
        files.write_table(pyarrow.table(columns), two_classes / "photos.parquet")
        return two_classes / "photos.parquet"

    return make


def test_parquet(parquet, read, write):
    import pyarrow

    names = [path.split("/")[0] for path in ROWS]
    by_name = read(parquet(path=ROWS, label=pyarrow.array(names).dictionary_encode(), other=[[1]] * 6)).train
    assert by_name.ids == tuple(ROWS)
    assert by_name.classes == ("cat", "dog")
    numbers = read(parquet(path=ROWS, label=[10, 10, 9, 9, 9, 10], id=[3, 1, 4, 15, 9, 2])).train
    assert numbers.classes == ("9", "10")
    assert numbers.labels.tolist() == [1, 1, 0, 0, 0, 1]
    assert numbers.ids == ("3", "1", "4", "15", "9", "2")


def test_parquet_refusals(parquet, read, two_classes):
    import pyarrow

    with pytest.raises(DataError, match=r"photos\.parquet: the column 'label' is double; .*astype\('int64'\)"):
        read(parquet(path=ROWS, label=[1.0] * 6))
    with pytest.raises(DataError, match="row 1: no label"):
        read(parquet(path=ROWS[:2], label=["a", None]))
    with pytest.raises(DataError, match="the column 'path' is list"):
        read(parquet(path=[[1]], label=["a"]))
    with pytest.raises(DataError, match="no column 'label'; it has 'path', 'target'.*Rename 'target'"):
        read(parquet(path=ROWS, target=[1] * 6))
    with pytest.raises(DataError, match="no rows"):
        read(parquet(path=pyarrow.array([], "string"), label=pyarrow.array([], "string")))
    file = parquet(path=ROWS, label=["a"] * 6)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be read as parquet") as caught:
        read(file)
    assert "\n" not in str(caught.value)


def test_parquet_without_its_package(two_classes, read, monkeypatch):
    (two_classes / "photos.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install antibackdoor\[tables\]"):
        read(two_classes / "photos.parquet")

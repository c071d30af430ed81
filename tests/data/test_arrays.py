from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch

from antibackdoor.data.sources import from_arrays
from antibackdoor.errors import DataError

LABELS = np.array([0, 1, 0, 1])


@pytest.fixture
def images(noise):
    return noise(4, 9, 10, 3)


# --- from_arrays -----------------------------------------------------------------------------------------


def test_channels_last_channels_first_and_grey(images):
    last = from_arrays(images, LABELS)
    assert last.images.shape == (4, 3, 9, 10)
    np.testing.assert_array_equal(last.images, images.transpose(0, 3, 1, 2))
    first = from_arrays(images.transpose(0, 3, 1, 2), LABELS)
    assert (first.images == last.images).all()
    assert (from_arrays(torch.from_numpy(images).permute(0, 3, 1, 2), LABELS).images == last.images).all()
    grey = from_arrays(images[..., 0], LABELS)
    assert grey.images.shape == (4, 1, 9, 10)
    assert (from_arrays(images[..., :1], LABELS).images == grey.images).all()
    assert last.images.is_contiguous()


def test_names_ids_and_gaps(images):
    data = from_arrays(images, [7, 30, 7, 30])
    assert data.classes == ("7", "30")
    assert data.labels.tolist() == [0, 1, 0, 1]
    assert data.labels.dtype == torch.int64
    assert data.ids == ("arrays/00000", "arrays/00001", "arrays/00002", "arrays/00003")
    named = from_arrays(images, LABELS, classes=["z", "a"], ids=list("wxyz"), name="mine")
    assert (named.classes, named.ids, named.name) == (("z", "a"), ("w", "x", "y", "z"), "mine")
    assert named.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_any_integer_label_type(images, dtype):
    assert from_arrays(images, LABELS.astype(dtype)).labels.tolist() == [0, 1, 0, 1]
    assert from_arrays(images, torch.from_numpy(LABELS)).labels.tolist() == [0, 1, 0, 1]


def test_read_only_and_reversed_memory(images):
    expected = from_arrays(images.copy(), LABELS).images
    images.flags.writeable = False
    assert (from_arrays(images, LABELS).images == expected).all()
    assert (from_arrays(images[::-1], LABELS).images == expected.flip(0)).all()
    grey = np.ascontiguousarray(images[..., 0])
    grey.flags.writeable = False
    assert (from_arrays(grey, LABELS).images[:, 0] == expected[:, 0]).all()


def test_a_test_set_may_lack_classes(images):
    assert len(from_arrays(images[:1], [1], classes=["a", "b"], training=False)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((4, 9, 10), np.float32)}, r"images are float32; expected uint8.*\* 255"),
        ({"images": torch.zeros(4, 3, 9, 10)}, "images are float32; expected uint8"),
        ({"images": np.zeros((4, 9, 10), np.int64)}, "images are int64; expected uint8"),
        ({"images": [[1]]}, "images are list; expected a numpy array or a torch tensor"),
        ({"images": np.zeros((4, 9, 10, 4), np.uint8)}, r"shape \(4, 9, 10, 4\).*1 or 3 channels"),
        ({"images": np.zeros((4, 9), np.uint8)}, r"shape \(4, 9\)"),
        ({"images": np.zeros((4, 7, 10, 3), np.uint8)}, "images are 10x7; at least 8x8"),
        ({"images": np.zeros((3, 9, 10), np.uint8)}, "3 images but 4 labels"),
        ({"labels": [0.0, 1.0, 0.0, 1.0]}, "labels are float64; expected integers"),
        ({"labels": np.array([True, False, True, False])}, "labels are bool; expected integers"),
        ({"labels": np.array([0, 1, 0, 1], dtype=object)}, "labels holds Python objects"),
        ({"labels": LABELS[:, None]}, r"labels of shape \(4, 1\)"),
        ({"labels": [0, -1, 0, -1]}, "label -1 is negative"),
        ({"labels": [0, 0, 0, 0]}, r"only one class \(0\)"),
        ({"labels": [0, 0, 0, 1]}, "class '1' has one image"),
        ({"classes": ["a"]}, "label 1 has no name"),
        ({"classes": ["a", "b", "c"]}, "class 'c' has no image"),
        ({"classes": ["a", "a"]}, "class names must be unique"),
        ({"ids": ["a"]}, "4 unique ids are needed"),
        ({"ids": ["a", "a", "b", "c"]}, "4 unique ids are needed"),
        ({"images": np.zeros((0, 9, 10), np.uint8), "labels": []}, "no images"),
    ],
)
def test_what_is_refused(images, change, message):
    with pytest.raises(DataError, match=message):
        from_arrays(**{"images": images, "labels": LABELS, **change})


# --- npz -------------------------------------------------------------------------------------------------


@pytest.fixture
def save(tmp_path, images):
    def write(**arrays):
        given = {"images": images, "labels": LABELS, **arrays}
        np.savez(tmp_path / "d.npz", **{key: value for key, value in given.items() if value is not None})
        return tmp_path / "d.npz"

    return write


def test_npz(save, read, images):
    loaded = read(save())
    assert loaded.test is None
    assert loaded.train.classes == ("0", "1")
    np.testing.assert_array_equal(loaded.train.images.permute(0, 2, 3, 1), images)


def test_npz_classes_are_sorted_and_labels_follow(save, read):
    path = save(classes=np.array(["zebra", "ant"]), test_images=np.ones((1, 9, 10, 3), np.uint8), test_labels=[0])
    loaded = read(path)
    assert loaded.train.classes == ("ant", "zebra")
    assert loaded.train.labels.tolist() == [1, 0, 1, 0]
    assert loaded.test is not None
    assert loaded.test.classes == ("ant", "zebra")
    assert loaded.test.labels.tolist() == [1]


def test_npz_test_set_is_fitted(save, read):
    path = save(labels=[3, 5, 3, 5], test_images=np.full((2, 30, 30), 8, np.uint8), test_labels=[5, 5])
    test = read(path).test
    assert test is not None
    assert test.labels.tolist() == [1, 1]
    assert test.shape == (3, 9, 10)
    assert (test.images == 8).all()


def test_npz_image_size(save, read):
    loaded = read(save(test_images=np.zeros((1, 9, 10, 3), np.uint8), test_labels=[0]), image_size=16)
    assert loaded.test is not None
    assert loaded.train.shape == loaded.test.shape == (3, 16, 16)


def test_npz_as_test_of_a_folder(two_classes, tmp_path, read):
    images = np.zeros((1, 40, 40, 3), np.uint8)
    np.savez(tmp_path / "t.npz", images=images, labels=[1], classes=np.array(["cat", "dog"]))
    test = read(two_classes, test=tmp_path / "t.npz").test
    assert test is not None
    assert (test.shape, test.labels.tolist()) == ((3, 12, 10), [1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": None}, "no array 'images'; it holds labels"),
        ({"labels": None}, "no array 'labels'; it holds images"),
        ({"images": np.array([None] * 4)}, "images holds Python objects, which are never loaded"),
        ({"labels": np.array([0, 1, 0, None])}, "labels holds Python objects, which are never loaded"),
        ({"test_labels": [0]}, "test_images and test_labels come together"),
        ({"classes": np.array([1, 2])}, "classes is int64.*expected text"),
        ({"labels": [0.5, 1, 0, 1]}, "labels are float64"),
        (
            {"test_images": np.zeros((1, 9, 10), np.uint8), "test_labels": [4]},
            "class '4' is not in the training",
        ),
    ],
)
def test_npz_refusals_name_the_file(save, read, arrays, message):
    with pytest.raises(DataError, match=rf"d\.npz.*{message}"):
        read(save(**arrays))


def test_npz_that_is_something_else(tmp_path, read):
    (tmp_path / "x.npz").write_bytes(b"something else")
    with pytest.raises(DataError, match=r"not a \.npz file"):
        read(tmp_path / "x.npz")


def test_npz_that_is_damaged(save, tmp_path, read):
    content = bytearray(save().read_bytes())
    content[200:600] = b"\0" * 400
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as a .npz"):
        read(tmp_path / "d.npz")


def test_npz_with_other_files_inside(tmp_path, read):
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as file:
        file.writestr("images.npy", b"not an array")
        file.writestr("labels.npy", b"not an array")
    with pytest.raises(DataError, match=r"d\.npz"):
        read(tmp_path / "d.npz")

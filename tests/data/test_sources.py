from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from antibackdoor.data import sources
from antibackdoor.data.sources import from_arrays, subsample
from antibackdoor.errors import DataError

# --- embedded --------------------------------------------------------------------------------------------


def test_embedded_counts_and_balance(read):
    loaded = read("embedded")
    assert loaded.test is not None
    for data, each in ((loaded.train, 800), (loaded.test, 200)):
        assert data.images.shape == (10 * each, 1, 28, 28)
        assert data.images.dtype == torch.uint8
        assert data.classes == tuple(sorted(data.classes))
        assert torch.bincount(data.labels).tolist() == [each] * 10
    assert not set(loaded.train.ids) & set(loaded.test.ids)
    assert loaded.train.ids[42] == "embedded/00042"
    assert loaded.train.images.flatten(1).float().std(1).min() > 0


def test_embedded_labels_fit_the_images(read):
    train = read("embedded").train
    mean = {name: train.images[train.labels == i].float().mean() for i, name in enumerate(train.classes)}
    assert mean["sandal"] < mean["sneaker"] < mean["ankle_boot"] < mean["pullover"]
    trouser = train.images[train.labels == train.classes.index("trouser")].float().mean((0, 1))
    assert trouser[14:, :6].mean() < 5  # two legs in the middle, nothing at the side


def test_embedded_resized(read):
    loaded = read("embedded", image_size=32)
    assert loaded.test is not None
    assert loaded.train.shape == loaded.test.shape == (1, 32, 32)


# --- subsample -------------------------------------------------------------------------------------------


def numbered(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    images = np.zeros((len(labels), 8, 8), np.uint8)
    return from_arrays(images, labels, classes=[str(i) for i in range(len(sizes))], training=False)


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([60, 30, 10], 10, [6, 3, 1]),
        ([50, 30, 20], 7, [4, 2, 1]),  # exact 3.5, 2.1, 1.4
        ([98, 1, 1], 5, [3, 1, 1]),
        ([3, 3, 3], 3, [1, 1, 1]),
        ([5, 0, 5], 4, [2, 0, 2]),
        ([2, 3, 4], 9, [2, 3, 4]),
    ],
)
def test_subsample_keeps_proportions(sizes, count, expected):
    data = numbered(sizes)
    drawn = subsample(data, count, torch.Generator().manual_seed(0))
    assert torch.bincount(drawn.labels, minlength=len(sizes)).tolist() == expected
    places = [data.ids.index(name) for name in drawn.ids]
    assert places == sorted(set(places))


def test_subsample_follows_the_generator():
    data = numbered([50, 50])
    draws = [subsample(data, 10, torch.Generator().manual_seed(seed)).ids for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("count", [2, 10])
def test_subsample_bounds(count):
    with pytest.raises(DataError, match=f"cannot draw {count} images of 9 in 3 classes; expected 3 to 9"):
        subsample(numbered([3, 3, 3]), count, torch.Generator())


# --- hub -------------------------------------------------------------------------------------------------


class FakeSplit:
    def __init__(self, features, columns):
        self.features, self.columns = features, columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        return {name: values[key] for name, values in self.columns.items()}


@pytest.fixture
def hub(monkeypatch, noise):
    """A stand-in for the ``datasets`` package with one set, called "pets"."""
    module = ModuleType("datasets")

    class ImageFeature:
        pass

    class ClassLabel:
        def __init__(self, names):
            self.names, self.num_classes = names, len(names)

    def split(count, seed):
        pictures = [Image.fromarray(noise(12, 10, 3, seed=seed + i)) for i in range(count)]
        features = {
            "photo": ImageFeature(),
            "coarse": ClassLabel(["pet"]),
            "kind": ClassLabel(["dog", "cat"]),
        }
        return FakeSplit(features, {"photo": pictures, "coarse": [0] * count, "kind": [i % 2 for i in range(count)]})

    sets = {"pets": {"train": split(4, 0), "validation": split(3, 10)}}

    def load_dataset(name):
        if name not in sets:
            raise FileNotFoundError(f"no set {name}")
        return sets[name]

    module.Image, module.ClassLabel, module.load_dataset = ImageFeature, ClassLabel, load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return sets


def test_hub(hub, read, said):
    loaded = read("hub:pets")
    assert loaded.train.classes == ("cat", "dog")
    assert loaded.train.labels.tolist() == [1, 0, 1, 0]
    assert loaded.train.ids[0] == "hub:pets/00000"
    picture = hub["pets"]["train"][0]["photo"]
    np.testing.assert_array_equal(loaded.train.images[0].permute(1, 2, 0), np.asarray(picture))
    assert loaded.test is not None
    assert loaded.test.shape == (3, 12, 10)
    assert said.lines == ["hub:pets: images from the column 'photo', labels from the column 'kind'"]
    assert read("hub:pets", image_size=16).train.shape == (3, 16, 16)


def test_hub_refusals(hub, read):
    with pytest.raises(DataError, match="hub:gone: cannot be loaded: no set gone"):
        read("hub:gone")
    hub["odd"] = {"train": FakeSplit({"text": object()}, {"text": ["x"]})}
    with pytest.raises(DataError, match="hub:odd: needs a column of images.*it has text"):
        read("hub:odd")
    hub["parts"] = {"all": hub["pets"]["train"]}
    with pytest.raises(DataError, match="hub:parts: no split 'train'; it has all"):
        read("hub:parts")


def test_hub_without_its_package(monkeypatch, read):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install antibackdoor\[hub\]"):
        read("hub:cifar10")


def test_public_names():
    assert sources.__all__ == sorted(sources.__all__)
    assert all(hasattr(sources, name) for name in sources.__all__)

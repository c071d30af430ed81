from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from antibackdoor.data.sources import from_dataset
from antibackdoor.errors import DataError


class Pairs(Dataset):
    def __init__(self, pairs, classes=None):
        self.pairs = pairs
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        return self.pairs[index]


def test_every_kind_of_image_gives_the_same_pixels(noise):
    values = noise(9, 10, 3)
    tensor = torch.from_numpy(values).permute(2, 0, 1)
    kinds = [Image.fromarray(values), values, tensor, tensor.float() / 255, (values / 255).astype(np.float64)]
    data = from_dataset(Pairs([(image, i % 2) for i, image in enumerate([*kinds, values])]))
    assert data.images.shape == (6, 3, 9, 10)
    assert (data.images == tensor).all()
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.ids[0] == "dataset/00000"


def test_grey_pillow_images_and_tensor_labels(noise):
    pairs = [(Image.fromarray(noise(9, 10, seed=i)), torch.tensor(i % 2)) for i in range(4)]
    assert from_dataset(Pairs(pairs)).shape == (1, 9, 10)


def test_class_names(noise):
    pairs = [(noise(9, 10), i % 2) for i in range(4)]
    assert from_dataset(Pairs(pairs)).classes == ("0", "1")
    assert from_dataset(Pairs(pairs, classes=["x", "a"])).classes == ("x", "a")
    assert from_dataset(Pairs(pairs, classes=["x", "a"]), classes=["p", "q"]).classes == ("p", "q")


def test_tensor_dataset():
    data = from_dataset(TensorDataset(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])), name="mine")
    assert (data.name, data.shape) == ("mine", (3, 8, 8))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "no images"),
        ([(np.zeros((9, 9), np.uint8), 0.5)], r"dataset\[0\]: label 0.5 is not an integer"),
        ([np.zeros((9, 9), np.uint8)], r"dataset\[0\]: expected a pair"),
        ([("x.png", 0)], "expected a Pillow image, an array or a tensor, got str"),
        ([(torch.full((3, 9, 9), -1.0), 0)], r"float values from -1 to -1; expected \[0, 1\].*normalisation"),
        ([(torch.full((3, 9, 9), torch.nan), 0)], "float values from nan"),
        ([(np.zeros((9, 9), np.int64), 0)], "int64; expected uint8"),
        ([(Image.new("F", (9, 9)), 0)], r"dataset\[0\]: its pixels are floating point"),
        ([(np.zeros((9, 9), np.uint8), 0), (np.zeros((9, 8), np.uint8), 0)], r"dataset\[1\]: image of shape"),
        ([(np.zeros((9, 9), np.uint8), 0)] * 3, "only one class"),
    ],
)
def test_what_is_refused(pairs, message):
    with pytest.raises(DataError, match=message):
        from_dataset(Pairs(pairs))


def test_an_iterable_dataset_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(3, 9, 9), 0

    with pytest.raises(DataError, match="not an iterable one"):
        from_dataset(Stream())

"""Balance: which classes lost so much that it is made up for, and how the network is told."""

import math

import pytest
import torch
from torch import nn

from antibackdoor.defences.balance import lost, make_up
from antibackdoor.isolation import Network


def counted(shown, left_out):
    """Labels, what was shown and what was left out, for so many images of each class."""
    labels = torch.cat(
        [torch.full((count,), label) for sizes in (shown, left_out) for label, count in enumerate(sizes)]
    )
    seen = torch.arange(len(labels)) < sum(shown)
    return labels, seen, ~seen


@pytest.mark.parametrize(
    ("shown", "left_out", "factors"),
    [
        # Clean labels: as large as the smallest of the others.
        ([60, 55, 12, 58], [0, 0, 48, 0], [1, 1, 55 / 12, 1]),
        # As large as it was.
        ([60, 55, 12, 58], [0, 0, 18, 0], [1, 1, 2.5, 1]),
        # Wrong labels: what is left is no fewer than the others.
        ([60, 55, 57, 58], [0, 0, 48, 0], [1, 1, 1, 1]),
        # Hardly fewer.
        ([60, 55, 51, 58], [0, 0, 9, 0], [1, 1, 1, 1]),
        # Classes of unlike sizes.
        ([60, 9, 12, 58], [0, 0, 48, 0], [1, 1, 1, 1]),
        # Ten times at most, and nothing is known of a class that is gone.
        ([60, 55, 2, 0], [0, 0, 58, 60], [1, 1, 10, 1]),
        # No whole class to compare with.
        ([10, 50, 50, 50], [50, 10, 10, 10], [1, 1, 1, 1]),
        # One that was rare before.
        ([60, 55, 12, 58], [0, 0, 0, 0], [1, 1, 1, 1]),
    ],
)
def test_a_class_counts_as_it_was_or_as_the_smallest_of_the_others(shown, left_out, factors):
    found = lost(*counted(shown, left_out), num_classes=4)
    assert found.tolist() == pytest.approx(factors)


class Two(nn.Module):
    """A network with a second head that does not run."""

    def __init__(self, bias=True, inputs=16):
        super().__init__()
        self.head = nn.Linear(inputs, 3, bias=bias)
        self.unused = nn.Linear(inputs, 3)

    def forward(self, x):
        return self.head(x.flatten(1))


@pytest.fixture
def images(blobs):
    return blobs(12, 3, channels=1, height=4, width=4)


def test_the_logits_of_the_network_move_by_the_logarithm(images, runtime):
    model = Two().eval()
    x = torch.rand(5, 1, 4, 4)
    before, unused = model(x), model.unused.bias.clone()
    assert make_up(Network(model, images, runtime), torch.tensor([1.0, 4.0, 1.0], dtype=torch.float64))
    assert torch.allclose(model(x) - before, torch.tensor([0.0, math.log(4), 0.0]), atol=1e-6)
    assert torch.equal(model.unused.bias, unused)
    assert model.head.bias.requires_grad


@pytest.mark.parametrize("model", [Two(bias=False), nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten())])
def test_a_network_without_such_a_bias_stays_as_it_is(model, images, runtime):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not make_up(Network(model.eval(), images, runtime), torch.tensor([1.0, 4.0, 1.0]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

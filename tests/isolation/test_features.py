"""Which layers of a network are looked at: those that a forward pass runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from antibackdoor.errors import ConfigError
from antibackdoor.isolation import Network
from antibackdoor.isolation.signals.features import penultimate


class Odd(nn.Module):
    """Layers registered in another order than they run in, and some that never do."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.body = nn.Linear(64, 4)
        self.second_head = nn.Linear(7, 3)
        self.decoder = nn.Conv2d(3, 3, 3)
        self.dropout = nn.Dropout(0.9)

    def forward(self, images):
        return self.head(self.dropout(self.body(images.flatten(1)).relu()))


class Tokens(nn.Module):
    """A linear layer on every token, and none on one vector an image."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        return self.head(images[:, 0]).mean(1)


@pytest.fixture
def network(blobs, runtime):
    def make(model):
        return Network(model, blobs(12, 3, channels=1, height=8, width=8), runtime)

    return make


def test_the_last_linear_layer_that_runs_is_the_head(network):
    made = network(Odd().train())
    features = made.measure([penultimate(made)])[0]
    with torch.no_grad():
        expected = made.model.body(made.data.images.flatten(1).float() / 255).relu()
    assert torch.allclose(features, expected, atol=2e-2, rtol=2e-2)
    assert made.model.training, "the mode is left as it was"
    assert not any(layer._forward_hooks for layer in made.model.modules())


def test_a_layer_on_tokens_is_no_head(network):
    with pytest.raises(ConfigError, match="last layer is nn.Linear"):
        penultimate(network(Tokens()))

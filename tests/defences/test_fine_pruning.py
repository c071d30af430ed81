"""Fine-pruning: its order on a network made by hand, when it stops, what stays pruned, a backdoor before and after."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from easy_backdoor import attack_success, clean, clean_accuracy, defend, planted
from torch import nn

from antibackdoor.defences import FinePruning, NoDefence
from antibackdoor.defences.fine_pruning import Channels
from antibackdoor.errors import ConfigError
from antibackdoor.models import builder_from
from antibackdoor.seeds import Seeds
from antibackdoor.types import ImageSet


class ByHand(nn.Module):
    """Channel c of the map is ``gains[c]`` times the brightness; the head reads 2x2 places of each."""

    def __init__(self, gains):
        super().__init__()
        self.conv = nn.Conv2d(1, len(gains), 1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Linear(4 * len(gains), 3)
        self.head = nn.Linear(3, 2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor(gains).reshape(-1, 1, 1, 1))

    def forward(self, images):
        return self.head(self.hidden(self.pool(self.conv(images).relu()).flatten(1)))


def grey(level, count=6) -> ImageSet:
    images = torch.full((count, 1, 4, 4), level, dtype=torch.uint8)
    names = tuple(map(str, range(count)))
    return ImageSet(images, torch.arange(count) % 2, ("a", "b"), names)


def test_channels_are_found_and_ordered_by_their_mean_activation(runtime):
    model, data = ByHand([0.5, 2.0, -1.0, 1.0]), grey(51)
    channels = Channels.of(model, data, runtime)
    assert (channels.reader, channels.count) == (model.hidden, 4)
    activations = channels.activations(model, data, runtime)
    assert torch.allclose(activations, torch.tensor([0.1, 0.4, 0.0, 0.2]), atol=1e-6)
    assert activations.argsort().tolist() == [2, 0, 3, 1]


def test_a_pruned_channel_is_cut_at_all_its_places(runtime):
    model, data = ByHand([0.5, 2.0, -1.0, 1.0]), grey(51)
    mask = Channels.of(model, data, runtime).mask(torch.tensor([2, 0]))
    assert mask.tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 4 + [1.0] * 4
    # Its channel is dead whatever it does, so its gain does not count any more.
    with torch.no_grad():
        model.hidden.weight.mul_(mask)
        before = model(data.images.float() / 255)
        model.conv.weight[0] = 100.0
        assert torch.equal(model(data.images.float() / 255), before)
        model.conv.weight[1] = 100.0
        assert not torch.equal(model(data.images.float() / 255), before)


@pytest.mark.parametrize(("name", "count"), [("wrn-10-1", 64), ("preact-resnet-18", 512), ("resnet-18", 512)])
def test_the_channels_of_a_residual_network_are_what_its_head_reads(name, count, blobs, runtime):
    data = blobs(4, 2, height=32, width=32)
    build, _ = builder_from(name, data)
    model = build(Seeds(0).generator("init"))
    channels = Channels.of(model, data, runtime)
    assert (channels.reader, channels.count) == (model.body.head, count)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(16, 2)),
        nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten()),
        nn.Sequential(nn.Conv2d(1, 3, 4), nn.Flatten(), nn.ConstantPad1d(1, 0.0), nn.Linear(5, 2)),
    ],
    ids=["no convolution", "no linear layer", "a linear layer that reads something else"],
)
def test_a_network_without_such_channels_is_refused(model, runtime):
    with pytest.raises(ConfigError, match="^model: fine-pruning needs"):
        Channels.of(model, grey(100), runtime)


class Counting(nn.Module):
    """The class is told by channel 0 alone; channel 1 shines a little, channels 2 and 3 never do."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)
        self.head = nn.Linear(4, 2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.tensor([1.0, 0.01, -1.0, -1.0]).reshape(4, 1, 1, 1))
            self.conv.bias.zero_()
            self.head.weight.copy_(torch.tensor([[-1.0, 0.0, 5.0, 5.0], [1.0, 0.0, -5.0, -5.0]]))
            self.head.bias.copy_(torch.tensor([1.0, 0.0]))

    def forward(self, images):
        return self.head(self.conv(images).relu().mean(dim=(2, 3)))


def bright_and_dark() -> ImageSet:
    """Ten dark images of class 0, nine bright ones of class 1, and one of class 1 that is dark."""
    levels = torch.tensor([20] * 10 + [250] * 9 + [20])
    images = levels.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    labels = torch.tensor([0] * 10 + [1] * 10)
    return ImageSet(images, labels, ("dark", "bright"), tuple(map(str, range(20))))


@pytest.mark.parametrize(("tolerance", "pruned"), [(0.04, [2, 3, 1]), (0.0, [2, 3, 1])])
def test_pruning_ends_before_the_accuracy_falls(tolerance, pruned, runtime):
    model, data = Counting(), bright_and_dark()
    channels = Channels.of(model, data, runtime)
    found, sentence = FinePruning(tolerance=tolerance)._prune(model, channels, data, runtime)
    assert found.tolist() == pruned
    assert "3 of 4 channels were pruned" in sentence
    assert "from 95.0 to 95.0 %" in sentence
    assert torch.equal(model.head.weight != 0, torch.tensor([[True, False, False, False]] * 2))


def test_what_costs_more_than_the_tolerance_is_put_back(runtime):
    model, data = Counting(), bright_and_dark()
    with torch.no_grad():
        # Now channel 1, the third to go, tells the classes as well, and alone.
        model.conv.weight.copy_(torch.tensor([2.0, 1.0, -1.0, -1.0]).reshape(4, 1, 1, 1))
        model.head.weight.copy_(torch.tensor([[0.0, -2.0, 5.0, 5.0], [0.0, 2.0, -5.0, -5.0]]))
    before = model.head.weight.detach().clone()
    channels = Channels.of(model, data, runtime)
    for tolerance, count in ((0.04, 2), (0.44, 2), (0.46, 3)):
        with torch.no_grad():
            model.head.weight.copy_(before)
        found, _ = FinePruning(tolerance=tolerance)._prune(model, channels, data, runtime)
        assert found.tolist() == [2, 3, 1][:count]
        assert torch.equal(model.head.weight, before * channels.mask(found))


@pytest.fixture
def run(runtime, tiny, plan):
    return partial(defend, runtime=runtime, tiny=tiny, plan=plan)


def test_an_easy_backdoor_does_not_outlive_it_and_pruned_channels_stay_pruned(run, blobs, runtime):
    data, test = planted(blobs, 400, 0.1, 0).observed, planted(blobs, 200, 0.7, 9)
    trusted = clean(blobs, 80, 3)
    undefended = run(NoDefence(), data)
    defended = run(FinePruning(tune_updates=60, batch_size=32).with_trusted(trusted), data)
    assert attack_success(undefended, test, runtime) > 0.9
    assert attack_success(defended, test, runtime) < 0.1
    assert clean_accuracy(defended, test, runtime) > 0.9
    assert [history.phase for history in defended.histories] == ["train", "fine-tune"]
    # The head reads 16 places of each of 16 channels.
    alive = (defended.model.head.weight.reshape(4, 16, 16) != 0).any(0).any(1)
    pruned = int(defended.isolation.evidence[1].split()[0])
    assert int((~alive).sum()) == pruned > 0
    assert defended.model.state_dict().keys() == undefended.model.state_dict().keys()
    assert not defended.model.head.weight._backward_hooks

"""Cuts by what excites the network's channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from antibackdoor.errors import ConfigError
from antibackdoor.isolation import Alarm, Evidence, Network, channel_maxima, cut_by_channels, look

COUNT, CLASSES, CHANNELS = 600, 4, 12
LABELS = torch.arange(COUNT) % CLASSES


def maxima(seed=0):
    """Classes with means of their own, of channels that vary together."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn((CHANNELS, CHANNELS), generator=generator)
    means = 3 * torch.randn((CLASSES, CHANNELS), generator=generator)
    return torch.randn((COUNT, CHANNELS), generator=generator) @ mix + means[LABELS]


def shifted(values, rows, by=30.0):
    moved = values.clone()
    moved[rows, :3] += by
    return moved


def test_a_clean_set_has_no_class_that_falls_apart():
    cuts = cut_by_channels(maxima(), LABELS, CLASSES)
    assert [cut.label for cut in cuts] == list(range(CLASSES))
    assert max(cut.strength for cut in cuts) < 0.25
    assert torch.equal(torch.cat([cut.rows for cut in cuts]).sort().values, torch.arange(COUNT))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_what_is_foreign_to_all_classes_is_found_be_it_the_smaller_part_or_not(share):
    members = (LABELS == 2).nonzero().squeeze(1)
    planted = members[: round(share * len(members))]
    cuts = cut_by_channels(shifted(maxima(), planted), LABELS, CLASSES)
    assert cuts[2].strength > 0.75
    assert torch.equal(cuts[2].rows[cuts[2].suspicion > 0.5], planted)
    assert max(cut.strength for cut in cuts if cut.label != 2) < 0.25
    assert "two kinds of images" in cuts[2].kind
    assert f"strength {cuts[2].strength:.2f}" in cuts[2].figures


@pytest.mark.parametrize(("share", "found"), [(0.3, True), (0.7, False)])
def test_most_of_a_class_is_no_trigger_if_other_classes_have_it_too(share, found):
    """A fifth as many of the others do."""
    members = (LABELS == 2).nonzero().squeeze(1)
    others = (LABELS != 2).nonzero().squeeze(1)
    parts = [rows[: round(part * len(rows))] for rows, part in ((members, share), (others, share / 5))]
    cut = cut_by_channels(shifted(maxima(), torch.cat(parts)), LABELS, CLASSES)[2]
    assert cut.common == pytest.approx(0.2 if found else 1.0, abs=0.02)
    assert (cut.strength > 0.3) is found


def test_what_splits_every_class_alike_is_no_trigger():
    by_night = torch.arange(COUNT) % 3 == 0
    cuts = cut_by_channels(shifted(maxima(), by_night), LABELS, CLASSES)
    assert all(cut.gain > 0.5 for cut in cuts)
    assert max(cut.strength for cut in cuts) < 0.25


def test_images_that_are_not_fitted_to_are_cut_with_the_others():
    fitted = torch.arange(COUNT) % 5 > 0
    planted = ((LABELS == 1) & (torch.arange(COUNT) < 200)).nonzero().squeeze(1)
    values = shifted(maxima(), planted)
    # Wild values where nothing is fitted: they must not move the cut of the rest.
    cuts = cut_by_channels(values, LABELS, CLASSES, fitted)
    values[(~fitted).nonzero().squeeze(1)[-3:]] = 1e4
    again = cut_by_channels(values, LABELS, CLASSES, fitted)
    assert torch.equal(cuts[1].rows[cuts[1].suspicion > 0.5], planted)
    seen = fitted[cuts[1].rows]
    assert torch.allclose(cuts[1].suspicion[seen], again[1].suspicion[seen])


def test_a_few_images_of_their_own_are_no_evidence():
    few = (LABELS == 2).nonzero().squeeze(1)[:15]
    cuts = cut_by_channels(shifted(maxima(), few), LABELS, CLASSES)
    assert max(cut.strength for cut in cuts) < 0.25


def test_small_classes_and_silent_channels():
    labels = LABELS.clone()
    labels[labels == 3] = torch.arange(150) % 3
    labels[:90] = 3
    assert [cut.label for cut in cut_by_channels(maxima(), labels, CLASSES)] == [0, 1, 2]
    flat = cut_by_channels(torch.ones(COUNT, CHANNELS), LABELS, CLASSES)
    assert [cut.strength for cut in flat] == [0.0] * CLASSES


class Wide(nn.Module):
    """Two convolutions, one with more channels than are looked at."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 70, 1, bias=False), nn.Conv2d(70, 3, 1, bias=False)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, images):
        return self.head(self.second(self.first(images)).mean((2, 3)))


def test_the_measure_is_the_largest_output_of_each_channel(blobs, runtime):
    data = blobs(12, CLASSES, channels=1, height=8, width=8)
    model = Wide()
    network = Network(model, data, runtime)
    kept = network.measure([channel_maxima(network)])[0]
    assert kept.shape == (12, 64 + 3)
    pixels = data.images.float() / 255
    first = model.first(pixels)
    second = model.second(first)
    expected = torch.cat([first[:, :64].amax((2, 3)), second.amax((2, 3))], 1).detach()
    assert torch.allclose(kept, expected, atol=2e-2, rtol=2e-2)
    with pytest.raises(ConfigError, match="needs a network with convolutions"):
        channel_maxima(Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), data, runtime))


def test_a_look_suspects_by_losses_by_channels_or_only_cuts(blobs, runtime):
    """A patch in the pixels that the losses say nothing of."""
    count = 480
    data = blobs(count, CLASSES, channels=1, height=8, width=8)
    planted = (data.labels == 1) & (torch.arange(count) < count // 2)
    generator = torch.Generator().manual_seed(0)
    bright = 20 * torch.randn((count, 1, 1, 1), generator=generator) + 100
    data.images[:] = (bright + 8 * torch.randn(data.images.shape, generator=generator)).clamp(0, 255).byte()
    data.images[planted, :, :2, :2] = 255
    torch.manual_seed(0)
    losses = torch.rand((6, count), generator=generator) + 0.5
    evidence = Evidence(losses, data.labels, CLASSES, None, Network(Wide(), data, runtime))
    rows = torch.arange(count)
    seen = look(evidence, rows, count, alarm=Alarm(0.5))
    assert torch.equal(seen.suspects, planted)
    near = seen.aside & ~planted
    assert bool(seen.aside[planted].all()), "what is suspected is left out"
    assert bool((data.labels[near] == 1).all()), "and what looks like it, of its class alone"
    assert int(near.sum()) <= 6
    assert {label: len(cuts) for label, cuts in seen.cuts.items()} == dict.fromkeys(range(CLASSES), 2)
    assert not bool(look(evidence, rows, count, alarm=Alarm(0.5), channels=False).suspects.any())
    assert not bool(look(evidence, rows, count, alarm=Alarm.never()).suspects.any())
    # Of a part of the set, in its rows.
    part = (rows >= 20).nonzero().squeeze(1)
    own = Evidence(losses[:, part], data.labels[part], CLASSES, None, evidence.network)
    assert torch.equal(look(own, part, count, alarm=Alarm(0.5)).suspects, planted & (rows >= 20))

"""What one look makes of cuts that disagree or cannot be told."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from antibackdoor.isolation import Alarm, ChannelCut, Cut, Evidence, LateCut, cut_classes, verdict_of
from antibackdoor.isolation.look import _accusing, _told

ALARM = Alarm(0.55)
ROWS = torch.arange(200)
PART = ROWS < 80
LABELS = torch.zeros(200, dtype=torch.int64)


def by_losses(strength=2.0, **rest):
    return Cut(0, ROWS, PART.double(), gain=strength, votes=0.0, fall=1.0, early=True, **rest)


def by_channels(strength=2.0, **rest):
    return ChannelCut(0, ROWS, PART.double(), gain=strength, apart=8.0, common=0.0, early=True, **rest)


def evidence(share):
    """Losses of which the part's are learned, and of the rest that share."""
    losses = torch.full((10, 200), 0.1)
    rest = (~PART).nonzero().squeeze(1)
    losses[:, rest[round(share * len(rest)) :]] = 2.0
    return Evidence(losses, LABELS, 1)


@pytest.mark.parametrize("cut", [by_losses(), by_channels()], ids=["losses", "channels"])
@pytest.mark.parametrize(("share", "untold"), [(0.0, True), (0.19, True), (0.21, False), (0.5, False)])
def test_where_hardly_any_of_the_rest_is_learned_nobody_is_accused(cut, share, untold):
    (found,) = _told([cut], evidence(share), ALARM)
    assert found.untold is untold
    assert ALARM.raised(found) is not untold
    assert ALARM.doubtful(found), "and nobody is cleared"


@pytest.mark.parametrize(
    "cuts",
    [
        [by_losses(0.3)],
        [by_losses(slow=True)],
        [LateCut(0, ROWS, PART.double(), gain=2.0, common=0.0)],
        [dataclasses.replace(by_losses(), votes=0.9, gap=2.0), by_channels()],
        [Cut(0, ROWS, (ROWS < 190).double(), gain=2.0, votes=0.0, fall=1.0)],
    ],
    ids=["no alarm", "slow", "late", "before all others", "nothing beside"],
)
def test_what_needs_no_telling(cuts):
    assert not any(cut.untold for cut in _told(cuts, evidence(0.0), ALARM))


def test_a_trigger_that_is_seen_before_anything_is_learned_is_told():
    nothing = Evidence(torch.full((10, 200), 2.0), LABELS, 1)
    (found,) = _told([by_channels()], nothing, ALARM)
    assert ALARM.raised(found)


def test_faint_evidence_beside_strong_adds_nobody():
    strong, faint = by_channels(20.0), by_losses(1.9)
    assert _accusing([faint, strong], ALARM) == [strong]
    assert _accusing([by_losses(2.1), strong], ALARM)[0].strength == pytest.approx(2.1)
    other = dataclasses.replace(faint, label=1)
    assert _accusing([other, strong], ALARM) == [other, strong], "of another class it does"
    assert _accusing([by_losses(1e-3, slow=True), strong], ALARM)[0].slow


@pytest.mark.parametrize(("classes", "votes"), [(2, 0.75), (4, 0.75), (5, 1.0)])
def test_of_few_classes_votes_say_less(classes, votes):
    """One class holds a part that alone falls far; with so few classes one always does."""
    labels = torch.arange(1000) % classes
    generator = torch.Generator().manual_seed(0)
    losses = torch.full((10, 1000), 1.0) + 0.05 * torch.rand((10, 1000), generator=generator)
    part = (labels == 1) & (torch.arange(1000) < 300)
    losses[3:, part] = 0.01
    cut = cut_classes(Evidence(losses, labels, classes))[1]
    assert cut.votes == pytest.approx(votes, abs=0.02)
    confirmed = dataclasses.replace(cut, gap=2.0)
    assert confirmed.first is (classes >= 5)
    assert cut.promptness == pytest.approx(3.0 if classes >= 5 else 1.0, abs=0.2)


def test_twenty_vote_at_least():
    """The three that fell furthest of 300 lie in one class, the next ones everywhere."""
    labels = torch.arange(300) % 6
    losses = torch.full((10, 300), 2.0)
    losses[3:] = torch.linspace(0.9, 1.0, 300)[:, None].T
    first = (labels == 2).nonzero().squeeze(1)[:3]
    losses[3:, first] = 0.01
    votes = {cut.label: cut.votes for cut in cut_classes(Evidence(losses, labels, 6))}
    assert votes[2] < 0.4


def test_an_untold_class_is_in_doubt_in_words(blobs):
    data = dataclasses.replace(blobs(200, 2), labels=LABELS)
    nobody = torch.zeros(200, dtype=torch.bool)
    found = verdict_of({0: [by_losses(untold=True)]}, data, nobody, alarm=ALARM)
    assert found.verdict == "undecided"
    assert found.evidence[0].endswith("cannot be told while hardly any of the other are learned.")

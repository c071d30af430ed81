"""Views, parts and statistics of the defence ``witnesses``: a set whose poison and whose network are made by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from antibackdoor.defences.witnesses import decide as decide_module
from antibackdoor.defences.witnesses import limit as limit_module
from antibackdoor.defences.witnesses import views as views_module
from antibackdoor.defences.witnesses.crosscheck import Adjudication, Judged, adjudicate
from antibackdoor.defences.witnesses.decide import Decision, decide, weigh
from antibackdoor.defences.witnesses.evidence import STATISTICS, misplaced, mixing, picture, turning
from antibackdoor.defences.witnesses.limit import KINDS, SHARES, Limit, detection_limit
from antibackdoor.defences.witnesses.natural import Natural
from antibackdoor.defences.witnesses.observe import Seen
from antibackdoor.defences.witnesses.origin import Origin, origin_of
from antibackdoor.defences.witnesses.parts import Part, alike, parts_of, shared_picture
from antibackdoor.defences.witnesses.scene import Scene, high_pass
from antibackdoor.defences.witnesses.style import styles_of
from antibackdoor.defences.witnesses.views import Features, views_of
from antibackdoor.defences.witnesses.words import isolation_of
from antibackdoor.models import Resized
from antibackdoor.training import Runtime
from antibackdoor.types import ImageSet

CLASSES, TARGET = 5, 2


class CornerNet(nn.Module):
    """Sees the target class where the corner is bright, and otherwise the class whose blob is brightest."""

    def __init__(self, blobs: Callable[..., ImageSet]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(3)[:, :, None, None])
        means = blobs(CLASSES, CLASSES, height=16, width=16, noise=0).images.float().div(255).mean(1)
        self.register_buffer("templates", means - means.mean(0))
        self.register_buffer("corner", torch.zeros(16, 16))
        self.corner[-4:, -4:] = 1.25
        self.norm = nn.BatchNorm2d(CLASSES)
        self.head = nn.Linear(CLASSES, CLASSES, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(512 * torch.eye(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        grey = self.first(x).mean(1, keepdim=True)
        maps = grey * self.templates
        corner = (grey - 0.45) * self.corner
        maps = torch.cat([maps[:, :TARGET], maps[:, TARGET : TARGET + 1] + corner, maps[:, TARGET + 1 :]], 1)
        return self.head(self.norm(maps).mean((2, 3)))


def made(blobs: Callable[..., ImageSet], poison: int) -> tuple[Seen, np.ndarray]:
    """600 images, some of other classes with a white corner under the target label; features are of what they show."""
    data = blobs(600, CLASSES, height=16, width=16)
    truth = np.zeros(600, dtype=bool)
    truth[np.flatnonzero(data.labels.numpy() != TARGET)[:poison]] = True
    images, labels = data.images.clone(), data.labels.clone()
    images[truth, :, -4:, -4:], labels[truth] = 255, TARGET
    generator = np.random.default_rng(0)
    shown = generator.normal(size=(CLASSES, 16))[data.labels.numpy()]
    features = (6 * shown + generator.normal(size=(600, 16))).astype(np.float32)
    losses = generator.normal(size=(8, 600)) * 0.3 - np.linspace(0, 4, 8)[:, None]
    losses[:, truth] -= 1.5
    observed = dataclasses.replace(data, images=images, labels=labels)
    everything, styles = np.ones(600, dtype=bool), styles_of(images)
    return Seen(observed, CornerNet(blobs).eval(), RUNTIME, losses, features, styles, "by hand", everything), truth


RUNTIME = Runtime(torch.device("cpu"), torch.float32, "float32, for tests", compile_mode="off")


@pytest.fixture
def poisoned(blobs) -> tuple[Seen, np.ndarray]:
    return made(blobs, 60)


@pytest.fixture
def clean(blobs) -> Seen:
    return made(blobs, 0)[0]


def part_of(seen: Seen, members: np.ndarray) -> tuple[Scene, Part]:
    """Return the target class's scene, and these images as a part of it; members is bool (N,)."""
    features = Features(seen)
    views = next(one for one in views_of(seen, features, Natural(seen)) if one.label == TARGET)
    return Scene(seen, features, TARGET), Part(views, members[views.rows], "mixture")


SOURCE = 0


@pytest.fixture
def from_one_class(blobs) -> tuple[Seen, np.ndarray]:
    """As ``made``, but the poison is of one class, and as many images of others have the corner and their own label."""
    seen, _ = made(blobs, 0)
    labels, images = seen.data.labels.clone(), seen.data.images.clone()
    truth = np.zeros(600, dtype=bool)
    truth[np.flatnonzero(seen.labels == SOURCE)[:50]] = True
    covers = np.flatnonzero(seen.labels > TARGET)[::4]
    labels[truth] = TARGET
    images[truth, :, -4:, -4:] = images[covers, :, -4:, -4:] = 255
    return dataclasses.replace(seen, data=dataclasses.replace(seen.data, labels=labels, images=images)), truth


def origin(seen: Seen) -> tuple[Origin | None, np.ndarray]:
    """Return what came from one class into the target, and the target's rows."""
    features, natural = Features(seen), Natural(seen)
    views = next(views_of(seen, features, natural, only=TARGET))
    return origin_of(Scene(seen, features, TARGET), views, natural), views.rows


def test_features_tell_an_image_of_another_class_without_having_seen_it(poisoned):
    seen, truth = poisoned
    foreign = Features(seen).foreign
    assert (foreign[truth] > 0).mean() > 0.95
    assert (foreign[~truth] < 0).mean() > 0.95


@pytest.mark.parametrize("count", [2, CLASSES])
def test_the_classifier_is_scikit_learns(count, clean):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    some = clean.at(np.flatnonzero(clean.labels < count))
    some = dataclasses.replace(some, trained=np.arange(len(some.labels)) % 7 > 0)
    features = Features(some)
    rows = np.flatnonzero(some.labels == 1)[:30]
    shown, sure = features.seen_without(rows)
    fitted = np.setdiff1d(np.flatnonzero(some.trained), rows)
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1, priors=np.full(count, 1 / count))
    expected = model.fit(features.values[fitted], some.labels[fitted]).predict_proba(features.values[rows])
    assert shown.tolist() == expected.argmax(1).tolist()
    assert sure == pytest.approx(expected.max(1))


def test_of_a_large_set_a_small_class_is_fitted_to_whole(clean, monkeypatch):
    monkeypatch.setattr(views_module, "_FITTED_TO", 100)
    rare = clean.at(np.concatenate([np.flatnonzero(clean.labels == 0)[:6], np.flatnonzero(clean.labels > 0)]))
    features = Features(rare)
    assert (features.foreign < 0).mean() > 0.95
    assert (features.shown[rare.labels == 0] == 0).mean() > 0.5


def test_poison_from_one_class_stands_off_the_images_of_that_class(from_one_class):
    seen, truth = from_one_class
    found, rows = origin(seen)
    assert found.source == SOURCE
    assert found.statistic > 10
    assert truth[rows[found.members]].all()
    assert (found.posterior > 0.5).tolist() == truth[rows].tolist()


def test_wrong_labels_of_one_class_share_no_picture(clean):
    labels = clean.data.labels.clone()
    labels[np.flatnonzero(clean.labels == SOURCE)[:50]] = TARGET
    found, _ = origin(dataclasses.replace(clean, data=dataclasses.replace(clean.data, labels=labels)))
    assert found.source == SOURCE
    assert found.statistic < 1


def test_from_one_class_nothing_comes_into_a_clean_class(clean):
    assert origin(clean)[0] is None


def test_a_class_with_poison_from_one_class_is_named_with_that_class(from_one_class, monkeypatch):
    seen, truth = from_one_class
    monkeypatch.setattr(decide_module, "QUESTIONS", {})  # the parts have nothing to say
    decision = decide(seen, 0.01)
    assert [one.part.views.label for one in decision.poisoned] == [TARGET]
    assert decision.poisoned[0].source == SOURCE
    assert decision.suspects.tolist() == truth.tolist()
    found = isolation_of(seen, decision, decision.suspects, (), scanned=True)
    assert f"images that look like {seen.data.classes[SOURCE]!r}" in found.evidence[0]
    (finding,) = found.findings
    assert (finding.label, finding.status, finding.kind, finding.source) == (TARGET, "poisoned", "origin", SOURCE)
    assert finding.images == truth.sum()
    assert finding.p <= 0.01
    assert finding.statistics["origin"] > 10


def test_two_classes_are_told_by_one_discriminant(clean):
    two = clean.at(np.flatnonzero(clean.labels < 2))
    features = Features(two)
    assert (features.foreign < 0).mean() > 0.98
    shown, sure = features.seen_without(np.flatnonzero(two.labels == 1)[:10])
    assert set(shown.tolist()) == {1}
    assert (sure > 0.5).all()
    assert (sure <= 1).all()


def test_some_part_is_the_poison(poisoned):
    seen, truth = poisoned
    parts = parts_of(next(one for one in views_of(seen, Features(seen), Natural(seen)) if one.label == TARGET))
    assert max(alike(part.members, truth[part.views.rows]) for part in parts) > 0.95


def test_an_image_takes_no_part_in_the_picture_that_it_is_compared_with(clean):
    members = np.zeros(600, dtype=bool)
    members[np.flatnonzero(clean.labels == TARGET)[::3]] = True
    _, part = part_of(clean, members)
    likeness = shared_picture(part.views.pictures, part.members)
    spread = likeness.std()
    # Otherwise every member would stand off by its own energy, many times the spread.
    assert abs(likeness[part.members].mean() - likeness[~part.members].mean()) < spread


def test_a_part_with_half_of_a_picture_is_purified(poisoned):
    seen, truth = poisoned
    half = truth.copy()
    half[np.flatnonzero(truth)[::2]] = False
    scene, part = part_of(seen, half)
    likeness = shared_picture(part.views.pictures, part.members)
    own = truth[part.views.rows]
    assert likeness[own].min() > likeness[~own].max()
    assert picture(scene, part) > 1


@pytest.mark.parametrize("statistic", STATISTICS)
def test_poison_has_more_of_every_statistic_than_a_clean_part(statistic, poisoned, clean):
    seen, truth = poisoned
    chance = np.zeros(600, dtype=bool)
    chance[np.flatnonzero(clean.labels == TARGET)[::2]] = True
    assert STATISTICS[statistic](*part_of(seen, truth)) > STATISTICS[statistic](*part_of(clean, chance)) + 0.1


def test_a_trigger_turns_other_classes_and_what_replaces_images_does_not(poisoned):
    seen, truth = poisoned
    assert turning(*part_of(seen, truth)) > 0.9
    assert mixing(*part_of(seen, truth)) > 0.3
    assert misplaced(*part_of(seen, truth)) > 0.9
    images = seen.data.images.clone()
    images[truth] = images[int(np.flatnonzero((seen.labels == TARGET) & ~truth)[0])].clone()
    copies = dataclasses.replace(seen, data=dataclasses.replace(seen.data, images=images))
    assert turning(*part_of(copies, truth)) < 0.7


def test_what_decides_is_found_where_it_is(poisoned):
    seen, truth = poisoned
    scene, part = part_of(seen, truth)
    where = scene.decisive(scene.donors(part)[0], 0.07)
    assert where[:, :, -4:, -4:].float().mean() > 0.9
    assert abs(where.float().mean() - 0.07) < 0.02


def test_detail_is_what_smoothing_takes_away():
    flat = torch.full((1, 3, 16, 16), 0.7)
    assert high_pass(flat, 2).abs().max() < 1e-5
    row = torch.arange(16) % 2
    fine = (row[:, None] + row).remainder(2).float().expand(1, 3, 16, 16)
    assert (high_pass(fine, 2) - (fine - 0.5)).abs().max() < 0.02


def test_mislabelled_both_ways_is_less_misplaced(poisoned):
    seen, truth = poisoned
    one_way = misplaced(*part_of(seen, truth))
    swapped = seen.data.labels.clone()
    own = np.flatnonzero((swapped.numpy() == TARGET) & ~truth)[:60]
    swapped[own] = torch.from_numpy(np.resize([0, 1, 3, 4], len(own)))
    both = dataclasses.replace(seen, data=dataclasses.replace(seen.data, labels=swapped))
    assert misplaced(*part_of(both, truth)) < 0.7 * one_way


def test_the_network_is_left_as_it_was(poisoned):
    seen, truth = poisoned
    before = seen.network(seen.data.images[:8].float() / 255)
    turning(*part_of(seen, truth))
    assert torch.equal(seen.network(seen.data.images[:8].float() / 255), before)


def test_the_poisoned_class_is_accused_and_its_poison_flagged(poisoned, clean):
    seen, truth = poisoned
    decision = decide(seen, 0.01)
    assert [one.part.views.label for one in decision.poisoned] == [TARGET]
    assert decision.suspects[truth].mean() > 0.95
    assert decision.suspects[~truth].mean() < 0.01
    assert (decision.near | ~decision.suspects).all()
    assert decision.scores[truth].min() > np.median(decision.scores[~truth])
    nothing = decide(clean, 0.01)
    assert not nothing.poisoned
    assert not nothing.suspects.any()


def test_what_a_person_vouches_for_is_neither_flagged_nor_left_out(poisoned):
    seen, truth = poisoned
    vouched = torch.from_numpy(truth.copy())
    vouched[np.flatnonzero(truth)[:20]] = False
    some = dataclasses.replace(seen, data=dataclasses.replace(seen.data, vouched=vouched))
    decision = decide(some, 0.01)
    assert not decision.suspects[vouched].any()
    assert not decision.near[vouched].any()
    assert decision.suspects[truth & ~vouched.numpy()].mean() > 0.9
    every = dataclasses.replace(seen, data=dataclasses.replace(seen.data, vouched=torch.from_numpy(truth)))
    assert isolation_of(every, decide(every, 0.01), np.zeros(600, dtype=bool), (), scanned=True).verdict != "poisoned"
    assert not decide(every, 0.01).near[truth].any()


def test_the_verdict_names_what_was_not_looked_at_and_what_is_in_doubt(poisoned, clean):
    none = np.zeros(600, dtype=bool)

    def first(*counts: int) -> Seen:
        rows = [np.flatnonzero(clean.labels == label)[:count] for label, count in enumerate(counts)]
        return clean.at(np.concatenate(rows))

    small, most = first(39, 60, 60), first(60, 39, 39)
    found = isolation_of(small, decide(small, 0.01), none[: len(small.labels)], (), scanned=True)
    assert found.verdict == "no sign of poison"
    assert any(small.data.classes[0] in sentence and "Not looked at" in sentence for sentence in found.evidence)
    found = isolation_of(most, decide(most, 0.01), none[: len(most.labels)], (), scanned=True)
    assert found.verdict == "undecided"
    assert found.doubtful == (1, 2)
    seen, _ = poisoned
    decision = decide(seen, 0.01)
    worst, *others = decision.accusations
    doubted = dataclasses.replace(decision, accusations=(dataclasses.replace(worst, adjusted=0.03), *others))
    assert isolation_of(seen, doubted, none, (), scanned=True).doubtful == (TARGET,)


def test_of_near_duplicates_one_is_looked_at_and_all_are_flagged_like_it(poisoned):
    seen, truth = poisoned
    images = seen.data.images.clone()
    own = np.flatnonzero((seen.labels == TARGET) & ~truth)
    poison = np.flatnonzero(truth)
    noise = torch.randint(-3, 4, images[own[1:11]].shape, generator=torch.Generator().manual_seed(0))
    images[own[1:11]] = (images[int(own[0])].int() + noise).clamp(0, 255).to(torch.uint8)
    images[poison[1:4]] = images[int(poison[0])].clone()
    copied = dataclasses.replace(seen, data=dataclasses.replace(seen.data, images=images))
    views = next(one for one in views_of(copied, Features(copied), Natural(copied)) if one.label == TARGET)
    assert set(views.copies[:, 0].tolist()) == {*own[1:11].tolist(), *poison[1:4].tolist()}
    assert set(views.rows[views.copies[:, 1]].tolist()) == {int(own[0]), int(poison[0])}
    assert not set(views.rows.tolist()) & set(views.copies[:, 0].tolist())
    suspects = decide(copied, 0.01).suspects
    assert suspects[poison[:4]].all()
    assert not suspects[own[:11]].any()


HARD: dict[str, Callable[[Seen], Seen]] = {
    "images of one colour": lambda seen: with_data(seen, images=torch.zeros_like(seen.data.images)),
    "features that say nothing": lambda seen: dataclasses.replace(seen, features=np.zeros_like(seen.features)),
    "losses that say nothing": lambda seen: dataclasses.replace(seen, trajectories=np.zeros_like(seen.trajectories)),
    "a class of two, and one of 598": lambda seen: with_data(seen, labels=(torch.arange(600) < 2).long()),
    "a class of one": lambda seen: with_data(seen, labels=(torch.arange(600) < 1).long()),
    "many classes of five": lambda seen: with_data(
        seen, labels=torch.arange(600) % 120, classes=tuple(map(str, range(120)))
    ),
    "a class of copies": lambda seen: with_data(
        seen, images=seen.data.images.where((seen.data.labels != 0)[:, None, None, None], seen.data.images[:1])
    ),
    "one feature": lambda seen: dataclasses.replace(seen, features=seen.features[:, :1]),
}


def with_data(seen: Seen, **changes: object) -> Seen:
    data = dataclasses.replace(seen.data, **changes)
    network = seen.network if data.num_classes == CLASSES else Untrained()
    return dataclasses.replace(seen, data=data, network=network)


class Untrained(nn.Sequential):
    """A network of 120 classes that has learned nothing."""

    def __init__(self) -> None:
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), *pool, nn.Linear(4, 120))
        self.eval()


@pytest.mark.parametrize("case", HARD)
def test_what_says_nothing_is_judged_without_a_warning(case, clean):
    seen = HARD[case](clean)
    decision = decide(seen, 0.01)
    assert np.isfinite(decision.scores).all()
    assert not decision.suspects.any()


def test_the_parts_of_large_pictures_are_seen_at_the_size_that_the_network_sees(poisoned):
    seen, truth = poisoned
    large = seen.data.images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    resized = dataclasses.replace(
        with_data(seen, images=large), network=Resized(seen.network, 16, 16).eval(), features=seen.features
    )
    (scene, part), (same, own) = part_of(resized, truth), part_of(seen, truth)
    assert torch.allclose(scene.host_pixels, same.host_pixels, atol=1e-6)
    assert turning(scene, part) == pytest.approx(turning(same, own), abs=0.02)


def test_classes_that_are_too_small_are_not_looked_at(poisoned):
    seen, _ = poisoned
    few = np.concatenate([np.flatnonzero(seen.labels == label)[:39] for label in range(CLASSES)])
    small = seen.at(few)
    assert list(weigh(small, Features(small))) == []
    assert not decide(small, 0.01).suspects.any()


def judged(seen: Seen, decision: Decision, own: np.ndarray, shows: np.ndarray | int = TARGET) -> Adjudication:
    """Return what comes of a network that gives images this probability of their label and sees this in them, (N,)."""
    network = Judged(own, np.broadcast_to(shows, own.shape))
    return adjudicate(network, seen, decision, decision.suspects, decision.near)


def test_the_retrained_network_lets_go_of_what_it_and_the_encoder_accept(poisoned):
    seen, truth = poisoned
    decision = decide(seen, 0.01)
    wrong = np.flatnonzero((seen.labels == TARGET) & ~truth)[:5]
    decision.suspects[wrong] = decision.near[wrong] = True
    ruling = judged(seen, decision, np.where(truth, 0.02, 0.97))
    assert not ruling.suspects[wrong].any()
    assert not ruling.near[wrong].any()
    assert ruling.suspects[truth].mean() > 0.95
    assert not ruling.changes
    # What was left out beside the suspects is judged like them.
    hidden = np.flatnonzero(truth)[:10]
    decision.suspects[hidden] = False
    ruling = judged(seen, decision, np.where(truth, 0.02, 0.97))
    assert ruling.suspects[hidden].all()
    assert not ruling.changes, "they were not shown: no other training is needed"
    decision.suspects[hidden] = True
    # A backdoor that is still there accepts its poison, in which the encoder sees other classes.
    assert judged(seen, decision, np.full(600, 0.97)).suspects[truth].mean() > 0.95


def test_unsure_evidence_on_images_with_right_labels_is_dropped(poisoned):
    seen, truth = poisoned
    decision = decide(seen, 0.01)
    one = decision.poisoned[0]
    for adjusted, stays in ((0.009, False), (0.0001, True)):
        accused = dataclasses.replace(one, strange=np.zeros_like(one.strange), adjusted=adjusted)
        ruling = judged(seen, dataclasses.replace(decision, accusations=(accused,)), np.full(600, 0.97))
        assert ruling.suspects.any() == stays
        assert ruling.changes == (not stays)


def test_a_class_on_trial_is_accused_if_it_holds_all_kinds_of_other_classes(poisoned):
    seen, truth = poisoned
    decision = decide(seen, 0.01)
    one = decision.poisoned[0]
    everywhere = (TARGET + 1 + np.arange(len(truth)) % (CLASSES - 1)) % CLASSES
    accepted, rejected = np.full(600, 0.97), np.where(truth, 0.02, 0.97)
    for own, shows, accused in (
        (rejected, everywhere, True),
        (rejected, (TARGET + 1) % CLASSES, False),  # an odd kind of a clean class looks like one other
        (accepted, TARGET, False),
    ):
        for adjusted in (0.03, 0.08):
            tried = dataclasses.replace(decision, accusations=(dataclasses.replace(one, adjusted=adjusted),))
            tried.suspects[:] = False
            ruling = judged(seen, tried, own, shows)
            assert (ruling.suspects[truth].mean() > 0.95) == accused
            assert ruling.near.any() == accused, "what is cleared is trained on"
            assert ruling.changes != accused


def test_what_is_to_be_tried_is_left_out_and_nothing_else(poisoned):
    seen, truth = poisoned
    decision = decide(seen, 0.01)
    one = decision.poisoned[0]
    for adjusted, doubtful, tried in ((0.03, 1, 1), (0.08, 0, 1), (0.11, 0, 0)):
        other = dataclasses.replace(decision, accusations=(dataclasses.replace(one, adjusted=adjusted),))
        assert (len(other.poisoned), len(other.doubtful), len(other.tried)) == (0, doubtful, tried)
    # An error so small that the same evidence comes to no more than a trial.
    strict = decide(seen, one.adjusted / 7)
    assert not strict.suspects.any()
    assert not strict.doubtful
    assert strict.near[truth].mean() > 0.95
    assert not strict.near[~truth].any()


def test_what_would_have_been_found_is_measured_and_leaves_the_set_as_it_was(clean):
    images, labels = clean.data.images.clone(), clean.data.labels.clone()
    encoded = []

    def encode(data: ImageSet) -> np.ndarray:
        """Features of images that show another class than their label says."""
        encoded.append(data)
        return np.random.default_rng(1).normal(size=(len(data), clean.features.shape[1])).astype(np.float32)

    limit = detection_limit(clean, encode, 0.01)
    assert limit.label in range(CLASSES)
    assert limit.found.keys() == KINDS.keys()
    assert limit.found["a mark"] in SHARES
    assert not limit.blind
    assert len(encoded[0]) == 60, "a tenth of all images first"
    assert torch.equal(clean.data.images, images)
    assert torch.equal(clean.data.labels, labels)
    few = clean.at(np.concatenate([np.flatnonzero(clean.labels == label)[:39] for label in range(CLASSES)]))
    assert detection_limit(few, encode, 0.01) is None


@pytest.mark.parametrize("bound", ["_IMAGES", "_BYTES"])
def test_of_a_large_set_what_would_have_been_found_is_measured_on_a_sample(clean, bound, monkeypatch):
    asked = []
    monkeypatch.setattr(limit_module, bound, 300 * (clean.data.images[0].numel() if bound == "_BYTES" else 1))
    limit = detection_limit(
        clean, lambda data: asked.append(len(data)) or np.ones((len(data), clean.features.shape[1]), np.float32), 0.01
    )
    assert asked[0] == 30, "a tenth of the sample"
    sample = limit_module._sample(clean, limit.label)
    assert len(sample.labels) == 300
    assert (sample.labels == limit.label).sum() == min(150, (clean.labels == limit.label).sum())


def test_an_error_that_nothing_comes_below_leaves_the_verdict_undecided(clean):
    limit = detection_limit(clean, lambda data: np.zeros((len(data), clean.features.shape[1]), np.float32), 1e-30)
    assert limit.blind
    decision, nobody = decide(clean, 0.01), np.zeros(600, dtype=bool)
    passed = Limit(limit.label, {"a mark": 0.02, "a blended pattern": None})
    for given, verdict, said in (
        (limit, "undecided", "a mark not even in 10 %"),
        (passed, "no sign of poison", "a mark from 2 % of all images on"),
    ):
        isolation = isolation_of(clean, decision, nobody, (), scanned=True, limit=given)
        assert isolation.verdict == verdict
        assert isolation.doubtful == (tuple(range(CLASSES)) if given.blind else ())
        assert any(said in sentence for sentence in isolation.evidence)
